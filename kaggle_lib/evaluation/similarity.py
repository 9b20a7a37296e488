"""Similarity of meaning by an embedding model, where one is asked for: cosine of answer and reference, × 100.

Such a model is named with its revision, because another one gives other numbers. It needs sentence-transformers, which
is not installed with this package.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kaggle_lib.errors import UserError
from kaggle_lib.evaluation.intervals import Array
from kaggle_lib.evaluation.overlap import normal

Encode = Callable[[list[str]], Any]  # texts → (texts, size), rows of any length


def check(name: str) -> None:
    """Raises UserError where the package is missing."""
    if importlib.util.find_spec("sentence_transformers") is None:
        raise UserError(
            f"similarity_model={name} needs sentence-transformers, which is not installed.",
            kept="Nothing was evaluated.",
            todo="`pip install sentence-transformers`, or leave similarity_model out.",
        )


def encoder(name: str, device: str) -> Encode:
    """`name`: name@revision, in huggingface_hub's cache."""
    from sentence_transformers import SentenceTransformer  # type: ignore[import-not-found, unused-ignore]

    model, revision = name.split("@")
    encode: Encode = SentenceTransformer(model, revision=revision, device=device).encode
    return encode


def statistics(answers: Sequence[str], references: Sequence[str], encode: Encode) -> Array:
    """(rows, 2): 100 × the cosine, and 1; a text without an embedding (all zeros) is like nothing."""
    sides = [np.asarray(encode(list(map(normal, texts))), dtype=np.float64) for texts in (answers, references)]
    sizes = np.prod([np.linalg.norm(side, axis=1) for side in sides], axis=0)
    dots = (sides[0] * sides[1]).sum(axis=1)
    cosine = np.divide(dots, sizes, out=np.zeros(len(dots)), where=sizes > 0)
    return np.stack([100 * cosine, np.ones(len(cosine))], axis=1)
