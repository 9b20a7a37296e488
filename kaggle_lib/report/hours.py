"""Where a run's paid hours went, and what the plan had said of them. Every number is the ledger's or the events'."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from kaggle_lib.config import RunConfig
from kaggle_lib.report import plan, speed
from kaggle_lib.runs.events import Event, seconds_between
from kaggle_lib.runs.ledger import Record, kept
from kaggle_lib.session.clock import KAGGLE_HOURS

PARTS = {
    "kept": "training, kept",
    "lost": "training, lost",
    "loading": "loading",
    "saving": "saving",
    "evaluation": "evaluating",
    "idle": "idle",
}


def parts(ledger: Sequence[Record]) -> list[dict[str, float]]:
    """Seconds of each session by PARTS, which add up to its wall time.

    kept: of steps that count, as the goodput has them; lost: of steps that were done again, here or in a later session,
    or never saved; idle: what is left of the wall time, which is none where a clock was set back.
    """
    training = iter(kept(ledger))
    found = []
    for record in ledger:
        seconds = record["seconds"]
        counted = next(training) if record["job"] == "train" else 0.0
        one = {"kept": counted, "lost": max(0.0, seconds["training"] - counted)}
        one |= {name: seconds[name] for name in ("loading", "saving", "evaluation")}
        found.append({**one, "idle": max(0.0, round(seconds["wall"] - sum(one.values()), 3))})
    return found


def against_plan(
    config: RunConfig, ledger: Sequence[Record], happened: Sequence[Event], steps: Sequence[Event]
) -> list[dict[str, str]]:
    """Rows `name`, `planned`, `was`, `note`: what `plan` says for this run's mean length and machines, and what was.

    `steps`: the events of the curve. Empty where no step was taken.
    """
    trained = [one for one in ledger if one["job"] == "train" and one["tokens"] and one["seconds"]["training"]]
    if not trained or not steps:
        return []
    shape, last = speed.shape_of(config), steps[-1]
    of_a_step = sum(event["tokens"] for event in steps) / len(steps)
    total_steps = last.get("total_steps") or last["step"]
    rows: list[tuple[str, float | None, float, str, str]] = []
    rate = None
    for (gpu, processes), (tokens, seconds) in _by_machine(trained).items():
        known: dict[str, Any] = {"tokens_per_second": None, "how": "unknown", "source": "nor is the model's shape"}
        if shape:
            known = speed.expected(shape, config, of_a_step, processes, "a CPU" if gpu == "none" else gpu)
        rate, note = known["tokens_per_second"], f"{known['how']}: {known['source']}"
        machine = f"{processes} × {'CPU process' if gpu == 'none' else gpu}"
        rows.append((f"Tokens a second, {machine}", rate, tokens / seconds, note, ",.0f"))
    hours = total_steps * of_a_step / rate / 3600 if rate else None
    unit, size = ("Hours", 3600) if rate else ("Minutes", 60)
    length = (config.session_hours or KAGGLE_HOURS) - plan.START_MINUTES / 60
    done = last["step"] >= total_steps
    until = f"until step {last['step']:,} of {total_steps:,}"
    spent = sum(one["seconds"]["training"] for one in trained) / size
    rows.append((f"{unit} of training", hours, spent, "steps done again, too" if done else until, ",.2f"))
    sessions = math.ceil(hours / length) if hours and length > 0 else None
    number = sum(one["job"] == "train" for one in ledger)
    note = f"planned: of {length:.1f} h of training each" if done else until
    rows.append(("Sessions that train", sessions, number, note, ",.0f"))
    if starts := _starts(happened):
        note = "planned: assumed; was: the median"
        rows.append(("Minutes to the first step", plan.START_MINUTES, statistics.median(starts) / 60, note, ",.1f"))
    if saves := [event for event in happened if event["event"] == "save"]:
        planned = plan.checkpoint_bytes(shape, config) if shape else None
        size, took = saves[-1].get("bytes", 0) / 1e6, statistics.mean(event["seconds"] for event in saves)
        note = "planned: adapter, optimizer and 25 MB; was: the last one"
        rows.append(("Checkpoint, MB", planned and planned / 1e6, size, note, ",.1f"))
        planned_seconds = planned and planned / plan.SAVE_BYTES_PER_SECOND
        rows.append(("Seconds a save", planned_seconds, took, "planned: 100 MB/s; was: the mean", ",.2f"))
    if memory := peak(steps):
        note = "the most that PyTorch had allocated on the first GPU"
        rows.append(("Memory of a GPU, GiB", plan.memory(shape, config), memory / 2**30, note, ",.1f"))
    return [
        {"name": name, "planned": "–" if planned is None else f"{planned:{form}}", "was": f"{was:{form}}", "note": note}
        for name, planned, was, note, form in rows
    ]


def _by_machine(trained: Sequence[Record]) -> dict[tuple[str, int], tuple[int, float]]:
    """Tokens and seconds of the training on each (GPU's name, processes), in order."""
    found: dict[tuple[str, int], tuple[int, float]] = {}
    for one in trained:
        machine = (one["versions"].get("gpu", "none"), one["processes"] or 1)
        tokens, seconds = found.get(machine, (0, 0.0))
        found[machine] = (tokens + one["tokens"], seconds + one["seconds"]["training"])
    return found


def peak(steps: Sequence[Event]) -> int | None:
    """The most bytes that the first GPU's allocator held; None: no GPU."""
    return max((event["memory"] for event in steps if event.get("memory")), default=None)


def _starts(happened: Sequence[Event]) -> list[float]:
    """Seconds from each training session's first sign to its first training."""
    began: dict[str, str] = {}
    ready: dict[str, str] = {}
    for event in happened:
        began.setdefault(event["session"], event["time"])
        if event.get("phase") == "train":
            ready.setdefault(event["session"], event["time"])
    return [seconds_between(began[session], time) for session, time in ready.items()]
