"""The linear model of memory: its three points, the budget, and the layers that a length forces."""

import random

import pytest

from kaggle_lib.data.budget import Memory, fit

GIB, KIB = 2**30, 2**10
CARD = Memory(5.83 * GIB, 91 * KIB, 152 * KIB, 32)
ROOM = 13.5 * GIB


def points(model, noise=0.0, seed=1):
    draw = random.Random(seed)
    where = ((512, 0), (1024, 0), (1024, 16))
    return [(tokens, layers, model.peak(tokens, layers) + draw.uniform(-noise, noise)) for tokens, layers in where]


def test_three_points_give_the_model_back():
    found = fit(points(CARD), 32)
    assert (found.base, found.fixed, found.layer) == pytest.approx((CARD.base, CARD.fixed, CARD.layer), rel=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_noise_of_an_allocators_rounding_moves_the_budget_little(seed):
    found = fit(points(CARD, noise=8 * 2**20, seed=seed), 32)
    assert found.budget(ROOM) == pytest.approx(CARD.budget(ROOM), abs=64)
    for tokens in (1700, 2048, 3000, 4096):
        assert abs(found.recomputed(tokens, ROOM) - CARD.recomputed(tokens, ROOM)) <= 1
        assert CARD.peak(tokens, found.recomputed(tokens, ROOM)) < ROOM * 1.02


def test_the_budget_is_the_largest_that_fits_without_recomputation():
    tokens = CARD.budget(ROOM)
    assert tokens == 1600
    assert tokens % 64 == 0
    assert CARD.peak(tokens, 0) <= ROOM < CARD.peak(tokens + 64, 0)
    assert CARD.recomputed(tokens, ROOM) == 0
    assert CARD.budget(5 * GIB) == 64  # never nothing


def test_a_longer_sample_recomputes_just_as_many_layers_as_it_forces():
    seen = []
    for tokens in range(1664, 4097, 64):
        layers = CARD.recomputed(tokens, ROOM)
        assert CARD.peak(tokens, layers) <= ROOM < CARD.peak(tokens, layers - 1)
        seen.append(layers)
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (1, 20)
    assert CARD.recomputed(100_000, ROOM) == 32  # too long whatever is recomputed


@pytest.mark.parametrize("peaks", [(5, 5, 4), (5, 6, 6), (6, 5, 4), (5, 6, 7)])
def test_peaks_that_no_such_model_has_are_refused(peaks):
    with pytest.raises(ValueError, match="peaks"):
        fit([(512, 0, peaks[0]), (1024, 0, peaks[1]), (1024, 16, peaks[2])], 32)
