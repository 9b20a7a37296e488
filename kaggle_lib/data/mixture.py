"""The one mixture of lengths that tests, `plan` and benchmarks use: what a corpus of short and some long rows is like.

Nine rows in ten have a median of 300 tokens and one in ten of 1,500, both log-normal (σ 0.45 and 0.5), none below 64
or above `max_length`. Each part is its own quantiles, not a draw, so that a few hundred rows have the mixture's mean,
about 466, already; the seed says in which order they come.
"""

from __future__ import annotations

import math
import random
from statistics import NormalDist

PARTS = ((0.9, 300, 0.45), (0.1, 1500, 0.5))  # share, median, σ of the logarithm
SHORTEST = 64


def mixture(rows: int, seed: int = 7, max_length: int = 4096, mean: float | None = None) -> list[int]:
    """Tokens of each row; `mean` moves both medians by one factor until the mean is that, to half a percent.

    A mean that the limits do not allow is brought as near as they allow.
    """
    long = max(1, round(rows * PARTS[1][0]))
    shape = [
        median * math.exp(sigma * NormalDist().inv_cdf((place + 0.5) / count))
        for (_, median, sigma), count in zip(PARTS, (rows - long, long), strict=True)
        for place in range(count)
    ]

    def scaled(factor: float) -> list[int]:
        return [min(max_length, max(min(SHORTEST, max_length), round(factor * length))) for length in shape]

    factor, low, high = 1.0, 0.0, 1e3
    while mean is not None and abs(sum(scaled(factor)) / rows - mean) > 0.005 * mean and high - low > 1e-6:
        low, high = (factor, high) if sum(scaled(factor)) < mean * rows else (low, factor)
        factor = (low + high) / 2
    lengths = scaled(factor)
    random.Random(seed).shuffle(lengths)
    return lengths
