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

from kaggle_lib.session.where import ROOT_VARIABLE, where

KAGGLE_HOURS = 11.5  # Kaggle ends a session after 12, and keeps nothing of its disk then


def boot_seconds() -> float:
    """Seconds since the boot, a suspended machine's sleep included: the clock that /proc tells start times by."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _stat(pid: int, field: int) -> int | None:
    """Field `field` of proc_pid_stat(5), from the third on; the second, a name in brackets, may hold anything."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()[field - 3])
    except (OSError, IndexError, ValueError):
        return None


def process_start(pid: int) -> float | None:
    """When process `pid` began, in seconds since the boot; None where that cannot be seen."""
    ticks = _stat(pid, 22)
    return None if ticks is None else ticks / os.sysconf("SC_CLK_TCK")


def container_start() -> float | None:
    """When the session's container began: its first process, or, where `KAGGLE_LIB_ROOT` stands in for `/kaggle`, the
    oldest of the processes above this one that were started with it. None where that cannot be seen.
    """
    if not os.environ.get(ROOT_VARIABLE):
        return process_start(1)
    first, pid = None, os.getpid()
    while pid and _started_with(ROOT_VARIABLE, pid):
        first, pid = pid, _stat(pid, 4) or 0
    return first and process_start(first)


def _started_with(variable: str, pid: int) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(entry.startswith(f"{variable}=".encode()) for entry in environment)


@dataclass(frozen=True)
class Clock:
    """`began`: seconds since the boot; `hours`: how long the session may last, or None for no limit."""

    began: float
    hours: float | None

    @classmethod
    def start(cls, hours: float | None) -> Self:
        """The clock of a session that is `hours` long, counted from the container's start on Kaggle, else from now.

        On Kaggle, which has a limit of its own, KAGGLE_HOURS unless `hours` are given.
        """
        now = boot_seconds()
        if where() == "local":
            return cls(now, hours)
        return cls(min(container_start() or now, now), KAGGLE_HOURS if hours is None else hours)

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
