"""Overlap in Bengali: what identical and unrelated texts score, by our metrics and by the libraries by hand."""

from __future__ import annotations

import unicodedata

import evaluate
import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from kaggle_lib.evaluation import intervals, overlap

REFERENCES = [
    "শুনে খুব খারাপ লাগছে। ও কত বছর আপনার সঙ্গে ছিল?",
    "অভিনন্দন! কবে থেকে নতুন কাজ শুরু করছেন?",
    "এটা খুব স্বাভাবিক, পরীক্ষার আগে সবার ঘুম কম হয়।",
    "মায়ের হাসপাতাল থেকে ফেরাটা কী স্বস্তির খবর!",
    "বন্ধুদের সঙ্গে কি এ নিয়ে আপনার কথা হয়েছে?",
    "২৪ ঘণ্টা আগে বৃষ্টি থেমেছে, এখন রোদ উঠেছে ok",
]
ANSWERS = [
    "শুনে খারাপ লাগছে। ও কত বছর সঙ্গে ছিল?",
    "অভিনন্দন! নতুন কাজ কবে শুরু?",
    "পরীক্ষার আগে ঘুম কম হয়।",
    "কী স্বস্তির খবর! মা কেমন আছেন?",
    "আপনার কি মন খারাপ?",
    "এখন রোদ উঠেছে",
]
METRICS = (overlap.Bleu, overlap.ChrfPlusPlus, overlap.Rouge)


def scores(predictions, references):
    found = {}
    for metric in METRICS:
        made = metric().compute(predictions=predictions, references=references)
        found |= {name: value for name, value in made.items() if name in overlap.NAMES}
    assert set(found) == set(overlap.NAMES)
    return found


def test_identical_texts_score_100_and_shuffled_ones_the_floor():
    assert scores(REFERENCES, REFERENCES) == pytest.approx(dict.fromkeys(overlap.NAMES, 100.0))
    order = intervals.shuffled(len(REFERENCES), 42)
    floor = scores(ANSWERS, [REFERENCES[place] for place in order])
    real = scores(ANSWERS, REFERENCES)
    assert all(floor[name] < real[name] / 3 for name in overlap.NAMES), (floor, real)
    moved = sorted(order)
    assert moved == list(range(6)) and all(place != at for at, place in enumerate(order))
    for name, rows in overlap.statistics(ANSWERS, [REFERENCES[place] for place in order]).items():
        assert overlap.score(name, rows) == pytest.approx(floor[name])


def test_the_scores_are_those_of_the_libraries_by_hand():
    found = scores(ANSWERS, REFERENCES)
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(ANSWERS, [REFERENCES], tokenize="intl").score)
    assert found["chrf++"] == pytest.approx(sacrebleu.corpus_chrf(ANSWERS, [REFERENCES], word_order=2).score)

    class Spaces:
        def tokenize(self, text):
            return "".join(" " if letter in "।,!?" else letter for letter in text).split()

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], tokenizer=Spaces())
    by_hand = [scorer.score(reference, answer) for answer, reference in zip(ANSWERS, REFERENCES, strict=True)]
    for name in overlap.ROUGES:
        assert found[name] == pytest.approx(100 * np.mean([row[name].fmeasure for row in by_hand]))


def test_metrics_are_of_evaluate_and_tell_their_signature_and_the_empty_answers():
    made = overlap.Bleu().compute(predictions=[*ANSWERS[:5], ""], references=REFERENCES)
    assert isinstance(overlap.Bleu(), evaluate.Metric)
    assert made["empty"] == 1
    assert made["signature"] == (
        "nrefs:1|case:mixed|eff:no|tok:intl|smooth:exp|version:2.6.0; NFC, look-alikes one, no joiners"
    )
    told = overlap.ChrfPlusPlus().compute(predictions=ANSWERS, references=REFERENCES)["signature"]
    assert told.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:2.6.0")


def test_the_published_zero_of_rouge_is_a_tokenizer_that_deletes_bengali():
    same = REFERENCES[0]
    assert RougeScorer(["rougeL"]).score(same, same)["rougeL"].fmeasure == 0.0
    assert RougeScorer(["rougeL"]).score("আজ 24 ok রোদ", "কাল 24 ok বৃষ্টি")["rougeL"].fmeasure == 1.0
    made = overlap.Rouge().compute(predictions=[same, "কাল 24 ok বৃষ্টি"], references=[same, "আজ 24 ok রোদ"])
    assert made["rougeL"] == pytest.approx((100 + 50) / 2)
    assert overlap.words("কষ্টে ২৪টি Ok, ক্ষমা") == ["কষ্টে", "২৪টি", "ok", "ক্ষমা"]


