"""What the session shows of its workers: a line every `logging_steps`, read from their events."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from kaggle_lib.runs import events

Say = Callable[[str], None]


class Progress:
    """Follows one session's events file. `slowest` has the longest seconds of each kind of event so far."""

    def __init__(self, path: Path, every: int, say: Say) -> None:
        self.path, self.every, self.say = path, every, say
        self.offset = 0
        self.slowest: dict[str, float] = {}

    def show(self) -> None:
        """Say what has happened since the last call."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                content = file.read()
        except FileNotFoundError:
            return
        whole = content[: content.rfind(b"\n") + 1]
        self.offset += len(whole)
        for event in events.parse(whole):
            if "seconds" in event:
                kind = event["event"]
                self.slowest[kind] = max(self.slowest.get(kind, 0.0), event["seconds"])
            self._say(event)

    def _say(self, event: events.Event) -> None:
        match event["event"]:
            case "step" if event["step"] % self.every == 0 or event["step"] == event["total_steps"]:
                rate = event["tokens"] / max(event["seconds"], 1e-9)
                where = f"step {event['step']} of {event['total_steps']}"
                self.say(f"{where}  loss {event['loss']:.4f}  {rate:,.0f} tokens/s")
            case "evaluation":
                self.say(f"step {event['step']}  validation {event['bits_per_byte']:.4f} bits per byte")
            case "save":
                self.say(f"step {event['step']}  saved, {event['bytes'] / 1e6:.1f} MB in {event['seconds']:.1f} s")
