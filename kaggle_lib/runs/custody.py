"""A session's dealings with the store: claim the run, bring each checkpoint there, keep the lease, let go."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.manifest import Manifest
from kaggle_lib.checkpoints.store import Claim, Store
from kaggle_lib.errors import LeaseHeld, LeaseLost, StoreError
from kaggle_lib.runs import events, ledger
from kaggle_lib.runs.folder import RunFolder

Say = Callable[[str], None]


class Custody:
    """Holds the claim of one session. A store that fails does not end the training: it is said, and tried again.

    `stored_step`: the newest step that the store is known to hold; None: none.
    """

    def __init__(self, store: Store, folder: RunFolder, log: events.EventLog, say: Say) -> None:
        self.store, self.folder, self.log, self.say = store, folder, log, say
        self.stored_step: int | None = None
        self.problem = ""
        self._announced = False
        self._unwritten: list[events.Event] = []
        self._claim: Claim | None = None

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

    def newest_local(self) -> int | None:
        """The newest step whose save was finished in the run folder."""
        return next((step for step in self.folder.checkpoint_steps() if self._finished(step)), None)

    def _finished(self, step: int) -> bool:
        return (self.folder.checkpoint(step) / "manifest.json").exists()

    def upload(self, keep: int) -> None:
        """Commit the newest finished checkpoint unless it is stored, then free old ones, here and there.

        Raises LeaseLost where another session has taken the run over.
        """
        newest = self.newest_local()
        try:
            if newest is not None and newest != self.stored_step:
                began, path = time.monotonic(), self.folder.checkpoint(newest)
                if notice := self.claim.commit(path, self.record(), self.folder.events):
                    self.warn(notice)
                self.stored_step, self.problem = newest, ""
                seconds = round(time.monotonic() - began, 4)
                self.log.write("upload", step=newest, seconds=seconds, bytes=Manifest.read(path).bytes)
                self.claim.free(keep)
                good = [step for step in self.folder.checkpoint_steps() if self._finished(step)]
                for step in good[keep:]:
                    shutil.rmtree(self.folder.checkpoint(step))
                for left in self.folder.checkpoints.glob("step-*.unfinished-*"):  # saves that a kill cut off
                    shutil.rmtree(left)
            elif self.claim.due() or not self._announced:
                # At its beginning, too: a session that is killed before its first save is in the ledger then.
                self.claim.renew(self.record(), self.folder.events)
            self._announced = True
        except StoreError as error:
            if str(error) != self.problem:
                self.problem = str(error)
                self.warn(f"{error} Training goes on; the store is tried again.")

    def warn(self, message: str) -> None:
        self.log.write("warning", message=message)
        self.say(f"warning: {message}")

    def end(self, outcome: str, reason: str, step: int) -> bool:
        """Write the session's end and its record, and let go of the lease; False where the store could not be told."""
        end = {"outcome": outcome, "reason": reason, "step": step, "on_store": self.stored_step}
        try:
            self.log.write("end", **end)
        except OSError as error:  # a full disk is what may have ended the session; the store has room for its record
            self._unwritten = [self.log.make("end", **end)]
            self.say(f"warning: the session's end could not be written to {self.log.path}: {error.strerror}")
        try:
            self.claim.release(reason, self.record(), self.folder.events)
        except (StoreError, LeaseLost) as error:
            self.say(f"warning: {error}")
            return False
        return True

    def kept(self) -> str:
        """What is on the store and what only here, in a sentence."""
        local = self.newest_local()
        if self.stored_step is None and local is None:
            return "No checkpoint had been made yet."
        if self.stored_step == local:
            return f"The checkpoint of step {local} is on the store."
        there = "the store has none" if self.stored_step is None else f"the store has step {self.stored_step}"
        why = f" ({self.problem})" if self.problem else ""
        return f"The checkpoint of step {local} is in {self.folder.checkpoints}; {there}{why}."
