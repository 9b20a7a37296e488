"""Uploads beside the training: two threads of the supervisor, so that neither it nor a worker waits for the store.

One commits the newest finished checkpoint, then the next that is the newest, each after the best one that it names; the
other keeps the lease meanwhile. A store that fails is tried again, less and less often. What the session has to know is
kept here until it asks.
"""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue

from kaggle_lib.checkpoints.manifest import NAME, Manifest
from kaggle_lib.checkpoints.store import Claim
from kaggle_lib.errors import CheckpointError, StoreError
from kaggle_lib.runs import events, ledger
from kaggle_lib.runs.folder import RunFolder

POLL_SECONDS = 0.1
FIRST_PAUSE, LONGEST_PAUSE = 5.0, 60.0  # after a failure of the store
TRIES_AT_THE_END = 3
RECENT = 5  # uploads that the rate is measured over


class Uploads:
    """Runs from `start` to `stop`. `stored`: the manifest of the newest checkpoint that the store is known to hold;
    `done`: the nonces of all that it holds, and of what is damaged here; `problem`: what made the last try fail.
    """

    def __init__(
        self,
        claim: Claim,
        folder: RunFolder,
        log: events.EventLog,
        record: Callable[[], ledger.Record],
        keep: int,
        best: bool,
    ) -> None:
        self.claim, self.folder, self.log, self.record, self.keep, self.best = claim, folder, log, record, keep, best
        self.stored: Manifest | None = None
        self.done: set[str] = set()
        self.problem: StoreError | None = None
        self.said: SimpleQueue[str] = SimpleQueue()
        self._failed: BaseException | None = None
        self._failures = 0
        self._told: set[str] = set()  # of what failed since the last upload
        self._unfreed = False  # old checkpoints are still on the store
        self._sending: int | None = None
        self._since = 0.0
        self._seconds_a_byte: deque[float] = deque(maxlen=RECENT)
        self._choosing = threading.Lock()  # of what is sent, and of what is removed here
        self._announced = self._hurry = self._ended = False
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=work.__name__, daemon=True)
            for work in (self._upload, self._renew)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def check(self, tell: Callable[[str], None]) -> None:
        """Tell what has happened since the last call, and remove old checkpoints here; never the newest `keep`, the
        best ones that these name, nor one that is on its way. Raises what ended a thread: LeaseLost, where another
        session has taken the run over.
        """
        while True:
            try:
                tell(self.said.get_nowait())
            except Empty:
                break
        if self._failed is not None:
            raise self._failed
        with self._choosing:
            finished = self.finished()
            old = finished[self.keep :]
            kept = map(self._read, finished[: self.keep]) if old and self.best else ()
            stay = {self._sending, *(manifest.best_step for manifest in kept if manifest)}
            for step in old:
                if step not in stay:
                    shutil.rmtree(self.folder.checkpoint(step))

    def finished(self) -> list[int]:
        """The steps whose save was finished in the run folder, newest first."""
        steps = self.folder.checkpoint_steps()
        return [step for step in steps if (self.folder.checkpoint(step) / NAME).exists()]

    def waiting(self) -> Manifest | None:
        """What goes to the store next: the newest finished checkpoint, but first the best one that it names, so that
        the store never has the one without the other. None: the store has them, or they are damaged here."""
        return next(iter(self._waiting()), None)

    def _waiting(self) -> list[Manifest]:
        finished = self.finished()
        newest = self._read(finished[0]) if finished else None
        if newest is None:
            return []
        named = newest.best_step if self.best and newest.best_step in finished[1:] else None
        ahead = None if named is None else self._read(named)
        return [one for one in (ahead, newest) if one and one.nonce not in self.done]

    def _read(self, step: int) -> Manifest | None:
        """The manifest of a finished checkpoint here; None where it is damaged, which is said."""
        try:
            return Manifest.read(self.folder.checkpoint(step))
        except CheckpointError as error:
            self._warn_once(f"{error} It is not brought to the store.")
            return None

    def seconds_for_the_next(self) -> float:
        """What the next upload takes: as many bytes as the last one, at the slowest recent rate, and no less than the
        one that is under way has taken so far; twice that where a best one has to go first; 0 where nothing is known
        yet."""
        size = self.stored.bytes if self.stored else 0
        if self.best and any(one.best_step == one.step for one in self._waiting()):
            size *= 2
        under_way = time.monotonic() - self._since if self._sending is not None else 0.0
        return max(under_way, size * max(self._seconds_a_byte, default=0.0))

    def settle(self, seconds: float, give_up: Callable[[], bool], waiting: Callable[[str], None]) -> None:
        """Wait until the newest checkpoint is on the store and the old ones are off it: so long at most, or until the
        one has failed three times more, the other once.

        `waiting` is told once if an upload is not done at once. Raises nothing; what ended a thread `check` raises.
        """
        end, failures, told = time.monotonic() + seconds, self._failures, False
        self._hurry = True
        while self._threads[0].is_alive() and not give_up():
            next_one = self.waiting()
            if next_one is None and not self._unfreed:
                return
            if self._failures - failures >= (TRIES_AT_THE_END if next_one else 1):
                return
            if time.monotonic() >= end:
                if next_one:
                    self.problem = self.problem or StoreError(
                        f"its upload was not done within the last {seconds:.0f} s"
                    )
                return
            if next_one and not told and time.monotonic() > end - seconds + 2:
                told = True
                waiting(f"Waiting for the upload of step {next_one.step}, {seconds:.0f} s at most.")
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """Begin nothing more."""
        self._ended = True

    def _run(self, work: Callable[[], None]) -> None:
        try:
            pause = FIRST_PAUSE
            while not self._ended:
                try:
                    work()
                    pause = FIRST_PAUSE
                    time.sleep(POLL_SECONDS)
                except StoreError as error:
                    self._failures += work == self._upload
                    self.problem = error
                    self._warn_once(f"{error} Training goes on; the store is tried again.")
                    self._rest(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
        except BaseException as error:  # LeaseLost, or a bug of ours: `check` raises it
            self._failed = error

    def _rest(self, seconds: float) -> None:
        began = time.monotonic()
        while not self._ended and time.monotonic() - began < (min(seconds, FIRST_PAUSE) if self._hurry else seconds):
            time.sleep(POLL_SECONDS)

    def _upload(self) -> None:
        with self._choosing:
            manifest = self.waiting()
            if manifest is not None:
                self._sending, self._since = manifest.step, time.monotonic()
                newest = manifest.step == self.finished()[0]
        if manifest is None:
            if self._unfreed:
                self._free()
            return
        try:
            notice = self.claim.commit(self.folder.checkpoint(manifest.step), self.record(), self.folder.events)
        except CheckpointError as error:
            self.done.add(manifest.nonce)
            self._warn_once(f"{error} It is not brought to the store.")
            return
        finally:
            self._sending = None
        seconds = time.monotonic() - self._since
        self._unfreed = True
        self.done.add(manifest.nonce)
        if newest or self.stored is None or self.stored.step < manifest.step:
            self.stored = manifest
        self.problem = None
        self._told.clear()
        self._seconds_a_byte.append(seconds / manifest.bytes)
        self.log.write("upload", step=manifest.step, seconds=round(seconds, 4), bytes=manifest.bytes)
        if notice:
            self._warn(notice)
        for left in self.folder.checkpoints.glob("step-*.unfinished-*"):  # saves that a kill cut off
            shutil.rmtree(left)
        self._free()

    def _free(self) -> None:
        self.claim.free(self.keep, self.best)
        self._unfreed = False

    def _renew(self) -> None:
        # At the session's beginning, too: one that is killed before its first save is in the ledger then.
        if self.claim.due() or not self._announced:
            self.claim.renew(self.record(), self.folder.events)
            self._announced = True

    def _warn_once(self, message: str) -> None:
        same = re.sub(r"[0-9a-f-]{8,}|[0-9]+", "", message)  # without steps, names of passing files, ids of requests
        if same not in self._told:
            self._told.add(same)
            self._warn(message)

    def _warn(self, message: str) -> None:
        self.log.write("warning", message=message)
        self.said.put(f"warning: {message}")


def beside(work: Callable[[], None], leave: Callable[[], bool]) -> bool:
    """Call `work` in a thread, and `leave` all the while: True when the first is done, False where the second says to
    leave it. Raises what either raises."""
    ended: list[BaseException | None] = []

    def run() -> None:
        try:
            work()
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while not ended:
        if leave():
            return False
        thread.join(POLL_SECONDS)
    if ended[0] is not None:
        raise ended[0]
    return True


def bounded(work: Callable[[], None], seconds: float) -> None:
    """Call `work` and wait for it so long. Raises what it raises, and StoreError where it is not done by then."""
    end = time.monotonic() + seconds
    if not beside(work, lambda: time.monotonic() > end):
        raise StoreError(f"The store did not answer within {seconds:.0f} seconds.", kept="Its lease ends by itself.")
