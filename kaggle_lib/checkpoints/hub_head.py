"""The head of a run's branch: who made it, and how a commit's end is known where the Hub's answer does not tell.

`head.json` changes with every commit of ours: a `serial` that only grows tells an old head, which the Hub may show for
a while, from a new one; a fresh `nonce` tells whether a commit landed whose answer was lost; `claim` tells whose it is.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Sequence
from typing import NamedTuple, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from kaggle_lib.checkpoints.hub_client import Failures, passing, rest, within
from kaggle_lib.checkpoints.hub_repo import Damaged, Operation, Repo, Tree
from kaggle_lib.checkpoints.lease import Lease

NAME = "head.json"
DECIDING, LONGEST_PAUSE = 90.0, 8.0  # seconds


class Mark(BaseModel):
    """`commits`: how many since the history was last made one. `condemned`: sha256 of what this run may delete from the
    repo's storage within a minute of `time`, unless another branch has come to hold it.
    """

    model_config = ConfigDict(frozen=True)
    serial: int = 0
    nonce: str = ""
    claim: str = ""
    session: str = "unknown"
    host: str = "an unknown host"
    what: str = ""
    time: float = 0.0
    commits: int = 0
    condemned: list[str] = []

    def claimed(self, lease: Lease, now: float) -> Self:
        """The mark of a new claim after this one."""
        own = {"claim": secrets.token_hex(16), "session": lease.session, "host": lease.host}
        return self.model_copy(update=own).next("claim", now)

    def next(self, what: str, now: float, condemned: Sequence[str] = ()) -> Self:
        """The mark of the same claim's next commit."""
        fresh = {"serial": self.serial + 1, "nonce": secrets.token_hex(16), "commits": self.commits + 1}
        return self.model_copy(update={**fresh, "what": what, "time": now, "condemned": list(condemned)})


class Seen(NamedTuple):
    tree: Tree
    mark: Mark


class Moved(Exception):
    """The head is not the one that a commit was made for, but `seen`."""

    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.seen = seen


class Head:
    """The newest head that this process has seen: a question never leads back to an older one."""

    def __init__(self, repo: Repo) -> None:
        self.repo = repo
        self._newest: Seen | None = None
        self._setting = threading.Lock()

    def look(self) -> Seen | None:
        """Ask for the head; None: there is no such repo, or no branch in it."""
        tree, newest = self.repo.look(), self._newest
        if tree is None or (newest and tree.commit == newest.tree.commit):
            return newest
        return self._set(Seen(tree, read_mark(self.repo, tree)))

    def land(self, base: Seen, operations: Sequence[Operation], mark: Mark, message: str) -> Seen:
        """Make one commit on `base`; returns the new head. `operations` write `mark`, whose nonce is fresh.

        Raises Moved where another commit came first, and what the client raises: where it cannot be known whether this
        one landed, the next one finds out by its own Moved.
        """
        pause = 0.25
        with within(DECIDING):
            while True:
                try:
                    commit = self.repo.commit(operations, base.tree.commit, message)
                    break
                except Failures as error:
                    if not passing(error):
                        raise
                    failed = error
                # Refused, lost or late: an unchanged head proves nothing, for reads may lag behind.
                seen = self.look()
                if seen and seen.mark.nonce == mark.nonce:
                    return seen
                if seen and seen.tree.commit != base.tree.commit:
                    raise Moved(seen)
                rest(pause, failed)
                pause = min(2 * pause, LONGEST_PAUSE)
            while (tree := self.repo.look(commit)) is None:
                rest(1.0)
        return self._set(Seen(tree, mark))

    def _set(self, seen: Seen) -> Seen:
        with self._setting:
            if self._newest is None or seen.mark.serial >= self._newest.mark.serial:
                self._newest = seen
            return self._newest


def read_mark(repo: Repo, tree: Tree) -> Mark:
    """What the commit says of itself; serial 0 where it is none of a run's. Raises Damaged."""
    if NAME not in tree.files:
        return Mark()
    try:
        return Mark.model_validate_json(repo.read(tree, NAME))
    except ValidationError:
        raise Damaged(NAME, "is damaged") from None
