"""How much of a reference's wording an answer has: BLEU, chrF++ and ROUGE, right for Bengali, without a network.

Every score is 0 to 100. Both texts are brought to the corpus's own form first, NFC with look-alikes made one (the same
sentence composed and decomposed scores BLEU 8), and lose their joiners, which few fonts show and few people type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import regex
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from kaggle_lib.data import text
from kaggle_lib.evaluation.intervals import Array, Score, mean

JOINERS = dict.fromkeys(map(ord, "\u200c\u200d"))
# `\w` of Python's re ends a word at each vowel sign; rouge-score's own tokenizer keeps a-z and digits alone.
WORD = regex.compile(r"[\p{L}\p{M}\p{N}]+")
# sacrebleu's default 13a leaves the danda glued to the word before it; intl splits at every punctuation mark.
_BLEU, _CHRF = BLEU(tokenize="intl"), CHRF(word_order=2)
_BLEU.num_refs = _CHRF.num_refs = 1  # else a signature is refused before the first score
ROUGES = ("rouge1", "rouge2", "rougeL")
NAMES = ("chrf++", "bleu", *ROUGES)


def normal(said: str) -> str:
    """The text as it is compared: `data.text.normal`, without joiners."""
    return text.normal(said).translate(JOINERS)


def words(said: str) -> list[str]:
    """The words of a text: runs of letters, marks and digits, whole in every script; Latin ones in lower case."""
    return [word.lower() for word in WORD.findall(normal(said))]


class _Words:
    """rouge-score's interface of a tokenizer."""

    def tokenize(self, said: str) -> list[str]:
        return words(said)


_ROUGE = RougeScorer(list(ROUGES), tokenizer=_Words())


def statistics(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Array]:
    """By score's name, what a row adds to its sums: (rows, statistics). Raises ValueError for unequal lengths."""
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} references")
    said, wanted = list(map(normal, predictions)), list(map(normal, references))
    by_row = [_ROUGE.score(reference, answer) for answer, reference in zip(said, wanted, strict=True)]
    return {
        # One list with a reference for each answer: the other way round only the first answer would be scored.
        "chrf++": np.array(_CHRF._extract_corpus_statistics(said, [wanted]), dtype=np.float64),
        "bleu": np.array(_BLEU._extract_corpus_statistics(said, [wanted]), dtype=np.float64),
        **{name: np.array([[100 * row[name].fmeasure, 1.0] for row in by_row]) for name in ROUGES},
    }


def _corpus(metric: Any) -> Score:
    """sacrebleu's own formula over summed statistics; a corpus score, never a mean of sentences' scores."""
    return lambda sums: np.array([float(metric._compute_score_from_stats(list(row)).score) for row in sums])


SCORES: dict[str, Score] = {"chrf++": _corpus(_CHRF), "bleu": _corpus(_BLEU), **dict.fromkeys(ROUGES, mean)}


def signatures() -> dict[str, str]:
    """What a score was computed by; sacrebleu's own form where it is sacrebleu's."""
    ours = r"rouge-score, F, words [\p{L}\p{M}\p{N}]+ in lower case, no stemmer"
    form = "NFC, look-alikes one, no joiners"
    made = {"chrf++": _CHRF.get_signature(), "bleu": _BLEU.get_signature()}
    return {name: f"{made[name].format() if name in made else ours}; {form}" for name in NAMES}


def score(name: str, statistics: Array) -> float:
    """The score `name` of the rows whose statistics these are."""
    return float(SCORES[name](statistics.sum(axis=0, keepdims=True))[0])


class _Overlap(evaluate.Metric):
    """A metric of `evaluate` that is not loaded by name, which would download a script."""

    names: tuple[str, ...] = ()

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"keep_in_memory": True, **options})

    def _info(self) -> evaluate.MetricInfo:
        one = datasets.Value("string")
        return evaluate.MetricInfo(
            description="One reference a prediction; scores are 0 to 100.",
            citation="",
            features=datasets.Features({"predictions": one, "references": one}),
        )

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
        rows, told = statistics(predictions, references), signatures()
        return {
            **{name: score(name, rows[name]) for name in self.names},
            "signature": told[self.names[0]],
            "empty": sum(not said.strip() for said in predictions),
        }


class Bleu(_Overlap):
    """Corpus BLEU (Papineni et al. 2002) by sacrebleu, tokenised by `intl`: `bleu`, `signature`, `empty`."""

    names = ("bleu",)


class ChrfPlusPlus(_Overlap):
    """Corpus chrF++ (Popović 2017) by sacrebleu: `chrf++`, `signature`, `empty`."""

    names = ("chrf++",)


class Rouge(_Overlap):
    """Mean F of ROUGE-1, 2 and L (Lin 2004), over whole words: `rouge1`, `rouge2`, `rougeL`, `signature`, `empty`."""

    names = ROUGES
