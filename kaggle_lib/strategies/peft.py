"""Strategy `peft`: transformers and PEFT as they are, with NF4 by bitsandbytes, on a GPU or a CPU."""

from __future__ import annotations

import sys
from pathlib import Path

from kaggle_lib.errors import UserError

if "unsloth" in sys.modules:
    raise UserError(
        "strategy=peft: this process has imported Unsloth, which has replaced parts of transformers, PEFT and TRL.",
        todo="Run it in a process of its own; in a notebook, restart the kernel.",
    )

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, set_seed

from kaggle_lib.config import RunConfig
from kaggle_lib.strategies import common
from kaggle_lib.strategies.base import Model, Tokenizer
from kaggle_lib.strategies.common import check, recompute
from kaggle_lib.training import kernels

__all__ = ["adapt", "check", "for_inference", "load", "recompute"]


def load(config: RunConfig, device: torch.device, cache: Path) -> tuple[Model, Tokenizer]:
    """The base model on `device`, its weights frozen, and its tokenizer with the template that we train with.

    Raises UserError where the base model cannot be had, ConfigError where it is one that we cannot train.
    """
    source = common.source_of(config, cache)
    try:
        tokenizer, _ = common.look_at(config, source)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            revision=common.revision_of(config, source),
            dtype=common.DTYPES[config.precision],
            device_map={"": device},
            attn_implementation=kernels.ATTENTION,
            **common.quantization(config),
        )
    except (OSError, ValueError) as error:
        raise common.unloadable(config, error) from error
    return common.freeze(model, tokenizer), tokenizer


def adapt(model: Model, config: RunConfig) -> Model:
    """A PEFT model with a fresh LoRA adapter, drawn from the seed, in fp32. The base model's weights stay as they are.

    `prepare_model_for_kbit_training` is left out on purpose: it makes fp32 copies of embeddings and head (2.1 GB at
    8B). Raises ConfigError for a target that the model does not have.
    """
    lora = common.lora(model, config)
    set_seed(config.seed)
    return common.finish(get_peft_model(model, LoraConfig(**lora, task_type="CAUSAL_LM")), config)


def for_inference(model: Model) -> Model:
    """The same model in eval mode, with its cache on."""
    model.eval()
    model.config.use_cache = True
    return model
