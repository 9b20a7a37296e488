"""The ledger: one record a session, each a pure function of that session's events. What it did, how long, why it ended.

| field | meaning |
|---|---|
| `id`, `job`, `host`, `processes`, `versions` | which session, to train or to evaluate, where, with what |
| `kernel`, `kaggle_session` | the Kaggle notebook that `push` made it of, and Kaggle's number of the session, or null |
| `started`, `ended` | times of its first and its end event; `ended` is null while it lives, or where it was killed |
| `last_event` | when it last gave a sign; closes the record of a session that was killed |
| `forked_from` | `run@step` of the checkpoint that the run started from, or null |
| `extended` | the epochs that were added to the run after its end, one number each time |
| `from_step`, `to_step` | the step it began at, and the newest step that it saved |
| `ended_because` | `finished: …`, `paused: …`, `stopped: …`, `failed: …`, `killed`, or null |
| `attempts` | launches whose worker came up |
| `skipped` | steps that fp16's scaler skipped, for their gradients were not finite; they count as done |
| `seconds` | `wall`; of it `training` (all steps), `kept` (steps up to `to_step`), `loading`, `saving`, `evaluation` |
| `tokens` | of all steps, as `seconds.training` is the time of all |
| `warnings` | their messages |

A step done again inside a session counts once in `kept`, with the seconds of the last time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from kaggle_lib.runs.events import Event, curve, seconds_between

Record = dict[str, Any]


def record(events_of_one_session: Sequence[Event]) -> Record:
    """The record of a session from its events, in the order in which they were written. Raises ValueError without."""
    events = events_of_one_session
    if not events:
        raise ValueError("a session without events has no record")
    first, last = events[0], events[-1]
    began: Event = _last(events, "session") or {}
    end = _last(events, "end")
    loads = [event for event in events if event["event"] == "phase" and event["phase"] == "load"]
    from_step = began.get("from_step", 0)
    to_step = max([from_step, *(event["step"] for event in events if event["event"] == "save")])
    return {
        "id": first["session"],
        "job": began.get("job", "train"),
        "started": first["time"],
        "ended": end["time"] if end else None,
        "last_event": last["time"],
        "host": began.get("host"),
        "kernel": began.get("kernel"),
        "kaggle_session": began.get("kaggle_session"),
        "from_step": from_step,
        "forked_from": began.get("forked_from"),
        "extended": began.get("extended", []),
        "to_step": to_step,
        "ended_because": _because(end) if end else None,
        "attempts": len({event["attempt"] for event in loads}),
        "skipped": sum(1 for event in curve(events) if event.get("skipped")),
        "versions": loads[-1].get("versions", {}) if loads else {},
        "processes": began.get("processes"),
        "seconds": {
            "wall": _round(seconds_between(first["time"], (end or last)["time"])),
            "training": _sum(event for event in events if event["event"] == "step"),
            "kept": _sum(event for event in curve(events) if event["step"] <= to_step),
            "loading": _round(_loading(events)),
            "saving": _sum(event for event in events if event["event"] == "save"),
            "evaluation": _round(_evaluating(events, (end or last)["time"])),
        },
        "tokens": sum(event["tokens"] for event in events if event["event"] == "step"),
        "warnings": [event["message"] for event in events if event["event"] == "warning"],
    }


def close_killed(killed: Record, last_time: str) -> Record:
    """The record of a session that never said its end: it was killed, and was last alive at `last_time`."""
    seconds = {**killed["seconds"], "wall": _round(seconds_between(killed["started"], last_time))}
    return {**killed, "ended": last_time, "last_event": last_time, "ended_because": "killed", "seconds": seconds}


def closed(records: Iterable[Record], holder: str | None) -> list[Record]:
    """The records, those without an end closed as killed unless theirs is the session that still holds the run."""
    return [
        one if one["ended"] or one["id"] == holder else close_killed(one, one.get("last_event") or one["started"])
        for one in records
    ]


def goodput(records: Sequence[Record]) -> float | None:
    """Kept training seconds ÷ paid wall seconds over the training sessions in `records`, in order; None where they
    took no time. A session that only evaluated has none.
    """
    wall: float = sum(one["seconds"]["wall"] for one in records if one["job"] == "train")
    return round(sum(kept(records)) / wall, 4) if wall > 0 else None


def kept(records: Sequence[Record]) -> list[float]:
    """The seconds of each training session, in order, that are in steps which counted in the end.

    A session whose last saves were lost with its machine is followed by one that begins below them: those steps are
    done again, so of its kept seconds only the share of the steps below the follower's start counts.
    """
    records = [one for one in records if one["job"] == "train"]
    found = []
    for number, one in enumerate(records):
        done = one["to_step"] - one["from_step"]
        begins = min([one["to_step"], *(later["from_step"] for later in records[number + 1 :])])
        share = max(0, begins - one["from_step"]) / done if done else 0.0
        found.append(one["seconds"]["kept"] * share)
    return found


def _because(end: Event) -> str:
    return f"{end['outcome']}: {end['reason']}" if end.get("reason") else str(end["outcome"])


def _last(events: Sequence[Event], kind: str) -> Event | None:
    return next((event for event in reversed(events) if event["event"] == kind), None)


def _loading(events: Sequence[Event]) -> float:
    """From each worker's first sign to its first other phase, or to its last event where it died before."""
    total = 0.0
    for attempt in sorted({event["attempt"] for event in events}):
        own = [event for event in events if event["attempt"] == attempt and event["event"] not in ("session", "end")]
        start = next((event["time"] for event in own if event.get("phase") == "load"), None)
        if start is not None:
            ready = next((event["time"] for event in own if event.get("phase") in ("train", "evaluate")), None)
            total += seconds_between(start, ready or own[-1]["time"])
    return total


def _evaluating(events: Sequence[Event], until: str) -> float:
    """The validations of a training session, or the whole work of one that evaluates."""
    start = next((event["time"] for event in events if event.get("phase") == "evaluate"), until)
    return _sum(event for event in events if event["event"] == "evaluation") + seconds_between(start, until)


def _sum(events: Iterable[Event]) -> float:
    return _round(sum(event["seconds"] for event in events))


def _round(seconds: float) -> float:
    """Milliseconds, as the events' times have."""
    return round(seconds, 3)
