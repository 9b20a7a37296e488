"""Strategy `unsloth`: Unsloth's kernels on a GPU; on a CPU its fallback, which is transformers and PEFT, for tests.

Importing this module imports Unsloth, which replaces parts of transformers, PEFT and TRL in the whole process. So it
comes before them, in a process that trains with it, and nowhere else.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from kaggle_lib.errors import ConfigError, UserError

# Its statistics are a download that can take two minutes.
os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
# Its compiled layers serve lone samples only, not packed ones, and not our recomputation.
os.environ["UNSLOTH_BLOCK_COMPILE"] = "0"
if "transformers" in sys.modules and "unsloth" not in sys.modules:
    raise UserError(
        "strategy=unsloth: this process has imported transformers already, and Unsloth has to come first.",
        todo="Run it in a process of its own; in a notebook, restart the kernel.",
    )
try:
    import unsloth
except Exception as error:  # a package that does not fit another fails in many ways
    raise UserError(
        f"strategy=unsloth needs the package unsloth, which cannot be imported here ({type(error).__name__}: {error}).",
        kept="Nothing has been loaded or changed.",
        todo="Install what requirements.txt lists (on a CPU: `make setup`), or start another run with strategy=peft.",
    ) from error

import torch

from kaggle_lib.config import RunConfig
from kaggle_lib.strategies import common
from kaggle_lib.strategies.base import Model, Tokenizer
from kaggle_lib.training import kernels

__all__ = ["adapt", "check", "for_inference", "load", "recompute"]

# Their attention keeps packed samples apart.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


def check(config: RunConfig, device: torch.device) -> None:
    """Raises UserError where the precision, the optimizer, the card or a package does not fit."""
    if device.type == "cuda" and config.precision == "fp32":
        raise UserError(
            "precision=fp32: on a GPU Unsloth's trainer would compute in bf16 or fp16 all the same.",
            todo="Set precision=fp16 (or bf16, where the card has it), or strategy=peft.",
        )
    common.check(config, device)


def load(config: RunConfig, device: torch.device, cache: Path) -> tuple[Model, Tokenizer]:
    """The base model on `device`, its weights frozen, and its tokenizer with the template that we train with.

    The very same weights as strategy `peft`: by itself Unsloth would take a quantised copy of its own in place of the
    named model, and drop the revision. Raises UserError where the base model cannot be had, or where Unsloth has
    loaded it in another way than was asked; ConfigError where it is one that we cannot train.
    """
    source = common.source_of(config, cache)
    # The CPU's fallback runs transformers' attention, of which ours is one; on a GPU Unsloth's own is packed, too.
    attention = {"attn_implementation": kernels.ATTENTION} if device.type == "cpu" else {}
    try:
        tokenizer, model_config = common.look_at(config, source)
        if model_config.model_type not in FAMILIES:
            kind, trained = model_config.model_type, ", ".join(FAMILIES)
            what = f"{config.base_model!r} is of type {kind}, and strategy=unsloth trains {trained} only"
            raise ConfigError([f"base_model: {what}; set strategy=peft"])
        window = getattr(model_config, "sliding_window", None)
        if window and window < config.max_length:  # not by their packed attention
            what = f"{config.base_model!r} attends to the last {window} tokens only"
            raise ConfigError([f"max_length: {what}; set max_length={window}, or strategy=peft"])
        model, _ = unsloth.FastLanguageModel.from_pretrained(
            source,
            revision=common.revision_of(config, source),
            use_exact_model_name=True,
            max_seq_length=config.max_length,
            dtype=common.DTYPES[config.precision],
            load_in_4bit=config.quantization == "nf4",
            load_in_16bit=config.quantization == "none",
            device_map={"": device},
            use_gradient_checkpointing=False,
            fix_tokenizer=False,
            offload_embedding=False,
            max_lora_rank=config.lora_r,
            random_state=config.seed,
            **common.quantization(config),
            **attention,
        )
    except (OSError, ValueError) as error:
        raise common.unloadable(config, error) from error
    _as_asked(model, config)
    if device.type == "cuda":
        from unsloth_zoo.fused_losses import fused_linear

        # The loss is cut by the memory that is free when this is first called: here there is room, always as much.
        fused_linear._budget_bytes(device)
    return common.freeze(model, tokenizer), tokenizer


def _as_asked(model: Model, config: RunConfig) -> None:
    """Where 4 bits or a type of numbers do not work here, Unsloth takes others and only prints so."""
    dtype = model.get_input_embeddings().weight.dtype
    quantization = "nf4" if getattr(model, "is_loaded_in_4bit", False) else "none"
    if (quantization, dtype) != (config.quantization, common.DTYPES[config.precision]):
        raise UserError(
            f"Unsloth has loaded {config.base_model!r} with quantization={quantization} in {dtype}, not with "
            f"quantization={config.quantization} and precision={config.precision} as asked.",
            kept="Nothing has been changed.",
            todo="The worker's log says why; or start another run with strategy=peft.",
        )


def adapt(model: Model, config: RunConfig) -> Model:
    """A PEFT model with a fresh LoRA adapter, drawn from the seed, in fp32: the same as strategy `peft` draws."""
    lora = common.lora(model, config)
    adapted = unsloth.FastLanguageModel.get_peft_model(
        model,
        **lora,
        use_gradient_checkpointing=False,
        random_state=config.seed,
        max_seq_length=config.max_length,
        use_rslora=False,
        init_lora_weights=True,
    )
    base = adapted.get_base_model()
    base.model._unsloth_allow_packed_overlength = True  # a packed row may be longer than a sample
    base.register_forward_pre_hook(_packed, with_kwargs=True)
    return common.finish(adapted, config)


def _packed(_: Any, positional: Any, named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A packed row's lengths by the name that Unsloth knows."""
    if (segments := named.get("segments")) is not None and len(segments) > 1:
        named = {**named, "packed_seq_lengths": torch.tensor(segments, dtype=torch.int32)}
    return positional, named


def recompute(model: Model, layers: int | None) -> None:
    """Recompute the first `layers` decoder layers' activations in the backward pass (None: of all; 0: of none)."""
    common.recompute(model, layers)


def for_inference(model: Model) -> Model:
    """The same model in eval mode, with Unsloth's fast generation."""
    unsloth.FastLanguageModel.for_inference(model)
    model.config.use_cache = True
    return model
