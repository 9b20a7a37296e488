"""What answers look like, whatever their references say: script, length, variety, repetition, endings, register."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import regex

from kaggle_lib.evaluation.intervals import Array
from kaggle_lib.evaluation.overlap import normal, words

# (name, what it is, which way is better: "" where neither is)
MEASURES = (
    ("bengali", "Bengali letters among all letters, %", "higher"),
    ("length", "words of the answers ÷ words of the references, %", ""),
    ("repetition", "4-word sequences that their answer has said before, %", "lower"),
    ("truncated", "answers that the token limit ended, %", "lower"),
    ("empty", "answers that say nothing, %", "lower"),
    ("mixed_register", "answers that mix apni, tumi and tui forms, % of those that use one", "lower"),
    ("agreeing_register", "answers in the register that the user has, % of pairs where each has one", "higher"),
)
# By Bengali letters and forms, so of no other language.
BENGALI = ("bengali", "mixed_register", "agreeing_register")
OF_ALL = (
    ("distinct1", "different words among all words, %", "higher"),
    ("distinct2", "different word pairs among all pairs, %", "higher"),
    ("most_frequent", "the most frequent answer among all answers, %", "lower"),
)
LETTER = regex.compile(r"[\p{L}\p{M}]")
# What is quoted is said by or to somebody else.
QUOTED = regex.compile('"[^"]*"|“[^”]*”|«[^»]*»|‘[^’]*’')

# Second-person forms that mean one register and nothing else. Left out because they also mean another thing: the
# verbs of আপনি that তিনি has too (করেন, করবেন), those of তুমি that সে has (করবে), wishes for others (করুন, থাকুন,
# দিন), নাও ("may not"), যাও ("that too"), কর ("tax"), খাস ("special"), শোন.
_PRONOUNS = {
    "আপনি": ("আপনি", "আপনার", "আপনাকে", "আপনারা", "আপনাদের", "আপনাদেরকে"),
    "তুমি": ("তুমি", "তোমার", "তোমাকে", "তোমায়", "তোমরা", "তোমাদের", "তোমাদেরকে"),
    "তুই": ("তুই", "তোর", "তোকে", "তোরা", "তোদের", "তোদেরকে"),
}
_VERBS = {
    "আপনি": "বলুন দেখুন শুনুন ভাবুন লিখুন",
    "তুমি": "করো বলো দেখো শোনো ভাবো চাও পারো হও আছো করছো করেছো কোরো বোলো থেকো ভেবো জেনো",
    "তুই": "করিস বলিস আছিস পারিস থাকিস ভাবিস দিস করছিস করেছিস করবি বলবি পারবি যাবি থাকবি",
}
REGISTERS = tuple(_PRONOUNS)
# ই and ও after a pronoun stress it ("you yourself", "you too").
_FORMS = {
    normal(form + ending): register
    for register in REGISTERS
    for forms, endings in ((_PRONOUNS[register], ("", "ই", "ও")), (_VERBS[register].split(), ("",)))
    for form in forms
    for ending in endings
}


def registers(text: str) -> set[str]:
    """Which of আপনি, তুমি and তুই the text addresses somebody by, quotations left out."""
    return {_FORMS[word] for word in words(QUOTED.sub(" ", text)) if word in _FORMS}


def statistics(answers: Sequence[Mapping[str, Any]], side: str) -> dict[str, Array]:
    """By measure, what a row adds to Σ value and Σ weight: (rows, 2). Values are percent.

    An answer has `question`, `reference` and, under `side`, `text` and `ended`.
    """
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name, _, _ in MEASURES}
    for answer in answers:
        text, said = answer[side]["text"], words(answer[side]["text"])
        letters = LETTER.findall(text)
        rows["bengali"].append((100 * sum("\u0980" <= letter <= "\u09ff" for letter in letters), len(letters)))
        rows["length"].append((100 * len(said), len(words(answer["reference"]))))
        fours = list(zip(*(said[start:] for start in range(4)), strict=False))
        rows["repetition"].append((100 * (len(fours) - len(set(fours))), len(fours)))
        rows["truncated"].append((100 * (not answer[side]["ended"]), 1))
        rows["empty"].append((100 * says_nothing(text), 1))
        used, users = registers(text), registers(answer["question"])
        rows["mixed_register"].append((100 * (len(used) > 1), bool(used)))
        both = len(used) == len(users) == 1
        rows["agreeing_register"].append((100 * (both and used == users), both))
    return {name: np.array(values, dtype=np.float64) for name, values in rows.items()}


def of_all(texts: Sequence[str]) -> dict[str, float]:
    """What only all answers together have, in percent: distinct-1 and 2 (Li et al. 2016), the most frequent's share."""
    said = [words(text) for text in texts]
    pairs = [pair for one in said for pair in pairwise(one)]
    single = [word for one in said for word in one]
    most = Counter(" ".join(one) for one in said).most_common(1)[0][1] if said else 0
    return {
        "distinct1": 100 * len(set(single)) / max(1, len(single)),
        "distinct2": 100 * len(set(pairs)) / max(1, len(pairs)),
        "most_frequent": 100 * most / max(1, len(said)),
    }


def says_nothing(text: str) -> bool:
    """No letter, digit, symbol or mark of punctuation that is seen."""
    return all(unicodedata.category(letter)[0] in "ZC" for letter in text)
