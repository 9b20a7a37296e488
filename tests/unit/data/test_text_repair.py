"""What the normaliser repairs, and that it changes no word: the failures of those that can be installed are cases."""

import random
import unicodedata

import pytest

from kaggle_lib.data.text import canonical, letters, normal

ZWJ, ZWNJ = "\u200d", "\u200c"
WORDS = [
    *("ফ্যামিলিপ্রবলেমের", f"র{ZWJ}্যাব", "আলেক্সান্দ্র", "বল্চ্", "উৎসব", "কোরআন", "৯৯৯", "বল্", "গিয়েছিলাম", "বড়", "আষাঢ়"),
    *(
        "১২৩৪",
        "ক্ষ",
        f"ক্{ZWNJ}ষ",
        "হ্যাঁ",
        "দুঃখ",
        "\u09dc\u09dd\u09df",
        "😀",
        "👩‍👧",
        "👍🏽",
        "❤️",
        "e-mail",
        "৳৫০",
        "৴৹৷",
        "𝓐",
        "½",
        "ﬁ",
    ),
]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_equals_its_nfc_code_point_by_code_point(word):
    nfc = unicodedata.normalize("NFC", word)
    for said in (word, unicodedata.normalize("NFD", word), nfc):
        assert [*map(ord, normal(said))] == [*map(ord, nfc)]
        assert normal(f"আমি {said} ভালো") == f"আমি {nfc} ভালো"


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        (f"উত্{ZWJ}সব", "উৎসব"),
        (f"হঠাত্{ZWJ}", "হঠাৎ"),
        ("অ\u09beমি", "আমি"),
        ("ব\u09bc\u09beত", "রাত"),
        ("\u0995\u09c7\u09be", "কো"),  # ে and া, which NFC joins
        ("ভালো৷", "ভালো।"),
        ("৯৷ তারপর", "৯। তারপর"),
        ("এক\u00a0দুই", "এক দুই"),
        ("এক  দুই\tতিন", "এক দুই তিন"),
        (" এক \r\nদুই\rতিন\u2028চার\n\n\n\nপাঁচ  ", "এক\nদুই\nতিন\nচার\n\nপাঁচ"),
        ("\ufeffএক\u200bদুই\u00adতিন\u200e", "একদুইতিন"),
        ("এক\x07দুই\x9f", "একদুই"),
        ("if x:\n    return  1", "if x:\n    return 1"),
    ],
)
def test_what_is_broken_is_repaired(broken, whole):
    assert normal(broken) == whole == normal(whole)


def test_normalising_twice_changes_nothing_whatever_the_text():
    pool = [
        *"কখবরঅআতড়্ািীে।৷.|৯৴ৎয়AeÉ😀 \n\t\r",
        *"\u09bc\u09d7\u09be\u09c7\u0301\u200b\u200c\u200d\u00a0\ufeff\x00\u2028",
    ]
    draw = random.Random(5)
    for _ in range(20_000):
        text = "".join(draw.choices(pool, k=draw.randrange(14)))
        once = normal(text)
        assert normal(once) == once
        assert unicodedata.is_normalized("NFC", once)
        assert canonical(normal(canonical(once))) == canonical(once)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("আমি ভালো।", "অ\u09beমি ভ\u09beলো."),
        ("রাত", "ব\u09bcাত"),
        ("উৎসব", f"উত্{ZWJ}সব"),
        ("ভালো৷", "ভালো।"),
        ("ভালো|", "ভালো॥"),
        (f"র{ZWJ}্যাব", "র্যাব"),
        ("Office ２", "office 2"),
        ("বড়", "ব\u09dc"),
    ],
)
def test_look_alikes_are_equal_where_texts_are_compared(one, other):
    assert canonical(normal(one)) == canonical(normal(other))


def test_letters_leave_punctuation_and_spaces_out_and_nothing_else():
    assert letters(canonical("হ্যাঁ, আমি ভালো!")) == letters(canonical("হ্যাঁ আমি  ভালো।")) == "হ্যাঁআমিভালো"
    assert letters("😀") == "😀" != letters("😢")
    assert letters("") == ""
    assert canonical("মত") != canonical("মতো")
