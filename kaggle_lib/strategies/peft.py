"""Strategy `peft`: transformers and PEFT as they are, with NF4 by bitsandbytes, on a GPU or a CPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed

from kaggle_lib.config import RunConfig
from kaggle_lib.data import chat
from kaggle_lib.errors import ConfigError, UserError
from kaggle_lib.strategies import sample
from kaggle_lib.strategies.base import Model, Tokenizer
from kaggle_lib.training import kernels

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


def check(config: RunConfig, device: torch.device) -> None:
    """Raises UserError where the precision, the optimizer or a package does not fit this machine."""
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
    if config.precision == "bf16" and torch.cuda.get_device_capability(device)[0] < 8:
        raise UserError(
            f"precision=bf16: {torch.cuda.get_device_name(device)} only emulates bf16.", todo="Set precision=fp16."
        )
    if config.quantization == "nf4" and importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("quantization=nf4 needs the package bitsandbytes.", todo="Install it, or run `make setup`.")


def load(config: RunConfig, device: torch.device, cache: Path) -> tuple[Model, Tokenizer]:
    """The base model on `device`, its weights frozen, and its tokenizer with the template that we train with.

    Raises UserError where the base model cannot be had.
    """
    source = str(sample.make(config.seed, cache)) if config.base_model == "sample" else config.base_model
    dtype = DTYPES[config.precision]
    options: dict[str, Any] = {"dtype": dtype, "device_map": {"": device}, "attn_implementation": kernels.ATTENTION}
    if config.quantization == "nf4":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
    try:
        revision = None if Path(source).is_dir() else config.revision
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision)
        _check_model(AutoConfig.from_pretrained(source, revision=revision).get_text_config(), tokenizer, config)
        model = AutoModelForCausalLM.from_pretrained(source, revision=revision, **options)
    except (OSError, ValueError) as error:
        raise UserError(
            f"The base model {config.base_model!r} cannot be loaded: {' '.join(str(error).split())}",
            kept="Nothing has been changed.",
            todo="Check base_model and revision; a gated model needs its licence accepted and a token.",
        ) from error
    tokenizer.chat_template = chat.TEMPLATE
    tokenizer.pad_token_id = chat.pad_id(tokenizer)
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
    return model, tokenizer


def _check_model(model_config: Any, tokenizer: Tokenizer, config: RunConfig) -> None:
    """Before the weights are downloaded. Raises ConfigError for a tokenizer that lacks what the template needs, and
    for attention with a window or a cap on its scores: ours has neither, so such a model would be trained wrongly."""
    chat.check(tokenizer, model_config.vocab_size)
    window = getattr(model_config, "sliding_window", None)
    if getattr(model_config, "attn_logit_softcapping", None):
        raise ConfigError([f"base_model: {config.base_model!r} caps its attention's scores, which we do not compute"])
    if window and window < config.max_length:
        raise ConfigError(
            [f"max_length: {config.base_model!r} attends to the last {window} tokens only; set max_length={window}"]
        )


def adapt(model: Model, config: RunConfig) -> Model:
    """A PEFT model with a fresh LoRA adapter, drawn from the seed, in fp32. The base model's weights stay as they are.

    `prepare_model_for_kbit_training` is left out on purpose: it makes fp32 copies of embeddings and head (2.1 GB at
    8B). Raises ConfigError for a target that the model does not have.
    """
    names = [f".{name}" for name, _ in model.named_modules()]
    if unknown := [one for one in config.lora_target_modules if not any(name.endswith(f".{one}") for name in names)]:
        raise ConfigError([f"lora_target_modules: {config.base_model!r} has no layer named {', '.join(unknown)}"])
    set_seed(config.seed)
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=config.lora_r,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            bias=config.lora_bias,
            target_modules=list(config.lora_target_modules),
            task_type="CAUSAL_LM",
        ),
    )
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()  # bf16 from quantised layers, fp16 from half ones
    return adapted


def recompute(model: Model, layers: int | None) -> None:
    """Recompute the first `layers` decoder layers' activations in the backward pass (None: of all; 0: of none)."""
    if layers == 0:
        return
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for number, layer in enumerate(model.get_base_model().model.layers):
        layer.gradient_checkpointing = layers is None or number < layers


def for_inference(model: Model) -> Model:
    """The same model in eval mode, with its cache on."""
    model.eval()
    model.config.use_cache = True
    return model
