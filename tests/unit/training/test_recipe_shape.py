"""The original recipe's adapter at the base model's real shape, without its weights."""

from __future__ import annotations

import pytest

from kaggle_lib.config import RunConfig
from kaggle_lib.presets import read_preset

pytestmark = pytest.mark.slow

# Llama-3.1-8B's published config.json.
SHAPE = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}


def test_the_recipe_trains_13_631_488_parameters_of_8_billion() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from kaggle_lib.strategies import peft

    config = RunConfig.create(read_preset("bengali-8b-t4"))
    with torch.device("meta"):
        base = LlamaForCausalLM(LlamaConfig(**SHAPE))
        base.requires_grad_(False)
        model = peft.adapt(base, config)
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    everything = sum(parameter.numel() for parameter in model.parameters())
    assert trainable == 13_631_488
    assert everything - trainable == 8_030_261_248
    assert f"{trainable / everything:.2%}" == "0.17%"
    # r x (in + out) of q, k, v and o; k and v map to 8 of 32 heads.
    by_hand = 32 * config.lora_r * ((4096 + 4096) + 2 * (4096 + 1024) + (4096 + 4096))
    assert trainable == by_hand
    assert {parameter.dtype for parameter in model.parameters() if parameter.requires_grad} == {torch.float32}
