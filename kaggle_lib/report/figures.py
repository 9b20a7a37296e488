"""Which plots a run's page has: loss, validation, speed, memory, and what each session's time went to."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kaggle_lib.report import hours, plots, speed
from kaggle_lib.report.plots import Panel, Point, course
from kaggle_lib.runs.events import Event
from kaggle_lib.runs.ledger import Record


def panels(
    ledger: Sequence[Record],
    steps: Sequence[Event],
    validation: Sequence[Event],
    warnings: Sequence[Mapping[str, Any]],
    each: Sequence[Mapping[str, float]],
) -> dict[str, Panel | None]:
    """The plots by name; None where there is nothing to draw. `steps`, `validation`: one event a step, in order;
    `warnings`: as `history` has them, marked on the loss where they are of a step; `each`: the sessions' seconds.
    """
    made: dict[str, Panel | None] = dict.fromkeys(("loss", "validation", "speed", "memory", "hours"))
    trained = [(number, record) for number, record in enumerate(ledger, start=1) if record["job"] == "train"]
    x = plots.steps_axis(steps[-1]["step"] if steps else 0)
    lines = plots.borders([(number, record["from_step"]) for number, record in trained[1:]], x)
    if losses := _points(steps, "loss"):
        marks = [(x.place(one["step"]), f"a warning of step {one['step']}") for one in warnings if one["at"]]
        title = "Training loss, nats per answer token"
        made["loss"] = course("loss", title, losses, x, height=230, borders=lines, marks=marks)
    if bits := _points(validation, "bits_per_byte"):
        lowest = min(bits, key=lambda one: (one[1], one[0]))
        made["validation"] = course(
            "validation", "Validation, bits per byte", bits, x, smoothed=False, best=lowest[0], borders=lines
        )
    if rates := [(event["step"], event["tokens"] / event["seconds"]) for event in steps if event["seconds"]]:
        made["speed"] = course(
            "speed", "Tokens a second", rates, x, form=",.0f", from_zero=True, height=150, borders=lines
        )
    if memory := [(event["step"], event["memory"] / 2**30) for event in steps if event.get("memory")]:
        gpu = next((one["versions"]["gpu"] for _, one in reversed(trained) if one["versions"].get("gpu")), "")
        has = speed.known()["hardware"].get(gpu, {}).get("memory")
        level = (has, f"all that a {gpu} has, {has} GiB") if has else None
        title = "Memory of the first GPU, GiB"
        made["memory"] = course(
            "memory",
            title,
            memory,
            x,
            form=".2f",
            smoothed=False,
            from_zero=True,
            level=level,
            height=150,
            borders=lines,
        )
    if len(ledger) > 1:
        made["hours"] = plots.stack("Each session's time", list(enumerate(each, start=1)), hours.PARTS)
    return made


def _points(steps: Sequence[Event], name: str) -> list[Point]:
    return [(event["step"], event[name]) for event in steps if math.isfinite(event[name])]
