"""Base models of real shapes with random weights, and corpora of given lengths: what the benchmarks train."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from kaggle_lib.strategies.sample import SAMPLE_DATA, TOKENIZER_FILES

LLAMA_3_1_8B = {
    "vocab_size": 128_256,
    "hidden_size": 4096,
    "intermediate_size": 14_336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
}
SMALL = {**LLAMA_3_1_8B, "hidden_size": 1024, "intermediate_size": 3584, "num_hidden_layers": 4, "vocab_size": 8192}
SMALL |= {"num_attention_heads": 8, "num_key_value_heads": 2}
TINY = {**SMALL, "hidden_size": 128, "intermediate_size": 256, "vocab_size": 1536, "num_attention_heads": 4}
SHAPES = {"8b": LLAMA_3_1_8B, "small": SMALL, "tiny": TINY}


def make_base(shape: str, folder: Path) -> Path:
    """A Llama of that shape with random fp16 weights and the sample's tokenizer in `folder`, unless it is there."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    from kaggle_lib.data import chat

    if (folder / "config.json").exists():
        return folder
    began = time.monotonic()
    tokenizer = AutoTokenizer.from_pretrained(SAMPLE_DATA)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": chat.stop_ids(tokenizer)}
    config = LlamaConfig(**SHAPES[shape], **ids, pad_token_id=chat.pad_id(tokenizer), tie_word_embeddings=False)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder, max_shard_size="4GB")
    for name in TOKENIZER_FILES:
        shutil.copyfile(SAMPLE_DATA / name, folder / name)
    print(f"base model {shape} made in {time.monotonic() - began:.0f} s", flush=True)
    return folder


def make_corpus(path: Path, tokens: int, rows: int) -> Path:
    """A JSONL corpus whose rows, cut at `max_length=tokens`, all have exactly that many, a third of them the answer."""
    from transformers import AutoTokenizer

    from kaggle_lib.config import RunConfig
    from kaggle_lib.data import read

    tokenizer = AutoTokenizer.from_pretrained(SAMPLE_DATA)
    sample = read.read(RunConfig.create({"run": "r", "base_model": "sample", "data": "sample"}))
    text = " ".join(row.answer for row in sample.rows)
    per_letter = len(tokenizer(text)["input_ids"]) / len(text)
    question, answer = (round(tokens * share / per_letter) for share in (1.2, 0.33))
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            at = 97 * number
            looped = text[at:] + " " + text * (2 + (question + answer) // len(text))
            row = {"Questions": looped[:question], "Answers": looped[question : question + answer]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def make_rows(path: Path, lengths: Sequence[int], seed: int = 3) -> Path:
    """A JSONL corpus whose rows have about so many tokens each, a third of them the answer: random words."""
    from transformers import AutoTokenizer

    from kaggle_lib.config import RunConfig
    from kaggle_lib.data import read

    tokenizer = AutoTokenizer.from_pretrained(SAMPLE_DATA)
    sample = read.read(RunConfig.create({"run": "r", "base_model": "sample", "data": "sample"}))
    words = sorted({word for row in sample.rows for word in row.answer.split()})
    counts = [len(ids) for ids in tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]]
    draw = random.Random(seed)

    def text(tokens: float) -> str:
        chosen: list[str] = []
        while tokens > 0:
            at = draw.randrange(len(words))
            chosen.append(words[at])
            tokens -= counts[at]
        return " ".join(chosen)

    template = 40  # tokens around the texts
    with path.open("w", encoding="utf-8") as file:
        for length in lengths:
            row = {"Questions": text(length * 2 / 3 - template), "Answers": text(length / 3)}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path
