"""What a chat shows grows by whole letters, whatever a tokenizer cuts."""

import pytest

from kaggle_lib.evaluation.talking import Letters

WORDS = ["ক্ষুদ্র কষ্ট", "র‍্যাব এল।", "বন্ধু, আমি আছি 👩‍👩‍👧!", "স্ত্রী", "হ্যাঁ", "উৎসব ২০২৬", "ok. ঠিক\n\nআছে"]


def shown(text, size=1):
    """(pieces, the rest) of `text` that comes `size` bytes a token."""
    data = text.encode("utf-8")
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    letters = Letters(lambda ids: b"".join(parts[one] for one in ids).decode("utf-8", errors="replace"))
    pieces = [letters.add(number) for number in range(len(parts))]
    return pieces, letters.rest()


@pytest.mark.parametrize("text", WORDS)
@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_all_of_it_comes_and_never_half_a_letter(text, size):
    import regex

    pieces, rest = shown(text, size)
    assert "".join(pieces) + rest == text
    whole = regex.findall(r"\X", text)
    ends, place = {0}, 0
    for letter in whole:
        place += len(letter)
        ends.add(place)
    place = 0
    for piece in pieces:
        assert "\ufffd" not in piece
        place += len(piece)
        assert place in ends, (text, text[:place])


def test_a_hasanta_waits_for_what_it_ties():
    pieces, rest = shown("ক্ষ", 3)
    assert pieces == ["", "", ""] and rest == "ক্ষ"
    pieces, rest = shown("বল্ চল", 3)
    assert "".join(pieces[:3]) == "ব"


def test_a_letter_cut_by_the_limit_is_left_out():
    parts = ["ভা".encode(), "লো".encode()[:4]]
    letters = Letters(lambda ids: b"".join(parts[one] for one in ids).decode("utf-8", errors="replace"))
    assert [letters.add(0), letters.add(1)] == ["", ""]
    assert letters.rest() == "ভাল"
