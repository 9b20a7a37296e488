"""A base model that cannot be trained here: one message, before the weights are looked for."""

import json
import shutil

import pytest
import torch

from kaggle_lib.config import RunConfig
from kaggle_lib.errors import ConfigError, UserError
from kaggle_lib.strategies import peft
from kaggle_lib.strategies.sample import SAMPLE_DATA, TOKENIZER_FILES

CONTROL = ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]


@pytest.mark.parametrize("missing", [*CONTROL, "<|finetune_right_pad_id|>"])
def test_the_missing_token_is_named_and_no_weights_are_needed(tmp_path, missing):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate("abc")}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.add_special_tokens([name for name in [*CONTROL, "<|finetune_right_pad_id|>", "<|im_end|>"] if name != missing])
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>").save_pretrained(tmp_path)
    # No weights: a message about the tokenizer shows that none were looked for.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}))
    given = {"run": "r", "base_model": tmp_path, "data": "sample", "quantization": "none", "precision": "fp32"}
    with pytest.raises(ConfigError) as caught:
        peft.load(RunConfig.create(given), torch.device("cpu"), tmp_path / "cache")
    assert str(caught.value) == (f"base_model: its tokenizer has no {missing}, which Llama 3's chat template needs")


def test_a_model_that_would_be_trained_wrongly_is_refused(tmp_path):
    for name in TOKENIZER_FILES:
        shutil.copy(SAMPLE_DATA / name, tmp_path)
    given = {"run": "r", "base_model": tmp_path, "data": "sample", "quantization": "none", "precision": "fp32"}

    def refusal(max_length, **model):
        (tmp_path / "config.json").write_text(json.dumps(model))
        with pytest.raises(UserError) as caught:
            peft.load(RunConfig.create({**given, "max_length": max_length}), torch.device("cpu"), tmp_path / "cache")
        return str(caught.value)

    window = {"model_type": "mistral", "sliding_window": 512}
    assert "cannot be loaded" in refusal(513, **window)  # it was looked for its weights
    assert refusal(65, model_type="llama", max_position_embeddings=64) == (
        f"max_length: {str(tmp_path)!r} has 64 positions; set max_length=64"
    )
    assert refusal(16, model_type="llama", vocab_size=1535) == (
        "base_model: it has embeddings for 1535 tokens, and its tokenizer gives ids up to 1535, so it is another "
        "model's"
    )
    assert refusal(16, model_type="gemma3") == (
        f"base_model: {str(tmp_path)!r} is of type gemma3, which reads more than text; take a model of text alone"
    )
