"""When the session began, and how long it may still last.

The limit that counts is the machine's. Kaggle ends a session so many hours after its container was started, and the
container's first process says when that was, however late the training begins. Elsewhere a session begins with us.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kaggle_lib.session.where import where


def boot_seconds() -> float:
    """Seconds since the boot, a suspended machine's sleep included: the clock that /proc tells start times by."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def process_start(pid: int) -> float | None:
    """When process `pid` began, in seconds since the boot; None where that cannot be seen.

    Source: proc_pid_stat(5), field 22; the name, second of the fields, stands in brackets and may hold anything.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
        return int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return None


@dataclass(frozen=True)
class Clock:
    """`began`: seconds since the boot; `hours`: how long the session may last, or None for no limit."""

    began: float
    hours: float | None

    @classmethod
    def start(cls, hours: float | None) -> Self:
        """The clock of a session that is `hours` long, counted from the container's start on Kaggle, else from now."""
        now = boot_seconds()
        first = process_start(1) if where() != "local" else None
        return cls(now if first is None else min(first, now), hours)

    def elapsed(self) -> float:
        """Seconds since the session began."""
        return boot_seconds() - self.began

    def left(self) -> float | None:
        """Seconds until the session's end, negative when it is over; None without a limit."""
        return None if self.hours is None else 3600 * self.hours - self.elapsed()

    def due(self, reserve: float) -> bool:
        """True when `reserve` seconds or fewer are left: whatever has to be saved is saved now."""
        left = self.left()
        return left is not None and left <= reserve
