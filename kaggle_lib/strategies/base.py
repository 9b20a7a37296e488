"""What a strategy is: how the base model is loaded and adapted. Nothing outside this room asks which one it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from kaggle_lib.config import RunConfig

if TYPE_CHECKING:
    import torch

Model = Any  # a transformers or PEFT model: neither is typed
Tokenizer = Any


class Strategy(Protocol):
    def check(self, config: RunConfig, device: torch.device) -> None:
        """Raises UserError where this machine cannot run it; called before anything is downloaded."""

    def load(self, config: RunConfig, device: torch.device, cache: Path) -> tuple[Model, Tokenizer]:
        """The frozen base model on `device` and its tokenizer."""

    def adapt(self, model: Model, config: RunConfig) -> Model:
        """A PEFT model with a fresh adapter, its start drawn from the seed; trainable parameters are fp32."""

    def recompute(self, model: Model, layers: int | None) -> None:
        """Recompute the activations of the first `layers` decoder layers in the backward pass (None: of all)."""

    def for_inference(self, model: Model) -> Model:
        """The same model, set for generation."""
