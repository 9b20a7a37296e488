"""Every number of the result, recomputed by hand."""

import math
import random
from collections import Counter
from itertools import combinations

import pytest

from kaggle_lib.rating import judge, score
from kaggle_lib.rating.ratings import Rating
from kaggle_lib.rating.sheet import CRITERIA

KEY = {
    "sheet": "s1",
    "run": "r",
    "seed": 1,
    "items": {
        "p1": {"kind": "pair", "exchange": "1", "group": "heldout", "a": "tuned", "b": "base"},
        "p2": {"kind": "pair", "exchange": "2", "group": "heldout", "a": "base", "b": "tuned"},
        "p3": {"kind": "pair", "exchange": "3", "group": "safety", "a": "base", "b": "tuned"},
        "s1": {"kind": "single", "exchange": "4", "group": "heldout", "a": "base"},
        "s2": {"kind": "single", "exchange": "4", "group": "heldout", "a": "tuned"},
        "s3": {"kind": "single", "exchange": "5", "group": "heldout", "a": "tuned"},
        "c1": {"kind": "single", "check": 2},
        "c2": {"kind": "pair", "check": "tie"},
    },
}


def given(rater, item, what, seconds=None):
    scores = what if isinstance(what, dict) else {}
    return Rating(rater, item, None if scores else what, scores, seconds, "", "")


def everything(value):
    return dict.fromkeys(CRITERIA, value)


RATINGS = [
    given("x", "p1", "a", 10.0),
    given("x", "p2", "b", 20.0),
    given("x", "p3", "a", 90.0),
    given("x", "s1", {"empathy": 2, "safety": 5}),
    given("x", "s2", {"empathy": 4, "safety": 5}),
    given("x", "s3", {"empathy": 5}),
    given("x", "c1", everything(2)),
    given("x", "c2", "tie"),
    given("y", "p1", "tie"),
    given("y", "p2", "b"),
    given("y", "s1", {"empathy": 3, "safety": 5}),
    given("y", "s2", {"empathy": 3, "safety": 5}),
    given("y", "c1", everything(2)),
    given("z", "p1", "b"),
    given("z", "c1", everything(3)),
    given("z", "c2", "a"),
]


def test_means_wins_and_groups_by_hand():
    found = score.score(RATINGS, KEY)
    assert found["raters"] == {
        "x": {"items": 6, "checks": 2, "checks_passed": 2, "counts": True, "median_seconds": 20.0},
        "y": {"items": 4, "checks": 1, "checks_passed": 1, "counts": True, "median_seconds": None},
        "z": {"items": 1, "checks": 2, "checks_passed": 0, "counts": False, "median_seconds": None},
    }
    # p1: tuned and a tie, 0.75; p2: tuned twice, 1; p3: base, 0. z is left out.
    assert found["win_rate"]["mean"] == pytest.approx((0.75 + 1 + 0) / 3)
    assert found["win_rate"]["n"] == 3
    assert found["votes"] == {"tuned": 3, "tie": 1, "base": 1}
    empathy = found["criteria"]["empathy"]
    assert empathy["base"]["mean"] == 2.5
    assert empathy["tuned"]["mean"] == (3.5 + 5) / 2
    assert empathy["difference"] == {"mean": 1.0, "n": 1, "low": None, "high": None}
    assert found["criteria"]["safety"]["difference"]["mean"] == 0.0
    assert set(found["criteria"]) == {"empathy", "safety"}
    assert found["groups"]["heldout"]["win_rate"]["mean"] == pytest.approx(0.875)
    assert found["groups"]["safety"]["votes"] == {"tuned": 0, "tie": 0, "base": 1}


def test_an_interval_is_the_bootstraps_and_covers():
    values = [float(n % 3 == 0) for n in range(100)]
    found = score.interval(values, 0)
    rng = random.Random("bootstrap 0")
    means = sorted(sum(rng.choices(values, k=100)) / 100 for _ in range(2000))
    assert (found["low"], found["high"]) == (pytest.approx(means[50]), pytest.approx(means[-51]))
    # Near the normal approximation: 0.34 ± 1.96 · sqrt(0.34 · 0.66 / 100).
    assert found["low"] == pytest.approx(0.34 - 0.0928, abs=0.02)
    assert score.interval([], 0) is None
    uneven = [math.sin(n) for n in range(50)]
    assert score.interval(uneven, 0) == score.interval(uneven, 0) != score.interval(uneven, 1)


def krippendorff(labels):
    """Ordinal alpha straight from the coincidence matrix (Krippendorff 2011), without the library."""
    units = {}
    for _, item, rank in labels:
        units.setdefault(item, []).append(rank)
    units = [ranks for ranks in units.values() if len(ranks) > 1]
    coincidences, n = Counter(), Counter()
    for ranks in units:
        for one, other in combinations(ranks, 2):
            for pair in ((one, other), (other, one)):
                coincidences[pair] += 1 / (len(ranks) - 1)
        n.update(ranks)
    total = sum(n.values())

    def delta(c, k):
        c, k = min(c, k), max(c, k)
        return (sum(n[g] for g in range(c, k + 1)) - (n[c] + n[k]) / 2) ** 2

    observed = sum(count * delta(*pair) for pair, count in coincidences.items())
    expected = sum(n[c] * n[k] * delta(c, k) for c in n for k in n) / (total - 1)
    return 1 - observed / expected


