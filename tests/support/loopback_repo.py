"""One repo of the loopback Hub: commits, refs, and the objects that its files point to.

It lies in a folder of its own, so that a server that was killed starts again on the same data: content first, then the
commit, then `repo.json`, which alone says what is there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from support.loopback_http import Refused, now

# What a new repo holds as LFS, and so in Xet.
# fmt: off
LFS_SUFFIXES = (
    "7z", "arrow", "bin", "bz2", "ckpt", "gz", "h5", "joblib", "model", "msgpack", "npy", "npz", "onnx", "parquet",
    "pb", "pickle", "pkl", "pt", "pth", "rar", "safetensors", "tar", "tflite", "tgz", "wasm", "xz", "zip", "zst",
)
# fmt: on
ATTRIBUTES = "".join(f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
LARGE = tuple(f".{suffix}" for suffix in LFS_SUFFIXES)
MOST_REGULAR_BYTES = 10_000_000


@dataclass(frozen=True)
class Entry:
    """A file in a commit. `oid` is git's; with `lfs` it is the pointer's, and the content is an object of the repo."""

    oid: str
    size: int
    sha256: str
    lfs: bool


@dataclass(frozen=True)
class Commit:
    id: str
    parents: list[str]
    title: str
    message: str
    author: str
    time: float
    files: dict[str, Entry]


@dataclass
class Stored:
    """An LFS object. `xet`: its Xet hash, where the content lies in the CAS. `ref`, `filename`: of its first commit."""

    size: int
    pushed: float
    xet: str | None = None
    ref: str | None = None
    filename: str | None = None


@dataclass
class Repo:
    """Every change is made under the Hub's lock and is on disk when the method returns."""

    folder: Path
    id: str
    kind: str = "model"
    private: bool = False
    created: float = field(default_factory=now)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    objects: dict[str, Stored] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._commits: dict[str, Commit] = {}
        self._moves: list[tuple[float, str, str]] = []  # (time, branch, commit): what lagging reads look at
        for name in ("commits", "blobs", "lfs"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)

    @classmethod
    def create(cls, folder: Path, id: str, kind: str, private: bool, author: str) -> Repo:
        repo = cls(folder, id, kind, private)
        repo._move(
            "main", repo._record([], {".gitattributes": repo._blob(ATTRIBUTES.encode())}, "initial commit", author)
        )
        return repo

    @classmethod
    def load(cls, folder: Path) -> Repo:
        """Raises FileNotFoundError where the repo's creation was cut short."""
        found = json.loads((folder / "repo.json").read_text())
        found["objects"] = {sha: Stored(**stored) for sha, stored in found["objects"].items()}
        repo = cls(folder, **found)
        for path in (folder / "commits").glob("*.json"):
            data = json.loads(path.read_text())
            data["files"] = {name: Entry(*entry) for name, entry in data["files"].items()}
            repo._commits[data["id"]] = Commit(**data)
        return repo

    # What is there

    def resolve(self, revision: str, lag: float = 0.0) -> Commit:
        """The commit of a branch, tag, or (part of an) id; `lag`: of a branch's head so many seconds ago."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        if name in self.branches:
            return self._commits[self.head(name, lag)]
        if name in self.tags:
            return self._commits[self.tags[name]]
        if re.fullmatch(r"[0-9a-f]{7,40}", name):
            found = [commit for id, commit in self._commits.items() if id.startswith(name)]
            if len(found) == 1:
                return found[0]
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def head(self, branch: str, lag: float = 0.0) -> str:
        """A branch's head, or what it was `lag` seconds ago; the first one known where the branch is younger."""
        if not lag:
            return self.branches[branch]
        moves = [(time, commit) for time, moved, commit in self._moves if moved == branch and commit in self._commits]
        if not moves:
            return self.branches[branch]
        seen = [commit for time, commit in moves if time <= now() - lag]
        return seen[-1] if seen else moves[0][1]

    def history(self, revision: str, lag: float = 0.0) -> list[Commit]:
        """Newest first."""
        commits, commit = [], self.resolve(revision, lag)
        while True:
            commits.append(commit)
            if not commit.parents:
                return commits
            commit = self._commits[commit.parents[0]]

    def commits(self, branch: str = "main") -> list[Commit]:
        return self.history(branch)

    def files(self, revision: str = "main") -> dict[str, dict[str, Any]]:
        """Size and sha256 of every file at a revision, by path."""
        found = self.resolve(revision).files
        return {path: {"size": entry.size, "sha256": entry.sha256} for path, entry in sorted(found.items())}

    def read(self, entry: Entry) -> bytes | None:
        """A file's content; None where it lies in the CAS. Raises Refused(404) where the object was deleted."""
        if not entry.lfs:
            return (self.folder / "blobs" / entry.oid).read_bytes()
        if entry.sha256 not in self.objects:
            raise Refused(404, "The content of this file was deleted", "EntryNotFound")
        path = self.object_path(entry.sha256)
        return path.read_bytes() if path.is_file() else None

    def object_path(self, sha256: str) -> Path:
        return self.folder / "lfs" / sha256

    def stored_bytes(self) -> int:
        """All committed LFS and Xet content that was not freed, whatever refers to it: what a quota counts."""
        return sum(stored.size for stored in self.objects.values() if stored.ref)

    def reachable(self) -> Iterator[Commit]:
        """Every commit that a branch or a tag leads to."""
        seen: set[str] = set()
        for id in [*self.branches.values(), *self.tags.values()]:
            while id not in seen:
                seen.add(id)
                yield self._commits[id]
                if not self._commits[id].parents:
                    break
                id = self._commits[id].parents[0]

    # What changes it

    def upload_mode(self, path: str, size: int, sample: bytes) -> str:
        """Which files are LFS: by name, by size, or because they are binary."""
        large = path.endswith(LARGE) or size > MOST_REGULAR_BYTES or b"\0" in sample
        return "lfs" if large else "regular"

    def put_object(self, sha256: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != sha256:
            raise Refused(400, "The content does not have the announced sha256")
        write_whole(self.object_path(sha256), content)
        self.add_object(sha256, Stored(len(content), now()))

    def add_object(self, sha256: str, stored: Stored) -> None:
        """Uploaded, and not yet in any commit. One that is in a commit keeps its record."""
        known = self.objects.get(sha256)
        self.objects[sha256] = replace(known, xet=stored.xet or known.xet) if known else stored
        self._save()

    def take_xet(self, hash: str, size: int, sha256: str | None) -> None:
        """A file that was uploaded by Xet; one whose sha256 the client left out cannot be committed."""
        if sha256:
            self.add_object(sha256, Stored(size, now(), hash))

    def xet_hashes(self) -> set[str]:
        """The Xet files that this repo holds."""
        return {stored.xet for stored in self.objects.values() if stored.xet}

    def commit(self, branch: str, operations: list[dict[str, Any]], author: str) -> Commit:
        """Judge and land what `create_commit` sent, all or nothing.

        Raises Refused: 412 where the head is not the announced parent, 404 where the branch or a deleted file is not
        there, 400 where a pointer's content was not uploaded.
        """
        header = operations[0]["value"]
        if branch not in self.branches:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        parent = header.get("parentCommit")
        if parent and not self.branches[branch].startswith(parent):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = dict(self._commits[self.branches[branch]].files)
        for operation in operations[1:]:
            self._apply(files, operation["key"], operation["value"])
        commit = self._record([self.branches[branch]], files, header["summary"], author, header.get("description", ""))
        for path, entry in files.items():
            if entry.lfs and entry.sha256 in self.objects and not self.objects[entry.sha256].ref:
                stored = self.objects[entry.sha256]
                stored.ref, stored.filename = f"refs/heads/{branch}", path
        self._move(branch, commit)
        return commit

    def add_ref(self, refs: dict[str, str], name: str, revision: str) -> None:
        if name in refs:
            raise Refused(409, f"Reference {name} already exists")
        commit = self.resolve(revision)
        refs[name] = commit.id
        if refs is self.branches:
            self._moves.append((now(), name, commit.id))
        self._save()

    def delete_ref(self, refs: dict[str, str], name: str) -> None:
        if name not in refs:
            raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
        del refs[name]
        self._moves = [move for move in self._moves if refs is self.tags or move[1] != name]
        self._collect()

    def squash(self, branch: str, title: str, author: str) -> None:
        """The branch becomes one commit without parents; what nothing leads to any more is freed."""
        if branch not in self.branches:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        self._move(branch, self._record([], self._commits[self.branches[branch]].files, title, author))
        self._collect()

    def delete_objects(self, shas: Iterable[str], rewrite_history: bool) -> None:
        """Free objects for ever; with `rewrite_history` the files that pointed to them leave every commit, too."""
        gone = set(shas)
        if rewrite_history:
            self._rewrite(gone)
        for sha in gone & set(self.objects):
            self._forget(sha)
        self._collect()

    def set_private(self, private: bool) -> None:
        self.private = private
        self._save()

    def _apply(self, files: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = self._blob(base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in self.objects:
                raise Refused(400, f"Your push was rejected because {path} points to an LFS file that does not exist")
            files[path] = _pointer(value["oid"], self.objects[value["oid"]].size)
        elif key == "deletedFile":
            if files.pop(path, None) is None:
                raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        elif key == "deletedFolder":
            inside = [name for name in files if name.startswith(path.rstrip("/") + "/")]
            if not inside:
                raise Refused(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
            for name in inside:
                del files[name]
        else:
            raise Refused(400, f"The loopback Hub knows no operation {key}")

    def _blob(self, content: bytes) -> Entry:
        oid = _git_oid(content)
        write_whole(self.folder / "blobs" / oid, content)
        return Entry(oid, len(content), hashlib.sha256(content).hexdigest(), False)

    def _record(
        self, parents: list[str], files: dict[str, Entry], title: str, author: str, message: str = "", time: float = 0
    ) -> Commit:
        shape = json.dumps([parents, sorted(entry.oid for entry in files.values()), title, uuid.uuid4().hex])
        id = hashlib.sha1(shape.encode()).hexdigest()
        commit = Commit(id, parents, title, message, author, time or now(), dict(sorted(files.items())))
        flat = {path: list(asdict(entry).values()) for path, entry in commit.files.items()}
        write_whole(self.folder / "commits" / f"{id}.json", json.dumps({**vars(commit), "files": flat}).encode())
        self._commits[id] = commit
        return commit

    def _move(self, branch: str, commit: Commit) -> None:
        self.branches[branch] = commit.id
        self._moves.append((now(), branch, commit.id))
        self._save()

    def _rewrite(self, gone: set[str]) -> None:
        renamed: dict[str, str] = {}
        for refs in (self.branches, self.tags):
            for name, id in list(refs.items()):
                for commit in reversed(self.history(id)):
                    files = {path: e for path, e in commit.files.items() if not (e.lfs and e.sha256 in gone)}
                    parents = [renamed[parent] for parent in commit.parents]
                    if commit.id not in renamed and files == commit.files and parents == commit.parents:
                        renamed[commit.id] = commit.id
                    elif commit.id not in renamed:
                        made = self._record(parents, files, commit.title, commit.author, commit.message, commit.time)
                        renamed[commit.id] = made.id
                refs[name] = renamed[id]
                if refs is self.branches:
                    self._moves.append((now(), name, renamed[id]))

    def _collect(self) -> None:
        """Forget commits that nothing leads to, and the committed objects that only they pointed to."""
        kept = {commit.id: commit for commit in self.reachable()}
        live = {entry.sha256 for commit in kept.values() for entry in commit.files.values() if entry.lfs}
        dropped = set(self._commits) - set(kept)
        self._commits = kept
        for sha in [sha for sha, stored in self.objects.items() if stored.ref and sha not in live]:
            self._forget(sha)
        self._save()
        for id in dropped:
            (self.folder / "commits" / f"{id}.json").unlink()

    def _forget(self, sha: str) -> None:
        del self.objects[sha]
        self.object_path(sha).unlink(missing_ok=True)

    def _save(self) -> None:
        told = {name: getattr(self, name) for name in ("id", "kind", "private", "created", "branches", "tags")}
        told["objects"] = {sha: vars(stored) for sha, stored in self.objects.items()}
        write_whole(self.folder / "repo.json", json.dumps(told).encode())


def _pointer(sha256: str, size: int) -> Entry:
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    return Entry(_git_oid(text.encode()), size, sha256, True)


def pointer_size(entry: Entry) -> int:
    """Bytes of the text that git holds in place of an LFS file."""
    return len(f"version https://git-lfs.github.com/spec/v1\noid sha256:{entry.sha256}\nsize {entry.size}\n")


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def write_whole(path: Path, content: bytes) -> None:
    """A reader finds the old content or the new one, never a part."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    aside.write_bytes(content)
    aside.replace(path)
