"""A run's branch on the Hub: which files lie where in it, and what they say.

`run/<name>`: `config.json` · `lease.json` · `head.json` · `ledger.json` · `events/<session>.jsonl` ·
`checkpoints/step-00000050/` · `evaluation/` · `report/`. Where a checkpoint's folder has a `payload.json`, its files
but for the manifest are in a bucket.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd
from pydantic import ValidationError

from kaggle_lib.checkpoints import hub_bucket
from kaggle_lib.checkpoints.hub_bucket import Bucket, Payload
from kaggle_lib.checkpoints.hub_client import KEPT, Failures, explain, within
from kaggle_lib.checkpoints.hub_head import Head
from kaggle_lib.checkpoints.hub_repo import Damaged, Repo, Tree
from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.manifest import NAME, Manifest, damaged, folder_name, parse, step_of
from kaggle_lib.checkpoints.store import Stored
from kaggle_lib.errors import CheckpointError, ConfigError, StoreError
from kaggle_lib.files import dump_json
from kaggle_lib.values import is_hub_id

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
        self._small: dict[str, bytes] = {}  # content of manifests and pointers, by git's hash

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
        if (path := f"checkpoints/{folder.name}/{NAME}") not in tree.files:
            raise damaged(folder, NAME, "is missing, so the save was never finished")
        try:
            return parse(self._read(tree, path), folder)
        except Damaged as error:
            raise damaged(folder, NAME, error.reason) from None

    def payload(self, tree: Tree, step: int) -> Payload | None:
        """Where the files of a checkpoint are; None: beside its manifest. Raises Damaged."""
        path = f"checkpoints/{folder_name(step)}/{hub_bucket.NAME}"
        return self._payload(tree, path) if path in tree.files else None

    def payloads(self, tree: Tree) -> list[Payload]:
        """Those of all checkpoints, and of what was set aside. Raises Damaged."""
        return [self._payload(tree, path) for path in tree.files if path.endswith(f"/{hub_bucket.NAME}")]

    def size(self, tree: Tree) -> int:
        """The sizes of all files, those in buckets, too, as far as their pointers can be read."""
        total = sum(file.size for file in tree.files.values())
        with suppress(Damaged):
            total += sum(payload.bytes for payload in self.payloads(tree))
        return total

    def bucket(self, id: str) -> Bucket:
        return Bucket(id, self.repo.token)

    def live(self, tree: Tree) -> set[str]:
        """What the keys of this run's files begin with in its buckets, as `tree`, its own head, and every other branch,
        tag and pull request name them: a tag may keep a checkpoint that the branch has let go of. Raises Damaged."""
        own = tree.files.get(CONFIG)
        others = [
            other
            for ref, other in self.repo.heads().items()
            # Another run's keys begin with another lineage, which its configuration holds.
            if ref != self.repo.ref and other.files.get(CONFIG, own) == own
        ]
        return {payload.prefix for one in [tree, *others] for payload in self.payloads(one)}

    def _payload(self, tree: Tree, path: str) -> Payload:
        try:
            return Payload.model_validate_json(self._read(tree, path))
        except ValidationError:
            raise Damaged(path, "is damaged") from None

    def _read(self, tree: Tree, path: str) -> bytes:
        if (oid := tree.files[path].oid) not in self._small:
            self._small[oid] = self.repo.read(tree, path)
        return self._small[oid]

    def problem(self, tree: Tree, manifest: Manifest) -> tuple[str, str] | None:
        """(file, reason) of the first file that is not what the manifest says. In the repo by hash only where it is in
        LFS or Xet; in a bucket by another hash, the one that it had when it was sent."""
        try:
            payload = self.payload(tree, manifest.step)
        except Damaged as error:
            return hub_bucket.NAME, error.reason
        if payload:
            return self.bucket(payload.bucket).problem(payload, manifest.files)
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
