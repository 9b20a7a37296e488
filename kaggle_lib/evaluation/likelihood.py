"""How well a model predicts held-out answers: their negative log-likelihood, row by row.

Only the answer's tokens count; the end-of-turn token is kept beside them, for its cost says when a model stops and
not what it says. Nothing here draws a random number, so training is bit-equal with validation and without.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from kaggle_lib.data.chat import IGNORED

# Positions whose log-softmax is made in fp32 at a time: 256 × 128,256 × 4 bytes are 131 MB.
CHUNK = 256


@dataclass(frozen=True)
class RowScore:
    """One row's score. `nll` and `tokens` leave the end-of-turn token out; `eot_nll` is that token's own.

    `nll` and `eot_nll` are in nats, `bytes` are the UTF-8 bytes of the scored answer.
    """

    id: int
    nll: float
    tokens: int
    bytes: int
    eot_nll: float


def score_rows(
    model: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    pad_id: int,
    eot_id: int,
    max_tokens: int,
    beat: Callable[[], None] | None = None,
    padding: Literal["right", "left"] = "right",
) -> list[RowScore]:
    """The score of each row, in the order of `rows`.

    A row has `id`, `input_ids`, `labels` (-100: not scored) and `answer_bytes`. Rows are batched by length, at most
    `max_tokens` tokens a batch with its pads (a longer row has a batch of its own); `beat` is called after each. The
    logits exist for the answers' positions only, in the model's precision; their fp32 form for `CHUNK` positions at
    a time. The model keeps the train or eval mode that it was in. On which side the pads are changes no score.
    """
    scores: dict[int, RowScore] = {}
    with _evaluating(model):
        for positions in batches([len(row["input_ids"]) for row in rows], max_tokens):
            batch = [rows[position] for position in positions]
            scores |= zip(positions, _score_batch(model, batch, pad_id, eot_id, padding), strict=True)
            if beat:
                beat()
    return [scores[position] for position in range(len(rows))]


def summarise(scores: Sequence[RowScore]) -> dict[str, Any]:
    """The whole set's numbers, each a quotient of sums, so a long answer weighs more than a short one.

    `bits_per_byte` = Σ nll ÷ ln 2 ÷ Σ bytes; `perplexity` (per token) = exp(Σ nll ÷ Σ tokens); `nll`, `bytes`,
    `tokens`: the sums; `rows`: how many; `eot_nll`: the mean of the end-of-turn token's. Raises ValueError where
    there is nothing to divide by.
    """
    nll = math.fsum(score.nll for score in scores)
    tokens, size = sum(score.tokens for score in scores), sum(score.bytes for score in scores)
    if not tokens or not size:
        raise ValueError("there are no answer tokens to score")
    return {
        "bits_per_byte": nll / math.log(2) / size,
        "perplexity": _exp(nll / tokens),
        "nll": nll,
        "bytes": size,
        "tokens": tokens,
        "rows": len(scores),
        "eot_nll": math.fsum(score.eot_nll for score in scores) / len(scores),
    }


def per_character(scores: Sequence[RowScore], characters: int) -> dict[str, Any]:
    """`bits_per_character` = Σ nll ÷ ln 2 ÷ characters, and `characters`: Unicode's, of the scored answers in NFC."""
    nll = math.fsum(score.nll for score in scores)
    return {"bits_per_character": nll / math.log(2) / characters, "characters": characters}


def _exp(value: float) -> float:
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Eval mode, without gradients; afterwards every module is in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # no_grad and not inference_mode: what a module caches here may be used by a later backward pass.
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Positions by length, the longest first: what does not fit in memory shows at once."""
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda position: -lengths[position]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def _score_batch(
    model: Any, rows: Sequence[Mapping[str, Any]], pad_id: int, eot_id: int, padding: str
) -> list[RowScore]:
    device = next(model.parameters()).device
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    targets = torch.full((len(rows), longest), IGNORED)
    for place, row in enumerate(rows):
        length = len(row["input_ids"])
        start = longest - length if padding == "left" else 0
        ids[place, start : start + length] = torch.tensor(row["input_ids"])
        mask[place, start : start + length] = 1
        # The logits at a position predict the next token, so the labels move one to the left.
        targets[place, start : start + length - 1] = torch.tensor(row["labels"][1:])
    scored = (targets != IGNORED).nonzero()
    keep = longest - int(scored[:, 1].min()) if len(scored) else 1
    logits = model(
        input_ids=ids.to(device),
        attention_mask=mask.to(device),
        # Each row's first token is at 0, which is what a model takes by itself where the pads are on the right.
        **({"position_ids": (mask.cumsum(1) - 1).clamp(min=0).to(device)} if padding == "left" else {}),
        use_cache=False,
        logits_to_keep=keep,
    ).logits  # (rows, keep, vocabulary)
    nll = torch.zeros((len(rows), longest), dtype=torch.float64)
    for chunk in torch.split(scored, CHUNK):
        number, column = chunk.unbind(1)
        piece = logits[number.to(device), (column - (longest - keep)).to(device)].float()
        wanted = targets[number, column].to(device).unsqueeze(1)
        nll[number, column] = (piece.logsumexp(1) - piece.gather(1, wanted).squeeze(1)).double().cpu()
    ends = targets == eot_id
    answer = (targets != IGNORED) & ~ends
    return [
        RowScore(
            id=row["id"],
            nll=float(nll[place][answer[place]].sum()),
            tokens=int(answer[place].sum()),
            bytes=row["answer_bytes"],
            eot_nll=float(nll[place][ends[place]].sum()),
        )
        for place, row in enumerate(rows)
    ]
