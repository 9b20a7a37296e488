"""How the model is loaded and adapted, chosen by one value of the configuration."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from kaggle_lib import hooks
from kaggle_lib.config import RunConfig
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.strategies.base import Model, Strategy, Tokenizer

# By module name, so that a process imports its own strategy only.
STRATEGIES = {"peft": "kaggle_lib.strategies.peft", "unsloth": "kaggle_lib.strategies.unsloth"}


def get(config: RunConfig) -> Strategy:
    """The strategy's module, to be asked for before anything imports transformers, which it may have to patch.

    Raises UserError where its packages are missing, or where this process has met what it cannot be mixed with.
    """
    # What Unsloth compiles is read when it is imported, and would else lie in the working directory.
    location = RunFolder(Path(config.work_dir) / config.run).cache.absolute() / "unsloth"
    os.environ.setdefault("UNSLOTH_COMPILE_LOCATION", str(location))
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
