"""A repo and a bucket on the real Hub, made to ask it what the store relies on, and deleted again."""

from __future__ import annotations

import contextvars
import hashlib
import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

from huggingface_hub import CommitOperationDelete, HfApi
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session

from kaggle_lib.checkpoints.hub_bucket import Bucket
from kaggle_lib.checkpoints.hub_client import Failures, explain, rest, status
from kaggle_lib.checkpoints.hub_layout import added
from kaggle_lib.checkpoints.hub_repo import Damaged, Operation, Repo, Tree, again
from kaggle_lib.checkpoints.manifest import FileEntry
from kaggle_lib.errors import StoreError

LARGE = 8_000_000  # bytes
LOOKS = 20  # at what lags, half a second apart
State = Literal["ok", "note", "differs", "failed"]


class Found(NamedTuple):
    """`state`: `ok`, as the store takes it to be; `note`, worth knowing; `differs`, the store may fail by it."""

    state: State
    text: str
    values: dict[str, Any]


def why(error: BaseException, token: str) -> str:
    """A failure in a few words, without the token."""
    return explain(error, "of this", "asked", token).what.removeprefix("The store of this cannot be asked: ")


def _looks_in_vain(there: Callable[[], bool]) -> int:
    """How often it was not so, LOOKS at most."""
    for count in range(LOOKS):
        if there():
            return count
        rest(0.5)
    return LOOKS


