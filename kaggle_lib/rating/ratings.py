"""Raters' files: read, merged, and refused by name where a row cannot be."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kaggle_lib.errors import UserError
from kaggle_lib.rating.sheet import CHOICES, CRITERIA, HIGHEST, LOWEST
from kaggle_lib.rating.table import read_table

NEEDED = ("item", "better", *CRITERIA)
# More than a day at one item is a clock that was set, not work.
MOST_SECONDS = 86_400.0


@dataclass(frozen=True)
class Rating:
    """What one rater gave one item: `better` for a pair, `scores` (criterion: 1–5) for a single answer."""

    rater: str
    item: str
    better: str | None
    scores: Mapping[str, int]
    seconds: float | None
    at: str
    comment: str


@dataclass
class _File:
    """A file's rows, with where each stands, and what is wrong with them."""

    path: Path
    key: Mapping[str, Any]
    rows: list[tuple[str, Mapping[str, Any]]]
    problems: list[str] = field(default_factory=list)

    def ratings(self) -> Iterable[Rating]:
        for where, row in self.rows:
            found = self._rating(f"{self.path.name}, {where}", row)
            if found is not None:
                yield found

    def _rating(self, where: str, row: Mapping[str, Any]) -> Rating | None:
        wrong: list[str] = []
        item, sheet = _text(row.get("item")), _text(row.get("sheet"))
        behind = self.key["items"].get(item)
        if sheet and sheet != self.key["sheet"]:
            wrong.append(f"sheet: {sheet!r} is not of this key, whose sheet is {self.key['sheet']!r}")
        elif behind is None:
            wrong.append(f"item: there is no {item!r} on this sheet")
        pair = behind is not None and behind["kind"] == "pair"
        better = _text(row.get("better")).casefold() or None
        if better is not None and better not in CHOICES:
            wrong.append(f"better: {better!r} is none of {', '.join(CHOICES)}")
        if better is not None and behind is not None and not pair:
            wrong.append("better: this item has one answer only")
        scores = {}
        for name in CRITERIA:
            given = _text(row.get(name))
            if not given:
                continue
            value = _score(given)
            if value is None:
                wrong.append(f"{name}: {given!r} is not one of {LOWEST} to {HIGHEST}")
            elif pair:
                wrong.append(f"{name}: this item is a pair, which is not scored")
            else:
                scores[name] = value
        self.problems += [f"{where}, {one}" for one in wrong]
        if wrong or (better is None and not scores):
            return None
        rater = _text(row.get("rater")) or self.path.stem
        at, comment = _text(row.get("at")), _text(row.get("comment"))
        return Rating(rater, item, better, scores, _seconds(row.get("seconds")), at, comment)


def read(paths: Iterable[Path], key: Mapping[str, Any]) -> list[Rating]:
    """All raters' ratings of the key's sheet: JSON or CSV of the page, a filled-in sheet, or what Excel made of them.

    A rater is who the rows say, or the file's name where they say nothing. Of an item that a rater has rated twice
    the later one counts (`at`, then the order of the files). Rows without any rating are passed over.
    Raises UserError with every impossible row by file, place and column; then nothing counts.
    """
    latest: dict[tuple[str, str], Rating] = {}
    problems: list[str] = []
    for path in paths:
        try:
            file = _File(path, key, _rows(path))
        except (OSError, ValueError) as error:
            problems.append(f"{path.name}: {error}")
            continue
        for rating in file.ratings():
            known = latest.get((rating.rater, rating.item))
            if known is None or rating.at >= known.at:
                latest[rating.rater, rating.item] = rating
        problems += file.problems
    if problems:
        raise UserError(
            f"The ratings cannot be used, {len(problems)} problem{'s' if len(problems) > 1 else ''}:\n  "
            + "\n  ".join(problems)
            + "\nNothing was scored or written. Correct the rows, or leave the file out."
        )
    if not latest:
        raise UserError("There is no rating in these files.", todo="Give the files that the raters have sent.")
    return [latest[name] for name in sorted(latest)]


def _rows(path: Path) -> list[tuple[str, Mapping[str, Any]]]:
    content = path.read_bytes()
    if path.suffix.lower() != ".json":
        table = read_table(content, NEEDED)
        return [(f"line {line}", row) for line, row in table]
    found = json.loads(content.decode("utf-8-sig"))
    if not isinstance(found, dict) or not isinstance(found.get("ratings"), list):
        raise ValueError("it is not a file of the rating page: there is no list `ratings`")
    shared = {name: found[name] for name in ("sheet", "rater") if name in found}
    rows: list[tuple[str, Mapping[str, Any]]] = []
    for number, row in enumerate(found["ratings"], start=1):
        if not isinstance(row, dict):
            raise ValueError(f"rating {number} is not an object")
        rows.append((f"rating {number}", {**shared, **row}))
    return rows


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _score(text: str) -> int | None:
    """1 to 5, in any script's digits; `4.0`, as spreadsheets write it, is 4."""
    try:
        number = float("".join(str(unicodedata.digit(letter, letter)) for letter in text).replace(",", "."))
    except ValueError:
        return None
    return int(number) if number in range(LOWEST, HIGHEST + 1) else None


def _seconds(value: object) -> float | None:
    try:
        number = float(_text(value).replace(",", "."))
    except ValueError:
        return None
    return number if math.isfinite(number) and 0 <= number <= MOST_SECONDS else None
