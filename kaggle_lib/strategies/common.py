"""What both strategies do the same way, so that they train the same weights and adapter into the same checkpoint."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, BitsAndBytesConfig

from kaggle_lib.config import RunConfig
from kaggle_lib.data import chat
from kaggle_lib.errors import ConfigError, UserError
from kaggle_lib.strategies import sample
from kaggle_lib.strategies.base import Model, Tokenizer
from kaggle_lib.training import swiglu

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def check(config: RunConfig, device: torch.device) -> None:
    """Raises UserError where the precision, the optimizer, the card or a package does not fit."""
    if device.type == "cpu" and config.precision != "fp32":
        raise UserError(
            f"precision={config.precision} needs a CUDA GPU, and this machine has none that torch can use.",
            todo="Run it on a GPU, or on a CPU with `--preset tiny-cpu`, which computes in fp32.",
        )
    if device.type == "cpu" and config.optim == "adamw_8bit":
        raise UserError(
            "optim=adamw_8bit needs a CUDA GPU, and this machine has none that torch can use.",
            todo="Set optim=adamw_torch.",
        )
    if device.type == "cuda":
        _check_card(config, torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device))
    if config.quantization == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("quantization=nf4 needs the package bitsandbytes.", todo="Install it, or run `make setup`.")


def _check_card(config: RunConfig, name: str, capability: tuple[int, int], built: list[str] | None = None) -> None:
    """`built`: the architectures that torch has code for (`sm_75`: binary; `compute_75`: text for that and newer)."""
    built = torch.cuda.get_arch_list() if built is None else built
    ours = 10 * capability[0] + capability[1]
    numbers = {
        (kind, int("".join(filter(str.isdigit, number)))) for kind, _, number in (a.partition("_") for a in built)
    }
    # Binary code runs on its own major version from its minor one on; text is translated for anything newer.
    runs = any(
        (kind == "sm" and number // 10 == ours // 10 and number <= ours) or (kind == "compute" and number <= ours)
        for kind, number in numbers
    )
    if built and not runs:
        raise UserError(
            f"This torch {torch.__version__} has no code for {name}, compute capability "
            f"{capability[0]}.{capability[1]}; it has {', '.join(built)}.",
            todo="Choose another accelerator (on Kaggle: GPU T4 x2).",
        )
    if config.precision == "bf16" and capability[0] < 8:
        raise UserError(f"precision=bf16: {name} only emulates bf16.", todo="Set precision=fp16.")


def source_of(config: RunConfig, cache: Path) -> str:
    """What the loaders are given: a Hub id or a folder."""
    return str(sample.make(config.seed, cache)) if config.base_model == "sample" else config.base_model


def revision_of(config: RunConfig, source: str) -> str | None:
    return None if Path(source).is_dir() else config.revision


def quantization(config: RunConfig) -> dict[str, Any]:
    """The keyword that has the base weights kept in NF4, or none."""
    if config.quantization == "none":
        return {}
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[config.precision],
    )
    return {"quantization_config": nf4}


def look_at(config: RunConfig, source: str) -> tuple[Tokenizer, Any]:
    """The tokenizer with the template that we train with, and the model's configuration; both are checked, before the
    weights are downloaded.

    Raises ConfigError for a model that reads more than text, for a tokenizer of no family that we train, and for rows
    longer than the model's positions (Unsloth would stretch them).
    """
    revision = revision_of(config, source)
    tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
    model_config = AutoConfig.from_pretrained(source, revision=revision)
    if model_config.get_text_config() is not model_config:
        kind = f"is of type {model_config.model_type}, which reads more than text"
        raise ConfigError([f"base_model: {config.base_model!r} {kind}; take a model of text alone"])
    chat.check(tokenizer, model_config.vocab_size)
    positions = getattr(model_config, "max_position_embeddings", None)
    if positions and positions < config.max_length:
        raise ConfigError([f"max_length: {config.base_model!r} has {positions} positions; set max_length={positions}"])
    tokenizer.chat_template = chat.template(tokenizer)
    tokenizer.pad_token_id = chat.pad_id(tokenizer)
    return tokenizer, model_config


def unloadable(config: RunConfig, error: Exception) -> UserError:
    return UserError(
        f"The base model {config.base_model!r} cannot be loaded: {' '.join(str(error).split())}",
        kept="Nothing has been changed.",
        todo="Check base_model and revision; a gated model needs its licence accepted and a token.",
    )


def freeze(model: Model, tokenizer: Tokenizer) -> Model:
    """The base model, frozen, with the ids of pad and stops, and without what would change its weights."""
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = chat.stop_ids(tokenizer)
    model.config.use_cache = False
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for module in model.modules():
        # On a CPU with avx512_bf16 bitsandbytes repacks the 4-bit weights lossily at the first forward in eval
        # mode, so that training after a validation would differ.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def lora(model: Model, config: RunConfig) -> dict[str, Any]:
    """The adapter's shape, as both libraries name it. Raises ConfigError for a target that the model does not have."""
    names = [f".{name}" for name, _ in model.named_modules()]
    if unknown := [one for one in config.lora_target_modules if not any(name.endswith(f".{one}") for name in names)]:
        raise ConfigError([f"lora_target_modules: {config.base_model!r} has no layer named {', '.join(unknown)}"])
    return {
        "r": config.lora_r,
        "lora_alpha": config.lora_alpha,
        "lora_dropout": config.lora_dropout,
        "bias": config.lora_bias,
        "target_modules": list(config.lora_target_modules),
    }


def finish(model: Model, config: RunConfig) -> Model:
    """The same model, its trainable parameters in fp32 (bf16 come from quantised layers, fp16 from half ones), and its
    MLPs keeping two tensors of three, if `lean_mlp`."""
    if config.lean_mlp:
        swiglu.install(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def recompute(model: Model, layers: int | None) -> None:
    """Recompute the first `layers` decoder layers' activations in the backward pass (None: of all; 0: of none)."""
    if layers != 0:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for number, layer in enumerate(model.get_base_model().model.layers):
        layer.gradient_checkpointing = layers is None or number < layers
