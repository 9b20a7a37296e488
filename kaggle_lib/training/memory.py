"""Which layers recompute their activations: as many as a micro-batch's tokens force, and more where memory runs out.

How many layers recompute changes no bit of the gradients, so a run stays exact whatever it had to do.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from kaggle_lib.config import RunConfig
from kaggle_lib.data.budget import Memory
from kaggle_lib.strategies.base import Strategy

# What the allocators of a GPU, of a CPU and of cuBLAS say; only the first has a class of its own.
SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    )


class Recomputation:
    """The first `layers` of `total` decoder layers recompute their activations in the backward pass; once calibrated,
    as many more as a micro-batch's length forces.

    `calibrates`: that number is to be found by measuring, and until then every layer recomputes.
    """

    def __init__(self, strategy: Strategy, model: Any, config: RunConfig, on_cpu: bool) -> None:
        self._strategy, self._model = strategy, model
        self._memory: Memory | None = None
        self._room = 0.0
        self._applied: int | None = None
        self.total = int(model.config.num_hidden_layers)
        self.calibrates = config.recomputation == "auto" and not on_cpu
        self.layers: int = {"full": self.total, "none": 0, "auto": 0 if on_cpu else self.total}[config.recomputation]

    def calibrated(self, found: Memory, room: float) -> None:
        """From here on a micro-batch recomputes what `found` says that it must to fit into `room` bytes."""
        self._memory, self._room, self.layers = found, room, 0

    def of(self, tokens: int) -> int:
        """How many layers a micro-batch of so many tokens recomputes."""
        forced = 0 if self._memory is None else self._memory.recomputed(tokens, self._room)
        return min(self.total, self.layers + forced)

    def apply(self) -> None:
        """Tell the model. Once training begins: Unsloth's trainer sets the same flags of every layer until then."""
        self.set(self.layers)

    def apply_for(self, tokens: int) -> None:
        """Tell the model before a micro-batch of so many tokens."""
        if self.of(tokens) != self._applied:
            self.set(self.of(tokens))

    def set(self, layers: int) -> None:
        self._strategy.recompute(self._model, layers)
        self._applied = layers

    def more(self) -> bool:
        """Recompute a quarter of the layers more; False where all are already."""
        if self.layers == self.total:
            return False
        self.layers = min(self.total, self.layers + math.ceil(self.total / 4))
        self.apply()
        return True

    def said(self) -> str:
        """How many layers recompute, in words."""
        least = "at least " if self._memory else ""
        return f"{least}{self.layers} of {self.total} layers are recomputed"
