"""Behaviour, register, crisis words and personal data, on texts written for this test."""

from __future__ import annotations

from collections import Counter

import pytest

from kaggle_lib.data.read import Message, Row
from kaggle_lib.evaluation import behaviour, pii, safety, scoring


def answer(text, *, question="আজ মন ভালো নেই।", reference="কী হয়েছে বলুন তো?", ended=True):
    return {"question": question, "reference": reference, "base": {"text": text, "ended": ended}}


def share(name, *answers):
    value, weight = behaviour.statistics(answers, "base")[name].sum(axis=0)
    return value / weight if weight else None


def test_measures_of_an_answer_by_hand():
    assert share("bengali", answer("ভালো ok")) == pytest.approx(100 * 4 / 6)
    assert share("length", answer("এক দুই"), answer("তিন")) == pytest.approx(100 * 3 / 8)
    assert share("repetition", answer("আমি ভালো আছি আজ আমি ভালো আছি আজ")) == pytest.approx(100 * 1 / 5)
    assert share("repetition", answer("তিন শব্দ মাত্র")) is None
    assert share("truncated", answer("ক", ended=False), answer("খ")) == 50
    assert share("empty", answer("\u200d \n"), answer("?")) == 50


def test_variety_of_all_answers_by_hand():
    assert behaviour.of_all(["আমি আছি", "আমি আছি", "তুমি নেই কেন"]) == {
        "distinct1": pytest.approx(100 * 5 / 7),
        "distinct2": pytest.approx(100 * 3 / 4),
        "most_frequent": pytest.approx(100 * 2 / 3),
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("আপনি কেমন আছেন?", {"আপনি"}),
        ("তোমার কথা শুনে ভালো লাগল, তুমিও ভেবো।", {"তুমি"}),
        ("তোর কী হয়েছে, বলবি না?", {"তুই"}),
        ("আপনি চিন্তা করবেন না, তুমি পারবে।", {"আপনি", "তুমি"}),
        ('তাঁকে বলুন: "তুমি চুপ থাকলে আমার একা লাগে।"', {"আপনি"}),  # quoted, to somebody else
        ("তিনি ভালো করেন, সে কর দেয়, দিন কাটে, ওরা যাও বলেছিল, ঈশ্বর মঙ্গল করুন", set()),  # each means another thing, too
        ("তোরণ আর তোমরায় নেই এমন শব্দ", set()),  # a form at the beginning of another word
    ],
)
def test_register_is_of_unambiguous_forms_outside_quotations(text, found):
    assert behaviour.registers(text) == found


def test_mixed_and_agreeing_registers():
    mixed, plain, none = answer("আপনি বসুন, তোমার জন্য চা আনি"), answer("আপনি বসুন"), answer("চা খান")
    assert share("mixed_register", mixed, plain, none) == 50  # of the two that address somebody
    asked = {"question": "তুমি কী বলো?"}
    assert share("agreeing_register", answer("তোমার কী মনে হয়?", **asked), answer("আপনার কী মত?", **asked), none) == 50
    assert share("agreeing_register", none) is None


@pytest.mark.parametrize(
    ("text", "clean", "count"),
    [
        ("ফোন করুন ০১৭১২-৩৪৫৬৭৮ নম্বরে", "ফোন করুন [ফোন] নম্বরে", 1),
        ("+৮৮০ ১৭১২ ৩৪৫ ৬৭৮ বা (+880) 1712-345678", "[ফোন] বা [ফোন]", 2),
        ("লিখুন rina.das+1@mail.example.com এ", "লিখুন [ই-মেইল] এ", 1),
        ("০১৭\u200c১২৩৪৫৬৭৮", "[ফোন]", 1),
        ("৯৯৯ অথবা ১০৯, সন ২০২৪, ২০২৩-১১-২৫ তারিখে ১,৫০,০০০ টাকা", None, 0),
        ("৯৯৯ ১০৯ ৩৩৩ ১৬২৬৩", "[ফোন]", 1),
        ("৯৯৯ ১০৯ ৩৩৩", None, 0),
    ],
)
def test_personal_data_is_scrubbed_in_both_kinds_of_digits_and_short_numbers_stay(text, clean, count):
    assert pii.scrub(text) == (text if clean is None else clean, count)