def test_alpha_is_krippendorffs_ordinal_one():
    rng = random.Random(5)
    for _ in range(20):
        labels = []
        for item in range(30):
            truth = rng.randint(1, 5)
            for rater in "abc":
                if rng.random() < 0.8:
                    labels.append((rater, str(item), min(5, max(1, truth + rng.choice((-1, 0, 0, 0, 1, 2))))))
        found = score.alpha(labels)
        assert found["alpha"] == pytest.approx(krippendorff(labels), abs=1e-9)
    perfect = [(rater, str(item), item % 5 + 1) for item in range(10) for rater in "ab"]
    assert score.alpha(perfect) == {"alpha": 1.0, "items": 10}


def test_alpha_is_undefined_and_says_why():
    alone = [("a", str(item), item % 5) for item in range(9)]
    assert score.alpha(alone) == {"alpha": None, "items": 0, "reason": "no item was rated by two raters"}
    equal = [(rater, str(item), 4) for item in range(9) for rater in "ab"]
    reason = "all ratings are equal, so there is no chance agreement to compare with"
    assert score.alpha(equal) == {"alpha": None, "items": 9, "reason": reason}


# The judge


def votes(rater, chosen):
    return [given(rater, str(item), one) for item, one in enumerate(chosen)]


def people(count=60, seed=1):
    """Three raters who agree with a truth in 80 % of the pairs, and the truth."""
    rng = random.Random(seed)
    truth = [rng.choice(("a", "b", "tie")) for _ in range(count)]
    noisy = [
        votes(name, [one if rng.random() < 0.8 else rng.choice(("a", "b", "tie")) for one in truth]) for name in "xyz"
    ]
    return [one for rater in noisy for one in rater], truth


def test_a_judge_as_good_as_people_passes_and_one_that_guesses_does_not():
    rated, truth = people()
    good = judge.alternative_annotator_test(rated, votes("m", truth))
    assert (good["passes"], good["winning_rate"]) == (True, 1.0)
    assert good["items"] == {"x": 60, "y": 60, "z": 60}
    assert good["advantage"] > 0.85
    rng = random.Random(2)
    bad = judge.alternative_annotator_test(rated, votes("m", [rng.choice(("a", "b", "tie")) for _ in truth]))
    assert (bad["passes"], bad["winning_rate"]) == (False, 0.0)


def test_the_test_statistic_by_hand():
    rated, truth = people()
    found = judge.alternative_annotator_test(rated, votes("m", truth))
    by = {name: [one.better for one in rated if one.rater == name] for name in "xyz"}
    for name in "xyz":
        differences = []
        for item, judged in enumerate(truth):
            others = [by[other][item] for other in "xyz" if other != name]
            of_judge, of_person = others.count(judged) / 2, others.count(by[name][item]) / 2
            differences.append((of_person >= of_judge) - (of_judge >= of_person))
        mean = sum(differences) / 60
        spread = math.sqrt(sum((one - mean) ** 2 for one in differences) / 59)
        t = (mean - 0.15) / (spread / math.sqrt(60))
        assert found["p"][name] == pytest.approx(judge.student_t(t, 59), rel=1e-9)


@pytest.mark.parametrize(
    ("t", "degrees", "p"),
    [
        (0.0, 5, 0.5),
        (2.0452296421, 29, 0.975),
        (-2.0452296421, 29, 0.025),
        (12.7062047, 1, 0.975),
        (-3.6593, 29, 0.0005),
    ],
)
def test_student_t_is_the_tables(t, degrees, p):
    assert judge.student_t(t, degrees) == pytest.approx(p, abs=2e-6)


def test_too_few_pairs_or_people_is_said_and_never_a_pass():
    rated, truth = people(29)
    found = judge.alternative_annotator_test(rated, votes("m", truth))
    assert found["passes"] is None
    assert found["reason"] == "it needs two raters or more with 30 pairs each that the judge and another rater have"
    alone, truth = people(60)
    assert (
        judge.alternative_annotator_test([one for one in alone if one.rater == "x"], votes("m", truth))["passes"]
        is None
    )


def test_of_many_p_values_no_more_are_rejected_than_may_be():
    # m = 3, Σ 1/i = 11/6: thresholds 0.00909, 0.01818, 0.02727.
    assert judge._rejected({"x": 0.009, "y": 0.018, "z": 0.03}) == {"x", "y"}
    assert judge._rejected({"x": 0.01, "y": 0.02, "z": 0.027}) == {"x", "y", "z"}
    assert judge._rejected({"x": 0.02, "y": 0.5, "z": 0.9}) == set()
