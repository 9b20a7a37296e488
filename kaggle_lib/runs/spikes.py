"""A loss far above what the steps before it had: said once, when it begins."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

WINDOW, ENOUGH = 50, 20  # steps that a loss is compared with, and the fewest that tell something
DEVIATIONS, SHARE = 8.0, 0.25
# The median absolute deviation of a normal distribution, times this, is its standard deviation (Rousseeuw and Croux,
# Alternatives to the median absolute deviation, 1993).
NORMAL = 1.4826


def limit(losses: Sequence[float]) -> float:
    """The highest loss that is still an ordinary one after `losses`, in their unit.

    With m the median of the losses and d the median of |loss - m|: m + max(8 · 1.4826 · d, m / 4). Both medians hold
    still while fewer than half of the losses are spikes themselves.
    """
    median = statistics.median(losses)
    deviation = statistics.median(abs(loss - median) for loss in losses)
    return median + max(DEVIATIONS * NORMAL * deviation, SHARE * median)


def begins(losses: Sequence[float]) -> float | None:
    """The median that the last of a run's `losses` is far above, if none of the `WINDOW` before it was; else None."""
    last = len(losses) - 1
    if not _far(losses, last) or any(_far(losses, at) for at in range(max(last - WINDOW, 0), last)):
        return None
    return statistics.median(losses[-WINDOW - 1 : -1])


def _far(losses: Sequence[float], at: int) -> bool:
    before = losses[max(at - WINDOW, 0) : at]
    return len(before) >= ENOUGH and losses[at] > limit(before)
