"""The files of a store in a folder: where they lie, how they are read, and the lock under which they are written.

`<root>/`: `config.json` · `lease.json` · `head.json` · `ledger/<session>.json` · `events/<session>.jsonl` ·
`checkpoints/step-00000050/` · `evaluation/` · `report/`. Nothing in them names the folder's place, so it may be moved.
What has its final name is complete; a kill leaves names that begin with a dot, which the next claim removes.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from filelock import FileLock, Timeout
from pydantic import ValidationError

from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.manifest import Manifest, folder_name, step_of
from kaggle_lib.checkpoints.store import Kind, Stored
from kaggle_lib.errors import CheckpointError, StoreError
from kaggle_lib.files import fsync_directory, read_json, repair_folder

LOCK_SECONDS = 60.0  # the lock is held for renames and small files only
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
RESTORE = "Restore it from a copy of the store, or start another run (run=NAME)."
KEPT = "Everything committed before is kept."


@dataclass(frozen=True)
class Layout:
    """One run's folder on the store. Its methods raise OSError where the file system fails: see `reporting`."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def events(self) -> Path:
        return self.root / "events"

    @property
    def config_json(self) -> Path:
        return self.root / "config.json"

    @property
    def lease_json(self) -> Path:
        return self.root / "lease.json"

    @property
    def head_json(self) -> Path:
        return self.root / "head.json"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / folder_name(step)

    def kind(self, kind: Kind) -> Path:
        return self.root / kind

    def create(self) -> None:
        for name in ("checkpoints", "events", "ledger"):
            (self.root / name).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def reporting(self, doing: str) -> Iterator[None]:
        """A failing file system becomes a StoreError: "The store … cannot be `doing`"."""
        try:
            yield
        except Timeout:
            problem, todo = f"another process has held its lock for {LOCK_SECONDS:.0f} seconds", "Try again."
            raise StoreError(f"The store {self.root} cannot be {doing}: {problem}.", kept=KEPT, todo=todo) from None
        except OSError as error:
            problem = (error.strerror or str(error)) + (f" ({error.filename})" if error.filename else "")
            todo = "Free space there and run again." if error.errno in FULL else "Put that right and run again."
            raise StoreError(f"The store {self.root} cannot be {doing}: {problem}.", kept=KEPT, todo=todo) from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        self.root.stat()  # FileLock would make a store anew that has gone away
        with FileLock(self.root / ".lock", timeout=LOCK_SECONDS):
            yield

    def entries(self, name: str) -> list[Path]:
        """What is complete in the folder `name`, by name; nothing where there is no such folder."""
        try:
            return sorted(path for path in (self.root / name).iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []

    def config(self) -> dict[str, Any] | None:
        path = self.config_json
        try:
            config = _object(path)
        except FileNotFoundError:
            # Written by the first claim before anything else: without it the rest cannot be told from another run's.
            if self.entries("checkpoints") or self.entries("ledger"):
                what = f"The store {self.root} holds a run, but its config.json is missing."
                raise StoreError(what, kept="Nothing was changed.", todo=RESTORE) from None
            return None
        if not isinstance(config.get("lineage"), str):
            raise _damaged(path)
        return config

    def lease(self) -> Lease | None:
        path = self.lease_json
        try:
            return Lease.model_validate(_object(path))
        except FileNotFoundError:
            return None
        except ValidationError:
            raise _damaged(path) from None

    def head(self) -> dict[str, Any] | None:
        path = self.head_json
        try:
            head = _object(path)
        except FileNotFoundError:
            return None
        if not all(isinstance(head.get(name), str) for name in ("head", "session", "host")):
            raise _damaged(path)
        return head

    def ledger(self) -> list[dict[str, Any]]:
        return [_object(path) for path in self.entries("ledger") if path.suffix == ".json"]

    def stored(self) -> list[Stored]:
        """All checkpoints, newest first, by a look at their manifests, names and sizes."""
        found = []
        for path in reversed(self.entries("checkpoints")):
            if (step := step_of(path.name)) is None:
                continue
            try:
                manifest = Manifest.read(path)
            except CheckpointError as error:
                if path.exists():  # not removed by the holder a moment ago
                    found.append(Stored(step, "", 0, None, (error.file, error.reason)))
                continue
            problem = manifest.problem(path, hashed=False)
            if problem is None or path.exists():
                found.append(Stored(step, manifest.nonce, manifest.bytes, manifest, problem))
        return found

    def bytes(self) -> int:
        """The sizes of all files, less what the holder removes meanwhile."""
        total = 0
        for folder, _, names in os.walk(self.root):
            for name in names:
                with suppress(FileNotFoundError):
                    total += (Path(folder) / name).stat().st_size
        return total

    def remove_checkpoint(self, step: int) -> None:
        """Its name goes first, so that half of a checkpoint is never seen."""
        outgoing = self.checkpoints / f".outgoing-{folder_name(step)}"
        self.checkpoint(step).rename(outgoing)
        fsync_directory(self.checkpoints)
        shutil.rmtree(outgoing)

    def clean(self) -> None:
        """Remove what killed sessions left behind; only for the holder of the lock, who has the lease."""
        for kind in get_args(Kind):
            repair_folder(self.root / kind)
        for pattern in (".*.tmp", "*/.*.tmp", "checkpoints/.incoming-*", "checkpoints/.outgoing-*"):
            for path in self.root.glob(pattern):
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()


def _object(path: Path) -> dict[str, Any]:
    try:
        value = read_json(path)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise _damaged(path)
    return value


def _damaged(path: Path) -> StoreError:
    return StoreError(f"The store's file {path} is damaged.", kept="Nothing was changed.", todo=RESTORE)
