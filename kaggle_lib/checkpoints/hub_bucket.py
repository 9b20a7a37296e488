"""A checkpoint's files in a Storage Bucket (`payload=bucket`): the run's branch holds its manifest and a pointer only.

A bucket has no history, so that what is deleted is gone at once, but no conditional write and no batch that is all or
nothing either. So every file goes to a key that is never used twice, and counts by the commit that names it. A key
begins with the run, its lineage, and the claim that made it: what is not named at a head, and was made by this claim or
by one before it, no commit can ever name, and only that is deleted.
"""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import BucketFile, BucketInfo, HfApi
from huggingface_hub.errors import BucketBatchError, BucketNotFoundError, EntryNotFoundError
from pydantic import BaseModel, ConfigDict

from kaggle_lib.checkpoints.hub_client import Failures, connect, left, rest, status, within, xet_abort
from kaggle_lib.checkpoints.hub_repo import PAUSES, Damaged, Result, again
from kaggle_lib.checkpoints.manifest import FileEntry
from kaggle_lib.errors import StoreError

NAME = "payload.json"
PROBING = 45.0  # seconds
CLAIM = re.compile(r"([0-9]{10})-[0-9a-f]{32}")


class Payload(BaseModel):
    """What `payload.json` holds: the bucket, what the keys of this checkpoint begin with, the sum of its files' sizes,
    and their hashes there."""

    model_config = ConfigDict(frozen=True)
    bucket: str
    prefix: str
    bytes: int
    xet: dict[str, str]


class Bucket:
    """Raises what the client raises, `Failures`; what fails for a moment is done again."""

    def __init__(self, id: str, token: str | None) -> None:
        connect()
        self.id = id
        self._api = HfApi(token=token or False, library_name="kaggle_lib")

    def send(self, folder: Path, files: dict[str, FileEntry], prefix: str) -> Payload:
        """Bring a folder's `files` to keys below the new `prefix`. Raises Damaged where the bucket does not hold them
        as they are here."""
        with _transfer():
            size = sum(entry.size for entry in files.values())
            payload = Payload(bucket=self.id, prefix=prefix, bytes=size, xet=_hashes(folder, files))
            adds: list[tuple[str | Path | bytes, str]] = [(folder / name, f"{prefix}/{name}") for name in files]
            # Again after a batch that was done in part, too: the same keys get the same content.
            again(lambda: self._api.batch_bucket_files(self.id, add=adds))
        if problem := _settled(lambda: self.problem(payload, files)):
            raise Damaged(problem[0], f"{problem[1]} in the bucket {self.id}")
        return payload

    def problem(self, payload: Payload, files: dict[str, FileEntry]) -> tuple[str, str] | None:
        """(file, reason) of the first of `files` that the bucket does not hold as it was sent."""
        keys = [f"{payload.prefix}/{name}" for name in files]
        found = {one.path: one for one in again(lambda: list(self._api.get_bucket_paths_info(self.id, keys)))}
        for key, (name, entry) in zip(keys, files.items(), strict=True):
            if (there := found.get(key)) is None:
                return name, "is missing"
            if there.size != entry.size:
                return name, f"has {there.size} bytes, not {entry.size}"
            if there.xet_hash != payload.xet.get(name):
                return name, "has another hash than was sent"
        return None

    def fetch(self, payload: Payload, names: Sequence[str], into: Path) -> None:
        """Download files into the folder `into`; nothing but their sizes is sure then. Raises Damaged for one that is
        not there."""
        for name in names:
            (into / name).parent.mkdir(parents=True, exist_ok=True)
        files: list[tuple[str | BucketFile, str | Path]] = [(f"{payload.prefix}/{one}", into / one) for one in names]
        try:
            with _transfer():
                again(lambda: self._api.download_bucket_files(self.id, files, raise_on_missing_files=True))
        except EntryNotFoundError as error:
            raise Damaged(NAME, f"names a file that the bucket {self.id} has not") from error

    def keys(self, prefix: str) -> list[str]:
        """All keys below `prefix`."""

        def ask() -> list[str]:
            found = self._api.list_bucket_tree(self.id, prefix=prefix, recursive=True)
            return [one.path for one in found if one.type == "file" and one.path.startswith(f"{prefix}/")]

        return again(ask)

    def delete(self, keys: Sequence[str]) -> None:
        """Delete files for ever; some may be gone already."""
        try:
            self._api.batch_bucket_files(self.id, delete=list(keys))
        except BucketBatchError:
            if list(self._api.get_bucket_paths_info(self.id, keys)):
                raise

    def probe(self, prefix: str, private: bool) -> None:
        """Make the bucket, where there is none, and try all that a run needs of it: write, list, read back, delete.

        Raises StoreError where the bucket is public though it should be `private`, Damaged, and Failures.
        """
        with within(PROBING), tempfile.TemporaryDirectory(prefix="kaggle_lib-") as made:
            self._create(private)
            folder, name = Path(made), "probe"
            (folder / name).write_bytes(content := secrets.token_bytes(64))
            files = {name: FileEntry(size=len(content), sha256="")}
            payload, key = self.send(folder, files, prefix), f"{prefix}/{name}"
            if _settled(lambda: key not in self.keys(prefix)):
                raise Damaged(name, f"is not listed in the bucket {self.id}")
            self.fetch(payload, [name], folder / "back")
            if (folder / "back" / name).read_bytes() != content:
                raise Damaged(name, f"came back from the bucket {self.id} with other bytes")
            self.delete([key])
            if _settled(lambda: self.problem(payload, files) is None):
                raise Damaged(name, f"cannot be deleted from the bucket {self.id}")

    def _create(self, private: bool) -> None:
        refused: BaseException | None = None

        def look() -> BucketInfo | None:
            try:
                return self._api.bucket_info(self.id)
            except BucketNotFoundError as error:
                nonlocal refused
                refused = refused or error
                return None

        def make() -> None:
            nonlocal refused
            try:
                self._api.create_bucket(self.id, private=private)
            except Failures as error:
                if status(error) not in (403, 409):  # the token is for this one bucket only, or somebody was quicker
                    raise
                refused = error

        info = again(look)
        if info is None:
            again(make)
            info = again(look)
        if info is None:
            assert refused is not None
            raise refused
        if private and not info.private:
            raise StoreError(f"The bucket {self.id} is public; make it private in its settings on the Hub.")


