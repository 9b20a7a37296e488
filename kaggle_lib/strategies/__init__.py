"""How the model is loaded and adapted, chosen by one value of the configuration."""

from __future__ import annotations

import importlib

from kaggle_lib.config import RunConfig
from kaggle_lib.strategies.base import Strategy

# By module name, so that a process imports its own strategy only.
STRATEGIES = {"peft": "kaggle_lib.strategies.peft"}


def get(config: RunConfig) -> Strategy:
    module: Strategy = importlib.import_module(STRATEGIES[config.strategy])
    return module
