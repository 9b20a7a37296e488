"""Which rows stay together, and which side each such group is on.

A group is joined by whatever would leak from one side to the other: one topic and title, one title in the forum, the
same letters, similar texts. All that is drawn comes from one order of the groups, by the seed, in which every stretch
holds each source and length in about its share of the whole (proportional stratified sampling).
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from kaggle_lib.config import RunConfig
from kaggle_lib.data.read import Row
from kaggle_lib.data.similar import Groups, join_similar
from kaggle_lib.data.source import FORUM
from kaggle_lib.data.steps import mix
from kaggle_lib.data.text import canonical, letters

Form = tuple[str, ...]  # the canonical form of each of a row's messages
# A text from this length on, in characters, is not said twice by chance: it joins two rows though the rest differs.
LONG = 200


def names(row: Row) -> list[tuple[str, ...]]:
    """What a row shares with the rest of its dialogue or thread: nothing where it has no title."""
    title = canonical(row.title)
    if not title:
        return []
    return [(canonical(row.topic), title), *([(title,)] if row.source == FORUM else [])]


def texts(form: Form) -> list[str]:
    """The texts by which a row may nearly repeat another: all of it, and each long part."""
    return ["\n".join(form), *(text for text in form if len(text) >= LONG)]


def grouped(rows: Sequence[Row], forms: Sequence[Form]) -> tuple[list[list[int]], int]:
    """The groups, each as the places of its rows in `rows`, and how many similar pairs joined two."""
    groups = Groups(len(rows))
    first: dict[tuple[str, ...], int] = {}
    for place, (row, form) in enumerate(zip(rows, forms, strict=True)):
        for name in [*names(row), ("letters", *map(letters, form))]:
            groups.join(first.setdefault(name, place), place)
    similar = join_similar([(place, text) for place, form in enumerate(forms) for text in texts(form)], groups)
    members: dict[int, list[int]] = defaultdict(list)
    for place in range(len(rows)):
        members[groups.of(place)].append(place)
    return list(members.values()), len(similar)


def ordered(
    rows: Sequence[Row], forms: Sequence[Form], groups: Sequence[Sequence[int]], seed: int
) -> list[Sequence[int]]:
    """The groups in the order in which they are drawn. A group counts to the source and length of most of its rows."""
    signs = [hashlib.sha256("\n".join(form).encode("utf-8")).hexdigest() for form in forms]
    strata: dict[tuple[str, str], list[tuple[int, Sequence[int]]]] = defaultdict(list)
    for group in groups:
        kinds = Counter((rows[place].source, rows[place].length) for place in group)
        drawn = mix(seed, "split", min(signs[place] for place in group))
        strata[max(sorted(kinds), key=lambda kind: kinds[kind])].append((drawn, group))
    placed = []
    for members in strata.values():
        size, before = sum(len(group) for _, group in members), 0
        for drawn, group in sorted(members, key=lambda member: member[0]):
            placed.append(((before + len(group) / 2) / size, drawn, group))
            before += len(group)
    return [group for *_, group in sorted(placed, key=lambda one: one[:2])]


def split(order: Sequence[Sequence[int]], config: RunConfig) -> tuple[dict[str, list[int]], int]:
    """The places of the rows of `train`, `validation` and `test`, and how many were not drawn.

    Test and validation take whole groups in order, as far as they have room; a share that was asked for gets one group
    at least, and training always the largest. `rows` takes whole groups for training in the same way, and of the next
    its first rows, up to that number.
    """
    total = sum(map(len, order))
    largest = max(reversed(order), key=len, default=None)
    chosen: dict[str, list[int]] = {}
    for name, share in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        free = [group for group in order if group is not largest]
        taken = _fill(free, round(share * total))
        if share and not taken and free:
            taken = [min(free, key=len)]
        chosen[name] = _places(taken)
        order = _without(order, taken)
    train = _places(order)
    if config.rows is not None and len(train) > config.rows:
        taken = _fill(order, config.rows)
        drawn = [place for group in (*taken, *_without(order, taken)) for place in group]
        return {**chosen, "train": sorted(drawn[: config.rows])}, len(train) - config.rows
    return {**chosen, "train": train}, 0


def _fill(order: Sequence[Sequence[int]], room: int) -> list[Sequence[int]]:
    """Groups in order, whole, as far as there is room."""
    taken = []
    for group in order:
        if len(group) <= room:
            taken.append(group)
            room -= len(group)
    return taken


def _without(order: Sequence[Sequence[int]], taken: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    gone = {group[0] for group in taken}
    return [group for group in order if group[0] not in gone]


def _places(groups: Sequence[Sequence[int]]) -> list[int]:
    return sorted(place for group in groups for place in group)
