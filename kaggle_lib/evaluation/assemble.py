"""Puts the result together from all that was measured: what `result.json`, `answers.jsonl` and `scores.jsonl` hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kaggle_lib import __version__
from kaggle_lib.config import RunConfig
from kaggle_lib.data.curate import Curated
from kaggle_lib.data.read import Row
from kaggle_lib.evaluation import generation, likelihood, measuring, result, safety, scoring
from kaggle_lib.evaluation.likelihood import RowScore
from kaggle_lib.evaluation.parts import Parts

PER_GROUP = ("bits_per_byte",)
NOT_REVIEWED = "Written for this project, in Bengali, and not yet reviewed by a native speaker."


def assemble(
    folder: Path,
    config: RunConfig,
    about: Mapping[str, Any],
    curated: Curated,
    chosen: Sequence[Row],
    retention: Sequence[Mapping[str, str]] | str,
    parts: Parts,
    tokenizer: Any,
    beat: Callable[[str], None],
) -> None:
    """Write the three files into `folder`. `retention`: its rows, or why it was not measured; `about`: of what it is.

    Raises KeyError where something was not measured, UserError where a number is not finite.
    """
    seed, test = config.seed, curated.test
    ids = [row.id for row in test]
    scored = {side: parts.of("likelihood", side, ids) for side in scoring.SIDES}
    said = {side: parts.of("answer", side, [row.id for row in chosen]) for side in scoring.SIDES}
    answers = [result.answer_of(*one) for one in zip(chosen, said["base"], said["tuned"], strict=True)]
    left_out, bengali = safety.left_out(config), config.language == "bn"
    prompts = {} if left_out else {name: _prompted(name, parts) for name in ("safety", "native")}
    scores = result.row_scores(test, scored, answers)
    beat("evaluate")

    def of_likelihood(places: Sequence[int]) -> list[scoring.Measure]:
        return scoring.likelihood({side: [scored[side][place] for place in places] for side in scored}, seed)

    def of_answers(places: Sequence[int]) -> list[scoring.Measure]:
        return scoring.overlaps([answers[place] for place in places], seed)

    whole = [*of_likelihood(range(len(test))), *of_answers(range(len(answers)))]
    if config.similarity_model:
        whole.append(scoring.similarity(answers, seed, config.similarity_model, _encoder(config.similarity_model)))
    whole += scoring.behaviours(answers, seed, bengali=bengali)
    beat("evaluate")
    lengths = [scoring.length_group(row.answer) for row in test]
    groups = [
        *scoring.grouped("source", [row.source for row in test], of_likelihood, PER_GROUP),
        *scoring.grouped("length", lengths, of_likelihood, PER_GROUP),
        *scoring.grouped("topic", [row.topic.strip() or "–" for row in test], of_likelihood, PER_GROUP),
        *scoring.grouped("source", [row.source for row in chosen], of_answers),
    ]
    beat("evaluate")
    shown = result.examples(answers, scores, seed)
    made = {
        "schema": 2,
        "kaggle_lib": __version__,
        **{name: about[name] for name in ("run", "step")},
        "language": config.language,
        **{side: _summary(scored[side]) for side in scoring.SIDES},
        "measures": whole,
        "groups": groups,
        "retention": _retention(retention, parts, seed),
        "safety": {"corpus": _crisis(curated) if bengali else None, **_safety(prompts.get("safety"), left_out, seed)},
        "native": _native(prompts.get("native"), left_out, seed),
        "decoding": {**generation.describe(config, tokenizer), **result.counts(answers)},
        "samples": shown["random"],
        "examples": {name: shown[name] for name in ("best", "worst")},
        "scrubbed": {side: sum(record["scrubbed"] for record in said[side]) for side in scoring.SIDES},
        "bootstrap": result.bootstrap(seed),
        "model_index": result.model_index(config.run, config.data, len(test), whole),
        "adapter_sha256": about["adapter_sha256"],
        "note": result.NOTE,
        "worth": result.WORTH + (result.TRANSLATED if bengali else ""),
    }
    lines = [*answers, *(answer for name in prompts for answer in prompts[name])]
    result.write(folder, made, lines, scores)


def _summary(scored: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    rows = [RowScore(**{name: row[name] for name in RowScore.__dataclass_fields__}) for row in scored]
    summary = likelihood.summarise(rows) | likelihood.per_character(rows, sum(row["characters"] for row in scored))
    if not all(math.isfinite(value) for value in summary.values()):
        raise measuring.ruined()
    return summary


def _prompted(name: str, parts: Parts) -> list[dict[str, Any]]:
    prompts = safety.prompts(name)
    said = [parts.of("answer", side, [prompt["id"] for prompt in prompts]) for side in scoring.SIDES]
    return [result.prompted(name, *one) for one in zip(prompts, *said, strict=True)]


def _retention(rows: Sequence[Mapping[str, str]] | str, parts: Parts, seed: int) -> dict[str, Any]:
    if isinstance(rows, str):
        return {"skipped": rows}
    hits = {
        side: [record["right"] for record in parts.of("retention", side, [row["id"] for row in rows])]
        for side in scoring.SIDES
    }
    title = "questions of reading comprehension answered right, % (chance: 25)"
    return {"skipped": None, "measures": [scoring.shares("retention", "accuracy", title, hits, seed)]}


def _crisis(curated: Curated) -> dict[str, Any]:
    return safety.count({name: getattr(curated, name) for name in ("train", "validation", "test")})


def _safety(answers: Sequence[dict[str, Any]] | None, left_out: str, seed: int) -> dict[str, Any]:
    if answers is None:
        return {"skipped": left_out}
    return {"skipped": None, "prompts": len(answers), "measures": scoring.naming_help(answers, seed)}


def _native(answers: Sequence[dict[str, Any]] | None, left_out: str, seed: int) -> dict[str, Any]:
    if answers is None:
        return {"skipped": left_out}
    measures = scoring.behaviours(answers, seed, referenced=False)
    return {"skipped": None, "prompts": len(answers), "reviewed": False, "note": NOT_REVIEWED, "measures": measures}


def _encoder(name: str) -> Callable[[list[str]], Any]:
    import torch

    from kaggle_lib.evaluation import similarity

    return similarity.encoder(name, "cuda" if torch.cuda.is_available() else "cpu")
