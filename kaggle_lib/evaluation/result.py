"""One result: `evaluation/result.json`, the answers and the per-row scores beside it. docs/evaluation.md is its schema.

Every text that is written here is scrubbed of personal data before it is scored, so that whoever has the files gets
the same scores from them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from kaggle_lib.data.read import Row
from kaggle_lib.data.steps import mix
from kaggle_lib.evaluation import behaviour, intervals, overlap, pii, scoring
from kaggle_lib.files import write_json, write_text

RESULT, ANSWERS, SCORES = "result.json", "answers.jsonl", "scores.jsonl"
SAMPLES = 5
NOTE = (
    "Held-out answers of the test split, the same rows for both models; base is the model without the adapter. "
    "nll: nats, summed over the answers' tokens; the one that ends a turn is in neither nll, tokens nor bytes, and its "
    "mean is eot_nll. "
    "bits_per_byte = nll / ln 2 / bytes (UTF-8, NFC); perplexity (per token) = exp(nll / tokens). "
    "interval: of tuned - base, 95 %, paired bootstrap over rows. floor: the same answers against other rows' "
    "references."
)
WORTH = (
    "Bits per byte say how well a model predicts what people answered, and are the number to compare models by. "
    "Overlap says little about dialogue: many good answers share no word with the one reference, and Liu et al. (2016) "
    "found BLEU and ROUGE nearly unrelated to what people think of an answer; a score near its floor is no better than "
    "an answer to somebody else. Behaviour tells what went wrong, not what is good. Only people's ratings say whether "
    "an answer helps."
)
TRANSLATED = (
    " The corpus is machine-translated, so the references themselves are not how a Bengali speaker would write."
)
MODEL_INDEX = ("bits_per_byte", "perplexity", "chrf++", "bleu", "rougeL")


def answer_of(row: Row, base: Mapping[str, Any], tuned: Mapping[str, Any]) -> dict[str, Any]:
    """A held-out row with both answers, as `answers.jsonl` has it."""
    return {
        "set": "heldout",
        "id": row.id,
        "source": row.source,
        "topic": row.topic,
        "context": [{"role": one.role, "content": pii.scrub(one.content)[0]} for one in row.messages[:-2]],
        "question": pii.scrub(row.question)[0],
        "reference": pii.scrub(row.answer)[0],
        "base": _said(base),
        "tuned": _said(tuned),
    }


def prompted(name: str, prompt: Mapping[str, str], base: Mapping[str, Any], tuned: Mapping[str, Any]) -> dict[str, Any]:
    """A prompt of the package with both answers; it has no reference."""
    about = {"kind": prompt["kind"], "register": prompt["register"], "context": [], "question": prompt["text"]}
    return {"set": name, "id": prompt["id"], **about, "reference": "", "base": _said(base), "tuned": _said(tuned)}


def _said(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("text", "tokens", "ended", "letter_cut")}


def row_scores(
    rows: Sequence[Row], likelihood: Mapping[str, Sequence[Mapping[str, Any]]], answers: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """A line of `scores.jsonl` a test row: its likelihood, and the overlap of both answers where it was answered."""
    by_id: dict[int, dict[str, dict[str, float]]] = {answer["id"]: {} for answer in answers}
    wanted = [answer["reference"] for answer in answers]
    for side in scoring.SIDES if answers else ():
        found = overlap.statistics([answer[side]["text"] for answer in answers], wanted)
        for place, answer in enumerate(answers):
            one = slice(place, place + 1)
            by_id[answer["id"]][side] = {name: overlap.score(name, found[name][one]) for name in overlap.NAMES}
    lines = []
    for place, row in enumerate(rows):
        lines.append(
            {
                "id": row.id,
                "source": row.source,
                "topic": row.topic,
                "length": scoring.length_group(row.answer),
                **{name: likelihood["base"][place][name] for name in ("bytes", "characters", "tokens")},
                **{
                    side: {
                        **{name: likelihood[side][place][name] for name in ("nll", "eot_nll")},
                        **by_id.get(row.id, {}).get(side, {}),
                    }
                    for side in scoring.SIDES
                },
            }
        )
    return lines


def examples(answers: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """Three rows each whose tuned answers have the highest and the lowest chrF++, and `SAMPLES` drawn by the seed."""
    chrf = {line["id"]: line["tuned"]["chrf++"] for line in scores if "chrf++" in line["tuned"]}
    ordered = sorted(answers, key=lambda answer: (-chrf[answer["id"]], answer["id"]))
    drawn = sorted(answers, key=lambda answer: mix(seed, "samples", answer["id"]))[:SAMPLES]
    few = min(3, len(ordered) // 2)
    return {
        "best": list(map(_shown, ordered[:few])),
        "worst": list(map(_shown, ordered[::-1][:few])),
        "random": list(map(_shown, sorted(drawn, key=lambda answer: int(answer["id"])))),
    }


def _shown(answer: Mapping[str, Any]) -> dict[str, Any]:
    texts = {side: answer[side]["text"] for side in scoring.SIDES}
    return {"id": answer["id"], "question": answer["question"], "reference": answer["reference"], **texts}


def model_index(run: str, data: str, rows: int, measures: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tuned model's numbers in the Hub's form of a model card's metadata."""
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=Path(data).stem,
            dataset_name=f"{Path(data).stem}, {rows} held-out rows",
            dataset_split="test",
            metric_type=one["name"],
            metric_name=one["title"],
            metric_value=round(one["tuned"], 6),
        )
        for one in measures
        if one["name"] in MODEL_INDEX and one["tuned"] is not None
    ]
    made: list[dict[str, Any]] = eval_results_to_model_index(run, results)
    return made


def counts(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How answers ended, by side; part of `decoding`."""
    return {
        "answers": len(answers),
        "ended_by_budget": {side: sum(not one[side]["ended"] for one in answers) for side in scoring.SIDES},
        "letters_trimmed": {side: sum(one[side]["letter_cut"] for one in answers) for side in scoring.SIDES},
        "empty": {side: sum(behaviour.says_nothing(one[side]["text"]) for one in answers) for side in scoring.SIDES},
    }


def bootstrap(seed: int) -> dict[str, Any]:
    return {"resamples": intervals.RESAMPLES, "level": intervals.LEVEL, "seed": seed}


def write(
    folder: Path, result: Mapping[str, Any], answers: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]]
) -> None:
    """Write the three files, the result last."""
    for name, lines in ((ANSWERS, answers), (SCORES, scores)):
        write_text(folder / name, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    write_json(folder / RESULT, result)
