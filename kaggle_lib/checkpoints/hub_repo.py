"""One repo of the Hub as a store needs it: what a commit holds, files by their hash, uploads, storage given back."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, hf_hub_url
from huggingface_hub.hf_api import LFSFileInfo
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status

from kaggle_lib.checkpoints.hub_client import Failures, connect, is_missing, passing, rest, status, xet_abort
from kaggle_lib.errors import StoreError

Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete
Result = TypeVar("Result")
PAUSES = (0.5, 1.0, 2.0, 4.0)  # seconds between the tries of a question


class Damaged(Exception):
    """A file that is gone, that comes with other bytes than the Hub's own tree says, or is not what it has to be."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"its file {path} {reason}")


@dataclass(frozen=True)
class File:
    """A file in a commit: `sha256` of one in LFS or Xet, git's `oid` of any other."""

    size: int
    oid: str
    sha256: str | None

    def problem(self, size: int, sha256: str) -> str | None:
        """How it differs from what a manifest says; the hash of a file that is not in LFS shows when it is read."""
        if self.size != size:
            return f"has {self.size} bytes, not {size}"
        return None if self.sha256 in (None, sha256) else "has another sha256 than its manifest says"

    def holds(self, source: bytes | Path) -> bool:
        """Whether these bytes, or this local file's, are its content."""
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            if self.sha256 is not None:
                return hashlib.file_digest(file, "sha256").hexdigest() == self.sha256
            content = file.read()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == self.oid


@dataclass(frozen=True)
class Tree:
    """All files of a commit, by path; `private`: whether the repo is."""

    commit: str
    private: bool
    files: dict[str, File]

    def under(self, folder: str) -> dict[str, File]:
        """The files in `folder`, by their names inside it."""
        return {path[len(folder) + 1 :]: file for path, file in self.files.items() if path.startswith(f"{folder}/")}

    def large(self, without: Iterable[str] = ()) -> set[str]:
        """sha256 of what is in LFS or Xet, in no folder of `without`."""
        left_out = tuple(f"{folder}/" for folder in without)
        return {file.sha256 for path, file in self.files.items() if file.sha256 and not path.startswith(left_out)}


