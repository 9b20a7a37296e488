"""Push sessions until the run's own state says finished. What is known lies on the store and on Kaggle, nowhere else.

Each look gives a `View`, and `decide` makes an `Action` of it: a pure function, so that a chain that was killed and
started again, anywhere and at any moment, decides as the old one would have.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

from kaggle_lib.errors import KaggleBusy, KaggleError, StoreError
from kaggle_lib.kaggle.client import ENDED, NOT_NOW, Client, Quota, Status, editor
from kaggle_lib.kaggle.push import (
    Plan,
    kernel_id,
    mark_of,
    newest_session,
    next_step,
    only_one,
    open_for_kaggle,
    push_opened,
    stored_checkpoint,
)
from kaggle_lib.runs.ledger import Record
from kaggle_lib.runs.opening import Opened
from kaggle_lib.session.clock import KAGGLE_HOURS

Say = Callable[[str], None]


@dataclass(frozen=True)
class Limits:
    """When to give up, and how long to wait. `settle`: seconds in which Kaggle may not show a push yet, or has to find
    a machine; `hang_minutes`: after the end of a live session's lease; `least_hours`: of the quota, to begin a session.
    """

    max_sessions: int = 40
    no_progress: int = 2
    poll: float = 60.0
    settle: float = 120.0
    hang_minutes: float = 30.0
    start_minutes: float = 60.0
    least_hours: float = 0.5


@dataclass(frozen=True)
class View:
    """What a look has shown.

    `holder`: the session whose lease is good (`until`), and whether it is of this kernel's newest push (`own`).
    `session`: the record of the newest such session that has no end; `overdue`: seconds since its lease ended;
    `ousted`: another session has it. `sessions`: how many have trained; `in_vain`: how many of the last ones added no
    step, those that left no record (`unrecorded`) included. `age`: seconds since the last push, if known.
    """

    finished: bool
    status: Status
    holder: str | None = None
    until: str = ""
    own: bool = False
    session: Record | None = None
    overdue: float = 0.0
    ousted: bool = False
    sessions: int = 0
    in_vain: int = 0
    unrecorded: int = 0
    age: float | None = None
    quota: Quota | None = None


@dataclass(frozen=True)
class Action:
    """`wait`, `push`, `cancel` (the session of that number), `done`, or `stop`: a person has to act."""

    kind: Literal["wait", "push", "cancel", "done", "stop"]
    why: str
    take_over: str | None = None
    session: int | None = None


@dataclass(frozen=True)
class Chained:
    """How a chain, or one step of it, ended; `sessions`: how many have trained so far."""

    outcome: Literal["finished", "paused"]
    run: str
    kernel: str
    did: str
    reason: str
    sessions: int

    @property
    def exit_code(self) -> int:
        return 0 if self.outcome == "finished" else 75

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def decide(view: View, limits: Limits) -> Action:
    """What to do now. The run's own state is asked before Kaggle's word, and nothing is pushed in doubt."""
    status = view.status
    if view.finished:
        return Action("done", "the run is finished, and on the store")
    if status.state == "unknown":
        return Action("wait", f"Kaggle does not say how its session is ({status.message})")
    if status.live:
        return _watch(view, limits)
    short = status.state == "error" and NOT_NOW.search(status.message)
    if view.age is not None and view.age < limits.settle * (5 if short else 1):
        why = f"Kaggle had no machine ({status.message})" if short else "a session was pushed a moment ago"
        return Action("wait", why)
    if view.holder and not view.own:
        return Action("wait", f"session {view.holder} holds the run until {view.until}, and is none of this kernel's")
    if view.in_vain >= limits.no_progress:
        said = f"; Kaggle says: {status.message}" if status.message else ""
        return Action("stop", f"{view.in_vain} sessions in a row came to no new step{said}")
    if view.sessions >= limits.max_sessions:
        return Action("stop", f"{view.sessions} sessions have trained, and the run is not finished")
    if view.quota and view.quota.left < limits.least_hours:
        refill = f", refilled {view.quota.refresh}" if view.quota.refresh else ""
        return Action("wait", f"{view.quota.left:.1f} of {view.quota.total:.0f} GPU hours of the week are left{refill}")
    ended = "no session has run yet" if status.state in ("none", "new") else f"the last session ended ({status.state})"
    return Action("push", ended, take_over=view.holder)


def _watch(view: View, limits: Limits) -> Action:
    """A session is live: whether it still does what it should."""
    state, session = view.status.state, view.session
    if state != "running":
        return Action("wait", f"the session is {state}")
    if session is None:
        late = view.age is not None and view.age > 60 * limits.start_minutes
        return Action(
            "wait", "the session has not begun to train" + ("; it may hang in its first cells" if late else "")
        )
    if not view.ousted and view.overdue < 60 * limits.hang_minutes:
        return Action("wait", f"session {session['id']} trains, step {session['to_step']}")
    why = "lost the run to another session" if view.ousted else f"gave no sign for {view.overdue / 60:.0f} minutes"
    number = session.get("kaggle_session")
    if number is None:
        return Action(
            "wait", f"session {session['id']} {why}, and its number is not known: it cannot be cancelled here"
        )
    return Action("cancel", f"session {session['id']} {why}", session=number)


def in_vain(records: Sequence[Record]) -> int:
    """How many of the last training sessions added no step to the best one before them."""
    best = count = 0
    for record in records:
        if record["job"] == "train":
            best, count = (record["to_step"], 0) if record["to_step"] > best else (best, count + 1)
    return count


def look(
    values: Mapping[str, object], kernel: str, notebook: str, client: Client, last: Mapping[str, Any]
) -> tuple[View, Opened]:
    """Ask Kaggle, and then the store, so that all is seen that a session did before Kaggle called it ended.

    `last`: the mark of this chain's own last push, for a Kaggle that does not show what was pushed.
    """
    status = client.status(kernel)
    pulled = client.pull(kernel) if status.state not in ("none", "unknown") else None
    opened = open_for_kaggle(values)
    state, config, found = opened.state, opened.config, stored_checkpoint(opened)
    mark = dict(pulled.mark if pulled and pulled.mark else last)
    if (mark.get("run"), mark.get("store"), mark.get("notebook")) != (config.run, config.store, notebook):
        mark = {}
    after, newest = mark.get("after", ""), newest_session(opened)
    records = [record for record in state.ledger if record["job"] == "train"]
    own = [record for record in records if record.get("kernel") == kernel and record["id"] > after]
    alive = next((record for record in reversed(own) if not record["ended"]), None)
    holder, lease, finished = state.holder(), state.lease, found is not None and found.kind == "finished"
    unrecorded = 0
    if mark and status.state in ENDED and newest <= after:
        unrecorded = mark.get("unrecorded", 0) + (0 if NOT_NOW.search(status.message) else 1)
    view = View(
        finished=finished,
        status=status,
        holder=holder,
        until=datetime.fromtimestamp(lease.expires, UTC).strftime("%H:%M:%S UTC") if lease else "",
        own=any(record["id"] == holder for record in own),
        session=alive,
        overdue=max(0.0, state.now - lease.expires) if lease and alive and lease.session == alive["id"] else 0.0,
        ousted=bool(holder and alive and holder != alive["id"]),
        sessions=len(records),
        in_vain=in_vain(records) + unrecorded,
        unrecorded=unrecorded,
        age=_age(mark),
        quota=None if status.live or finished else client.quota(),
    )
    return view, opened


def _age(mark: Mapping[str, Any]) -> float | None:
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(mark["time"])).total_seconds()
    except (KeyError, TypeError, ValueError):
        return None


def chain(
    values: Mapping[str, object], plan: Plan, limits: Limits, client: Client, say: Say, *, once: bool = False
) -> Chained:
    """Push, wait and push again until the run is finished; `once`: one look and at most one act, for a scheduler.

    Raises KaggleError where a person has to act, and what `push` raises; with `once` also KaggleBusy for "not now".
    """
    opened = open_for_kaggle(values)
    with only_one(plan.into / opened.config.run):
        kernel = kernel_id(plan.kernel, opened, client)
        return _Chain(values, replace(plan, kernel=kernel), limits, client, say).run(once)


class _Chain:
    def __init__(self, values: Mapping[str, object], plan: Plan, limits: Limits, client: Client, say: Say) -> None:
        self.values, self.plan, self.limits, self.client, self._say = values, plan, limits, client, say
        self.kernel = plan.kernel or ""
        self.last: dict[str, Any] = {}
        self.told = ""
        self.log = Log(client, say)

    def say(self, line: str) -> None:
        """Once, for as long as it stays so."""
        if line != self.told:
            self._say(line)
            self.told = line

    def run(self, once: bool) -> Chained:
        try:
            while True:
                try:
                    ended = self.step(once)
                except (StoreError, KaggleBusy) as error:
                    if once:
                        raise
                    self.say(f"{error} Looking again every {self.limits.poll:g} s.")
                    ended = None
                if ended:
                    return ended
                time.sleep(self.limits.poll)
        finally:
            self.log.stop()

    def step(self, once: bool) -> Chained | None:
        view, opened = look(self.values, self.kernel, self.plan.notebook, self.client, self.last)
        run, name = opened.config.run, self.kernel
        action = decide(view, self.limits)
        did = action.kind
        if action.kind == "done":
            self.say(f"Run {run!r}: {action.why}.")
            self._say(next_step("finished", run, name))
            return Chained("finished", run, name, did, action.why, view.sessions)
        if action.kind == "stop":
            raise KaggleError(
                f"Run {run!r}: {action.why}.",
                kept=f"The store has step {opened.state.checkpoints[0].step if opened.state.checkpoints else 0}.",
                todo=f"Read the log at {editor(name)}, put it right, `push` once, and start the chain again.",
            )
        self.say(f"Run {run!r}: {did}, {action.why}.")
        if action.kind == "cancel" and action.session is not None:
            if problem := self.client.cancel(action.session):
                self.say(f"Kaggle did not cancel session {action.session}: {problem}. Stop it at {editor(name)}.")
        elif action.kind == "push":
            self.push(opened, name, view, action)
        elif not once:
            self.log.follow(name, view.status.live)
        return Chained("paused", run, name, did, action.why, view.sessions) if once else None

    def push(self, opened: Opened, name: str, view: View, action: Action) -> None:
        opened.config = opened.config.model_copy(
            update={
                "take_over": action.take_over,
                "session_hours": session_hours(opened.config.session_hours, view.quota),
            }
        )
        # What a session could not bring to the store lies in its output; one that said its end has brought it there.
        rescue = self.plan.rescue or view.session is not None or view.unrecorded > 0
        plan = replace(self.plan, unrecorded=view.unrecorded, rescue=rescue)
        self.log.follow(name, live=False)
        self.last = mark_of(opened, plan)
        push_opened(opened, plan, self.client, self._say)
        self.told = ""


def session_hours(asked: float | None, quota: Quota | None) -> float | None:
    """Hours of the next session: no more than the week's quota has left, with room to save."""
    if quota is None or quota.left >= (asked or KAGGLE_HOURS) + 0.25:
        return asked
    return round(quota.left - 0.25, 2)


class Log:
    """The live session's log, line by line, for as long as it comes; what was shown is not shown again."""

    def __init__(self, client: Client, say: Say) -> None:
        self._client, self._say = client, say
        self._process: subprocess.Popen[str] | None = None
        self._shown = 0

    def follow(self, kernel: str, live: bool) -> None:
        """Begin, where a session is live and nothing is read yet."""
        if not live:
            self._shown = 0
        elif self._process is None or self._process.poll() is not None:
            self._process = self._client.follow(kernel)
            threading.Thread(target=self._read, args=(self._process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for number, line in enumerate(process.stdout, start=1):
            if number > self._shown:  # a new reader is sent all of it from the beginning
                self._shown = number
                with suppress(OSError):
                    self._say(f"  | {line.rstrip()}")

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait()
