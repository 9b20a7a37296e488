"""All runs of a store in one table: for a sweep, and for whoever has forgotten a run's name."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kaggle_lib.checkpoints.store import Store
from kaggle_lib.config import POLICY
from kaggle_lib.files import read_json
from kaggle_lib.report.status import status
from kaggle_lib.runs import events

RECENT = 20  # steps that the final loss is the mean of


def runs(stores: Iterable[tuple[str, Store]]) -> list[dict[str, Any]]:
    """What `status --all --json` prints, one object a run: `run`, `state`, `step`, `total_steps`, `loss` (mean of the
    last 20 steps), `bits_per_byte` (of the tuned model on the held-out answers), and `settings`: the frozen keys in
    which the runs differ. Null where it is not known yet.
    """
    found, settings = [], []
    for name, store in stores:
        state = store.peek()
        told = status(name, state)
        frozen = (state.config or {}).get("config", {})
        settings.append({key: value for key, value in frozen.items() if POLICY.get(key) == "same" and key != "run"})
        losses, result = _measured(store)
        found.append(
            {
                **{key: told[key] for key in ("run", "state", "step", "total_steps")},
                "loss": round(sum(losses) / len(losses), 4) if losses else None,
                "bits_per_byte": result.get("tuned", {}).get("bits_per_byte"),
            }
        )
    keys = [key for key in POLICY if len({repr(one.get(key)) for one in settings}) > 1]
    return [{**one, "settings": {key: own.get(key) for key in keys}} for one, own in zip(found, settings, strict=True)]


def _measured(store: Store) -> tuple[list[float], dict[str, Any]]:
    """The losses of the last steps, and the evaluation's numbers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store.fetch_events(folder / "events")
        losses = [event["loss"] for event in events.curve(events.read_all(folder / "events"))[-RECENT:]]
        result = (
            read_json(folder / "result" / "result.json") if store.fetch_kind("evaluation", folder / "result") else {}
        )
    return losses, result


def as_text(rows: list[dict[str, Any]], place: str) -> str:
    """The same for a person, a line a run."""
    if not rows:
        return f"There is no run in {place}."
    keys = list(rows[0]["settings"])
    table = [["run", "state", "step", *keys, "loss", "bits/byte"]]
    for row in rows:
        step = f"{row['step']} of {row['total_steps']}" if row["total_steps"] else str(row["step"])
        numbers = ["-" if row[key] is None else f"{row[key]:.4f}" for key in ("loss", "bits_per_byte")]
        table.append([row["run"], row["state"], step, *(str(row["settings"][key]) for key in keys), *numbers])
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return "\n".join(
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    )
