"""From the rows that were read to the rows that are used: normalise, drop what repeats, split by dialogue."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from kaggle_lib.config import RunConfig
from kaggle_lib.data.read import Corpus, Row
from kaggle_lib.data.source import sources
from kaggle_lib.data.steps import mix
from kaggle_lib.data.text import normal
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
    """NFC and one kind of line end, empty rows and duplicates out, and a split by dialogue.

    Curating twice changes nothing.
    Raises DataError where no row is left to train on.
    """
    counts: Counter[str] = Counter(read=len(corpus.rows))
    counts.update(f"set aside: {noted.reason}" for noted in corpus.set_aside)
    counts.update(f"repaired: {noted.reason}" for noted in corpus.repaired)
    counts.update(f"left out: {noted.reason}" for noted in corpus.left_out)
    kept: list[Row] = []
    seen: set[tuple[str, ...]] = set()
    rows = [row.changed(normal) for row in corpus.rows]
    for row, source in zip(rows, sources(rows), strict=True):
        row = replace(row, source=source)
        # The template trims, so rows that differ at their ends alone are one example.
        said = tuple(message.content.strip() for message in row.messages)
        if any(_empty(message.content) for message in row.messages if message.role != "system"):
            counts["dropped: empty"] += 1
        elif said in seen:
            counts["dropped: duplicate"] += 1
        else:
            seen.add(said)
            kept.append(row)
    counts["kept"] = len(kept)
    splits = _split(kept, config)
    if config.rows is not None and len(splits["train"]) > config.rows:
        drawn = sorted(splits["train"], key=lambda row: mix(config.seed, "rows", row.id))
        splits["train"] = sorted(drawn[: config.rows], key=lambda row: row.id)
    counts.update({name: len(splits[name]) for name in ("train", "validation", "test")})
    if not splits["train"]:
        told = ", ".join(f"{name} {number}" for name, number in counts.items())
        raise DataError(
            f"{corpus.path.name}: no row is left to train on ({told}).",
            todo="Check the columns' names and the fractions of validation and test.",
        )
    return Curated(**splits, counts=dict(counts), fingerprint=_fingerprint(kept))


def _empty(text: str) -> bool:
    """Nothing that is seen: white space, joiners, zero-width marks."""
    return not any(letter.isprintable() and not letter.isspace() for letter in text)


def _split(rows: Sequence[Row], config: RunConfig) -> dict[str, list[Row]]:
    """Whole threads, in an order drawn by the seed, as far as test and validation have room for them.

    The consecutive rows of one topic and title are a dialogue; where the two come back later in the file, it is the
    same thread and stays on one side. A row without a title is a thread by itself.
    """
    threads: dict[tuple[str, str] | int, list[Row]] = {}
    for row in rows:
        title = row.title.strip()
        threads.setdefault((row.topic.strip(), title) if title else row.id, []).append(row)
    order = sorted(threads.values(), key=lambda thread: mix(config.seed, "split", thread[0].id))
    largest = max(order, key=len, default=[])
    order = [thread for thread in order if thread is not largest]  # so that training always has one
    splits: dict[str, list[Row]] = {}
    for name, share in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        wanted = round(share * len(rows))
        splits[name], left = [], []
        for thread in order:
            if len(splits[name]) + len(thread) <= wanted:
                splits[name] += thread
            else:
                left.append(thread)
        if share and not splits[name] and left:  # a share that was asked for gets one thread at least
            smallest = min(left, key=len)
            left.remove(smallest)
            splits[name] += smallest
        order = left
    splits["train"] = [row for thread in [largest, *order] for row in thread]
    return {name: sorted(chosen, key=lambda row: row.id) for name, chosen in splits.items()}


def _fingerprint(rows: Sequence[Row]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        said = [row.id, row.topic, row.title, [[message.role, message.content] for message in row.messages]]
        digest.update(json.dumps(said, ensure_ascii=False).encode("utf-8") + b"\n")
    return digest.hexdigest()
