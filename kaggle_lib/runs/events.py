"""The events of a run: one JSON line each, one file a session. Live view, ledger, curve and report read them.

| event | written by | fields beside `event`, `time`, `session`, `attempt` |
|---|---|---|
| session | supervisor | `from_step`, `resumed_from` (null: fresh), `forked_from`, `extended`, `host`, `processes` |
| phase | worker | `phase` (load, calibration, train, save, evaluate); load carries `versions` |
| calibration | worker | `base`, `fixed`, `layer`, `layers` (see `data/budget.py`), `room` (bytes), `token_budget` |
| step | worker | `step`, `samples`, `loss`, `lr`, `grad_norm`, `tokens`, `seconds`, `memory` (bytes), `total_steps` |
| evaluation | worker | `step`, `bits_per_byte`, `nll`, `bytes`, `tokens`, `rows`, `seconds`, `best_step` |
| save | worker | `step`, `seconds`, `bytes` |
| upload | supervisor | `step`, `seconds`, `bytes` |
| warning | both | `message`; `step`, if it is of one |
| end | supervisor | `outcome`, `reason`, `step` (of the newest checkpoint), `on_store` (step, or null) |

The validation that ends a run has `stopped_early`, why. A session has `kernel` and `kaggle_session`, too: see the
ledger. Where fp16's scaler took no step, because its gradients were not finite, the step has `skipped` and no
`grad_norm`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kaggle_lib.files import append_line

Event = dict[str, Any]
COMMON = ("event", "time", "session", "attempt")
# What the readers rely on beside these.
FIELDS = {
    "step": ("step", "samples", "loss", "tokens", "seconds"),
    "evaluation": ("step", "bits_per_byte", "seconds"),
    "save": ("step", "seconds"),
    "phase": ("phase",),
    "warning": ("message",),
    "end": ("outcome",),
}


def now() -> str:
    """ISO 8601 in UTC, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds_between(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


class EventLog:
    """Appends to one session's file; the supervisor and the worker's rank 0 both hold one."""

    def __init__(self, folder: Path, session: str, attempt: int = 0) -> None:
        self.path = folder / f"{session}.jsonl"
        self.session, self.attempt = session, attempt
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, event: str, **fields: Any) -> Event:
        line = self.make(event, **fields)
        append_line(self.path, json.dumps(line, ensure_ascii=False))
        return line

    def make(self, event: str, **fields: Any) -> Event:
        """The event, not written."""
        return {"event": event, "time": now(), "session": self.session, "attempt": self.attempt, **fields}


def read(path: Path) -> Iterator[Event]:
    """The events of one file; a line torn by a kill is left out."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    yield from parse(content)


def parse(content: bytes) -> Iterator[Event]:
    """The events in `content`; what is no whole event is left out."""
    for line in content.split(b"\n"):
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.keys() >= {*COMMON, *FIELDS.get(str(event.get("event")), ())}:
            yield event


class Tail:
    """What is appended to one file of events."""

    def __init__(self, path: Path) -> None:
        self.path, self._offset = path, 0

    def new(self) -> list[Event]:
        """The events since the last call, from the file's beginning at first; half a line waits for its end."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return list(parse(whole))


def read_all(folder: Path) -> list[Event]:
    """All sessions' events in the order in which they happened (session ids begin with their start time)."""
    return [event for path in sorted(folder.glob("*.jsonl")) for event in read(path)]


def curve(events: Iterable[Event], kind: str = "step") -> list[Event]:
    """One event a step, in order: a step done again replaces the earlier one."""
    by_step = {event["step"]: event for event in events if event["event"] == kind}
    return [by_step[step] for step in sorted(by_step)]


def copy_until(source: Path, target: Path, step: int) -> None:
    """Copy all segments without the steps beyond `step`: what a checkpoint carries."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.glob("*.jsonl")):
        kept = [event for event in read(path) if event.get("step", 0) <= step or event["event"] == "end"]
        text = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in kept)
        (target / path.name).write_text(text, encoding="utf-8")
