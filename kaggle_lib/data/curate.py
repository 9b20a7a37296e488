"""From the rows that were read to the examples that are used: normalise, drop what repeats, split by dialogue.

The split is a function of the seed and of what the rows say. Their order in the file decides two things alone: which
rows are consecutive turns, and which of two duplicates stays (the first).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kaggle_lib.config import RunConfig
from kaggle_lib.data import sheet
from kaggle_lib.data.read import Corpus, Row
from kaggle_lib.data.source import dialogues, sources
from kaggle_lib.data.split import Form, grouped, ordered, split
from kaggle_lib.data.text import LINE_ENDS, canonical, normal
from kaggle_lib.errors import DataError

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Curated:
    """The examples of the three splits, each in the file's order, and how many rows each stage took and left.

    With `conversations=dialogues` a training example is a whole dialogue, as the row of its last turn, and each row of
    the other two has the dialogue so far before it. `fingerprint`: sha256 over what the kept rows say, so that a byte
    order mark or other line ends change nothing. `sheet`: the data sheet, as JSON types.
    """

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    counts: dict[str, int]
    fingerprint: str
    sheet: dict[str, Any] = field(default_factory=dict)


def curate(corpus: Corpus, config: RunConfig) -> Curated:
    """The corpus as examples. Curating the kept rows again changes nothing. Raises DataError where no row is left to
    train on."""
    counts: Counter[str] = Counter(read=len(corpus.rows))
    counts.update(f"set aside: {noted.reason}" for noted in corpus.set_aside)
    counts.update(f"repaired: {noted.reason}" for noted in corpus.repaired)
    counts.update(f"left out: {noted.reason}" for noted in corpus.left_out)
    rows = _normal(corpus.rows, counts)
    kept, forms = _kept(rows, counts)
    counts["kept"] = len(kept)
    groups, similar = grouped(kept, forms)
    places, not_drawn = split(ordered(kept, forms, groups, config.seed), config)
    chosen = {name: [kept[place] for place in places[name]] for name in SPLITS}
    about = sheet.of(corpus, config, chosen, {row.id: form for row, form in zip(kept, forms, strict=True)})
    about["groups"] = {"count": len(groups), "largest": max(map(len, groups), default=0), "joined_as_similar": similar}
    if not_drawn:
        counts["not drawn"] = not_drawn
    if config.conversations == "dialogues":
        used = sum(map(len, chosen.values()))
        chosen = {name: list(_with_history(chosen[name], rows, whole=name == "train")) for name in SPLITS}
        counts["joined: earlier turns of a dialogue"] = used - sum(map(len, chosen.values()))
    counts.update({name: len(chosen[name]) for name in SPLITS})
    if not chosen["train"]:
        told = ", ".join(f"{name} {number}" for name, number in counts.items())
        raise DataError(
            f"{corpus.path.name}: no row is left to train on ({told}).",
            todo="Check the columns' names and the fractions of validation and test.",
        )
    about["counts"] = dict(counts)
    return Curated(**chosen, counts=dict(counts), fingerprint=_fingerprint(kept), sheet=about)


def _normal(rows: Sequence[Row], counts: Counter[str]) -> list[Row]:
    """The rows with their text repaired and their source known."""
    repaired = [row.changed(normal) for row in rows]
    # Not a fault: another form of Unicode, other line ends, white space around a text.
    read = [row.changed(lambda text: unicodedata.normalize("NFC", LINE_ENDS.sub("\n", text)).strip()) for row in rows]
    if mended := sum(was != now for was, now in zip(read, repaired, strict=True)):
        counts["repaired: spelling, spaces or unseen marks"] = mended
    found = sources(repaired)
    return [dataclasses.replace(row, source=source) for row, source in zip(repaired, found, strict=True)]


def _kept(rows: Sequence[Row], counts: Counter[str]) -> tuple[list[Row], list[Form]]:
    """The rows without what is empty, damaged or repeats an earlier one, and their canonical forms."""
    kept, forms = [], []
    seen: set[Form] = set()
    respelt: set[Form] = set()
    for row in rows:
        said = tuple(message.content for message in row.messages)
        form = tuple(map(canonical, said))
        if any(_empty(message.content) for message in row.messages if message.role != "system"):
            counts["dropped: empty"] += 1
        elif any("\ufffd" in text for text in said):
            counts["dropped: a letter is lost (U+FFFD)"] += 1
        elif said in seen:
            counts["dropped: duplicate"] += 1
        elif form in respelt:
            counts["dropped: duplicate in another spelling"] += 1
        else:
            kept.append(row)
            forms.append(form)
        seen.add(said)
        respelt.add(form)
    return kept, forms


def _empty(text: str) -> bool:
    """Nothing that is seen: white space, joiners, zero-width marks."""
    return not any(letter.isprintable() and not letter.isspace() for letter in text)


def _with_history(chosen: Sequence[Row], rows: Sequence[Row], *, whole: bool) -> Iterator[Row]:
    """The chosen rows with the earlier chosen turns of their dialogue; `whole`: of each dialogue its last turn alone.

    `rows`: all that were read, since a turn that was dropped is no foreign row between two others.
    """
    ids = {row.id for row in chosen}
    made = []
    for dialogue in dialogues(rows):
        turns = [row for row in dialogue if row.id in ids]
        for last in range(len(turns) - 1 if whole and turns else 0, len(turns)):
            said = tuple(message for row in turns[: last + 1] for message in row.messages)
            made.append(dataclasses.replace(turns[last], messages=said))
    yield from sorted(made, key=lambda row: row.id)


def _fingerprint(rows: Sequence[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        said = [row.id, row.topic, row.title, [[message.role, message.content] for message in row.messages]]
        digest.update(json.dumps(said, ensure_ascii=False).encode("utf-8") + b"\n")
    return digest.hexdigest()
