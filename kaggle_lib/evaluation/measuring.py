"""One model, base or tuned, asked batch by batch; each batch is kept as soon as it is done.

The batches follow from all rows, whatever is done already, and process `rank` of `processes` takes every so manieth: so
each row is measured once, and in the same company however often the evaluation was ended and begun again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from kaggle_lib.config import RunConfig
from kaggle_lib.data import chat
from kaggle_lib.data.steps import cut_of
from kaggle_lib.errors import UserError
from kaggle_lib.evaluation import generation, likelihood, pii, retention
from kaggle_lib.evaluation.parts import Parts


@dataclass(frozen=True)
class Asked:
    """Something to answer. `prompt`: ids that end with the assistant's header; `budget`: most new tokens."""

    id: int | str
    prompt: Sequence[int]
    budget: int


@dataclass
class Measuring:
    """`beat` is called after each batch and each generated token; what it raises ends the measuring."""

    model: Any
    tokenizer: Any
    config: RunConfig
    parts: Parts
    rank: int
    processes: int
    beat: Callable[[], None]

    def likelihood(self, side: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """`rows`: tokenised ones. Raises UserError where a number is not finite."""
        most = cut_of(self.config).token_budget
        pad, eot = chat.pad_id(self.tokenizer), chat.eot_id(self.tokenizer)

        def measure(batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
            scores = likelihood.score_rows(self.model, batch, pad_id=pad, eot_id=eot, max_tokens=most)
            return [
                {
                    **{name: getattr(score, name) for name in ("id", "nll", "eot_nll", "tokens", "bytes")},
                    "characters": self._characters(row),
                }
                for score, row in zip(scores, batch, strict=True)
            ]

        lengths = [len(row["input_ids"]) for row in rows]
        for batch in self._mine(likelihood.batches(lengths, most), rows, "likelihood", side):
            records = self._kept(measure, batch)
            if not all(math.isfinite(record[name]) for record in records for name in ("nll", "eot_nll")):
                raise ruined()
            self._add("likelihood", side, records)

    def answers(self, side: str, asked: Sequence[Asked]) -> None:
        """Answers, scrubbed of personal data."""

        def measure(batch: Sequence[Asked]) -> list[dict[str, Any]]:
            prompts, budgets = [one.prompt for one in batch], [one.budget for one in batch]
            found = generation.answers(self.model, self.tokenizer, prompts, budgets, self.beat)
            records = []
            for one, answer in zip(batch, found, strict=True):
                text, scrubbed = pii.scrub(answer.text)
                about = {"tokens": answer.tokens, "ended": answer.ended, "letter_cut": answer.letter_cut}
                records.append({"id": one.id, "text": text, "scrubbed": scrubbed, **about})
            return records

        lengths = [len(one.prompt) + one.budget for one in asked]
        for batch in self._mine(generation.batches(lengths, self.config.answer_batch_size), asked, "answer", side):
            self._add("answer", side, self._kept(measure, batch))

    def retention(self, side: str, rows: Sequence[Mapping[str, str]]) -> None:
        """`rows`: Belebele's, as `retention.load` gives them."""
        prompts = [retention.prompt(dict(row), self.tokenizer, self.config) for row in rows]
        asked = [{**row, "prompt": prompt} for row, prompt in zip(rows, prompts, strict=True)]

        def measure(batch: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
            logs = retention.options(self.model, self.tokenizer, [row["prompt"] for row in batch])
            return [
                {"id": row["id"], **retention.verdict(dict(row), found)} for row, found in zip(batch, logs, strict=True)
            ]

        batches = likelihood.batches([len(prompt) for prompt in prompts], cut_of(self.config).token_budget)
        for batch in self._mine(batches, asked, "retention", side):
            self._add("retention", side, self._kept(measure, batch))

    def _mine(self, batches: Any, items: Sequence[Any], kind: str, side: str) -> Iterator[list[Any]]:
        """This process's batches, without what is done in them."""
        for number, positions in enumerate(batches):
            if number % self.processes == self.rank:
                batch = [items[position] for position in positions]
                missing = set(self.parts.missing(kind, side, [_id(item) for item in batch]))
                if left := [item for item in batch if _id(item) in missing]:
                    yield left

    def _kept(self, measure: Callable[[Sequence[Any]], list[dict[str, Any]]], batch: Sequence[Any]) -> Any:
        """The batch's records, in two halves where it does not fit in the GPU's memory."""
        try:
            return measure(batch)
        except torch.OutOfMemoryError:
            if len(batch) == 1:
                raise
        # After the handler, which would hold the failed batch's tensors by its traceback.
        torch.cuda.empty_cache()
        middle = len(batch) // 2
        return [*self._kept(measure, batch[:middle]), *self._kept(measure, batch[middle:])]

    def _add(self, kind: str, side: str, records: Sequence[dict[str, Any]]) -> None:
        self.parts.add([{"kind": kind, "side": side, **record} for record in records])
        self.beat()

    def _characters(self, row: Mapping[str, Any]) -> int:
        """Characters of the scored answer's tokens, the end-of-turn token left out."""
        eot = chat.eot_id(self.tokenizer)
        said = [token for token in row["labels"] if token not in (chat.IGNORED, eot)]
        return len(self.tokenizer.decode(said, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def ruined() -> UserError:
    return UserError(
        "The model's likelihood of the test rows is not a finite number, so its weights are ruined.",
        todo="Evaluate an earlier checkpoint, or train again with a lower learning_rate.",
    )


def _id(item: Any) -> int | str:
    found: int | str = item.id if isinstance(item, Asked) else item["id"]
    return found