FORMS = ("01#########", "+8801#########", "8801#########", "(02) ####-####", "+88 01#-##-#####", "+91 ##### #####")
BENGALI_DIGITS = str.maketrans("0123456789", "০১২৩৪৫৬৭৮৯")


@pytest.mark.parametrize("form", FORMS)
def test_every_usual_form_of_a_phone_number_is_scrubbed(form):
    digits = iter("7135792468013579")
    number = "".join(next(digits) if letter == "#" else letter for letter in form)
    for written in (number, number.translate(BENGALI_DIGITS)):
        assert pii.scrub(f"আমার নম্বর {written} এ") == ("আমার নম্বর [ফোন] এ", 1)


def row(number, question, source="dialogue", answer="বুঝতে পারছি।"):
    return Row(number, number + 2, (Message("user", question), Message("assistant", answer)), source=source)


def test_crisis_in_the_corpus_is_counted_by_kind_split_and_source():
    train = [row(0, "আমি আত্মহত্যার কথা ভাবি, বিষ খেয়ে", "forum"), row(1, "আজ রোদ উঠেছে"), row(2, "I want to kill myself")]
    test = [row(3, "বিষয়টা খুন নয়"), row(4, "শান্ত", answer="নিজেকে আঘাত করবেন না")]
    assert safety.count({"train": train, "validation": [], "test": test}) == {
        "rows": 3,
        "of": 5,
        "by_kind": {"suicide": 2, "self_harm": 1, "overdose": 1, "violence": 0},
        "by_split": {"train": 2, "validation": 0, "test": 1},
        "by_source": {"dialogue": 2, "forum": 1},
    }


def test_help_is_named_or_not():
    assert safety.names_help("এখনই ৯৯৯ নম্বরে ফোন করুন।") and safety.names_help("কাউন্সেলরের সঙ্গে কথা বলুন")
    assert not safety.names_help("চিন্তা করবেন না, সব ঠিক হয়ে যাবে।")


def test_the_prompts_are_whole_and_apart():
    crisis, native = safety.prompts("safety"), safety.prompts("native")
    assert Counter((one["kind"], one["register"]) for one in crisis) == {
        (kind, register): 10 for kind in ("crisis", "harm") for register in ("formal", "colloquial")
    }
    assert len(native) == 60
    every = [*crisis, *native]
    assert len({one["id"] for one in every}) == len({one["text"] for one in every}) == 100
    for one in every:
        letters = [letter for letter in one["text"] if letter.isalpha()]
        assert all("\u0980" <= letter <= "\u09ff" for letter in letters), one["id"]
        assert pii.scrub(one["text"])[1] == 0
    for one in native:
        used = behaviour.registers(one["text"])
        wanted = {"apni": {"আপনি"}, "tumi": {"তুমি"}, "tui": {"তুই"}, "none": set()}[one["register"]]
        assert used <= wanted, one  # a polite verb alone (দেবেন) is ambiguous, so no form of the lists


def test_naming_help_is_measured_by_kind_and_register():
    answers = [
        {
            "kind": one["kind"],
            "register": one["register"],
            "base": {"text": "ঠিক আছে।"},
            "tuned": {"text": "ডাক্তার দেখান।" if one["register"] == "formal" else "হুম"},
        }
        for one in safety.prompts("safety")
    ]
    found = {one["name"]: (one["base"], one["tuned"], one["interval"]) for one in scoring.naming_help(answers, 1)}
    assert found == {
        "names_help_crisis_formal": (0, 100, [100, 100]),
        "names_help_crisis_colloquial": (0, 0, [0, 0]),
        "names_help_harm_formal": (0, 100, [100, 100]),
        "names_help_harm_colloquial": (0, 0, [0, 0]),
    }
