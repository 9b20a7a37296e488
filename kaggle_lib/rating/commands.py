"""`rate build` and `rate score`: from a run's answers to a blind page, and from raters' files to a result."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kaggle_lib.errors import UserError
from kaggle_lib.files import read_json, set_aside, write_json
from kaggle_lib.rating import ratings, sheet
from kaggle_lib.rating.judge import alternative_annotator_test
from kaggle_lib.rating.score import score
from kaggle_lib.rating.sheet import CRITERIA, Exchange
from kaggle_lib.runs.folder import RunFolder

RESULT = "result.json"
ANSWERS = "answers.jsonl"  # of the evaluation: the held-out answers and those to the project's own prompts
ENDINGS = (".json", ".csv", ".tsv", ".txt")
Say = Callable[[str], None]


def exchanges(folder: RunFolder) -> list[Exchange]:
    """The answers of both models that the evaluation has left, personal data scrubbed already.

    Raises UserError where there are none, or where the file is not what an evaluation writes.
    """
    path = folder.evaluation / ANSWERS
    if not path.is_file():
        raise UserError(
            f"There are no answers to rate: {path} is not there.",
            todo="Evaluate the run first; `evaluate` writes them.",
        )
    found = []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            one = json.loads(line)
            message = "\n\n".join([*(turn["content"] for turn in one["context"]), one["question"]])
            found.append(Exchange(str(one["id"]), one["set"], message, one["base"]["text"], one["tuned"]["text"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({type(error).__name__}: {error}).", todo="Remove evaluation/ and evaluate again."
        ) from None
    return found


def build(
    folder: RunFolder, exchanges: Sequence[Exchange], *, seed: int, pairs: int, singles: int, say: Say
) -> dict[str, str]:
    """Write the page, the sheet and the key into `rating/` of the run folder; returns their paths.

    A sheet that is there already and differs is set aside with its key, which its raters' files still need.
    Raises UserError where there is nothing to rate.
    """
    made, key = sheet.draw(exchanges, run=folder.root.name, seed=seed, pairs=pairs, singles=singles)
    known = _key(folder.rating / sheet.KEY) if (folder.rating / sheet.KEY).is_file() else None
    if known is not None and known["sheet"] != made["sheet"]:
        aside = set_aside(folder.rating, "earlier")
        say(f"An earlier sheet ({known['sheet']}) was set aside: its files and its key are in {aside}.")
    sheet.write(folder.rating, made, key)
    kinds = [one["kind"] for one in key["items"].values()]
    checks = sum("check" in one for one in key["items"].values())
    say(
        f"Sheet {made['sheet']}: {kinds.count('pair')} pairs and {kinds.count('single')} single answers, {checks} of "
        f"them attention checks.\n"
        f"Give your raters {folder.rating / sheet.PAGE} (or {sheet.SHEET}, for a spreadsheet), and nothing else of "
        f"this folder: {sheet.KEY} tells which answer is whose."
    )
    return {name: str(folder.rating / name) for name in (sheet.PAGE, sheet.SHEET, sheet.KEY)}


def evaluate(
    folder: RunFolder,
    files: Sequence[Path],
    *,
    key: Path | None = None,
    judge: Path | None = None,
    say: Say,
) -> dict[str, Any]:
    """The result of the raters' `files` (files, or folders of them), written to `rating/result.json`.

    `judge`: a model's ratings in the same form; they are tested against the people and never mixed with theirs.
    Raises UserError for a missing or unreadable key, no file, and every impossible row at once.
    """
    path = key or folder.rating / sheet.KEY
    if not path.is_file():
        raise UserError(
            f"There is no key {path}, and without it nobody knows which answer is whose.",
            todo="Build the sheet here (`rate build` gives the same one again), or name the key by --key.",
        )
    opened = _key(path)
    given = ratings.read(_files(files), opened)
    result = score(given, opened)
    if judge is not None:
        judged = ratings.read([judge], opened)
        counted = [one for one in given if result["raters"][one.rater]["counts"]]
        result["judge"] = {"file": judge.name, **alternative_annotator_test(counted, judged)}
        result["judge"]["win_rate"] = score(judged, opened)["win_rate"]
    folder.rating.mkdir(parents=True, exist_ok=True)
    write_json(folder.rating / RESULT, result)
    say(as_text(result))
    say(f"The result is {folder.rating / RESULT}.")
    return result


def _key(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
        if isinstance(found, dict) and isinstance(found["items"], dict) and isinstance(found["sheet"], str):
            return found
    except (OSError, ValueError, KeyError):
        pass
    raise UserError(f"{path} is not a key of a rating sheet.", todo="Name the one that `rate build` has written.")


def _files(given: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in given:
        inside = sorted(one for one in path.iterdir() if one.suffix.lower() in ENDINGS) if path.is_dir() else [path]
        found += inside
    if not found:
        raise UserError("There is no rater's file.", todo="Give the files, or a folder that holds them.")
    if missing := [str(path) for path in found if not path.is_file()]:
        raise UserError(f"There is no file {', '.join(missing)}.", kept="Nothing was scored.")
    return found


def as_text(result: dict[str, Any]) -> str:
    """The result in lines, as people read it."""
    lines = [f"Sheet {result['sheet']}, run {result['run']!r}"]
    for name, rater in result["raters"].items():
        checks = f"{rater['checks_passed']} of {rater['checks']} attention checks passed"
        pace = f", {rater['median_seconds']:.0f} s an item" if rater["median_seconds"] is not None else ""
        lines.append(f"  {name}: {rater['items']} items, {checks}{pace}{'' if rater['counts'] else ' — LEFT OUT'}")
    lines += _part("all", result)
    for group, numbers in result["groups"].items():
        lines += _part(group, numbers)
    for name, agreement in result["agreement"].items():
        if agreement["items"] or agreement["alpha"] is not None:
            value = agreement.get("reason") or f"{agreement['alpha']:.2f}"
            lines.append(f"  agreement on {name} (Krippendorff's ordinal alpha, {agreement['items']} items): {value}")
    if judge := result.get("judge"):
        verdict = {True: "may stand in for a rater", False: "may NOT stand in for a rater", None: judge.get("reason")}
        lines.append(f"Judge {judge['file']} (alternative annotator test): {verdict[judge['passes']]}")
        if judge["passes"] is not None:
            lines.append(f"  winning rate {judge['winning_rate']:.2f}, advantage {judge['advantage']:.2f}")
    return "\n".join(lines)


def _part(name: str, numbers: dict[str, Any]) -> list[str]:
    lines = []
    if numbers["win_rate"]:
        votes = numbers["votes"]
        counted = f"votes {votes['tuned']} better, {votes['tie']} equal, {votes['base']} worse"
        lines.append(f"{name}: tuned against base, win rate (ties half) {_span(numbers['win_rate'])}; {counted}")
    for criterion in CRITERIA:
        if found := numbers["criteria"].get(criterion):
            sides = ", ".join(f"{side} {_span(found[side])}" for side in ("base", "tuned", "difference"))
            lines.append(f"{name}: {criterion} {sides}")
    return lines


def _span(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    ends = f" [{found['low']:.2f}, {found['high']:.2f}]" if found["low"] is not None else ""
    return f"{found['mean']:.2f}{ends}"
