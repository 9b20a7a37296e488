"""What asks a session to end before the run does: Ctrl-C, a notebook's interrupt, SIGTERM, the deadline."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from kaggle_lib.session.clock import Clock


class Stopping:
    """`why`: the reason to save and pause, or nothing. `at_once`: the second Ctrl-C, stop without saving."""

    def __init__(self, clock: Clock, say: Callable[[str], None]) -> None:
        self.clock, self.say = clock, say
        self.why = ""
        self.at_once = False
        self.reserve = 0.0
        self._untold = ""

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Listen to SIGINT and SIGTERM, where this is the main thread; others are never asked."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._asked) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _asked(self, number: int, _: FrameType | None) -> None:
        if self.why:
            # A second SIGTERM asks for no more than the first.
            self.at_once = self.at_once or number == signal.SIGINT
            return
        self.why = "interrupted" if number == signal.SIGINT else "asked to end by SIGTERM"
        again = " Once more stops at once, without saving." if number == signal.SIGINT else ""
        self._untold = f"{self.why[0].upper()}{self.why[1:]}: saving and pausing.{again}"
        with suppress(RuntimeError):  # the signal came in the middle of another line: it is said a moment later
            self._tell()

    def _tell(self) -> None:
        if self._untold:
            self.say(self._untold)
            self._untold = ""

    def watch_the_clock(self, slowest: float) -> None:
        """Ask when a last step, its save and its upload, `slowest` seconds at most, just fit before the deadline.

        Three times that: an upload that is under way may have to end first, and as much again for what is not measured.
        """
        self._tell()
        if self.clock.hours is None:
            return
        self.reserve = min(3600 * self.clock.hours / 5, max(30.0, 3 * slowest))
        if not self.why and self.clock.due(self.reserve):
            self.why = f"session_hours={self.clock.hours:g} are over"
            self.say(f"{self.why}: saving and pausing.")

    @property
    def overdue(self) -> bool:
        """The deadline passed so long ago that what is still being saved is not waited for."""
        return self.clock.due(-self.reserve)
