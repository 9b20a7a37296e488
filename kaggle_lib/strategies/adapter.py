"""The adapter's two files, as plain PEFT reads them and the same bytes for the same weights."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file

from kaggle_lib.config import RunConfig
from kaggle_lib.errors import CheckpointError
from kaggle_lib.files import write_json
from kaggle_lib.strategies.base import Model

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def state(model: Model) -> dict[str, torch.Tensor]:
    """The adapter's tensors by PEFT's names, on the CPU: LoRA matrices only."""
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in sorted(tensors.items())}


def write(model: Model, config: RunConfig, folder: Path) -> None:
    """Write weights and configuration into `folder`. Raises CheckpointError where a weight is not finite."""
    tensors = state(model)
    if ruined := next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None):
        raise CheckpointError(
            f"The adapter is ruined: {ruined} holds values that are not finite.", kept="It was not saved."
        )
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG, _config_of(model, config))


def _config_of(model: Model, config: RunConfig) -> dict[str, Any]:
    """PEFT writes target_modules as a set, in changing order, and the base model's local path: both are set here."""
    values = model.peft_config["default"].to_dict()
    for name, value in values.items():
        if isinstance(value, (set, frozenset)):
            values[name] = sorted(value)
    values["base_model_name_or_path"] = config.base_model
    values["revision"] = config.revision
    values["inference_mode"] = True
    return {name: _plain(value) for name, value in sorted(values.items())}


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def read(model: Model, folder: Path) -> None:
    """Put the weights in `folder` into `model`'s adapter. Raises CheckpointError unless they are exactly its own."""
    try:
        tensors = load_file(folder / WEIGHTS)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder.name}: {WEIGHTS} cannot be read ({error}).") from error
    own = state(model)
    if {name: tensor.shape for name, tensor in own.items()} != {name: t.shape for name, t in tensors.items()}:
        raise CheckpointError(
            f"{folder.name}: {WEIGHTS} is an adapter of another shape than this model's.",
            todo="Was base_model, lora_r or lora_target_modules another one?",
        )
    set_peft_model_state_dict(model, tensors)
