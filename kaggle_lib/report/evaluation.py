"""The report's part on the evaluation: every measure with interval and floor, by group, examples, and what it is worth.

Beside them stand the figures that the system this project starts from reported, in our units.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

TOPICS = 10
GROUPS = (
    ("likelihood", "Likelihood"),
    ("overlap", "Overlap with the reference"),
    ("similarity", "Similarity of meaning"),
    ("behaviour", "Behaviour"),
)
# What the original reported: perplexity per token, BLEU of 0 to 1, and ROUGE by a tokenizer that keeps a-z and digits.
PERPLEXITY, BLEU = 1.97, 0.0085
# Llama-3.1's tokenizer on Bengali text, measured.
BYTES_A_TOKEN, CHARACTERS_A_TOKEN, TOKENS_A_WORD = 2.2, 0.81, 7.2


def original() -> dict[str, float]:
    """The original's figures in our units: `bits_per_token` = log2 of the perplexity; ÷ bytes a token `bits_per_byte`;
    ÷ characters a token `bits_per_character`; to the power of tokens a word `word_perplexity`; `bleu` × 100."""
    bits = math.log2(PERPLEXITY)
    return {
        "perplexity": PERPLEXITY,
        "bits_per_token": bits,
        "bits_per_byte": bits / BYTES_A_TOKEN,
        "bits_per_character": bits / CHARACTERS_A_TOKEN,
        "word_perplexity": PERPLEXITY**TOKENS_A_WORD,
        "bleu": 100 * BLEU,
    }


def section(environment: Environment, evaluation: Path, result: Mapping[str, Any] | None) -> Markup:
    """The part as HTML; nothing where there is no evaluation, or an older one without measures."""
    if not result or "measures" not in result:
        return Markup()
    environment.filters.update(number=number, verdict=verdict, spread=spread)
    by_group = [(title, [one for one in result["measures"] if one["group"] == name]) for name, title in GROUPS]
    html = environment.get_template("evaluation.html").render(
        result=result,
        tables=[(title, measures) for title, measures in by_group if measures],
        likelihood=_groups(result, "bits_per_byte"),
        overlap=[group for group in result["groups"] if any(one["group"] == "overlap" for one in group["measures"])],
        apart=_apart(evaluation),
        original=original(),
        units={"bytes": BYTES_A_TOKEN, "characters": CHARACTERS_A_TOKEN, "tokens": TOKENS_A_WORD, "bleu": BLEU},
    )
    return Markup(html)


def number(value: float | None, sign: bool = False) -> str:
    """Three figures and a little, a real minus; a dash where there is none."""
    if value is None:
        return "–"
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return minus(f"{value:{'+' if sign else ''}.{digits}f}")


def minus(text: str) -> str:
    """A number with a real minus."""
    return text.replace("-", "−")


def verdict(measure: Mapping[str, Any]) -> str:
    """good or bad, where the whole interval lies on one side of nothing; else nothing."""
    interval, better = measure["interval"], measure["better"]
    if not interval or not better or interval[0] <= 0 <= interval[1]:
        return ""
    return "good" if (interval[0] > 0) == (better == "higher") else "bad"


def spread(measure: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Where interval and difference are drawn, in percent from worse to better with no difference in the middle, by
    the largest end; None without an interval."""
    if not measure["interval"] or not measure["better"] or not any(measure["interval"]):
        return None
    scale = (48 if measure["better"] == "higher" else -48) / max(abs(end) for end in measure["interval"])
    low, middle, high = sorted(round(50 + scale * one, 1) for one in (*measure["interval"], measure["difference"]))
    return low, middle, high


def _groups(result: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """(by, name, rows, measure) of each group that has the measure; of topics the most frequent."""
    found: list[dict[str, Any]] = []
    count: dict[str, int] = {}
    for group in result["groups"]:
        count[group["by"]] = count.get(group["by"], 0) + 1
        for one in group["measures"]:
            if one["name"] == name and (group["by"] != "topic" or count["topic"] <= TOPICS):
                found.append({"by": group["by"], "name": group["name"], "rows": group["rows"], "measure": one})
    return found


def _apart(evaluation: Path) -> dict[str, list[dict[str, Any]]]:
    """The answers to the package's prompts, by set."""
    path = evaluation / "answers.jsonl"
    if not path.is_file():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {name: found for name in ("safety", "native") if (found := [one for one in lines if one["set"] == name])}
