"""What the session shows of its workers, read from their events: lines or a live view; and what it warns of."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path

from kaggle_lib.config import RunConfig
from kaggle_lib.runs import events, spikes
from kaggle_lib.runs.live import Live

Say = Callable[[str], None]
PHASES = {"load": "loading", "calibration": "measuring memory", "train": "training"}
BITS = "bits per byte"  # of the validation; a log has a line of its own for it
FIRST_LINES, SECONDS_A_LINE = 20, 120.0
RECENT = 50  # steps that rate and time left are measured over


class Progress:
    """Follows one session's events file. `slowest` has the longest seconds of each kind of event so far.

    `left`: seconds to the session's deadline, or None without one. `stored`: the newest step that the store holds.
    With `live` the facts are in its view, kept up to date; without it a line has them every `logging_steps`.
    """

    def __init__(
        self,
        path: Path,
        config: RunConfig,
        say: Say,
        left: Callable[[], float | None],
        stored: Callable[[], int | None],
        live: Live | None = None,
        warn: Callable[[str, int], None] = lambda message, step: None,
    ) -> None:
        self.config, self.say, self.left, self.stored, self.live, self.warn = config, say, left, stored, live, warn
        self._tail = events.Tail(path)
        self._seen, self._all_losses = 0, list[float]()
        self.slowest: dict[str, float] = {}
        self.state = "starting"
        self.ended = False
        self.newest: events.Event | None = None
        self.losses: dict[int, float] = {}
        self.saved: int | None = None
        self.evaluated = 0
        self.validation = ""
        self._steps: deque[events.Event] = deque(maxlen=RECENT)
        self._said: dict[str, list[str]] = {"step": [], "evaluation": []}
        self._seconds: dict[str, deque[float]] = {kind: deque(maxlen=5) for kind in ("save", "evaluation")}

    def recall(self, curve: Iterable[events.Event]) -> None:
        """Take note of the steps of earlier sessions, so that a spike in them is not said again."""
        for event in curve:
            self._spike(event)

    def _spike(self, step: events.Event) -> float | None:
        """`spikes.begins` with this step, over all sessions; one that is done again was looked at already."""
        if step["step"] <= self._seen:
            return None
        self._seen = step["step"]
        self._all_losses.append(step["loss"])
        return spikes.begins(self._all_losses)

    def show(self) -> None:
        """Show what has happened since the last call."""
        self._read()
        self._draw()

    def close(self) -> None:
        """Show the last state, which a saved notebook keeps; without an `end` among the events it was torn off."""
        self._read()
        if not self.ended:
            self.state, self.ended = "ended", True
        if self.live is not None:
            self.live.due = 0.0
        self._draw()

    def _read(self) -> None:
        for event in self._tail.new():
            self._take(event)
            if self.live is None:
                self._say(event)

    def _draw(self) -> None:
        if self.live is not None:
            # In order: a step that is done again has its place already.
            losses = list(self.losses.values())
            self.live.update(f"Run {self.config.run}: {self.state}", self.facts(), self.share(), losses)

    def _take(self, event: events.Event) -> None:
        kind = event["event"]
        if "seconds" in event:
            self.slowest[kind] = max(self.slowest.get(kind, 0.0), event["seconds"])
        if kind in self._seconds:
            self._seconds[kind].append(event["seconds"])
        match kind:
            case "session":
                self.saved, self.evaluated = event.get("resumed_from"), event.get("resumed_from") or 0
            case "phase":
                self.state = PHASES.get(event["phase"], str(event["phase"]))
            case "step":
                self.newest = event
                self._steps.append(event)
                self.losses[event["step"]] = event["loss"]
                if (median := self._spike(event)) is not None:
                    above = f"far above {median:.4f}, the median of those before it"
                    self.warn(f"The loss of step {event['step']} is {event['loss']:.4f}, {above}.", event["step"])
            case "evaluation":
                self.evaluated = event["step"]
                self.validation = f"{event['bits_per_byte']:.4f} at step {event['step']}"
            case "save":
                self.saved = event["step"]
            case "end":
                self.state, self.ended = f"{event['outcome']}, {event.get('reason', '')}", True

    def _say(self, event: events.Event) -> None:
        if event["event"] == "evaluation" and self._may_say(event):
            self.say(f"step {event['step']}  validation {event['bits_per_byte']:.4f} bits per byte")
        if event["event"] == "step" and (
            event["step"] == event.get("total_steps")
            or (event["step"] % self.config.logging_steps == 0 and self._may_say(event))
        ):
            self.say("  ".join(f"{name} {value}" for name, value in self.facts().items() if name != BITS))

    def _may_say(self, event: events.Event) -> bool:
        """After the first lines of its kind one in two minutes: twelve hours stay a log that can be read."""
        said = self._said[event["event"]]
        if len(said) >= FIRST_LINES and events.seconds_between(said[-1], event["time"]) < SECONDS_A_LINE:
            return False
        said.append(event["time"])
        return True

    def facts(self) -> dict[str, str]:
        """What is known now, in words; what is not known is not there."""
        facts = {}
        if self.newest is not None:
            step, total = self.newest["step"], self.newest.get("total_steps")
            tokens, seconds = (sum(event[name] for event in self._steps) for name in ("tokens", "seconds"))
            facts["step"] = f"{step} of {total}"
            facts["loss"] = f"{self.newest['loss']:.4f}"
            facts["tokens/s"] = f"{tokens / max(seconds, 1e-9):,.0f}"
            if memory := self.newest.get("memory"):
                facts["memory"] = f"{memory / 2**30:.1f} GiB"
            time_left = self.time_left()
            if time_left is not None and not self.ended:
                facts["time left"] = duration(time_left)
        if self.validation:
            facts[BITS] = self.validation
        facts["checkpoint"] = self._checkpoint()
        deadline = self.left()
        if deadline is not None and not self.ended:
            facts["deadline in"] = duration(deadline)
        return facts

    def time_left(self) -> float | None:
        """Seconds until the run is done: its steps, saves and evaluations to come, each by the median of recent ones.

        None before the first step. What has not happened yet in this session counts nothing.
        """
        if self.newest is None or not self.newest.get("total_steps"):
            return None
        step, total = self.newest["step"], self.newest["total_steps"]
        saves = times(self.config.save_steps, self.saved or 0, total)
        evaluations = times(self.config.eval_steps, self.evaluated, total)
        a_step, a_save, an_evaluation = (
            statistics.median(seconds or [0.0])
            for seconds in ([event["seconds"] for event in self._steps], *self._seconds.values())
        )
        return float((total - step) * a_step + saves * a_save + evaluations * an_evaluation)

    def share(self) -> float:
        """The part of the run's steps that is done, 0 to 1."""
        if self.newest is None:
            return 0.0
        return float(self.newest["step"] / max(self.newest.get("total_steps") or 0, self.newest["step"]))

    def _checkpoint(self) -> str:
        stored = self.stored()
        if self.saved is None:
            return "none yet"
        if stored == self.saved:
            return f"{self.saved} on the store"
        return f"{self.saved} here, {'none' if stored is None else stored} on the store"


def times(every: int, after: int, total: int) -> int:
    """How often something that happens every so many steps, and at the last one, happens in (after, total]."""
    if not every or after >= total:
        return 0
    return total // every - after // every + (total % every > 0)


def duration(seconds: float) -> str:
    """`95 s`, `12 min`, `3 h 05 min`; an end that is over is `0 s`."""
    whole = max(0, round(seconds))
    if whole < 100:
        return f"{whole} s"
    minutes = round(whole / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
