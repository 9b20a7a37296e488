"""The store: where a run outlives the machine. The contract, and what a look at a store gives.

Reading needs nothing; writing needs a claim. The claim remembers the head that this session last made, and every write
moves it in one step or is refused: so a session that was taken over can no longer change anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.manifest import Manifest

Kind = Literal["evaluation", "report"]


@dataclass(frozen=True)
class Stored:
    """A checkpoint on the store. `problem`: (file, reason) where a look at the manifest, names and sizes finds one."""

    step: int
    id: str
    bytes: int
    manifest: Manifest | None
    problem: tuple[str, str] | None = None


@dataclass(frozen=True)
class StoreState:
    """What is on the store for one run; all empty where no session has claimed it yet.

    `config` is what the first claim froze (it holds `lineage`, the run's birth nonce, too); `ledger` is in the order of
    the sessions, `checkpoints` newest first; `bytes` is all that the store holds of the run; `now`: when that was so,
    by the store's clock (seconds since 1970).
    """

    config: dict[str, Any] | None = None
    lineage: str | None = None
    ledger: list[dict[str, Any]] = field(default_factory=list)
    lease: Lease | None = None
    head: str | None = None
    checkpoints: list[Stored] = field(default_factory=list)
    bytes: int = 0
    now: float = field(default=0.0, compare=False)

    def holder(self) -> str | None:
        """The session that may still be writing."""
        if self.lease is None or self.lease.expired(self.now) or self.lease.provably_dead():
            return None
        return self.lease.session


class Store(Protocol):
    """One run's place on a folder or on the Hub.

    Every method raises StoreError where the store cannot be read or written: that never means "no checkpoint".
    """

    @property
    def place(self) -> str:
        """What to call it in messages: a path or an address."""
        ...

    def peek(self) -> StoreState:
        """Read only; creates nothing."""
        ...

    def runs(self) -> list[str]:
        """The names of all runs in the same place; none where there is no such place."""
        ...

    def claim(self, config: dict[str, Any], lease: Lease, lineage: str, take_over: str | None = None) -> Claim:
        """Become the one session that writes. A new run's `config` and `lineage` are frozen by this; an old one's stay.

        A holder that is provably dead, or whose promise has ended, is replaced at once. Raises LeaseHeld where another
        session holds the run, unless `take_over` is that very session's id.
        """
        ...

    def fetch(self, stored: Stored, into: Path) -> Manifest:
        """Copy a checkpoint to the new folder `into`, which appears only when every hash was verified.

        Raises CheckpointError naming the failing file; `into` is not there then.
        """
        ...

    def fetch_events(self, into: Path) -> None:
        """Bring the sessions' events into the folder `into`, where they are missing or shorter."""
        ...

    def fetch_kind(self, kind: Kind, into: Path) -> bool:
        """Replace `into` by what `put` stored; False: nothing is stored."""
        ...


class Claim(Protocol):
    """The right to write, held by one session. Its methods may be called from several threads.

    Each raises LeaseLost, naming who took the run over, once another session has claimed it; and StoreError where the
    store failed: everything committed before is kept, and the same call may be tried again.
    """

    @property
    def lease(self) -> Lease: ...

    @property
    def head(self) -> str: ...

    @property
    def notice(self) -> str | None:
        """What the user has to know of how this session stores; None: it does as it was asked to."""
        ...

    def due(self) -> bool:
        """A third of the lease's time is left, or less: commit or renew now."""
        ...

    def commit(self, checkpoint: Path, ledger: dict[str, Any], events: Path) -> str | None:
        """Store a checkpoint with this session's record and events; verified before it counts. Renews the lease.

        One that is there already, equal in every file, is not copied again. Another one of that step is renamed, and
        the returned sentence says so (None: nothing to say). Raises CheckpointError where `checkpoint` is damaged.
        """
        ...

    def renew(self, ledger: dict[str, Any], events: Path) -> None:
        """The lease, the record and the events, without a checkpoint."""
        ...

    def put(self, kind: Kind, folder: Path) -> None:
        """Replace the stored evaluation or report by `folder`."""
        ...

    def free(self, keep: int, best: bool = True) -> list[int]:
        """Remove all but the newest `keep` good checkpoints of this run, and return the steps removed.

        A damaged one neither counts nor is removed; a finished run's final one always stays, and with `best` that of
        the best validation.
        """
        ...

    def release(self, reason: str, ledger: dict[str, Any], events: Path) -> None:
        """Give the run free for the next session; `reason` is kept beside the head."""
        ...
