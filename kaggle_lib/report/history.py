"""How a run went, from its events and its ledger: the steps that count, where it stands, what was warned of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kaggle_lib.runs.events import Event
from kaggle_lib.runs.ledger import Record, close_killed, record


def fuller(ledger: Sequence[Record], happened: Sequence[Event]) -> list[Record]:
    """The ledger, but of a killed session the record of its own events where they reach further than what it had sent:
    what it did after its last save, which is lost."""
    found = []
    for one in ledger:
        killed = one["ended_because"] == "killed"
        own = [event for event in happened if killed and event["session"] == one["id"]]
        if own and own[-1]["time"] > (one.get("last_event") or one["started"]):
            one = close_killed(record(own), own[-1]["time"])
        found.append(one)
    return found


def course(happened: Sequence[Event], kind: str = "step") -> list[Event]:
    """One event a step, in order, as the run went: where it went back, in a session or with a new one, what came after
    that step is lost. A step done again is so there once, as it was done last."""
    found: list[Event] = []
    for event in happened:
        if event["event"] == "session" and event.get("job", "train") == "train":
            begins = event.get("from_step", 0) + 1
        elif event["event"] in ("step", kind):
            begins = event["step"]
        else:
            continue
        while found and found[-1]["step"] >= begins:
            found.pop()
        if event["event"] == kind:
            found.append(event)
    return found


def outlook(ledger: Sequence[Record], steps: Sequence[Event]) -> dict[str, str]:
    """Where the run stands: `word` (not started, running, finished, paused, stopped, failed, killed) and the `reason`
    that its last training session gave."""
    trained = [one for one in ledger if one["job"] == "train"]
    because = trained[-1]["ended_because"] if trained else None if steps else "not started"
    word, _, reason = (because or "running").partition(": ")
    return {"word": word, "reason": reason}


def warnings(happened: Sequence[Event], ledger: Sequence[Record]) -> list[dict[str, Any]]:
    """Each warning, in order: `session` (its number), `step` (its own, or the last one before it; None: not known),
    `at` (whether it is of that very step), `message`."""
    numbers = {one["id"]: number for number, one in enumerate(ledger, start=1)}
    reached: dict[str, int] = {}
    found: list[dict[str, Any]] = []
    for event in happened:
        if event["event"] == "session":
            reached[event["session"]] = event.get("from_step", 0)
        elif event["event"] == "step":
            reached[event["session"]] = event["step"]
        elif event["event"] == "warning":
            own = event.get("step")
            place = {"session": numbers.get(event["session"]), "step": own or reached.get(event["session"])}
            found.append({**place, "at": own is not None, "message": event["message"]})
    known = {(one["session"], one["message"]) for one in found}
    for number, one in enumerate(ledger, start=1):
        for message in one["warnings"]:
            if (number, message) not in known:
                found.append({"session": number, "step": None, "at": False, "message": message})
    return sorted(found, key=lambda one: one["session"] or 0)


def repeated(happened: Sequence[Event]) -> dict[str, Any]:
    """Steps that were done more than once: how many (`steps`), and those whose loss or samples `differed`."""
    first: dict[int, Event] = {}
    again: set[int] = set()
    differed: set[int] = set()
    for event in happened:
        if event["event"] != "step":
            continue
        before = first.setdefault(event["step"], event)
        if before is not event:
            again.add(event["step"])
            if (before["loss"], before["samples"]) != (event["loss"], event["samples"]):
                differed.add(event["step"])
    return {"steps": len(again), "differed": sorted(differed)}