THREE = (
    ["আমি আজ বাড়ি যাব না", "তুমি কেন এত রাগ করলে", "বৃষ্টি থামলে খেলা হবে"],
    ["আমি আজ বাড়ি যাব না", "সবাই মিলে গান গাইছে এখানে", "ওদের নতুন স্কুল অনেক দূর"],
)


def test_every_pair_counts_whatever_the_orientation_of_a_list_is():
    said, wanted = ([text if len(text.split()) == 5 else f"{text} না" for text in side] for side in THREE)
    said = [said[0], *(text.removesuffix(" না") + " হুম" if text.endswith(" না") else text for text in said[1:])]
    wanted = [wanted[0], *(text.removesuffix(" না") + " ওহ" if text.endswith(" না") else text for text in wanted[1:])]
    assert sacrebleu.corpus_bleu(said, [[text] for text in wanted], tokenize="intl").score == pytest.approx(100.0)
    found = scores(said, wanted)
    assert found["bleu"] == pytest.approx(33.33, abs=0.01)
    again = scores([said[place] for place in (2, 0, 1)], [wanted[place] for place in (2, 0, 1)])
    assert again == pytest.approx(found)
    emptied = scores([said[0], "", said[2]], wanted)
    assert emptied["bleu"] < found["bleu"] and emptied["chrf++"] < found["chrf++"]


def test_spellings_that_look_the_same_are_the_same():
    composed = ["বাড়ি গাঢ় ছায়া হয়েছে", "র‍্যাব আসছে আমাদের পাড়ায়"]
    decomposed = [unicodedata.normalize("NFD", text).replace("\u200d", "") for text in composed]
    raw = [text.replace("ড\u09bc", "\u09dc").replace("য\u09bc", "\u09df") for text in composed]
    for one in (decomposed, raw):
        assert scores(one, composed) == pytest.approx(dict.fromkeys(overlap.NAMES, 100.0))


def test_interval_is_that_of_a_plain_loop_and_pairs_the_rows():
    draw = np.random.default_rng(3)
    hard = draw.exponential(50, size=40)  # what makes a row hard for both
    base = np.stack([hard + draw.normal(2, 1, 40), np.full(40, 7.0)], axis=1)
    tuned = np.stack([hard + draw.normal(0, 1, 40), np.full(40, 7.0)], axis=1)
    low, high = intervals.paired(base, tuned, intervals.mean, 5)
    again = np.random.default_rng(5)
    differences = []
    for _ in range(intervals.RESAMPLES // intervals.BLOCK):
        for counts in again.multinomial(40, np.full(40, 1 / 40), size=intervals.BLOCK):
            rows = np.repeat(np.arange(40), counts)
            differences.append(tuned[rows, 0].sum() / tuned[rows, 1].sum() - base[rows, 0].sum() / base[rows, 1].sum())
    assert (low, high) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])))
    difference = float((tuned - base)[:, 0].sum() / 280)
    assert low < difference < high < 0
    assert high - low < 0.3  # the rows' own spread of 50 / 7 is in neither
    compared = intervals.compare([base, tuned], intervals.mean, 5)
    assert compared["difference"] == pytest.approx(difference)
    assert (compared["interval"], compared["rows"]) == ([low, high], 40)


def test_no_number_and_no_interval_where_there_is_nothing_to_tell():
    nothing = np.zeros((12, 2))
    told = intervals.compare([nothing, nothing], intervals.mean, 1)
    assert told == {"base": None, "tuned": None, "difference": None, "interval": None, "rows": 12}
    few = np.ones((9, 2))
    assert intervals.compare([few, few], intervals.mean, 1)["interval"] is None
    with pytest.raises(ValueError, match="at least one"):
        intervals.paired(np.zeros((0, 2)), np.zeros((0, 2)), intervals.mean, 1)
    with pytest.raises(ValueError, match="2 predictions and 1 references"):
        overlap.statistics(["ক", "খ"], ["ক"])
