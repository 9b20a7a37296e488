"""A micro-batch as tensors: the samples joined in one row without padding, or padded to the longest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

IGNORED = -100


def padding_free(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row `(1, tokens)` with all samples; `position_ids` begin again with each, and `segments` are their lengths.

    No attention mask: from the positions transformers makes the block-diagonal one, and our attention needs none. The
    first label of each sample is masked, for the token before it belongs to another sample.
    """
    ids: list[int] = []
    labels: list[int] = []
    positions: list[int] = []
    for row in rows:
        ids += row["input_ids"]
        labels += [IGNORED, *row["labels"][1:]]
        positions += range(len(row["input_ids"]))
    return {
        "input_ids": torch.tensor([ids]),
        "labels": torch.tensor([labels]),
        "position_ids": torch.tensor([positions]),
        "segments": [len(row["input_ids"]) for row in rows],
    }


def padded(rows: Sequence[Mapping[str, Any]], pad_id: int) -> dict[str, torch.Tensor]:
    """`(samples, longest)`, padded on the right; pads are masked in the labels and in the attention."""
    longest = max(len(row["input_ids"]) for row in rows)

    def fill(values: Sequence[int], filler: int) -> list[int]:
        return [*values, *[filler] * (longest - len(values))]

    return {
        "input_ids": torch.tensor([fill(row["input_ids"], pad_id) for row in rows]),
        "labels": torch.tensor([fill(row["labels"], IGNORED) for row in rows]),
        "attention_mask": torch.tensor([fill([1] * len(row["input_ids"]), 0) for row in rows]),
    }


def answer_tokens(row: Mapping[str, Any]) -> int:
    """Labels that are learned: the first position predicts nothing, so it never counts."""
    return sum(label != IGNORED for label in row["labels"][1:])
