"""Trains the tokenizer of the sample model: `python tests/support/sample_tokenizer.py` writes it into the package.

A small byte-level BPE that is Llama 3.1's in all but its size: its splitter, its control tokens behind the text's,
`<|begin_of_text|>` put in front unless asked not to. The same corpus gives the same bytes.
"""

import csv
import json
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

SAMPLE = Path(__file__).parents[2] / "kaggle_lib/data/sample"
SIZE = 1536  # all tokens
CONTROL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|finetune_right_pad_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
)
# Llama 3.1's own splitter, as its tokenizer.json has it.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What every prompt holds beside the corpus, often enough to become whole words.
TEMPLATE = ["system", "user", "assistant", "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"] * 450
CONFIG = {
    "bos_token": "<|begin_of_text|>",
    "eos_token": "<|eot_id|>",
    "pad_token": "<|finetune_right_pad_id|>",
    "clean_up_tokenization_spaces": False,
    "model_input_names": ["input_ids", "attention_mask"],
    "model_max_length": 131072,
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def train() -> str:
    """The content of `tokenizer.json`."""
    with (SAMPLE / "bengali_sample.csv").open(encoding="utf-8", newline="") as file:
        texts = [cell for row in csv.reader(file) for cell in row]
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - len(CONTROL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([*TEMPLATE, *texts], trainer)
    tokenizer.add_special_tokens(list(CONTROL))
    begin = CONTROL[0]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin}:1 $B:1",
        special_tokens=[(begin, tokenizer.token_to_id(begin))],
    )
    return tokenizer.to_str(pretty=True) + "\n"


if __name__ == "__main__":
    (SAMPLE / "tokenizer.json").write_text(train(), encoding="utf-8")
    (SAMPLE / "tokenizer_config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
