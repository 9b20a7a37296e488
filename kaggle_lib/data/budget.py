"""The largest micro-batch that a card holds without recomputation, from a linear model of its memory.

Training one micro-batch of T tokens with the activations of the first k of L layers recomputed peaks at

    peak(T, k) = base + T · (fixed + layer · (L − k))        in bytes

base: the weights, the gradients and what does not grow; fixed: what a token costs whatever is recomputed; layer: its
activations in a layer that keeps them. Three peaks fix the three numbers: they differ by attention kernel, versions and
card, so they are measured in the process that trains, and only `plan` goes by numbers that were measured elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

STEP = 64  # budgets are multiples of it


@dataclass(frozen=True)
class Memory:
    """The linear model of one card, model and way of training: bytes, bytes a token, bytes a token and layer."""

    base: float
    fixed: float
    layer: float
    layers: int

    def peak(self, tokens: int, recomputed: int) -> float:
        return self.base + tokens * (self.fixed + self.layer * (self.layers - recomputed))

    def budget(self, room: float) -> int:
        """The most tokens that fit into `room` bytes without recomputation, rounded down to 64, and at least 64."""
        return max(STEP, int((room - self.base) / (self.fixed + self.layer * self.layers)) // STEP * STEP)

    def recomputed(self, tokens: int, room: float) -> int:
        """The fewest of the first layers that must recompute for `tokens` to fit; all, where even that is too few."""
        return min(self.layers, max(0, math.ceil((self.peak(tokens, 0) - room) / (tokens * self.layer))))


def fit(points: Sequence[tuple[int, int, float]], layers: int) -> Memory:
    """The model through three points (tokens, layers recomputed, peak): two lengths without recomputation, then the
    second length with some.

    Raises ValueError for points that it does not describe: memory that does not grow with length, or does not shrink
    with recomputation.
    """
    (short, _, first), (long, _, second), (_, recomputed, third) = points
    slope, layer = (second - first) / (long - short), (second - third) / (long * recomputed)
    if slope <= 0 or layer <= 0:
        raise ValueError(
            f"peaks {first:.0f}, {second:.0f}, {third:.0f} bytes at {points[0][:2]}, {points[1][:2]}, {points[2][:2]}"
        )
    return Memory(first - short * slope, slope - layer * layers, layer, layers)
