"""The base model `sample`: a tiny Llama with random weights from the seed, for a laptop, the demo and the tests."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

SAMPLE_DATA = Path(__file__).parents[1] / "data" / "sample"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
SHAPE: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "rope_theta": 10_000.0,
    "initializer_range": 0.1,  # with the usual 0.02 so small a model hardly tells its inputs apart
}


def make(seed: int, cache: Path) -> Path:
    """The folder of the sample model, made from `seed` unless it is there: config, safetensors, tokenizer."""
    target = cache / f"sample-model-{seed}"
    if (target / "config.json").exists():
        return target
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from kaggle_lib.data import chat

    tokenizer = AutoTokenizer.from_pretrained(SAMPLE_DATA)
    config = LlamaConfig(
        **SHAPE,
        vocab_size=(len(tokenizer) + 63) // 64 * 64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=chat.stop_ids(tokenizer),
        pad_token_id=chat.pad_id(tokenizer),
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    aside = cache / f".sample-model-{seed}.{os.getpid()}"
    # Of several processes transformers lets only the first one write, and says nothing to the others.
    model.should_save_on_this_rank = lambda is_main_process: True
    model.save_pretrained(aside)
    for name in TOKENIZER_FILES:
        shutil.copyfile(SAMPLE_DATA / name, aside / name)
    # Written last under its final name: a folder with a config.json is a whole model.
    assert json.loads((aside / "config.json").read_text())["hidden_size"] == SHAPE["hidden_size"]
    try:
        aside.rename(target)
    except OSError:  # another process was first
        shutil.rmtree(aside)
    return target
