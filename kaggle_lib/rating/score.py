"""What the ratings say: means and win rate with intervals, agreement, time; the key is opened here."""

from __future__ import annotations

import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from kaggle_lib.rating.ratings import Rating
from kaggle_lib.rating.sheet import CRITERIA, SIDES

RESAMPLES = 2000
LEVEL = 0.95
# A rater who fails more than this share of the attention checks is left out, and named.
FAILED_CHECKS = Fraction(1, 3)
# A tie is half a win, so that 0.5 is "no difference".
WORTH = {"base": 0.0, "tie": 0.5, "tuned": 1.0}
ORDER = ("base", "tie", "tuned")


def score(ratings: Sequence[Rating], key: Mapping[str, Any], *, seed: int = 0) -> dict[str, Any]:
    """The result of `ratings` under `key`, as plain JSON values.

    `raters`: of each, how many items, attention checks passed, median seconds an item, and whether it counts.
    `criteria`: of each, the means of base and tuned and of their difference over messages that have both.
    `win_rate`: of tuned over base, ties half; `groups`: both of them by where the messages are from.
    `agreement`: Krippendorff's alpha, ordinal. Intervals: percentile bootstrap over messages, raters' mean first.
    """
    checked = {name: behind["check"] for name, behind in key["items"].items() if "check" in behind}
    raters = {name: _rater(name, ratings, checked) for name in sorted({one.rater for one in ratings})}
    counted = [one for one in ratings if raters[one.rater]["counts"] and one.item not in checked]
    behind = key["items"]
    groups = sorted({behind[one.item]["group"] for one in counted})
    result: dict[str, Any] = {
        "sheet": key["sheet"],
        "run": key["run"],
        "raters": raters,
        **_numbers(counted, behind, seed),
        "groups": {
            group: _numbers([one for one in counted if behind[one.item]["group"] == group], behind, seed)
            for group in groups
        }
        if len(groups) > 1
        else {},
        "agreement": {
            "better": alpha(
                [(one.rater, one.item, ORDER.index(_winner(one, behind))) for one in counted if one.better]
            ),
            **{
                name: alpha([(one.rater, one.item, one.scores[name]) for one in counted if name in one.scores])
                for name in CRITERIA
            },
        },
        "level": LEVEL,
    }
    return result


def _rater(name: str, ratings: Sequence[Rating], checked: Mapping[str, Any]) -> dict[str, Any]:
    mine = [one for one in ratings if one.rater == name]
    checks = [one for one in mine if one.item in checked]
    passed = sum(_passes(one, checked[one.item]) for one in checks)
    seconds = [one.seconds for one in mine if one.seconds is not None]
    return {
        "items": len(mine) - len(checks),
        "checks": len(checks),
        "checks_passed": passed,
        "counts": not checks or Fraction(len(checks) - passed, len(checks)) <= FAILED_CHECKS,
        "median_seconds": statistics.median(seconds) if seconds else None,
    }


def _passes(rating: Rating, expected: str | int) -> bool:
    if isinstance(expected, str):
        return rating.better == expected
    return bool(rating.scores) and set(rating.scores.values()) == {expected}


def _winner(rating: Rating, behind: Mapping[str, Any]) -> str:
    return "tie" if rating.better == "tie" else str(behind[rating.item][rating.better])


def _numbers(ratings: Sequence[Rating], behind: Mapping[str, Any], seed: int) -> dict[str, Any]:
    votes = [(one.item, _winner(one, behind)) for one in ratings if one.better]
    wins = _means((item, WORTH[winner]) for item, winner in votes)
    criteria = {}
    for name in CRITERIA:
        of: dict[str, dict[str, float]] = {}
        for side in SIDES:
            rated = [one for one in ratings if name in one.scores and behind[one.item]["a"] == side]
            # By message, so that base and tuned of one message stay together.
            of[side] = _means((_message(behind[one.item]), float(one.scores[name])) for one in rated)
        if of["base"] or of["tuned"]:
            both = sorted(set(of["base"]) & set(of["tuned"]))
            criteria[name] = {
                **{side: interval(list(of[side].values()), seed) for side in SIDES},
                "difference": interval([of["tuned"][one] - of["base"][one] for one in both], seed),
            }
    return {
        "win_rate": interval(list(wins.values()), seed),
        "votes": {name: sum(winner == name for _, winner in votes) for name in ("tuned", "tie", "base")},
        "criteria": criteria,
    }


def _message(behind: Mapping[str, Any]) -> str:
    return f"{behind['group']} {behind['exchange']}"


def _means(values: Any) -> dict[str, float]:
    gathered: dict[str, list[float]] = defaultdict(list)
    for name, value in values:
        gathered[name].append(value)
    return {name: statistics.fmean(gathered[name]) for name in sorted(gathered)}


def interval(values: Sequence[float], seed: int) -> dict[str, Any] | None:
    """`mean` of the values, how many (`n`), and `low` and `high`: the percentile bootstrap's ends (Efron 1979) of
    `RESAMPLES` draws by the seed, None for fewer than two values. None where there is no value at all.
    """
    if not values:
        return None
    found: dict[str, Any] = {"mean": statistics.fmean(values), "n": len(values), "low": None, "high": None}
    if len(values) > 1:
        rng = random.Random(f"bootstrap {seed}")
        means = sorted(statistics.fmean(rng.choices(values, k=len(values))) for _ in range(RESAMPLES))
        cut = round((1 - LEVEL) / 2 * RESAMPLES)
        found |= {"low": means[cut], "high": means[-1 - cut]}
    return found


def alpha(labels: Sequence[tuple[str, str, int]]) -> dict[str, Any]:
    """Krippendorff's alpha of (rater, item, rank): `alpha`, or None with the `reason` why it is undefined; `items`
    that at least two have rated.

    The ordinal distance is Krippendorff's own: the ratings between two ranks, the ends counted half, squared.
    """
    raters = Counter(item for _, item, _ in labels)
    pairable = [one for one in labels if raters[one[1]] > 1]
    found: dict[str, Any] = {"alpha": None, "items": len({item for _, item, _ in pairable})}
    if not pairable:
        return {**found, "reason": "no item was rated by two raters"}
    counts = Counter(rank for _, _, rank in pairable)
    if len(counts) == 1:
        return {**found, "reason": "all ratings are equal, so there is no chance agreement to compare with"}
    from nltk.metrics.agreement import AnnotationTask  # it takes a second to load

    task = AnnotationTask(data=pairable, distance=ordinal(counts))
    return {**found, "alpha": float(task.alpha())}


def ordinal(counts: Mapping[int, int]) -> Callable[[int, int], float]:
    """Krippendorff's ordinal metric δ² for ranks that were given `counts` times (Krippendorff 2011, section 4)."""

    def distance(one: int, other: int) -> float:
        low, high = sorted((one, other))
        between = sum(number for rank, number in counts.items() if low <= rank <= high)
        return (between - (counts[low] + counts[high]) / 2) ** 2

    return distance
