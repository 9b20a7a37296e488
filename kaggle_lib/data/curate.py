"""From the rows that were read to the rows that are used: normalise, drop what repeats, split by dialogue."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kaggle_lib.config import RunConfig
from kaggle_lib.data.read import Corpus, Message, Row
from kaggle_lib.errors import DataError


@dataclass(frozen=True)
class Curated:
    """The three splits, each in the file's order, and how many rows each stage took and left.

    `fingerprint`: sha256 over what the kept rows say, so that a byte order mark or other line ends change nothing.
    """

    train: list[Row]
    validation: list[Row]
    test: list[Row]
    counts: dict[str, int]
    fingerprint: str


def curate(corpus: Corpus, config: RunConfig) -> Curated:
    """NFC, empty rows and exact duplicates out, and a split by dialogue. Curating twice changes nothing.

    Raises DataError where no row is left to train on.
    """
    counts: Counter[str] = Counter()
    counts["read"] = len(corpus.rows)
    for noted in corpus.set_aside:
        counts[f"set aside: {noted.reason}"] += 1
    for noted in corpus.repaired:
        counts[f"repaired: {noted.reason}"] += 1
    kept: list[Row] = []
    seen: set[tuple[Message, ...]] = set()
    for row in map(_normal, corpus.rows):
        if not all(message.content.strip() for message in row.messages if message.role != "system"):
            counts["dropped: empty"] += 1
        elif row.messages in seen:
            counts["dropped: duplicate"] += 1
        else:
            seen.add(row.messages)
            kept.append(row)
    counts["kept"] = len(kept)
    splits = _split(kept, config)
    if config.rows is not None and len(splits["train"]) > config.rows:
        drawn = sorted(splits["train"], key=lambda row: _draw(config.seed, "rows", row.id))[: config.rows]
        splits["train"] = sorted(drawn, key=lambda row: row.id)
    for name, rows in splits.items():
        counts[name] = len(rows)
    if not splits["train"]:
        raise DataError(
            f"{corpus.path.name}: no row is left to train on ({_told(counts)}).",
            todo="Check the columns' names and the fractions of validation and test.",
        )
    return Curated(**splits, counts=dict(counts), fingerprint=_fingerprint(kept))


def _told(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in counts.items())


def _normal(row: Row) -> Row:
    messages = tuple(Message(m.role, unicodedata.normalize("NFC", m.content)) for m in row.messages)
    topic, title = (unicodedata.normalize("NFC", text) for text in (row.topic, row.title))
    return dataclasses.replace(row, messages=messages, topic=topic, title=title)


def _dialogues(rows: Sequence[Row]) -> list[list[Row]]:
    """Consecutive rows of one topic and title are one dialogue; a row without a title is one by itself."""
    found: list[list[Row]] = []
    for row in rows:
        last = found[-1][-1] if found else None
        title = row.title.strip()
        if last and title and (title, row.topic.strip()) == (last.title.strip(), last.topic.strip()):
            found[-1].append(row)
        else:
            found.append([row])
    return found


def _split(rows: Sequence[Row], config: RunConfig) -> dict[str, list[Row]]:
    """Whole dialogues, drawn by the seed, until test and validation have their share of the rows.

    The draw looks at a dialogue's first row alone, so a longer file moves no dialogue of the shorter one far.
    """
    # A title that comes back later in the file is the same thread: it stays on one side.
    threads: dict[Any, list[Row]] = {}
    for dialogue in _dialogues(rows):
        first = dialogue[0]
        title = first.title.strip()
        threads.setdefault((first.topic.strip(), title) if title else first.id, []).extend(dialogue)
    drawn = sorted(threads.values(), key=lambda thread: _draw(config.seed, "split", thread[0].id))
    splits: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for name, share in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        wanted = round(share * len(rows))
        # At least one thread for a share that was asked for, and never the last one: training needs it.
        while drawn[1:] and share and len(splits[name]) < max(1, wanted):
            splits[name] += drawn.pop(0)
    for thread in drawn:
        splits["train"] += thread
    return {name: sorted(chosen, key=lambda row: row.id) for name, chosen in splits.items()}


def _draw(seed: int, *what: object) -> bytes:
    """A random order that is the same on every machine and Python: by hash, not by a generator's state."""
    return hashlib.sha256(repr((seed, *what)).encode()).digest()


def _fingerprint(rows: Sequence[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        said = [row.id, row.topic, row.title, [[message.role, message.content] for message in row.messages]]
        digest.update(json.dumps(said, ensure_ascii=False).encode("utf-8") + b"\n")
    return digest.hexdigest()
