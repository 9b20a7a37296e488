"""What counts as a spike, worked out by hand, and where an episode of them begins."""

from __future__ import annotations

import random

import pytest

from kaggle_lib.runs.spikes import ENOUGH, begins, limit


def test_the_limit_is_eight_deviations_or_a_quarter_above_the_median() -> None:
    # Median 3; deviations 2, 1, 0, 1, 2 of each five, so their median is 1.
    assert limit([1.0, 2.0, 3.0, 4.0, 5.0] * 4) == pytest.approx(3 + 8 * 1.4826)
    assert limit([2.0] * 20) == 2.5
    assert limit([2.0] * 11 + [90.0] * 9) == 2.5  # fewer than half are spikes


def beginnings(losses: list[float]) -> dict[int, float]:
    """{step: the median before it} of each episode's first step."""
    found = {step: begins(losses[:step]) for step in range(1, len(losses) + 1)}
    return {step: median for step, median in found.items() if median is not None}


def test_an_episode_begins_once_and_a_later_one_again() -> None:
    calm = [2.0, 2.1] * 30
    episode = [9.0, 9.0, 2.0, 9.0]
    assert beginnings([*calm, *episode]) == {61: pytest.approx(2.05)}
    assert list(beginnings([*calm, *episode, *calm[:49], 9.0])) == [61]  # 49 ordinary steps: still the same
    assert list(beginnings([*calm, *episode, *calm[:50], 9.0])) == [61, 115]


def test_a_level_that_stays_is_the_new_ordinary_one() -> None:
    assert list(beginnings([2.0, 2.1] * 30 + [9.0, 9.1] * 100)) == [61]


def test_the_first_steps_tell_nothing() -> None:
    assert beginnings([2.0] * (ENOUGH - 1) + [9.0]) == {}
    assert beginnings([2.0] * ENOUGH + [9.0]) == {ENOUGH + 1: 2.0}
    assert begins([]) is None


def test_the_ordinary_noise_of_small_batches_is_none() -> None:
    chance = random.Random(7)
    losses = [2.0 * chance.lognormvariate(0.0, 0.25) for _ in range(20_000)]
    assert [step for step in range(1, 20_001) if begins(losses[max(0, step - 101) : step]) is not None] == []
