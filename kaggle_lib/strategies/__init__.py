"""How the model is loaded and adapted, chosen by one value of the configuration."""

from __future__ import annotations

import importlib
from pathlib import Path

from kaggle_lib import hooks
from kaggle_lib.config import RunConfig
from kaggle_lib.strategies.base import Model, Strategy, Tokenizer

# By module name, so that a process imports its own strategy only.
STRATEGIES = {"peft": "kaggle_lib.strategies.peft", "unsloth": "kaggle_lib.strategies.unsloth"}


def get(config: RunConfig) -> Strategy:
    module: Strategy = importlib.import_module(STRATEGIES[config.strategy])
    return module


def tuned(config: RunConfig, folder: Path, cache: Path) -> tuple[Model, Tokenizer]:
    """The base model with the adapter that lies in `folder`, set for generation, and its tokenizer; on the first GPU,
    or the CPU where there is none. Raises what the strategy's `check` and `load` and `adapter.read` raise.
    """
    strategy = get(config)  # first of all: it may have to patch what is imported next

    import torch

    from kaggle_lib.strategies import adapter

    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    strategy.check(config, device)
    model, tokenizer = strategy.load(config, device, cache)
    model = hooks.adapt(strategy.adapt, model, config)
    adapter.read(model, folder)
    return strategy.for_inference(model), tokenizer
