"""A run's branch on the Hub: which files lie where in it, and what they say.

`run/<name>`: `config.json` · `lease.json` · `head.json` · `ledger.json` · `events/<session>.jsonl` ·
`checkpoints/step-00000050/` · `evaluation/` · `report/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd
from pydantic import ValidationError

from kaggle_lib.checkpoints.hub_client import KEPT, Failures, explain, within
from kaggle_lib.checkpoints.hub_head import Head
from kaggle_lib.checkpoints.hub_repo import Damaged, Repo, Tree
from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.manifest import NAME, Manifest, damaged, folder_name, parse, step_of
from kaggle_lib.checkpoints.store import Stored
from kaggle_lib.config import is_hub_id
from kaggle_lib.errors import CheckpointError, ConfigError, StoreError
from kaggle_lib.files import dump_json

CONFIG, LEASE, LEDGER, HEAD = "config.json", "lease.json", "ledger.json", "head.json"
RESTORE = "Restore it from the branch's history, or start another run (run=NAME)."
SMALL = 120.0  # seconds for all but content
SLOWEST = 100_000  # bytes a second: content that comes and goes at less than that is given up
# git-check-ref-format(1), for a name of letters, digits, dot, dash and underscore.
BRANCH = re.compile(r"(?!\.)(?!.*\.\.)(?!.*\.(lock)?$)[A-Za-z0-9._-]{1,64}")


class Branch:
    """What HubStore and HubClaim share. `clock` gives seconds since 1970, by the Hub's clock."""

    def __init__(self, repo_id: str, run: str, token: str | None, clock: Callable[[], float], seconds: float) -> None:
        if not is_hub_id(repo_id) or "/" not in repo_id:
            raise ConfigError([f"store: {repo_id!r} is no repo of the Hub. Give hf://user/repo"])
        if not BRANCH.fullmatch(run):
            raise ConfigError([f"run: {run!r} cannot be a branch on the Hub. Take another name"])
        self.run, self.clock, self._seconds = run, clock, seconds
        self.place = f"hf://{repo_id}@run/{run}"
        self.repo = Repo(repo_id, f"run/{run}", token)
        self.head = Head(self.repo)
        self._manifests: dict[str, bytes] = {}  # by git's hash

    @contextmanager
    def doing(self, what: str, size: int = 0) -> Iterator[None]:
        """All waits inside end in time for `size` bytes; a failure is a StoreError: "… cannot be `what`"."""
        try:
            with within(min(self._seconds, SMALL + size / SLOWEST)):
                yield
        except Damaged as error:
            raise StoreError(f"The store {self.place} cannot be {what}: {error}.", kept=KEPT, todo=RESTORE) from error
        except Failures as error:
            raise explain(error, self.place, what, self.repo.token) from error

    def object(self, tree: Tree, path: str) -> dict[str, Any] | None:
        """The JSON object in a file; None: there is no such file. Raises Damaged for anything else in it."""
        if path not in tree.files:
            return None
        try:
            value = json.loads(self.repo.read(tree, path))
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise Damaged(path, "is damaged")
        return value

    def config(self, tree: Tree) -> dict[str, Any] | None:
        config = self.object(tree, CONFIG)
        # Written by the first claim before anything else: without it the rest cannot be told from another run's.
        if config is None and (HEAD in tree.files or tree.under("checkpoints")):
            what = f"The store {self.place} holds a run, but its {CONFIG} is missing."
            raise StoreError(what, kept="Nothing was changed.", todo=RESTORE)
        if config is not None and not isinstance(config.get("lineage"), str):
            raise Damaged(CONFIG, "is damaged")
        return config

    def lease(self, tree: Tree) -> Lease | None:
        found = self.object(tree, LEASE)
        try:
            return None if found is None else Lease.model_validate(found)
        except ValidationError:
            raise Damaged(LEASE, "is damaged") from None

    def stored(self, tree: Tree) -> list[Stored]:
        """All checkpoints, newest first, by their manifests and by the sizes and hashes that the Hub tells."""
        names = {name.split("/")[0] for name in tree.under("checkpoints")}
        found = []
        for step in sorted((step for name in names if (step := step_of(name)) is not None), reverse=True):
            try:
                manifest = self.manifest(tree, step)
            except CheckpointError as error:
                found.append(Stored(step, "", 0, None, (error.file, error.reason)))
                continue
            found.append(Stored(step, manifest.nonce, manifest.bytes, manifest, self.problem(tree, manifest)))
        return found

    def manifest(self, tree: Tree, step: int) -> Manifest:
        """Raises CheckpointError where it is missing or damaged."""
        folder = Path(folder_name(step))
        file = tree.files.get(path := f"checkpoints/{folder.name}/{NAME}")
        if file is None:
            raise damaged(folder, NAME, "is missing, so the save was never finished")
        if file.oid not in self._manifests:
            try:
                self._manifests[file.oid] = self.repo.read(tree, path)
            except Damaged as error:
                raise damaged(folder, NAME, error.reason) from None
        return parse(self._manifests[file.oid], folder)

    def problem(self, tree: Tree, manifest: Manifest) -> tuple[str, str] | None:
        """(file, reason) of the first file that is not what the manifest says; the hash only of those in LFS or Xet."""
        files = tree.under(f"checkpoints/{folder_name(manifest.step)}")
        for name, entry in manifest.files.items():
            reason = files[name].problem(entry.size, entry.sha256) if name in files else "is missing"
            if reason:
                return name, reason
        return None


def added(path: str, source: Path | bytes | dict[str, Any]) -> CommitOperationAdd:
    """A file to be committed: a local one, bytes, or an object as JSON."""
    content = dump_json(source).encode("utf-8") if isinstance(source, dict) else source
    return CommitOperationAdd(path, content)
