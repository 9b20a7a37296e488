"""The right to write a run on the Hub: every commit is made on the head that this session last made, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete

from kaggle_lib.checkpoints import hub_bucket, hub_storage, retention
from kaggle_lib.checkpoints.hub_bucket import Bucket
from kaggle_lib.checkpoints.hub_client import KEPT, rest
from kaggle_lib.checkpoints.hub_head import Moved, Seen
from kaggle_lib.checkpoints.hub_layout import HEAD, LEASE, LEDGER, Branch, added
from kaggle_lib.checkpoints.hub_repo import Damaged, Operation, Tree
from kaggle_lib.checkpoints.lease import Lease, lost
from kaggle_lib.checkpoints.manifest import NAME, Manifest, folder_name, verify
from kaggle_lib.checkpoints.store import Kind
from kaggle_lib.errors import CheckpointError, LeaseLost, StoreError

MOST_COMMITS = 64  # of a branch's history; a few thousand would slow the repo down

Make = Callable[[Tree], Sequence[Operation]]


class HubClaim:
    """See Claim. Making one is the claim: raises Moved where another commit came first."""

    def __init__(self, branch: Branch, seen: Seen, lease: Lease, lineage: str, first: Sequence[Operation]) -> None:
        self._branch, self._repo, self._lineage = branch, branch.repo, lineage
        self._ledger = branch.object(seen.tree, LEDGER) or {}
        self._committed_at: float | None = None
        self._over: LeaseLost | None = None
        self._lock = threading.RLock()  # held for a commit, not while content goes there: `renew` goes on beside that
        now = branch.clock()
        self._lease = lease.renewed(now)
        mark = seen.mark.claimed(lease, now)
        operations = [*first, added(LEASE, self._lease.model_dump()), added(HEAD, mark.model_dump())]
        self._at = branch.head.land(seen, operations, mark, f"claim by session {lease.session}")
        self._sure = True  # no commit of this claim can land any more that `_at` does not come after
        self._bucket: Bucket | None = None  # where the checkpoints' files go, if not to the repo
        self._buckets: set[str] = set()  # that this run has files in
        self._root, self._made_by = f"{branch.run}/{lineage}", f"{mark.serial:010d}-{mark.claim}"
        self._sending = threading.Lock()  # held from what goes to a bucket to the commit that names it
        self._doubtful, self._private = False, True
        self.notice: str | None = None

    def use_bucket(self, private: bool) -> str | None:
        """The files of checkpoints go to the bucket of the repo's name from now on, if a real try of all that it has to
        do succeeds; else to the repo, and `notice`, which is returned, says why."""
        bucket, self._bucket, self._doubtful, self._private = self._branch.bucket(self._repo.id), None, False, private
        try:
            with self._branch.doing("given a bucket"):
                bucket.probe(hub_bucket.new_prefix(self._root, self._made_by), private)
            self._bucket = bucket
            self._buckets.add(bucket.id)
        except StoreError as error:
            self.notice = f"This session's checkpoints go to the repo, not to a bucket. {error.what}"
        return self.notice

    @property
    def lease(self) -> Lease:
        return self._lease

    @property
    def head(self) -> str:
        return self._at.tree.commit

    def due(self) -> bool:
        return self._lease.due(self._branch.clock())

    def commit(self, checkpoint: Path, ledger: dict[str, Any], events: Path) -> str | None:
        manifest = Manifest.read(checkpoint)
        name, what = folder_name(manifest.step), f"step {manifest.step}"
        with self._branch.doing(f"given {what}", 2 * manifest.bytes):
            self._refresh()  # a session that was taken over sends nothing
            verify(checkpoint)
            state, there = self._state(manifest), set(self._repo.stored())
            send = state != "equal" or not self._large(name) <= there
            fallen_back = self.use_bucket(self._private) if self._doubtful else None
            notice, moves = self._set_aside(manifest, state, there)
            notice = " ".join(filter(None, (notice, fallen_back))) or None
            for _ in range(3):
                with self._sending:
                    files = self._sent(checkpoint, manifest) if send else []
                    now = self._branch.clock()
                    interval = None if self._committed_at is None else now - self._committed_at
                    self._write(what, _joined(moves, _just(files), self._record(ledger, events)), interval)
                if problem := self._branch.problem(self._at.tree, manifest):
                    raise self._not_kept(f"checkpoints/{name}/{problem[0]}")
                until = hub_storage.condemned_until(self._repo, self._large(name), self._branch.clock())
                if until is None:
                    self._committed_at = now
                    return notice
                # Another run is deleting the same content, so it goes there once more after that.
                rest(max(0.0, until - self._branch.clock()))
                moves, send = _just([]), True
            raise self._not_kept(f"checkpoints/{name}")

    def renew(self, ledger: dict[str, Any], events: Path) -> None:
        with self._branch.doing("written"):
            self._write("renewal", self._record(ledger, events))

    def put(self, kind: Kind, folder: Path) -> None:
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        with self._branch.doing(f"given the {kind}", sum(path.stat().st_size for path in files.values())):
            self._refresh()
            adds = [added(f"{kind}/{name}", path) for name, path in files.items()]
            self._repo.upload(adds)
            self._write(kind, _joined(lambda tree: _removed(tree, kind, kept=files), _just(adds)))

    def free(self, keep: int, best: bool = True) -> list[int]:
        with self._branch.doing("freed of old checkpoints"):
            self._refresh()
            tree = self._at.tree
            with suppress(Damaged):  # which `_sweep` says, for it cannot know then what is live
                self._buckets |= {payload.bucket for payload in self._branch.payloads(tree)}
            freed = retention.superfluous(retention.good(self._branch.stored(tree), self._lineage), keep, best)
            folders = [f"checkpoints/{folder_name(step)}" for step in freed]
            kept = tree.large(without=folders)
            unused = hub_storage.unused(self._repo, kept, tree.large() - kept)
            squash = self._at.mark.commits >= MOST_COMMITS
            if freed or unused or squash:
                with self._lock:  # so that no renewal takes back what the commit says
                    self._write("free", lambda tree: _removed(tree, *folders), condemned=list(unused), squash=squash)
                    hub_storage.delete(self._repo, unused, self._at.mark, self._branch.clock())
            for id in sorted(self._buckets):
                self._sweep(self._branch.bucket(id))
        return freed

    def _sweep(self, bucket: Bucket) -> None:
        """Delete what no commit names of this run's files there, and what sessions before left behind."""
        with self._sending:
            keys = bucket.keys(self._root)  # before the look at the head: what is named meanwhile is not in it
            if not hub_bucket.garbage(keys, self._root, self._made_by, self._live()) or not self._sure:
                return
            self._refresh()
            if gone := hub_bucket.garbage(keys, self._root, self._made_by, self._branch.live(self._at.tree)):
                bucket.delete(gone)

    def _live(self) -> set[str]:
        return {payload.prefix for payload in self._branch.payloads(self._at.tree)}

    def release(self, reason: str, ledger: dict[str, Any], events: Path) -> None:
        with self._branch.doing("released"), self._lock:
            gone = _joined(self._record(ledger, events), lambda tree: _removed(tree, LEASE))
            self._write(f"release: {reason}", gone, last=True)

    def _write(
        self,
        what: str,
        make: Make,
        interval: float | None = None,
        *,
        condemned: Sequence[str] = (),
        squash: bool = False,
        last: bool = False,
    ) -> None:
        """One commit with what `make` makes of the head's tree, the lease and the mark; checked against what was sent.

        `squash`: the history is made one commit directly after it, while no other session can have claimed the run.
        """
        with self._lock:
            while True:
                self._stand()
                now = self._branch.clock()
                lease, mark = self._lease.renewed(now, interval), self._at.mark.next(what, now, condemned)
                if squash:
                    mark = mark.model_copy(update={"commits": 0})
                operations = [*make(self._at.tree), added(HEAD, mark.model_dump())]
                if not last:
                    operations.append(added(LEASE, lease.model_dump()))
                self._sure = False
                try:
                    self._at = self._branch.head.land(self._at, operations, mark, what)
                    self._sure = True
                    break
                except Moved as moved:
                    self._follow(moved.seen)
            self._lease = lease
            if last:
                self._over = lost(self._branch.run, lease.session, lease.session, lease.host)
            self._check(operations)
            if squash:
                self._repo.squash()
                self._refresh()

    def _stand(self) -> None:
        if self._over:
            raise self._over

    def _refresh(self) -> None:
        """Look whether the run is still this session's. Raises LeaseLost."""
        with self._lock:
            self._stand()
            if seen := self._branch.head.look():
                self._follow(seen)

    def _follow(self, seen: Seen) -> None:
        """Go on from a head that this session did not make, or did not hear of: a person's edit, a commit whose answer
        was lost. Raises LeaseLost where another session made it."""
        if seen.mark.claim != self._at.mark.claim:
            self._over = lost(self._branch.run, self._lease.session, seen.mark.session, seen.mark.host)
            raise self._over
        self._at = seen

    def _check(self, operations: Sequence[Operation]) -> None:
        """Compare size and hash of what the Hub holds with what was sent."""
        for one in operations:
            if isinstance(one, CommitOperationAdd):
                source = one.path_or_fileobj
                assert isinstance(source, (str, bytes))
                file = self._at.tree.files.get(one.path_in_repo)
                if file is None or not file.holds(source if isinstance(source, bytes) else Path(source)):
                    raise self._not_kept(one.path_in_repo)

    def _not_kept(self, path: str) -> StoreError:
        what = f"The store {self._branch.place} has not kept {path} as it was sent."
        return StoreError(what, kept=KEPT, todo="Is there a .gitignore on the branch? Remove it, and try again.")

    def _state(self, manifest: Manifest) -> str:
        """What the store has of that step, against the checkpoint to be put there."""
        tree = self._at.tree
        if not tree.under(f"checkpoints/{folder_name(manifest.step)}"):
            return "missing"
        try:
            stored = self._branch.manifest(tree, manifest.step)
        except CheckpointError:
            return "damaged"
        if self._branch.problem(tree, stored):
            return "damaged"
        return "equal" if stored.files == manifest.files else "different"

    def _sent(self, checkpoint: Path, manifest: Manifest) -> list[CommitOperationAdd]:
        """Bring the files of a checkpoint there; returns what has to be committed for them to count."""
        folder = f"checkpoints/{folder_name(manifest.step)}"
        if self._bucket is None:
            files = [added(f"{folder}/{one}", checkpoint / one) for one in self._names(manifest)]
            self._repo.upload(files)
            return files
        self._doubtful = True  # until it is there
        prefix = hub_bucket.new_prefix(self._root, self._made_by)
        payload = self._bucket.send(checkpoint, manifest.files, prefix)
        self._doubtful = False
        pointer = added(f"{folder}/{hub_bucket.NAME}", payload.model_dump())
        return [added(f"{folder}/{NAME}", checkpoint / NAME), pointer]

    def _names(self, manifest: Manifest) -> list[str]:
        """What the branch holds of a checkpoint that this session sends."""
        return [*manifest.files, NAME] if self._bucket is None else [NAME, hub_bucket.NAME]

    def _set_aside(self, manifest: Manifest, state: str, there: set[str]) -> tuple[str | None, Make]:
        """Give what is in the way another name, and say so; of what is large only what is `there` (sha256)."""
        if state not in ("damaged", "different"):
            return None, _just([])
        folder = f"checkpoints/{folder_name(manifest.step)}"
        number = 1
        while self._at.tree.under(kept := f"{folder}.{state}-{number}"):
            number += 1

        def make(tree: Tree) -> list[Operation]:
            old = tree.under(folder)
            copies = [
                CommitOperationCopy(f"{folder}/{name}", f"{kept}/{name}", src_revision=tree.commit)
                for name, file in old.items()
                if file.sha256 is None or file.sha256 in there
            ]
            return [*copies, *_removed(tree, folder, kept=self._names(manifest))]

        return f"The store's checkpoint of step {manifest.step} was {state}; it is kept as {kept}.", make

    def _large(self, name: str) -> set[str]:
        return {file.sha256 for file in self._at.tree.under(f"checkpoints/{name}").values() if file.sha256}

    def _record(self, ledger: dict[str, Any], events: Path) -> Make:
        """This session's record and events, and older sessions' events where the store has less of them."""
        session = self._lease.session
        self._ledger = {**self._ledger, session: ledger}
        records = added(LEDGER, self._ledger)
        segments = {path.name: path.read_bytes() for path in sorted(events.glob("*.jsonl"))}

        def make(tree: Tree) -> Sequence[Operation]:
            there = tree.under("events")
            return [records] + [
                added(f"events/{name}", content)
                for name, content in segments.items()
                if name not in there
                or there[name].size < len(content)
                or (name == f"{session}.jsonl" and not there[name].holds(content))
            ]

        return make


def _just(operations: Sequence[Operation]) -> Make:
    """The same whatever the tree holds."""
    return lambda tree: operations


def _joined(*parts: Make) -> Make:
    return lambda tree: [one for part in parts for one in part(tree)]


def _removed(tree: Tree, *paths: str, kept: Container[str] = ()) -> list[Operation]:
    """What is there of these files, and of the files in these folders but for those named `kept`, leaves the tree."""
    gone = [path for path in paths if path in tree.files]
    gone += [f"{folder}/{name}" for folder in paths for name in tree.under(folder) if name not in kept]
    return [CommitOperationDelete(path) for path in gone]
