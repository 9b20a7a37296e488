"""Pairs of similarity 0.9 or more are found, all of them; what is less alike is not joined by the exact measure."""

import itertools
import random

import pytest

from kaggle_lib.data.similar import JOINED, SIMILAR, Groups, grams, join_similar, repeats, similarity

LETTERS = "কখগঘচছজঝটঠডঢতথদধনপফবভমযরলশষসহ ািীুূেোঁংঃ্"


def planted(seed, count):
    """Texts of 20 to 600 letters, and of each a copy with letters exchanged; (texts, the pairs' similarities)."""
    draw = random.Random(seed)
    texts, pairs = [], []
    for number in range(count):
        text = "".join(draw.choices(LETTERS, k=draw.randint(20, 600)))
        copy = list(text)
        for _ in range(draw.randint(0, 1 + len(text) // 60)):
            copy[draw.randrange(len(copy))] = draw.choice(LETTERS)
        texts += [text, "".join(copy)]
        pairs.append((2 * number, 2 * number + 1, similarity(grams(text), grams(texts[-1]))))
    return texts, pairs


def test_similarity_is_jaccard_of_sets_of_five_letters():
    assert grams("abcdefg") == {"abcde", "bcdef", "cdefg"}
    assert grams("ab") == {"ab"}
    assert grams("") == {""}
    assert similarity(grams("abcdefg"), grams("bcdefgh")) == 2 / 4
    assert similarity(grams("abc"), grams("abc")) == 1.0


def test_each_planted_pair_is_found_and_no_other():
    texts, pairs = planted(11, 700)
    alike = {(one, other) for one, other, similar in pairs if similar >= JOINED}
    assert sum(similar >= SIMILAR for *_, similar in pairs) > 250
    assert sum(JOINED <= similar < SIMILAR for *_, similar in pairs) > 20
    assert len(pairs) - len(alike) > 100
    groups = Groups(len(texts))
    assert set(join_similar(list(enumerate(texts)), groups)) == alike
    for one, other, similar in pairs:
        assert (groups.of(one) == groups.of(other)) == (similar >= JOINED)


def test_the_check_without_chance_finds_what_comparing_all_with_all_finds():
    texts, _ = planted(12, 60)
    held_out, others = texts[::2], texts[1::2]
    sets = [list(map(grams, side)) for side in (held_out, others)]
    for least in (0.9, 0.7, 0.5, 1.0):
        wanted = {
            (one, other)
            for (one, a), (other, b) in itertools.product(enumerate(sets[0]), enumerate(sets[1]))
            if similarity(a, b) >= least
        }
        assert wanted
        assert set(repeats(held_out, others, least)) == wanted


def test_owners_that_are_joined_already_are_not_compared():
    groups = Groups(3)
    groups.join(0, 1)
    assert join_similar([(0, "একই কথা আবার বলা"), (1, "একই কথা আবার বলা"), (2, "একই কথা আবার বলা")], groups) == [(0, 2)]
    assert groups.of(2) == 0


@pytest.mark.parametrize("texts", [[], [(0, "ক")]])
def test_nothing_to_compare(texts):
    assert join_similar(texts, Groups(1)) == []
    assert list(repeats([], ["ক"])) == list(repeats(["ক"], [])) == []
