"""Which samples make step k, and their cut into micro-batches: a pure function of (seed, k) and of the cut.

No rank and no process count enters before `share`, so resuming needs the step's number and nothing else, and any
number of processes trains on the same micro-batches.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from kaggle_lib.config import RunConfig

MicroBatch = tuple[int, ...]


@dataclass(frozen=True)
class Cut:
    """How a step is cut; kept in every manifest, because another cut rounds differently."""

    token_budget: int
    min_micro_batches: int
    padding_free: bool

    def to_json(self) -> dict[str, int]:
        return {
            "token_budget": self.token_budget,
            "min_micro_batches": self.min_micro_batches,
            "padding_free": int(self.padding_free),
        }


def cut_of(config: RunConfig) -> Cut:
    """The cut a fresh run begins with. `token_budget=auto` is one sample of `max_length`, rounded down to 64.

    So a micro-batch of several samples never needs more memory than the longest sample alone.
    """
    auto = max(64, config.max_length // 64 * 64)
    budget = auto if config.token_budget == "auto" else config.token_budget
    return Cut(budget, config.min_micro_batches, config.padding_free)


def mix(*parts: object) -> int:
    """A 63-bit seed from any values; the same on every machine and Python."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, rows: int) -> tuple[int, ...]:
    return tuple(sorted(range(rows), key=lambda index: mix(seed, "order", epoch, index)))


@dataclass(frozen=True)
class Piece:
    """The run as it was begun, or one extension of it: its first step and first sample, and how many of each."""

    first_step: int
    steps: int
    first_sample: int
    samples: int


@dataclass(frozen=True)
class Steps:
    """All steps of a run over `lengths` (tokens of each training row).

    Epochs are joined end to end: a step may hold the last rows of one and the first of the next, and the run's last
    step only what is left of its epochs, so that every epoch holds every row exactly once. `extended`: epochs that were
    added after the end, each a piece of its own, which goes on with the row after the last one.
    """

    seed: int
    batch_size: int
    lengths: Sequence[int] = field(repr=False)
    cut: Cut
    epochs: float
    max_steps: int | None = None
    extended: tuple[float, ...] = ()

    @property
    def total(self) -> int:
        """Optimizer steps of the whole run."""
        return self.pieces[-1].first_step + self.pieces[-1].steps

    @cached_property
    def pieces(self) -> list[Piece]:
        pieces: list[Piece] = []
        step = sample = 0
        for epochs in (self.epochs, *self.extended):
            samples = max(1, round(epochs * len(self.lengths)))
            if self.max_steps and not pieces:
                samples = self.max_steps * self.batch_size
            pieces.append(Piece(step, math.ceil(samples / self.batch_size), sample, samples))
            step, sample = step + pieces[-1].steps, sample + samples
        return pieces

    def samples(self, step: int) -> list[int]:
        """Row positions of step `step` (counted from 0), in the order of the shuffled epoch."""
        assert 0 <= step < self.total
        piece = next(piece for piece in reversed(self.pieces) if piece.first_step <= step)
        begin = piece.first_sample + (step - piece.first_step) * self.batch_size
        end = min(begin + self.batch_size, piece.first_sample + piece.samples)
        rows = len(self.lengths)
        return [_order(self.seed, at // rows, rows)[at % rows] for at in range(begin, end)]

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """The step's samples, longest first, in micro-batches under the token budget.

        A sample longer than the budget is alone. There are at least `min_micro_batches`, as far as there are samples.
        """
        batches: list[list[int]] = []
        for row in sorted(self.samples(step), key=lambda row: (-self.lengths[row], row)):
            for batch in batches:
                if self.cost([*batch, row]) <= self.cut.token_budget:
                    batch.append(row)
                    break
            else:
                batches.append([row])
        while len(batches) < self.cut.min_micro_batches and any(len(batch) > 1 for batch in batches):
            largest = max((batch for batch in batches if len(batch) > 1), key=lambda b: (self.cost(b), b))
            batches.remove(largest)
            batches += [largest[0::2], largest[1::2]]
        return [tuple(batch) for batch in sorted(batches, key=lambda b: (-self.cost(b), b))]

    def cost(self, batch: Sequence[int]) -> int:
        """Tokens the model sees: the samples' own, or with padding the longest times their number."""
        lengths = [self.lengths[row] for row in batch]
        return sum(lengths) if self.cut.padding_free else max(lengths) * len(lengths)

    def share(self, step: int, processes: int) -> list[list[int]]:
        """Numbers of the micro-batches of each process: longest first to the least loaded (LPT)."""
        batches = self.micro_batches(step)
        load = [0] * processes
        mine: list[list[int]] = [[] for _ in range(processes)]
        for number, batch in enumerate(batches):
            rank = load.index(min(load))
            load[rank] += self.cost(batch)
            mine[rank].append(number)
        return mine
