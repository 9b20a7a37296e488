"""Paired bootstrap: how far the difference of two models could be off by the choice of rows.

Efron & Tibshirani 1993; for BLEU Koehn 2004. The same rows are drawn for both models, so that what makes a row hard
for both does not widen the interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Score = Callable[[Array], Array]  # sums of rows' statistics (draws, statistics) → scores (draws,)
RESAMPLES, LEVEL = 1000, 0.95
LEAST_ROWS = 10  # of fewer there is no interval: what they have in common by chance would look like certainty
BLOCK = 100  # draws at a time: a block of 100 × 40,000 rows takes 32 MB


def paired(base: Array, tuned: Array, score: Score, seed: int) -> tuple[float, float] | None:
    """The 95 % percentile interval of `score(tuned) - score(base)`; None where no draw has both.

    `base`, `tuned`: (rows, statistics), the same rows in the same order; a score is a function of the statistics'
    sums. Raises ValueError where there is no row.
    """
    if base.shape != tuned.shape or not len(base):
        raise ValueError("a paired interval needs the same rows of both, and at least one")
    differences = np.concatenate([score(drawn @ tuned) - score(drawn @ base) for drawn in _draws(len(base), seed)])
    differences = differences[np.isfinite(differences)]
    if not len(differences):
        return None
    low, high = np.quantile(differences, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def compare(rows: Sequence[Array], score: Score, seed: int) -> dict[str, Any]:
    """`base`, `tuned`, `difference` (tuned - base), its `interval` and `rows`; None for what there is no number of.

    `rows`: both sides' statistics.
    """
    base, tuned = (float(score(side.sum(axis=0, keepdims=True))[0]) for side in rows)
    interval = paired(rows[0], rows[1], score, seed) if len(rows[0]) >= LEAST_ROWS else None
    numbers = {"base": base, "tuned": tuned, "difference": tuned - base}
    told = {name: value if np.isfinite(value) else None for name, value in numbers.items()}
    return {**told, "interval": interval and list(interval), "rows": len(rows[0])}


def mean(sums: Array) -> Array:
    """The score of statistics (value, weight): Σ value ÷ Σ weight, NaN where nothing weighs."""
    found: Array = np.divide(sums[:, 0], sums[:, 1], out=np.full(len(sums), np.nan), where=sums[:, 1] != 0)
    return found


def shuffled(rows: int, seed: int) -> list[int]:
    """A permutation of `range(rows)` that leaves no row where it was (with one row: the row itself)."""
    order = np.random.default_rng(seed).permutation(rows)
    moved = np.empty(rows, dtype=int)
    moved[order] = np.roll(order, 1)
    return [int(row) for row in moved]


def _draws(rows: int, seed: int) -> Iterator[Array]:
    """How often each row is drawn: (BLOCK, rows) at a time, RESAMPLES draws in all."""
    generator = np.random.default_rng(seed)
    for _ in range(RESAMPLES // BLOCK):
        yield generator.multinomial(rows, np.full(rows, 1 / rows), size=BLOCK).astype(np.float64)
