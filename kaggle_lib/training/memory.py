"""When memory runs out in a step: recompute the activations of more layers, and do the same step again.

How many layers recompute changes no bit of the gradients, so a run stays exact whatever it had to do.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from kaggle_lib.config import RunConfig
from kaggle_lib.strategies.base import Strategy

# What the allocators of a GPU, of a CPU and of cuBLAS say; only the first has a class of its own.
SIGNS = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)
    )


class Recomputation:
    """The first `layers` of `total` decoder layers recompute their activations in the backward pass."""

    def __init__(self, strategy: Strategy, model: Any, config: RunConfig, on_cpu: bool) -> None:
        self._strategy, self._model = strategy, model
        self.total: int = model.config.num_hidden_layers
        self.layers = {"full": self.total, "none": 0, "auto": 0 if on_cpu else self.total}[config.recomputation]

    def apply(self) -> None:
        """Tell the model. Once training begins: Unsloth's trainer sets the same flags of every layer until then."""
        self._strategy.recompute(self._model, self.layers)

    def more(self) -> bool:
        """Recompute a quarter of the layers more; False where all are already."""
        if self.layers == self.total:
            return False
        self.layers = min(self.total, self.layers + math.ceil(self.total / 4))
        self.apply()
        return True
