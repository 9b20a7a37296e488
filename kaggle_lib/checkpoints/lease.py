"""The lease: which session may write a run. A promise with an end, and proof where the holder is known to be dead."""

from __future__ import annotations

import hashlib
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict

from kaggle_lib.errors import LeaseHeld, LeaseLost

SHORTEST, UNMEASURED = 600.0, 1800.0  # seconds


class Lease(BaseModel):
    """Who holds the run, and until when (`expires`: seconds since 1970 by the store's clock).

    `pid` alone proves nothing: it is used again after a reboot (`boot_id`), by a later process (`pid_started`, in clock
    ticks since the boot), in another container (`pid_namespace`) and on another machine of the same name (`machine`,
    a hash of the machine id; empty where there is none).
    """

    model_config = ConfigDict(frozen=True)
    session: str
    host: str
    machine: str
    boot_id: str
    pid_namespace: str
    pid: int
    pid_started: int
    expires: float = 0.0
    save_interval: float | None = None

    @classmethod
    def mine(cls, session: str) -> Self:
        """A lease of this process; the store sets its end when it is claimed."""
        return cls(
            session=session,
            host=socket.gethostname(),
            machine=_machine(),
            boot_id=Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            pid_namespace=_pid_namespace(),
            pid=os.getpid(),
            pid_started=_started(os.getpid()) or 0,
        )

    @property
    def duration(self) -> float:
        """Seconds of one promise: 3 times the measured save interval, at least 10 minutes; 30 until one is measured."""
        return UNMEASURED if self.save_interval is None else max(SHORTEST, 3 * self.save_interval)

    def renewed(self, now: float, save_interval: float | None = None) -> Self:
        """The same holder's next promise, from `now` on; `save_interval` in seconds where one was measured.

        The Hub tells whole seconds, so two saves in one may seem to be in the wrong order: that measures nothing.
        """
        known = save_interval if save_interval and save_interval > 0 else self.save_interval
        measured = self.model_copy(update={"save_interval": known})
        return measured.model_copy(update={"expires": now + measured.duration})

    def expired(self, now: float) -> bool:
        return now >= self.expires

    def due(self, now: float) -> bool:
        """A third of the time is left, or less: renew it."""
        return self.expires - now <= self.duration / 3

    def provably_dead(self) -> bool:
        """The holder was on this very machine and is gone. False where that cannot be known."""
        here = type(self).mine(self.session)
        if (self.host, self.machine) != (here.host, here.machine):
            return False
        if self.boot_id != here.boot_id:
            return bool(self.machine)  # a host name alone may be another machine's
        if self.pid_namespace != here.pid_namespace:
            return False
        try:
            return _started(self.pid) != self.pid_started
        except PermissionError:
            return False


def refusal(run: str, held: Lease, now: float, take_over: str | None) -> LeaseHeld:
    """Another session may still be writing: which, where, and until when."""
    left = held.expires - now
    until = datetime.fromtimestamp(held.expires, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    what = f"Run {run!r} is held by session {held.session} on {held.host} until {until} ({left / 60:.1f} min)"
    if take_over:
        what += f"; take_over names another session, {take_over}"
    return LeaseHeld(
        f"{what}.",
        session=held.session,
        host=held.host,
        seconds_left=left,
        todo=f"Wait, or give take_over={held.session} if you know that it no longer runs.",
    )


def lost(run: str, mine: str, session: str, host: str) -> LeaseLost:
    """The run is no longer `mine`: `session` on `host` wrote last."""
    if session == mine:
        what = f"Session {mine} no longer holds run {run!r}: it was released or claimed anew."
        return LeaseLost(what, kept="Everything committed before is kept.")
    return LeaseLost(
        f"Run {run!r} was taken over by session {session} on {host}.",
        kept="What this session committed before is kept; it writes nothing more.",
        todo="Let that session go on.",
    )


def _started(pid: int) -> int | None:
    """When the process began, in clock ticks since the boot; None: there is none, or only its zombie.

    Raises PermissionError where /proc hides other users' processes and this is one of them.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        raise PermissionError(f"process {pid} is hidden") from None
    # proc_pid_stat(5): the name, second of the fields, stands in brackets and may hold anything; state is the third.
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _pid_namespace() -> str:
    return str(Path("/proc/self/ns/pid").readlink())


def _machine() -> str:
    """A hash, because machine-id(5) asks not to show the id itself."""
    for path in (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id")):
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text:
            return hashlib.sha256(f"kaggle_lib {text}".encode()).hexdigest()[:16]
    return ""
