"""The store on the Hugging Face Hub: a branch of its own for each run, in a private repo. See HubStore."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationDelete

from kaggle_lib.checkpoints import hub_client
from kaggle_lib.checkpoints.hub_claim import HubClaim
from kaggle_lib.checkpoints.hub_head import Moved, Seen
from kaggle_lib.checkpoints.hub_layout import CONFIG, HEAD, LEDGER, Branch, added
from kaggle_lib.checkpoints.hub_repo import Damaged, Tree
from kaggle_lib.checkpoints.lease import Lease, refusal
from kaggle_lib.checkpoints.manifest import NAME, Manifest, damaged, folder_name
from kaggle_lib.checkpoints.store import Kind, Stored, StoreState
from kaggle_lib.errors import StoreError
from kaggle_lib.files import fsync_directory, fsync_tree, replace_folder, write_bytes

LONGEST = 1800.0


class HubStore:
    """The branch `run/<run>` of the model repo `repo_id`; see Store for the methods. `main` is never written to.

    `token`: None reads what is public. `public`: a public repo is accepted, and a new one is made public. `bucket`: the
    files of a session's checkpoints go to the bucket `repo_id`, if it can be used; where they are, the branch says.
    `clock` gives seconds since 1970, by the Hub's clock unless given. `seconds`: no call takes longer, whatever the Hub
    does.
    Raises ConfigError for a repo or a run that cannot be.
    """

    def __init__(
        self,
        repo_id: str,
        run: str,
        token: str | None,
        *,
        public: bool = False,
        bucket: bool = False,
        clock: Callable[[], float] = hub_client.now,
        seconds: float = LONGEST,
    ) -> None:
        self._branch = Branch(repo_id, run, token, clock, seconds)
        self._public, self._in_bucket = public, bucket

    @property
    def place(self) -> str:
        return self._branch.place

    def peek(self) -> StoreState:
        branch = self._branch
        with branch.doing("read"):
            seen = branch.head.look()
            if seen is None or (config := branch.config(seen.tree)) is None:
                return StoreState()
            ledger = branch.object(seen.tree, LEDGER) or {}
            return StoreState(
                config=config,
                lineage=config["lineage"],
                ledger=[ledger[session] for session in sorted(ledger)],
                lease=branch.lease(seen.tree),
                head=seen.tree.commit,
                checkpoints=branch.stored(seen.tree),
                bytes=branch.size(seen.tree),
                now=branch.clock(),
            )

    def runs(self) -> list[str]:
        with self._branch.doing("read"):
            return self._branch.repo.runs()

    def claim(self, config: dict[str, Any], lease: Lease, lineage: str, take_over: str | None = None) -> HubClaim:
        branch = self._branch
        with branch.doing("claimed"):
            while True:
                seen, first = self._opened()
                now = branch.clock()
                held = branch.lease(seen.tree)
                mine = held is None or held.session in (lease.session, take_over)  # an earlier try may have landed
                if held and not mine and not held.expired(now) and not held.provably_dead():
                    raise refusal(branch.run, held, now, take_over)
                frozen = branch.config(seen.tree)
                if frozen is None:
                    frozen = {**config, "lineage": lineage}
                    first.append(added(CONFIG, frozen))
                try:
                    claim = HubClaim(branch, seen, lease, frozen["lineage"], first)
                    break
                except Moved:
                    continue
            if self._in_bucket:
                claim.use_bucket(private=not self._public)
            return claim

    def fetch(self, stored: Stored, into: Path) -> Manifest:
        branch, name, aside = self._branch, folder_name(stored.step), into.with_name(f".{into.name}.incoming")
        into.parent.mkdir(parents=True, exist_ok=True)
        with branch.doing("read", stored.bytes):
            tree = self._tree()
            manifest = branch.manifest(tree, stored.step)
            if problem := branch.problem(tree, manifest):
                raise damaged(Path(name), *problem)
            try:
                if payload := branch.payload(tree, stored.step):
                    self._download(tree, f"checkpoints/{name}", aside, [NAME])
                    bucket = branch.bucket(payload.bucket)
                    bucket.fetch(payload, list(manifest.files), aside)
                    if manifest.problem(aside):
                        bucket.fetch(payload, list(manifest.files), aside)
                    fsync_tree(aside)
                else:
                    self._download(tree, f"checkpoints/{name}", aside, [*manifest.files, NAME])
                if problem := manifest.problem(aside):
                    raise damaged(Path(name), *problem)
                aside.rename(into)
                fsync_directory(into.parent)
            except Damaged as error:
                raise damaged(Path(name), error.path, error.reason) from error
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            return manifest

    def fetch_events(self, into: Path) -> None:
        with self._branch.doing("read"):
            into.mkdir(parents=True, exist_ok=True)
            tree = self._tree()
            for name, file in tree.under("events").items():
                there = into / name
                if not there.exists() or there.stat().st_size < file.size:
                    write_bytes(there, self._branch.repo.read(tree, f"events/{name}"))

    def fetch_kind(self, kind: Kind, into: Path) -> bool:
        with self._branch.doing("read"):
            tree = self._tree()
            if not (names := tree.under(kind)):
                return False
            into.parent.mkdir(parents=True, exist_ok=True)
            aside = into.with_name(f".{into.name}.incoming")
            try:
                self._download(tree, kind, aside, list(names))
                replace_folder(aside, into)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            return True

    def _tree(self) -> Tree:
        seen = self._branch.head.look()
        return seen.tree if seen else Tree("", True, {})

    def _download(self, tree: Tree, folder: str, into: Path, names: list[str]) -> None:
        """Raises CheckpointError for a file that is gone or that comes damaged twice."""
        shutil.rmtree(into, ignore_errors=True)
        for name in names:
            path = into / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with path.open("wb") as sink:
                    self._branch.repo.download(tree, f"{folder}/{name}", sink)
            except Damaged as error:
                raise damaged(Path(folder), name, error.reason) from error
        fsync_tree(into)

    def _opened(self) -> tuple[Seen, list[Any]]:
        """The head, and what has to be done first in a new branch: it holds what `main` does. Makes repo and branch
        where they are missing. Raises StoreError for a public repo."""
        branch, made = self._branch, False
        while (seen := branch.head.look()) is None:
            self._refuse_public(branch.repo.look("main"))
            branch.repo.create(private=not self._public)
            made = True
            hub_client.rest(0.1)
        self._refuse_public(seen.tree)
        if not made or HEAD in seen.tree.files:
            return seen, []
        keep = (".gitattributes", "README.md")
        return seen, [CommitOperationDelete(path) for path in seen.tree.files if path not in keep]

    def _refuse_public(self, tree: Tree | None) -> None:
        if tree and not tree.private and not self._public:
            raise StoreError(
                f"The repo {self._branch.repo.id} is public: everybody could read the run {self._branch.run!r}.",
                kept="Nothing was written.",
                todo="Make it private in its settings on the Hub, or give public_store=true, or another store.",
            )
