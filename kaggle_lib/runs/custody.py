"""A session's dealings with the store: claim the run, bring each checkpoint there, keep the lease, let go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.manifest import Manifest
from kaggle_lib.checkpoints.store import Claim, Store, Stored
from kaggle_lib.errors import LeaseHeld, LeaseLost, StoreError
from kaggle_lib.runs import events, ledger
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.upload import Uploads, bounded

Say = Callable[[str], None]
# Seconds for the last upload where there is no deadline, and where it is over; the same for the session's last words.
LONGEST_WAIT, SHORTEST_WAIT = 1800.0, 10.0
LONGEST_WRITE, SHORTEST_WRITE = 60.0, 10.0


class Custody:
    """Holds the claim of one session. A store that fails does not end the training: it is said, and tried again."""

    def __init__(
        self, store: Store, folder: RunFolder, log: events.EventLog, say: Say, keep: int, best: bool = True
    ) -> None:
        self.store, self.folder, self.log, self.say, self.keep, self.best = store, folder, log, say, keep, best
        self._unwritten: list[events.Event] = []
        self._claim: Claim | None = None
        self._uploads: Uploads | None = None

    @property
    def claim(self) -> Claim:
        assert self._claim is not None
        return self._claim

    def take(self, config: dict[str, Any], lineage: str, take_over: str | None, wait_minutes: float) -> None:
        """Claim the run, waiting for another session's lease up to so long. Raises LeaseHeld after that, StoreError."""
        lease = Lease.mine(self.log.session)
        deadline = time.monotonic() + 60 * wait_minutes
        told = False
        while True:
            try:
                self._claim = self.store.claim(config, lease, lineage, take_over)
                self._uploads = Uploads(self._claim, self.folder, self.log, self.record, self.keep, self.best)
                return
            except LeaseHeld as held:
                left = deadline - time.monotonic()
                if left <= 0 or take_over:
                    raise
                if not told:
                    self.say(f"{held} Waiting up to {wait_minutes:g} minutes.")
                    told = True
                time.sleep(min(5.0, max(0.1, left)))

    def record(self) -> dict[str, Any]:
        return ledger.record([*events.read(self.log.path), *self._unwritten])

    def begin(self, stored: Manifest | None, others: Iterable[Stored] = ()) -> None:
        """Keep the lease, and bring every checkpoint to the store, from now on. `stored`: one that it has, as it has
        `others`."""
        if self.claim.notice:
            self.warn(self.claim.notice)
        self.uploads.stored = stored
        self.uploads.done |= {one.id for one in others if not one.problem} | ({stored.nonce} if stored else set())
        self.uploads.start()

    @property
    def uploads(self) -> Uploads:
        assert self._uploads is not None
        return self._uploads

    @property
    def stored_step(self) -> int | None:
        """The newest step that the store is known to hold; None: none."""
        stored = self._uploads.stored if self._uploads else None
        return stored.step if stored else None

    def newest_local(self) -> int | None:
        """The newest step whose save was finished in the run folder."""
        return next(iter(self.uploads.finished()), None)

    def check(self) -> None:
        """Say what the uploads have met. Raises LeaseLost where another session has taken the run over."""
        self.uploads.check(self.say)

    def warn(self, message: str, step: int | None = None) -> None:
        """Into events and ledger, and said; with the `step` that it is of, if it is of one."""
        self.log.write("warning", message=message, **({} if step is None else {"step": step}))
        self.say(f"warning: {message}")

    def settle(self, left: float | None, give_up: Callable[[], bool] = lambda: False) -> None:
        """Wait for the last upload: until the session's deadline (`left` seconds), or LONGEST_WAIT without one."""
        seconds = LONGEST_WAIT if left is None else max(SHORTEST_WAIT, left - SHORTEST_WRITE)
        self.uploads.settle(seconds, give_up, self.say)

    def end(self, outcome: str, reason: str, step: int, left: float | None) -> None:
        """Write the session's end and its record, and let go of the lease. `left`: seconds to the deadline, or None."""
        end = {"outcome": outcome, "reason": reason, "step": step, "on_store": self.stored_step}
        try:
            self.log.write("end", **end)
        except OSError as error:  # a full disk is what may have ended the session; the store has room for its record
            self._unwritten = [self.log.make("end", **end)]
            self.say(f"warning: the session's end could not be written to {self.log.path}: {error.strerror}")
        self.close()
        try:
            seconds = LONGEST_WRITE if left is None else min(LONGEST_WRITE, max(SHORTEST_WRITE, left))
            bounded(lambda: self.claim.release(reason, self.record(), self.folder.events), seconds)
        except (StoreError, LeaseLost) as error:
            self.say(f"warning: {error}")

    def close(self) -> None:
        """Say what is left to be said; nothing more is sent."""
        if self._uploads is not None:
            self._uploads.stop()
            with suppress(BaseException):  # it is what ends the session, or comes after its end
                self._uploads.check(self.say)

    def kept(self) -> str:
        """What is on the store and what only here, why, and what to do, in a few sentences."""
        local = self.newest_local()
        if self.stored_step is None and local is None:
            return "No checkpoint had been made yet."
        if self.uploads.waiting() is None and self.stored_step == local:
            notice = f" {self.claim.notice}" if self.claim.notice else ""
            return f"The checkpoint of step {local} is on the store.{notice}"
        there = "the store has none" if self.stored_step is None else f"the store has step {self.stored_step}"
        problem = self.uploads.problem
        why = f" ({problem.what.rstrip('.')})" if problem else ""
        todo = (problem and problem.todo) or "Run `train` on this machine again, and it goes there first."
        here = f"The checkpoint of step {local} is in {self.folder.checkpoints} only"
        return f"{here}; {there}{why}. {todo} On another machine it would be missing."
