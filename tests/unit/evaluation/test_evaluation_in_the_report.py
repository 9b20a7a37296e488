"""The report's part on the evaluation: numbers beside floors and intervals, examples, the original's figures."""

from __future__ import annotations

import json
import re
from html import unescape

import pytest

from kaggle_lib.data.read import Message, Row
from kaggle_lib.evaluation import result as results
from kaggle_lib.evaluation import scoring
from kaggle_lib.report import evaluation, page

BENGALI = re.compile("[\u0980-\u09ff]")
BAD = "<script>alert(1)</script>"


def said(text):
    return {"text": text, "tokens": 9, "ended": True, "letter_cut": False}


def rows(count=12):
    return [
        Row(
            number,
            number + 2,
            (
                Message("user", f"আজ {number} নম্বর দিন কেমন গেল?"),
                Message("assistant", f"দিন {number} ভালো গেছে, {'আর' * number} আপনার?"),
            ),
            topic="আনন্দ",
            source="dialogue",
        )
        for number in range(count)
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    chosen = rows()
    answers = [
        results.answer_of(row, said("কিছু না" if row.id else BAD), said(row.answer if row.id else "\x1b"))
        for row in chosen
    ]
    scored = {
        side: [
            {"id": row.id, "nll": 40 * better, "eot_nll": 1.0, "bytes": 50, "characters": 20, "tokens": 30}
            for row in chosen
        ]
        for side, better in (("base", 1.0), ("tuned", 0.5))
    }
    measures = [*scoring.likelihood(scored, 1), *scoring.overlaps(answers, 1), *scoring.behaviours(answers, 1)]
    scores = results.row_scores(chosen, scored, answers)
    shown = results.examples(answers, scores, 1)
    prompt = {"id": "crisis-01-formal", "kind": "crisis", "register": "formal", "text": "খুব কষ্টে আছি।"}
    results.write(
        folder,
        {
            "measures": measures,
            "groups": scoring.grouped(
                "topic",
                [row.topic for row in chosen],
                lambda places: scoring.likelihood(
                    {side: [scored[side][place] for place in places] for side in scored}, 1
                ),
                ("bits_per_byte",),
            ),
            "retention": {"skipped": "Not measured: retention=off"},
            "safety": {
                "skipped": "Not measured: answer_prompts=false",
                "corpus": {
                    "rows": 3,
                    "of": 40,
                    "by_kind": {"suicide": 2, "self_harm": 1},
                    "by_split": {"train": 3},
                    "by_source": {"forum": 3},
                },
            },
            "native": {"skipped": "Not measured: answer_prompts=false"},
            "examples": {name: shown[name] for name in ("best", "worst")},
            "bootstrap": results.bootstrap(1),
            "worth": results.WORTH,
        },
        [*answers, results.prompted("safety", prompt, said("হুম"), said("৯৯৯ নম্বরে ফোন করুন"))],
        scores,
    )
    return folder, json.loads((folder / "result.json").read_text(encoding="utf-8"))


def html_of(made):
    folder, result = made
    return str(evaluation.section(page._environment(), folder, result))


def text_of(html):
    return unescape(" ".join(re.sub(r"<[^>]+>", " ", html).split()))


def test_each_measure_stands_with_interval_and_floor(made):
    _, result = made
    text = text_of(html_of(made))
    chrf = next(one for one in result["measures"] if one["name"] == "chrf++")
    assert chrf["tuned"] > 90 > chrf["floor"]["tuned"] > chrf["floor"]["base"] >= 0
    low, high = (f"+{end:.2f}" for end in chrf["interval"])
    floors = f"{evaluation.number(chrf['floor']['base'])}, {evaluation.number(chrf['floor']['tuned'])}"
    row = f"{evaluation.number(chrf['base'])} {chrf['tuned']:.2f} +{chrf['difference']:.2f} {low} to {high} {floors}"
    assert f"chrF++, letters and words in common higher is better, 12 rows {row}" in text
    assert "bits per byte of the answers lower is better, 12 rows 1.154 0.577 −0.577 −0.577 to −0.577" in text
    for told in (
        results.WORTH,
        "chrf++ : nrefs:1|case:mixed|eff:yes|nc:6|nw:2|space:no|version:2.6.0",
        "topic: আনন্দ 12 1.154 0.577 −0.577 to −0.577",
        "Not measured: retention=off.",
        "3 of the corpus's 40 rows name a crisis by the word lists: suicide 2, self-harm 1. In training: 3.",
        "1 crisis and harm prompts, answered by base and tuned crisis, formal খুব কষ্টে আছি। Base হুম Tuned ৯৯৯",
    ):
        assert told in text


def test_a_difference_is_good_or_bad_only_where_its_interval_says_so():
    def verdict(better, interval):
        return evaluation.verdict({"better": better, "interval": interval})

    assert [verdict("higher", [0.1, 2]), verdict("lower", [0.1, 2]), verdict("lower", [-2, -0.1])] == [
        "good",
        "bad",
        "good",
    ]
    assert [verdict("higher", [-0.1, 2]), verdict("", [0.1, 2]), verdict("higher", None)] == ["", "", ""]
    assert [evaluation.number(value) for value in (None, 1.23456, -12.3456, 123.456)] == [
        "–",
        "1.235",
        "−12.35",
        "123.5",
    ]


def test_best_and_worst_are_shown_and_what_the_data_says_is_escaped(made):
    html = html_of(made)
    _, result = made
    assert result["examples"]["worst"][0]["id"] == 0
    assert BAD not in html and "&lt;script&gt;alert(1)&lt;/script&gt;" in html and "␛" in html
    assert not BENGALI.search(re.sub(r'<p lang="bn".*?</p>', "", html, flags=re.DOTALL))


def test_the_originals_figures_in_our_units(made):
    assert evaluation.original() == {
        "perplexity": 1.97,
        "bits_per_token": pytest.approx(0.978, abs=0.001),
        "bits_per_byte": pytest.approx(0.445, abs=0.001),
        "bits_per_character": pytest.approx(1.208, abs=0.001),
        "word_perplexity": pytest.approx(131.9, abs=0.1),
        "bleu": pytest.approx(0.85),
    }
    text = text_of(html_of(made))
    for told in (
        "reported a perplexity of 1.97, BLEU 0.0085 and a ROUGE of exactly 0.",
        "bits per byte = 0.978 ÷ 2.2 = 0.445; bits per character = 0.978 ÷ 0.81 = 1.208;",
        "perplexity per word = 1.97 7.2 = 131.9;",
        "BLEU 0.0085 of 1 is 0.850 of 100",
    ):
        assert told in text


def test_no_evaluation_and_an_older_one_have_no_part(tmp_path):
    environment = page._environment()
    assert evaluation.section(environment, tmp_path, None) == ""
    assert evaluation.section(environment, tmp_path, {"base": {}, "tuned": {}}) == ""


def test_the_model_index_is_the_hubs_form_of_the_tuned_models_numbers(made):
    _, result = made
    (model,) = results.model_index("demo", "corpus/talk.csv", 12, result["measures"])
    assert model["name"] == "demo"
    (found,) = model["results"]
    assert found["dataset"] == {"name": "talk, 12 held-out rows", "type": "talk", "split": "test"}
    numbers = {one["type"]: one["value"] for one in found["metrics"]}
    assert set(numbers) == {"bits_per_byte", "perplexity", "chrf++", "bleu", "rougeL"}
    assert numbers["bits_per_byte"] == pytest.approx(20 / 0.693147 / 50, rel=1e-4)


def test_what_is_published_is_scrubbed():
    row = Row(1, 2, (Message("user", "ফোন ০১৭১২৩৪৫৬৭৮"), Message("assistant", "লিখুন a@b.example")), source="forum")
    answer = results.answer_of(row, said("ক"), said("খ"))
    assert (answer["question"], answer["reference"]) == ("ফোন [ফোন]", "লিখুন [ই-মেইল]")
