"""From what was measured row by row to base beside tuned: each number with its interval and, where it has one, floor.

A measure is a dict of `group`, `name`, `title`, `better` (higher, lower or ""), `base`, `tuned`, `difference` (tuned -
base), `interval` (95 %; None where a number is of all rows together, or of fewer than ten), `floor` (`base`, `tuned`:
the same answers against the references of other rows, or None), `signature` (or None) and `rows`. A number is None
where no row has it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from kaggle_lib.evaluation import behaviour, intervals, overlap, safety
from kaggle_lib.evaluation.intervals import Array, Score

Measure = dict[str, Any]
Answer = Mapping[str, Any]
SIDES = ("base", "tuned")
COLUMNS = ("nll", "eot_nll", "bytes", "characters", "tokens")


def _quotient(over: str, by: str | None, change: Callable[[Array], Array]) -> Score:
    def score(sums: Array) -> Array:
        divisor = sums[:, COLUMNS.index(by)] if by else sums[:, -1]
        return change(sums[:, COLUMNS.index(over)] / divisor)

    return score


def _bits(nats: Array) -> Array:
    return nats / math.log(2)


def _exp(nats: Array) -> Array:
    with np.errstate(over="ignore"):
        return np.exp(nats)


# (name, title, score of the sums of COLUMNS and of ones)
LIKELIHOOD: tuple[tuple[str, str, Score], ...] = (
    ("bits_per_byte", "bits per byte of the answers", _quotient("nll", "bytes", _bits)),
    ("bits_per_character", "bits per character", _quotient("nll", "characters", _bits)),
    ("perplexity", "perplexity per token", _quotient("nll", "tokens", _exp)),
    ("eot_nll", "nats for the token that ends an answer", _quotient("eot_nll", None, lambda nats: nats)),
)
OVERLAP = {
    "chrf++": "chrF++, letters and words in common",
    "bleu": "BLEU, word sequences in common",
    "rouge1": "ROUGE-1, words in common",
    "rouge2": "ROUGE-2, word pairs in common",
    "rougeL": "ROUGE-L, longest common sequence of words",
}
# The upper end (excluded) of a reference's words, and the group's name.
LENGTHS = ((10, "under 10 words"), (25, "10 to 24 words"), (75, "25 to 74 words"), (math.inf, "75 words and more"))


def length_group(reference: str) -> str:
    count = len(overlap.words(reference))
    return next(name for limit, name in LENGTHS if count < limit)


def likelihood(scores: Mapping[str, Sequence[Mapping[str, Any]]], seed: int) -> list[Measure]:
    """The measures of likelihood. `scores`: by side, records with COLUMNS, the same rows in the same order."""
    arrays = {side: np.array([[*(row[name] for name in COLUMNS), 1.0] for row in scores[side]]) for side in SIDES}
    return [
        _measure("likelihood", name, title, "lower", intervals.compare([arrays[side] for side in SIDES], score, seed))
        for name, title, score in LIKELIHOOD
    ]


def overlaps(answers: Sequence[Answer], seed: int) -> list[Measure]:
    """BLEU, chrF++ and ROUGE with their floors."""
    told, wanted = overlap.signatures(), [answer["reference"] for answer in answers]
    others = [wanted[place] for place in intervals.shuffled(len(wanted), seed)]
    said = {side: [answer[side]["text"] for answer in answers] for side in SIDES}
    rows = {side: overlap.statistics(said[side], wanted) for side in SIDES}
    floors = {side: overlap.statistics(said[side], others) for side in SIDES}
    found = []
    for name, title in OVERLAP.items():
        compared = intervals.compare([rows[side][name] for side in SIDES], overlap.SCORES[name], seed)
        floor = {side: overlap.score(name, floors[side][name]) for side in SIDES} if len(answers) > 1 else None
        found.append(_measure("overlap", name, title, "higher", compared, floor, told[name]))
    return found


def similarity(answers: Sequence[Answer], seed: int, model: str, encode: Callable[[list[str]], Any]) -> Measure:
    """Cosine similarity by an embedding model, with its floor."""
    from kaggle_lib.evaluation.similarity import statistics

    wanted = [answer["reference"] for answer in answers]
    others = [wanted[place] for place in intervals.shuffled(len(wanted), seed)]
    said = {side: [answer[side]["text"] for answer in answers] for side in SIDES}
    rows = [statistics(said[side], wanted, encode) for side in SIDES]
    floor = {side: float(statistics(said[side], others, encode)[:, 0].mean()) for side in SIDES}
    compared = intervals.compare(rows, intervals.mean, seed)
    return _measure(
        "similarity", "similarity", "cosine of answer and reference, × 100", "higher", compared, floor, model
    )


def behaviours(answers: Sequence[Answer], seed: int, referenced: bool = True, bengali: bool = True) -> list[Measure]:
    """The measures of behaviour; those that need no reference where there is none, nor Bengali where it is none."""
    rows = [behaviour.statistics(answers, side) for side in SIDES]
    found = [
        _measure(
            "behaviour", name, title, better, intervals.compare([side[name] for side in rows], intervals.mean, seed)
        )
        for name, title, better in behaviour.MEASURES
        if (referenced or name != "length") and (bengali or name not in behaviour.BENGALI)
    ]
    whole = [behaviour.of_all([answer[side]["text"] for answer in answers]) for side in SIDES]
    for name, title, better in behaviour.OF_ALL:
        base, tuned = (one[name] for one in whole)
        compared = {"base": base, "tuned": tuned, "difference": tuned - base, "interval": None, "rows": len(answers)}
        found.append(_measure("behaviour", name, title, better, compared))
    return found


def shares(group: str, name: str, title: str, hits: Mapping[str, Sequence[bool]], seed: int) -> Measure:
    """The measure of a share in percent, higher being better. `hits`: by side, row by row."""
    rows = [np.array([[100.0 * hit, 1.0] for hit in hits[side]]) for side in SIDES]
    return _measure(group, name, title, "higher", intervals.compare(rows, intervals.mean, seed))


def naming_help(answers: Sequence[Answer], seed: int) -> list[Measure]:
    """Which share of the answers to crisis and harm prompts names somebody to turn to, by kind and register."""
    found = []
    for kind, register in (("crisis", "formal"), ("crisis", "colloquial"), ("harm", "formal"), ("harm", "colloquial")):
        chosen = [answer for answer in answers if (answer["kind"], answer["register"]) == (kind, register)]
        if chosen:
            hits = {side: [safety.names_help(answer[side]["text"]) for answer in chosen] for side in SIDES}
            title = f"answers to {register} {kind} prompts that name somebody to turn to, %"
            found.append(shares("safety", f"names_help_{kind}_{register}", title, hits, seed))
    return found


def grouped(
    by: str, names: Sequence[str], measured: Callable[[list[int]], list[Measure]], keep: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Measures of each group of rows: `by`, `name`, `rows`, `measures`; the largest group first.

    `names`: each row's group. `measured` takes the rows' places. `keep`: names of measures, all unless given.
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    ordered = sorted(places, key=lambda name: (-len(places[name]), name))
    return [
        {
            "by": by,
            "name": name,
            "rows": len(places[name]),
            "measures": [one for one in measured(places[name]) if not keep or one["name"] in keep],
        }
        for name in ordered
    ]


def _measure(
    group: str,
    name: str,
    title: str,
    better: str,
    compared: Mapping[str, Any],
    floor: Mapping[str, float] | None = None,
    signature: str | None = None,
) -> Measure:
    named = {"group": group, "name": name, "title": title, "better": better}
    return {**named, **compared, "floor": floor, "signature": signature}
