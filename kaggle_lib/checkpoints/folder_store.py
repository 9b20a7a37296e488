"""The store in a folder, on a disk or a mount that outlives the machine: see FolderStore."""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from kaggle_lib.checkpoints import manifest as manifests
from kaggle_lib.checkpoints import retention
from kaggle_lib.checkpoints.folder_layout import Layout
from kaggle_lib.checkpoints.lease import Lease, lost, refusal
from kaggle_lib.checkpoints.manifest import Manifest
from kaggle_lib.checkpoints.store import Kind, Stored, StoreState
from kaggle_lib.errors import CheckpointError, StoreError
from kaggle_lib.files import fsync_directory, replace_folder, set_aside, write_bytes, write_json


class FolderStore:
    """`<path>/<run>/`; see Store for the methods.

    `clock` gives seconds since 1970. Machines that share the folder must agree on the time to a few minutes.
    """

    def __init__(self, path: Path | str, run: str, clock: Callable[[], float] = time.time) -> None:
        self._files, self._run, self._clock = Layout(Path(path) / run), run, clock

    @property
    def place(self) -> str:
        return str(self._files.root)

    def peek(self) -> StoreState:
        files = self._files
        with files.reporting("read"):
            config = files.config()
            if config is None:
                return StoreState()
            head = files.head()
            return StoreState(
                config=config,
                lineage=config["lineage"],
                ledger=files.ledger(),
                lease=files.lease(),
                head=head["head"] if head else None,
                checkpoints=files.stored(),
                bytes=files.bytes(),
                now=self._clock(),
            )

    def runs(self) -> list[str]:
        return sorted(path.parent.name for path in self._files.root.parent.glob("*/config.json"))

    def claim(self, config: dict[str, Any], lease: Lease, lineage: str, take_over: str | None = None) -> FolderClaim:
        files = self._files
        with files.reporting("claimed"):
            files.create()
            with files.lock():
                held = files.lease()
                if held and held.session != take_over and not held.expired(self._clock()) and not held.provably_dead():
                    raise refusal(self._run, held, self._clock(), take_over)
                files.clean()
                if files.config() is None:
                    write_json(files.config_json, {**config, "lineage": lineage})
                return FolderClaim(files, self._run, self._clock, lease)

    def fetch(self, stored: Stored, into: Path) -> Manifest:
        aside = into.with_name(f".{into.name}.incoming")
        try:
            with self._files.reporting("read"):
                into.parent.mkdir(parents=True, exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                manifest = manifests.copy(self._files.checkpoint(stored.step), aside)
                aside.rename(into)
                fsync_directory(into.parent)
                return manifest
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def fetch_events(self, into: Path) -> None:
        with self._files.reporting("read"):
            into.mkdir(parents=True, exist_ok=True)
            _copy_events(self._files.events, into)

    def fetch_kind(self, kind: Kind, into: Path) -> bool:
        with self._files.reporting("read"):
            if not self._files.entries(kind):
                return False
            into.parent.mkdir(parents=True, exist_ok=True)
            replace_folder(self._files.kind(kind), into)
            return True


class FolderClaim:
    """See Claim. Made by FolderStore.claim, which holds the store's lock then."""

    notice: str | None = None

    def __init__(self, files: Layout, run: str, clock: Callable[[], float], lease: Lease) -> None:
        self._files, self._run, self._clock, self._lease = files, run, clock, lease
        self._head = self._next = ""
        self._committed_at: float | None = None
        self._move("claim")

    @property
    def lease(self) -> Lease:
        return self._lease

    @property
    def head(self) -> str:
        return self._head

    def due(self) -> bool:
        return self._lease.due(self._clock())

    def commit(self, checkpoint: Path, ledger: dict[str, Any], events: Path) -> str | None:
        manifest = Manifest.read(checkpoint)
        target, doing = self._files.checkpoint(manifest.step), f"given step {manifest.step}"
        aside = self._files.checkpoints / f".incoming-{secrets.token_hex(8)}"
        notice = None
        try:
            with self._writing(doing):
                pass  # a session that was taken over copies nothing
            with self._reporting(doing):  # without the lock, for this takes its time: `renew` goes on beside it
                state = _state(target, manifest)
                if state != "equal":
                    manifests.copy(checkpoint, aside)
            with self._writing(doing):
                if state in ("damaged", "different"):
                    kept = set_aside(target, state)
                    notice = f"The store's checkpoint of step {manifest.step} was {state}; it is kept as {kept}."
                if state != "equal":
                    aside.rename(target)
                    fsync_directory(target.parent)
                self._record(ledger, events)
                now = self._clock()
                interval = None if self._committed_at is None else now - self._committed_at
                self._move(f"step {manifest.step}", interval)
                self._committed_at = now
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return notice

    def renew(self, ledger: dict[str, Any], events: Path) -> None:
        with self._writing("written"):
            self._record(ledger, events)
            self._move("renewal")

    def put(self, kind: Kind, folder: Path) -> None:
        with self._writing(f"given the {kind}"):
            replace_folder(folder, self._files.kind(kind))
            self._move(kind)

    def free(self, keep: int, best: bool = True) -> list[int]:
        files = self._files
        with self._writing("freed of old checkpoints"):
            lineage = (files.config() or {}).get("lineage")
            freed = retention.superfluous(retention.good(files.stored(), lineage), keep, best)
            for step in freed:
                files.remove_checkpoint(step)
        return freed

    def release(self, reason: str, ledger: dict[str, Any], events: Path) -> None:
        with self._writing("released"):
            self._record(ledger, events)
            self._move(f"release: {reason}")
            self._files.lease_json.unlink()
            fsync_directory(self._files.root)

    @contextmanager
    def _writing(self, doing: str) -> Iterator[None]:
        with self._reporting(doing), self._files.lock():  # between threads, too
            self._check()
            yield

    @contextmanager
    def _reporting(self, doing: str) -> Iterator[None]:
        """A failing file system is a StoreError, unless it fails because the run was taken over: LeaseLost."""
        try:
            with self._files.reporting(doing):
                yield
        except StoreError:
            # A store that cannot even be looked at accuses nobody.
            with suppress(OSError, StoreError):
                if self._files.lease_json.exists():
                    self._check()
            raise

    def _check(self) -> None:
        lease, head = self._files.lease(), self._files.head()
        mine = self._lease.session
        if lease and lease.session == mine and head and head["head"] in (self._head, self._next):
            self._head = head["head"]  # a move that failed half-way may have landed
            return
        if lease and lease.session != mine:
            session, host = lease.session, lease.host
        else:
            session, host = (head["session"], head["host"]) if head else ("unknown", "an unknown host")
        raise lost(self._run, mine, session, host)

    def _record(self, ledger: dict[str, Any], events: Path) -> None:
        session = self._lease.session
        _copy_events(events, self._files.events, own=session)
        write_json(self._files.root / "ledger" / f"{session}.json", ledger)

    def _move(self, what: str, save_interval: float | None = None) -> None:
        """Renew the lease and move the head: the last thing that each write does."""
        now = self._clock()
        self._lease = self._lease.renewed(now, save_interval)
        write_json(self._files.lease_json, self._lease.model_dump())
        self._next = secrets.token_hex(16)
        by = {"session": self._lease.session, "host": self._lease.host}
        write_json(self._files.head_json, {"head": self._next, **by, "what": what, "time": now})
        self._head = self._next


def _state(target: Path, manifest: Manifest) -> str:
    """What is at `target`, against the checkpoint to be put there: missing, equal, different or damaged."""
    if not target.exists():
        return "missing"
    try:
        stored = manifests.verify(target)
    except CheckpointError:
        return "damaged"
    return "equal" if stored.files == manifest.files else "different"


def _copy_events(source: Path, target: Path, own: str | None = None) -> None:
    """Copy the segments that are missing or shorter in `target`; a session's `own` always, for it alone writes it."""
    for path in sorted(source.glob("*.jsonl")):
        there = target / path.name
        if path.stem == own or not there.exists() or there.stat().st_size < path.stat().st_size:
            write_bytes(there, path.read_bytes())
