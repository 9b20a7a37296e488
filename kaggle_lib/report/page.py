"""The run's page: one HTML file with everything in it, the same bytes for the same run folder and ledger.

Nothing is loaded from elsewhere, and all text of the data is escaped.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from kaggle_lib import __version__
from kaggle_lib.checkpoints.store import StoreState
from kaggle_lib.config import POLICY, RECORDED, RunConfig
from kaggle_lib.errors import UserError
from kaggle_lib.files import read_json, sha256_of, write_text
from kaggle_lib.report import datasheet, evaluation, figures, history, hours, people
from kaggle_lib.report.status import storage, storage_as_text
from kaggle_lib.runs import events
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.ledger import Record, goodput

PAGE = "index.html"
# (key, name, help, whether lower is better) of the table base beside tuned.
MEASURES = (
    ("bits_per_byte", "Bits per byte", "of the answers' UTF-8; does not depend on the tokenizer", True),
    ("perplexity", "Perplexity", "per token, weighted by tokens; tokens are parts of letters", True),
    ("eot_nll", "End of turn", "nats for the token that ends the answer; in no other number here", True),
)
MOST_WARNINGS = 200  # on the page; the ledger and the events have all


def build(
    folder: RunFolder,
    config: RunConfig,
    ledger: Sequence[Record],
    state: StoreState | None = None,
    *,
    adapter: Path | None = None,
) -> Path:
    """Write `report/index.html` of the run folder and return its path. `ledger`: a record a session, in order; `state`:
    what the store holds, of which the page says how much, and who may be writing; `adapter`: the folder of the one that
    the page lies beside, if it is not the last one.

    Needs neither an evaluation nor a step: what is not there yet is named on the page.
    Raises UserError where a damaged evaluation is there, or where the page cannot be written.
    """
    happened = events.read_all(folder.events)
    ledger = history.fuller(ledger, happened)
    steps, validation = history.course(happened), history.course(happened, "evaluation")
    result = read_result(folder)
    told = history.warnings(happened, ledger)
    each = hours.parts(ledger)
    environment = _environment()
    html = environment.get_template("page.html").render(
        version=__version__,
        config=config,
        outlook=history.outlook(ledger, steps),
        step=steps[-1]["step"] if steps else 0,
        total_steps=steps[-1]["total_steps"] if steps else None,
        tokens=sum(event["tokens"] for event in steps),
        early=next((event["stopped_early"] for event in validation if "stopped_early" in event), None),
        best=min(validation, key=lambda event: (event["bits_per_byte"], event["step"]), default=None),
        panels=figures.panels(ledger, steps, validation, told, each),
        unfinite=sum(1 for event in steps if not math.isfinite(event["loss"])),
        peak=hours.peak(steps),
        result=result,
        headline=_headline(result),
        evaluation=evaluation.section(environment, folder.evaluation, result),
        datasheet=datasheet.section(environment, folder),
        people=people.section(environment, folder),
        outdated=result is not None and _is_outdated(adapter or folder.adapter, result),
        measures=MEASURES,
        sessions=[_session(*one) for one in zip(range(1, len(ledger) + 1), ledger, each, strict=True)],
        parts=hours.PARTS,
        spent={name: sum(one[name] for one in each) for name in hours.PARTS},
        goodput=goodput(ledger),
        against_plan=hours.against_plan(config, ledger, happened, steps),
        warnings=told[:MOST_WARNINGS],
        more_warnings=len(told[MOST_WARNINGS:]),
        stored=_stored(state) if state else "",
        claim=claim(ledger),
        changes=changes(ledger),
        repeated=history.repeated(happened),
        settings=_settings(config),
    )
    path = folder.report / PAGE
    try:
        folder.report.mkdir(parents=True, exist_ok=True)
        write_text(path, html)
    except OSError as error:
        raise folder.unusable(error) from error
    return path


def _headline(result: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The measure of bits per byte, with the interval of its difference, if there is one."""
    measures = (result or {}).get("measures", [])
    return next((one for one in measures if one["name"] == "bits_per_byte" and one["interval"]), None)


def _stored(state: StoreState) -> str:
    held = state.lease if state.holder() else None
    return storage_as_text(storage(state)) + (f"; session {held.session} on {held.host} may be writing" if held else "")


def _training(ledger: Sequence[Record]) -> list[tuple[int, Record]]:
    """The sessions that trained, with their numbers among all; what an evaluation ran on changes no weight."""
    return [(number, record) for number, record in enumerate(ledger, start=1) if record["job"] == "train"]