class Repo:
    """Raises what the client raises, `Failures`; a question is asked again where the Hub fails for a moment."""

    def __init__(self, id: str, branch: str, token: str | None) -> None:
        connect()
        self.id, self.branch, self.token = id, branch, token
        self._api = HfApi(token=token or False, library_name="kaggle_lib")
        self._trees: dict[str, Tree] = {}  # by commit: those seen since `heads` was last asked, and its own

    def look(self, revision: str | None = None) -> Tree | None:
        """The branch's head, or another revision, by one question; None: there is no such repo or branch."""

        def ask() -> Tree | None:
            try:
                info = self._api.model_info(self.id, revision=revision or self.branch, files_metadata=True)
            except Failures as error:
                if is_missing(error):
                    return None
                raise
            files = {
                one.rfilename: File(one.size or 0, one.blob_id or "", one.lfs.sha256 if one.lfs else None)
                for one in info.siblings or []
            }
            tree = Tree(str(info.sha), bool(info.private), files)
            if revision == tree.commit:
                self._trees[revision] = tree
            return tree

        return again(ask)

    def create(self, private: bool) -> None:
        """The repo, where there is none, and its branch."""
        try:
            self._api.create_repo(self.id, private=private)
        except Failures as error:
            # There already, or the token is for this one repo only.
            if status(error) != 409 and not (status(error) == 403 and self.look("main")):
                raise
        again(lambda: self._api.create_branch(self.id, branch=self.branch, exist_ok=True))

    def read(self, tree: Tree, path: str) -> bytes:
        """A small file. Raises Damaged where it is not what the tree says."""
        sink = io.BytesIO()
        self.download(tree, path, sink)
        return sink.getvalue()

    def download(self, tree: Tree, path: str, sink: BinaryIO) -> None:
        """A file's content at `tree`'s commit by plain HTTP, which Xet has, too; compared with the tree's hash."""
        file, url = tree.files[path], hf_hub_url(self.id, path, revision=tree.commit, endpoint=self._api.endpoint)

        def get() -> bool:
            sink.seek(0)
            sink.truncate()
            digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size)
            with get_session().stream("GET", url, headers=build_hf_headers(token=self.token or False)) as response:
                hf_raise_for_status(response)
                for piece in response.iter_bytes():
                    sink.write(piece)
                    digest.update(piece)
            return digest.hexdigest() == (file.sha256 or file.oid)

        try:
            if not (again(get) or again(get)):
                raise Damaged(path, "has another hash than the Hub says")
        except Failures as error:
            if status(error) in (404, 410):
                raise Damaged(path, "is missing") from error
            raise

    def upload(self, additions: Sequence[CommitOperationAdd]) -> None:
        """What is large goes there, in no commit yet. Raises StoreError for a file that the Hub would leave out."""
        with xet_abort():
            self._api.preupload_lfs_files(self.id, additions, revision=self.branch, free_memory=False)
        if ignored := [one.path_in_repo for one in additions if one._should_ignore]:
            what = f"The Hub leaves {', '.join(ignored)} out of {self.id}"
            raise StoreError(f"{what}: a .gitignore there?", todo=f"Remove it from the branch {self.branch} and main.")

    def commit(self, operations: Sequence[Operation], parent: str, message: str) -> str:
        """One commit on the branch if `parent` is its head; returns its id. One request, which is not repeated."""
        with xet_abort():
            done = self._api.create_commit(
                self.id, operations, commit_message=message, revision=self.branch, parent_commit=parent
            )
        return done.oid

    def squash(self) -> None:
        """Make one commit of the branch's history. The Hub takes no parent here, so only the holder may call it."""
        self._api.super_squash_history(self.id, branch=self.branch, commit_message="history made one commit")

    @property
    def ref(self) -> str:
        return f"refs/heads/{self.branch}"

    def _refs(self) -> dict[str, str]:
        """The head of every branch, tag and pull request, by its full name."""
        refs = again(lambda: self._api.list_repo_refs(self.id, include_pull_requests=True))
        return {
            one.ref: one.target_commit
            for one in [*refs.branches, *refs.tags, *refs.converts, *(refs.pull_requests or [])]
        }

    def runs(self) -> list[str]:
        """The names of the runs that have a branch; none where there is no such repo."""
        prefix = "refs/heads/run/"
        try:
            return sorted(ref.removeprefix(prefix) for ref in self._refs() if ref.startswith(prefix))
        except Failures as error:
            if is_missing(error):
                return []
            raise

    def heads(self) -> dict[str, Tree]:
        """What every branch, tag and pull request holds at its head, by its full name."""
        refs = self._refs()
        for commit in {*refs.values()} - {*self._trees}:
            self.look(commit)
        self._trees = {commit: tree for commit, tree in self._trees.items() if commit in refs.values()}
        return {ref: self._trees[commit] for ref, commit in refs.items() if commit in self._trees}

    def stored(self) -> dict[str, LFSFileInfo]:
        """What the repo stores in LFS or Xet, by sha256; a file's `ref` is the branch that brought it, if known."""
        return {one.file_oid: one for one in again(lambda: list(self._api.list_lfs_files(self.id)))}

    def delete(self, stored: Iterable[LFSFileInfo]) -> None:
        """Give their storage back for ever. The default would rewrite history, and so move every head."""
        self._api.permanently_delete_lfs_files(self.id, stored, rewrite_history=False)


def again(ask: Callable[[], Result]) -> Result:
    """What `ask` returns; asked up to four times more where the Hub fails for a moment."""
    for pause in PAUSES:
        try:
            return ask()
        except Failures as error:
            if not passing(error):
                raise
            rest(pause, error)
    return ask()
