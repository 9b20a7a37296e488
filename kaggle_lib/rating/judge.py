"""Whether a judge model may stand in for a person: the alternative annotator test (Calderon et al. 2025)."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from kaggle_lib.rating.ratings import Rating

# The paper's: at least 30 items for the t-test; ε = 0.15 for skilled annotators (0.2 experts, 0.1 crowd).
LEAST_ITEMS = 30
EPSILON = 0.15
FALSE_DISCOVERIES = 0.05


def alternative_annotator_test(people: Sequence[Rating], judge: Sequence[Rating]) -> dict[str, Any]:
    """Compare `judge` with each of the `people` in turn, by how often each agrees with the others, on pairs.

    Returns `passes` (None where it cannot be told, with the `reason`), `winning_rate` ω (the share of people whom the
    judge does not fall behind by more than ε), `advantage` ρ (mean probability that the judge agrees with the others
    at least as well as the person left out), `items` and, by person, `p`.

    For person j and item i, S(x) is the share of the others who chose what x chose; Wf = 1 if S(judge) ≥ S(j), Wh = 1
    if S(j) ≥ S(judge). H0: mean(Wf) ≤ mean(Wh) − ε, by a one-sided t-test on Wh − Wf; rejections under
    Benjamini–Yekutieli at 0.05. It passes with ω ≥ 0.5.
    """
    chosen: dict[str, dict[str, str]] = defaultdict(dict)
    for one in people:
        if one.better:
            chosen[one.item][one.rater] = one.better
    judged = {one.item: one.better for one in judge if one.better}
    by_person: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for item, votes in chosen.items():
        if item not in judged or len(votes) < 2:
            continue
        for person, vote in votes.items():
            others = [other for name, other in votes.items() if name != person]
            of_judge, of_person = others.count(judged[item]), others.count(vote)
            by_person[person].append((of_judge >= of_person, of_person >= of_judge))
    found: dict[str, Any] = {
        "passes": None,
        "epsilon": EPSILON,
        "items": {person: len(both) for person, both in sorted(by_person.items())},
    }
    able = {person: both for person, both in sorted(by_person.items()) if len(both) >= LEAST_ITEMS}
    if len(able) < 2:
        reason = f"it needs two raters or more with {LEAST_ITEMS} pairs each that the judge and another rater have"
        return {**found, "reason": reason}
    p = {person: _p_value([person_ - judge_ for judge_, person_ in both]) for person, both in able.items()}
    rejected = _rejected(p)
    winning = len(rejected) / len(able)
    advantage = statistics.fmean(statistics.fmean(judge_ for judge_, _ in both) for both in able.values())
    return {**found, "passes": winning >= 0.5, "winning_rate": winning, "advantage": advantage, "p": p}


def _p_value(differences: Sequence[int]) -> float:
    """One-sided p of H0: the mean of Wh − Wf is at least ε."""
    mean, spread = statistics.fmean(differences), statistics.stdev(differences)
    if spread == 0:
        return 0.0 if mean < EPSILON else 1.0
    return student_t((mean - EPSILON) / (spread / math.sqrt(len(differences))), len(differences) - 1)


def student_t(t: float, degrees: int, parts: int = 2000) -> float:
    """Student's distribution function at `t`, by Simpson's rule from 0: good to 1e-9 for |t| below 40."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    width = abs(t) / parts
    heights = [scale * (1 + (width * step) ** 2 / degrees) ** (-(degrees + 1) / 2) for step in range(parts + 1)]
    area = width / 3 * (heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2]))
    return 0.5 + math.copysign(min(area, 0.5), t)


def _rejected(p: Mapping[str, float]) -> set[str]:
    """Benjamini–Yekutieli (2001): those whose p is at most rank ÷ (m · Σ 1/i) · level, and all before them."""
    ordered = sorted(p, key=lambda name: p[name])
    penalty = len(ordered) * sum(1 / rank for rank in range(1, len(ordered) + 1))
    last = max(
        (rank for rank, name in enumerate(ordered, 1) if p[name] <= rank / penalty * FALSE_DISCOVERIES), default=0
    )
    return set(ordered[:last])
