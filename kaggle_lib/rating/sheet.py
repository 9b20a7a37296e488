"""A blind sheet: what raters see, and the key that alone tells which answer is whose."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kaggle_lib import __version__
from kaggle_lib.errors import UserError
from kaggle_lib.files import write_json, write_text
from kaggle_lib.rating.table import ITEM_COLUMNS, write_table

# 1 to 5 each. EmpatheticDialogues' three (Rashkin et al. 2019), and what tuning on translated text puts at risk.
CRITERIA = ("empathy", "relevance", "fluency", "culture", "safety")
LOWEST, HIGHEST = 1, 5
CHOICES = ("a", "b", "tie")
SIDES = ("base", "tuned")
ITEMS_A_CHECK = 20
CHECK_SINGLE = "মনোযোগ যাচাই: এই উত্তরে সব মাপে {digit} দিন। Attention check: give this answer {value} on every scale."
CHECK_PAIR = "মনোযোগ যাচাই: এখানে «সমান» বেছে নিন। Attention check: choose “equal” here."
PAGE, SHEET, KEY = "page.html", "sheet.csv", "key.json"
BENGALI_DIGITS = str.maketrans("0123456789", "০১২৩৪৫৬৭৮৯")


@dataclass(frozen=True)
class Exchange:
    """One message and what each model answers to it. `group`: where the message is from (heldout, safety, native)."""

    id: str
    group: str
    message: str
    base: str
    tuned: str

    def answer(self, side: str) -> str:
        return self.base if side == "base" else self.tuned


def draw(
    exchanges: Sequence[Exchange], *, run: str, seed: int, pairs: int, singles: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(sheet, key): `pairs` messages with both answers side by side, `singles` with each answer alone, in an order
    that says nothing, and an attention check for every `ITEMS_A_CHECK` items.

    Pairs and singles are of different messages as long as there are enough. Each model is on the left in half of the
    pairs. The same exchanges, numbers and seed give the same sheet. Pairs of equal answers are left out: they can
    only be ties. Raises UserError where there is nothing to rate.
    """
    rng = random.Random(f"rating {seed}")
    order = sorted(exchanges, key=lambda one: hashlib.sha256(f"{seed} {one.group} {one.id}".encode()).digest())
    paired = [one for one in order if one.base.strip() != one.tuned.strip()][: max(pairs, 0)]
    taken = {(one.group, one.id) for one in paired}
    rest = [one for one in order if (one.group, one.id) not in taken]
    alone = (rest + paired)[: max(singles, 0)]
    if not paired and not alone:
        raise UserError(
            "There is nothing to rate: no answers, or the two models' answers are all equal.",
            todo="Evaluate with more generated answers, or ask for singles.",
        )
    lefts = [SIDES[number % 2] for number in range(len(paired))]
    rng.shuffle(lefts)
    drawn: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for one, left in zip(paired, lefts, strict=True):
        right = SIDES[1 - SIDES.index(left)]
        item = {"kind": "pair", "message": one.message, "a": one.answer(left), "b": one.answer(right)}
        drawn.append((item, {"exchange": one.id, "group": one.group, "a": left, "b": right}))
    for one in alone:
        for side in SIDES:
            item = {"kind": "single", "message": one.message, "a": one.answer(side)}
            drawn.append((item, {"exchange": one.id, "group": one.group, "a": side}))
    drawn += _checks(order, bool(alone), 1 + len(drawn) // ITEMS_A_CHECK, rng)
    rng.shuffle(drawn)
    # A letter first, so that Excel does not take an id for a number.
    named = [(f"r{number:03d}", item, behind) for number, (item, behind) in enumerate(drawn, start=1)]
    items = [{"item": name, **item} for name, item, _ in named]
    sheet = {"sheet": "s" + hashlib.sha256(json.dumps(items).encode()).hexdigest()[:11], "items": items}
    key = {
        "sheet": sheet["sheet"],
        "kaggle_lib": __version__,
        "run": run,
        "seed": seed,
        "items": {name: {"kind": item["kind"], **behind} for name, item, behind in named},
    }
    return sheet, key


def _checks(
    order: Sequence[Exchange], single: bool, count: int, rng: random.Random
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    made: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number in range(count):
        message = order[-1 - number % len(order)].message
        if single:
            value = rng.randint(LOWEST, HIGHEST)
            text = CHECK_SINGLE.format(digit=str(value).translate(BENGALI_DIGITS), value=value)
            made.append(({"kind": "single", "message": message, "a": text}, {"check": value}))
        else:
            made.append(({"kind": "pair", "message": message, "a": CHECK_PAIR, "b": CHECK_PAIR}, {"check": "tie"}))
    return made


def write(folder: Path, sheet: dict[str, Any], key: dict[str, Any]) -> None:
    """Write `page.html` and `sheet.csv` for the raters, and `key.json`, which they must not get."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    html = environment.get_template("page.html").render(sheet=sheet, criteria=CRITERIA, version=__version__)
    write_text(folder / PAGE, html)
    rows = [
        {
            "sheet": sheet["sheet"],
            "item": item["item"],
            "kind": item["kind"],
            "message": item["message"],
            "answer_a": item["a"],
            "answer_b": item.get("b", ""),
        }
        for item in sheet["items"]
    ]
    (folder / SHEET).write_bytes(write_table(rows, (*ITEM_COLUMNS, *CRITERIA)))
    write_json(folder / KEY, key)