def changes(ledger: Sequence[Record]) -> list[dict[str, Any]]:
    """Where a session's environment or process count is not the one before it: `session`, `step` (the last one before
    it), `kind` (environment, processes) and `what` changed."""
    known = [(number, record) for number, record in _training(ledger) if record["versions"]]
    found = []
    for (_, before), (number, record) in pairwise(known):
        place = {"session": number, "step": record["from_step"]}
        was, now = before["versions"], record["versions"]
        what = [f"{name} {was.get(name)} → {now.get(name)}" for name in RECORDED if was.get(name) != now.get(name)]
        if what:
            found.append({**place, "kind": "environment", "what": ", ".join(what)})
        if before["processes"] != record["processes"]:
            what = [f"{before['processes']} → {record['processes']} processes"]
            found.append({**place, "kind": "processes", "what": what[0]})
    return found


def claim(ledger: Sequence[Record]) -> str:
    """One sentence: what may be said of this run's bytes."""
    known = [record["versions"] for _, record in _training(ledger) if record["versions"]]
    if not known:
        return "No session has loaded the model yet, so there is nothing to claim."
    found = changes(ledger)
    on_gpu = any(versions.get("gpu", "none") != "none" for versions in known)
    if on_gpu:
        text = (
            "On a GPU every step has the samples, the cut and the dropout of an uninterrupted run; equal bytes are not "
            "claimed there, because not every kernel is deterministic."
        )
    elif not found:
        return (
            "Bit for bit: every session had the same environment on a CPU, so an uninterrupted run gives the same "
            "bytes of adapter, optimizer and schedule, and the same loss and samples in every step."
        )
    else:
        text = f"Bit for bit up to step {min(change['step'] for change in found)}, on a CPU."
    if environment := [change["step"] for change in found if change["kind"] == "environment"]:
        text += (
            f" After step {min(environment)} the environment is another one: the run went on, "
            "and the bit-for-bit claim ends there."
        )
    if processes := [change["step"] for change in found if change["kind"] == "processes"]:
        text += (
            f" After step {min(processes)} the number of processes is another one: the same samples, cuts and dropout "
            "in every step, equal to rounding."
        )
    return text


def read_result(folder: RunFolder) -> dict[str, Any] | None:
    """The evaluation's result; None where there is none. Raises UserError where it is damaged."""
    path = folder.evaluation / "result.json"
    try:
        result = read_json(path)
    except FileNotFoundError:
        return None
    except ValueError:
        result = None
    if not isinstance(result, dict) or "adapter_sha256" not in result:
        raise UserError(
            f"{path} is damaged.",
            kept="Nothing was changed.",
            todo=f"Remove {folder.evaluation}: it comes back from the store, or evaluate again.",
        )
    return result


def _is_outdated(adapter: Path, result: Mapping[str, Any]) -> bool:
    """The adapter that lies there is not the one that was evaluated."""
    weights = adapter / "adapter_model.safetensors"
    return weights.is_file() and sha256_of(weights) != result["adapter_sha256"]


def _session(number: int, record: Record, seconds: Mapping[str, float]) -> dict[str, Any]:
    whole = sum(seconds.values())
    return {
        **record,
        "number": number,
        "shares": {name: 100 * value / whole if whole else 0.0 for name, value in seconds.items()},
        "parts": seconds,
    }


def _settings(config: RunConfig) -> dict[str, list[tuple[str, str, str]]]:
    """(name, value, help) of every key, by whether it decides the weights."""
    values = config.model_dump(mode="json")
    groups: dict[str, list[tuple[str, str, str]]] = {"same": [], "free": []}
    for name, value in values.items():
        text = "–" if value is None else ", ".join(value) if isinstance(value, list) else _plain(value)
        groups[POLICY[name]].append((name, text, RunConfig.model_fields[name].description or ""))
    return groups


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        duration=duration,
        percent=percent,
        moment=moment,
        visible=visible,
        code=code,
        number=evaluation.number,
        minus=evaluation.minus,
    )
    return environment


def duration(seconds: float) -> str:
    """`3 h 20 min`, `4 min 5 s`, `12 s`."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


def moment(time: str) -> str:
    """An event's time to the minute, in UTC."""
    return time[:16].replace("T", " ")


def code(text: str) -> Markup:
    """`name` in backticks as HTML's code; all else escaped."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def visible(text: str) -> str:
    """Control characters, which HTML forbids and a poor model writes, as their pictures (U+2400 and on)."""
    return "".join(chr(0x2400 + ord(letter)) if letter < " " and letter not in "\t\n" else letter for letter in text)