class Scratch:
    """A repo and a bucket of a name that nothing else has."""

    def __init__(self, id: str, token: str, api: HfApi) -> None:
        self.id, self._token, self._api = id, token, api
        self._repo = Repo(id, "run/selftest", token)
        self._bucket = Bucket(id, token)
        self._content = secrets.token_bytes(LARGE)
        self._at: str | None = None  # the head by our own last commit: what the Hub says of it may lag
        self._known: set[str] = set()  # heads so far

    def questions(self) -> Iterator[tuple[str, Callable[[], Found]]]:
        yield "clock", self.clock
        yield "small commits", self.commits
        yield "stale parent", self.stale_parent
        yield "two commits at once", self.two_at_once
        yield "lag", self.lag
        yield "upload", self.upload
        yield "download", self.download
        yield "listing of content", self.listing
        yield "giving back", self.giving_back
        yield "content once more", self.once_more
        yield "squash", self.squash
        yield "bucket", self.bucket
        yield "bucket's rate", self.bucket_rate

    def made(self) -> Found:
        began = time.monotonic()
        again(lambda: self._repo.create(private=True))
        seconds = time.monotonic() - began
        private = self._head().private
        try:
            seen: int | None = 200 if Repo(self.id, self._repo.branch, None).look() else 404
        except Failures as error:
            seen = status(error)
        hidden = private and seen in (401, 403, 404)
        text = (
            f"{self.id} is {'private' if private else 'public'}, made in {seconds:.1f} s; without a token it is {seen}"
        )
        return Found("ok" if hidden else "differs", text, {"private": private, "without_token": seen})

    def clock(self) -> Found:
        url = f"{self._api.endpoint}/api/models/{self.id}"
        answer = get_session().get(url, headers=build_hf_headers(token=self._token))
        limits = {name: answer.headers[name] for name in ("ratelimit", "ratelimit-policy") if name in answer.headers}
        if not (date := answer.headers.get("date")):
            return Found("differs", "no Date in the answers: leases go by this machine's clock", limits)
        ahead = round(parsedate_to_datetime(date).timestamp() - time.time())
        told = f"the Hub's answers have a Date, {abs(ahead)} s {'ahead of' if ahead > 0 else 'behind'} this machine's"
        return Found("ok", told, {"ahead_seconds": ahead, **limits})

    def commits(self) -> Found:
        took = []
        for _ in range(3):
            began, head = time.monotonic(), self._head()
            self._commit(head)
            took.append(round(time.monotonic() - began, 3))
        text = f"{statistics.median(took):.2f} s (look, commit), the median of {len(took)}"
        return Found("ok", text, {"seconds": took})

    def stale_parent(self) -> Found:
        old = self._head()
        self._commit(old)
        refused = self._refusal(old)
        if refused is None:
            return Found("differs", "a commit on a head that had moved was taken", {"status": 200})
        return Found("ok" if refused == 412 else "differs", f"refused with {refused}", {"status": refused})

    def two_at_once(self) -> Found:
        head = self._head()
        with ThreadPoolExecutor(2) as pool:
            jobs = [pool.submit(contextvars.copy_context().run, self._refusal, head) for _ in range(2)]
            ends = sorted(job.result() or 200 for job in jobs)
        one = ends[0] == 200 and ends[1] in (409, 412)
        return Found("ok" if one else "differs", f"answered {ends[0]} and {ends[1]}", {"status": ends})

    def lag(self) -> Found:
        """Of reads at the branch's name, directly after a commit."""
        name = f"{secrets.token_hex(4)}.txt"
        new, began = self._commit(self._head(), name), time.monotonic()
        stale = {
            "head": _looks_in_vain(lambda: self._newest().commit == new),
            "paths-info": _looks_in_vain(
                lambda: bool(self._api.get_paths_info(self.id, [name], revision=self._repo.branch))
            ),
        }
        seconds = round(time.monotonic() - began, 1)
        text = ", ".join(f"{count} old answers of {what}" for what, count in stale.items())
        state: State = "note" if any(stale.values()) else "ok"
        return Found("differs" if LOOKS in stale.values() else state, text, {**stale, "seconds": seconds})

    def upload(self) -> Found:
        began = time.monotonic()
        self._send()
        seconds = time.monotonic() - began
        file = self._head().files["large.bin"]
        [info] = self._api.get_paths_info(self.id, ["large.bin"], revision=self._at)
        way = "Xet" if getattr(info, "xet_hash", None) else "LFS"
        text = f"{LARGE / seconds / 1e6:.1f} MB/s by {way} ({LARGE / 1e6:.1f} MB in {seconds:.1f} s, with its commit)"
        if file.sha256 != self._sha256:
            return Found("differs", f"{text}; the Hub tells another sha256", {"sha256": file.sha256})
        return Found("ok", text, {"bytes_per_second": round(LARGE / seconds), "way": way})

    def download(self) -> Found:
        began = time.monotonic()
        same = self._repo.read(self._head(), "large.bin") == self._content
        rate = LARGE / (time.monotonic() - began)
        text = f"{rate / 1e6:.1f} MB/s, {'the same' if same else 'other'} bytes"
        return Found("ok" if same else "differs", text, {"bytes_per_second": round(rate)})

    def listing(self) -> Found:
        _looks_in_vain(lambda: self._sha256 in self._repo.stored())
        listed = self._repo.stored().get(self._sha256)
        if listed is None:
            return Found(
                "differs", "what was committed is not listed, so nothing is ever given back", {"listed": False}
            )
        ours = listed.ref in (self._repo.ref, self._repo.branch)
        text = f"it is listed by its sha256, as brought by {listed.ref!r}"
        return Found("ok" if ours else "differs", text, {"listed": True, "ref": listed.ref})

    def giving_back(self) -> Found:
        """Delete the file, then its content, without touching the history."""
        before = self._used()
        self._land([CommitOperationDelete("large.bin")], self._head())
        head, listed = self._head(), self._repo.stored()
        values: dict[str, Any] = {"listed_after_commit": self._sha256 in listed, "used_before": before}
        if self._sha256 not in listed:
            return Found("note", "deleting the file alone takes its content off the list", values)
        try:
            self._repo.delete([listed[self._sha256]])
        except Failures as error:
            refused = f"permanently_delete_lfs_files is refused ({status(error)}): old checkpoints go on counting"
            return Found("differs", refused, {**values, "status": status(error)})
        values["listed"] = _looks_in_vain(lambda: self._sha256 not in self._repo.stored()) == LOOKS
        values["head_moved"] = self._refusal(head) is not None
        values["used_after"] = self._used()
        if values["listed"] or values["head_moved"]:
            what = "it is still listed" if values["listed"] else "the head has moved"
            return Found("differs", f"deleted for ever, but {what}", values)
        used = f"the repo's used storage goes from {before} to {values['used_after']} bytes"
        freed = isinstance(before, int) and isinstance(values["used_after"], int) and values["used_after"] < before
        return Found("ok" if freed else "note", f"deleted for ever, the head stays; {used}", values)

    def once_more(self) -> Found:
        """Content that was deleted for ever can be brought there again: a run trained twice has the same files."""
        self._send()
        same = self._repo.read(self._head(), "large.bin") == self._content
        return Found("ok" if same else "differs", "it comes back as it was" if same else "other bytes come back", {})

    def squash(self) -> Found:
        before = self._head()
        self._repo.squash()
        _looks_in_vain(lambda: self._newest().commit not in self._known)
        after = self._newest()
        self._at = after.commit
        commits = len(self._api.list_repo_commits(self.id, revision=after.commit))
        refused = self._refusal(before)
        values = {"commits": commits, "same_files": after.files == before.files, "stale_parent": refused}
        good = values["same_files"] and after.commit != before.commit and refused == 412
        kept = "the head's files stay" if values["same_files"] else "the head's files are others"
        text = f"{commits} commit(s) left, {kept}, a commit on the old head gets {refused or 200}"
        return Found("ok" if good else "differs", text, values)

    def bucket(self) -> Found:
        try:
            self._bucket.probe("probe", private=True)
        except (StoreError, Damaged, *Failures) as error:
            told = f"{error}." if isinstance(error, (StoreError, Damaged)) else why(error, self._token)
            return Found("note", f"payload=bucket would mean the repo: {told}", {"private": None})
        return Found("ok", "private; written, listed, read back, deleted", {"private": True})

    def bucket_rate(self) -> Found:
        with tempfile.TemporaryDirectory(prefix="kaggle_lib-") as made:
            (Path(made) / "large.bin").write_bytes(self._content)
            files, began = {"large.bin": FileEntry(size=LARGE, sha256=self._sha256)}, time.monotonic()
            try:
                self._bucket.send(Path(made), files, "rate")
            except Failures as error:
                return Found("note", why(error, self._token), {})
            rate = LARGE / (time.monotonic() - began)
        self._bucket.delete(["rate/large.bin"])
        left = self._api.bucket_info(self.id).size
        text = f"{rate / 1e6:.1f} MB/s; after its deletion the bucket counts {left} bytes"
        return Found("note" if left else "ok", text, {"bytes_per_second": round(rate), "bytes_after_delete": left})

    def removed(self) -> Found:
        """Whatever became of the questions; a name that is still there is told."""
        with suppress(*Failures):
            again(lambda: self._api.delete_bucket(self.id, missing_ok=True))
        with suppress(*Failures):
            again(lambda: self._api.delete_repo(self.id, missing_ok=True))
        left = [f"repo {self.id}"] if self._there(lambda: self._api.model_info(self.id)) else []
        left += [f"bucket {self.id}"] if self._there(lambda: self._api.bucket_info(self.id)) else []
        if left:
            return Found("failed", f"delete it by hand: {' and '.join(left)}", {"left": left})
        return Found("ok", "repo and bucket are gone", {"left": []})

    def _there(self, look: Callable[[], object]) -> bool:
        """Whether it is, as far as can be known."""
        try:
            again(look)
        except Failures as error:
            return status(error) != 404
        return True

    @property
    def _sha256(self) -> str:
        return hashlib.sha256(self._content).hexdigest()

    def _head(self) -> Tree:
        return self._newest(self._at)

    def _newest(self, commit: str | None = None) -> Tree:
        """A commit's tree, or what the Hub takes for the newest."""
        if (tree := self._repo.look(commit)) is None:
            raise StoreError(f"{self.id} has no branch {self._repo.branch}, or not {commit} on it.")
        return tree

    def _commit(self, head: Tree, name: str = "small.txt") -> str:
        return self._land([added(name, secrets.token_hex(16).encode())], head)

    def _land(self, operations: list[Operation], head: Tree) -> str:
        try:
            self._at = self._repo.commit(operations, head.commit, "selftest")
            self._known |= {head.commit, self._at}
            return self._at
        except Failures as error:
            if status(error) not in (409, 412):
                self._at = None  # it may have landed all the same
            raise

    def _refusal(self, head: Tree) -> int | None:
        """The status by which a commit on `head` is refused; None: it is taken."""
        try:
            self._commit(head)
        except Failures as error:
            if status(error) not in (409, 412):
                raise
            return status(error)
        return None

    def _send(self) -> None:
        addition = added("large.bin", self._content)
        self._repo.upload([addition])
        self._land([addition], self._head())

    def _used(self) -> int | None:
        """What the Hub counts of the repo, in bytes, if it says so."""
        with suppress(*Failures):
            return self._api.model_info(self.id, expand=["usedStorage"]).used_storage
        return None