def new_prefix(root: str, claim: str) -> str:
    """What no key has begun with yet: below a run's `root`, made by `claim`."""
    return f"{root}/{claim}/{secrets.token_hex(8)}"


def garbage(keys: Iterable[str], root: str, claim: str, live: Iterable[str]) -> list[str]:
    """The keys below `root` that no commit names or ever will: of prefixes that are not `live`, made by `claim` or
    before it. Of a later claim's, which it may be sending now, nothing is known here."""
    named, found = set(live), []
    for key in keys:
        maker, _, rest = key.removeprefix(f"{root}/").partition("/")
        match = CLAIM.fullmatch(maker)
        ours = match is not None and (maker == claim or match[1] < claim[:10])
        if ours and f"{root}/{maker}/{rest.partition('/')[0]}" not in named:
            found.append(key)
    return found


def _hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The hashes by which Xet knows local files: a bucket tells no sha256."""
    import hf_xet  # type: ignore[import-untyped]  # the client, too, needs it for every transfer of a bucket

    paths = {name: str(folder / name) for name in names}
    return dict(zip(paths, (one.hash for one in hf_xet.hash_files(list(paths.values()))), strict=True))


@contextmanager
def _transfer() -> Iterator[None]:
    try:
        with xet_abort():
            yield
    except ImportError as error:
        raise StoreError("Storage Buckets need the package hf_xet, which is not installed.") from error


def _settled(wrong: Callable[[], Result]) -> Result:
    """What `wrong` says once it says nothing, or after some seconds: a bucket promises no reads of what was written."""
    for pause in PAUSES:
        if not (found := wrong()) or left() <= pause:
            return found
        rest(pause)
    return wrong()
