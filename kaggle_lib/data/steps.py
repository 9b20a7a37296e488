"""Which samples make step k, and their cut into micro-batches: a pure function of (seed, k) and of the cut.

No rank and no process count enters before `share`, so resuming needs the step's number and nothing else, and any
number of processes trains on the same micro-batches.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

from kaggle_lib.config import RunConfig

MicroBatch = tuple[int, ...]
BLOCK_STEPS = 16  # whose rows are arranged together


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


def arranged(order: Sequence[int], lengths: Sequence[int], batch_size: int, group: int, head: int = 0) -> list[int]:
    """The rows of the shuffled `order`, so that processes can share each step of `batch_size` equally.

    Inside blocks of 16 steps the rows are sorted by length and cut into groups of `group` neighbours, and the groups
    into as many strata of length as a step has groups; each step gets one group of every stratum, which one is up to
    the shuffle. So each process finds a sample of nearly every length that the others find, and no step is all long or
    all short. What does not fill a group is a stratum of single rows. The first `head` rows, which complete a step that
    has begun before, and what is left after the last whole step stay as shuffled; so does everything where a step has
    no two groups.
    """
    group = min(group, batch_size // 2)
    if group < 2:
        return list(order)
    sizes = [group] * (batch_size // group) + [batch_size % group] * (batch_size % group > 0)
    made = list(order[:head])
    for at in range(head, len(order), BLOCK_STEPS * batch_size):
        steps = min(BLOCK_STEPS, (len(order) - at) // batch_size)
        place = {row: place for place, row in enumerate(order[at : at + steps * batch_size])}
        by_length = sorted(place, key=lambda row: (-lengths[row], place[row]))
        filled: list[list[int]] = [[] for _ in range(steps)]
        begin = 0
        for size in sizes:
            groups = [by_length[begin + n * size : begin + (n + 1) * size] for n in range(steps)]
            begin += steps * size
            for step, rows in zip(
                filled, sorted(groups, key=lambda rows: min(map(place.__getitem__, rows))), strict=True
            ):
                step += rows
        made += [row for step in filled for row in step]
        made += order[at + steps * batch_size : at + BLOCK_STEPS * batch_size]
    return made


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

    Each epoch is shuffled by the seed, then `arranged`: the same for any number of processes. Epochs are joined end to
    end: a step may hold the last rows of one and the first of the next, and the run's last step only what is left of
    its epochs, so that every epoch holds every row exactly once. `extended`: epochs that were added after the end, each
    a piece of its own, which goes on with the row after the last one.
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
        return [self._epoch(at // rows)[at % rows] for at in range(begin, end)]

    @cached_property
    def _epochs(self) -> dict[int, list[int]]:
        return {}

    def _epoch(self, epoch: int) -> list[int]:
        """All rows in the order of that epoch, its groups where its steps are."""
        if epoch not in self._epochs:
            rows = len(self.lengths)
            order = sorted(range(rows), key=lambda index: mix(self.seed, "order", epoch, index))
            piece = next(piece for piece in reversed(self.pieces) if piece.first_sample <= epoch * rows)
            head = (piece.first_sample - epoch * rows) % self.batch_size
            group = self.cut.min_micro_batches
            self._epochs[epoch] = arranged(order, self.lengths, self.batch_size, group, min(head, rows))
        return self._epochs[epoch]

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """The step's samples in micro-batches of like cost under the token budget, the dearest first.

        As few as fit, in multiples of `min_micro_batches`, so that processes share them; each sample, longest first,
        goes where the cost is least with it (LPT: Graham, "Bounds on multiprocessing timing anomalies", 1969). A sample
        longer than the budget is alone.
        """
        rows = sorted(self.samples(step), key=lambda row: (-self.lengths[row], row))
        budget, least = self.cut.token_budget, self.cut.min_micro_batches
        needed = sum(min(self.lengths[row], budget) for row in rows) / budget
        for many in range(least * max(1, math.ceil(needed / least)), len(rows), least):
            batches: list[list[int]] = [[] for _ in range(many)]
            costs = [0] * many
            for row in rows:
                added = [self._cost_with(row, *found) for found in zip(batches, costs, strict=True)]
                place = added.index(min(added))
                batches[place].append(row)
                costs[place] = added[place]
            if all(len(batch) == 1 or cost <= budget for batch, cost in zip(batches, costs, strict=True)):
                return [tuple(batch) for batch in sorted(batches, key=lambda b: (-self.cost(b), b))]
        return [(row,) for row in rows]

    def _cost_with(self, row: int, batch: Sequence[int], cost: int) -> int:
        """The cost of `batch`, which is `cost` so far, with one more row, which is not longer than its first."""
        if self.cut.padding_free or not batch:
            return cost + self.lengths[row]
        return cost + self.lengths[batch[0]]

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
