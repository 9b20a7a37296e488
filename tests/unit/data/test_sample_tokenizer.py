"""The sample model's tokenizer is Llama 3.1's in all but its size, and can be made again from the sample corpus."""

import json
import logging
import warnings

import pytest
from support import sample_tokenizer as made

from kaggle_lib.data import chat
from kaggle_lib.strategies import sample


def test_training_it_again_gives_the_bytes_that_ship():
    assert made.train() == (made.SAMPLE / "tokenizer.json").read_text(encoding="utf-8")
    assert json.loads((made.SAMPLE / "tokenizer_config.json").read_text(encoding="utf-8")) == made.CONFIG


def test_it_loads_without_a_warning(caplog):
    from transformers import AutoTokenizer
    from transformers.utils import logging as chatter

    chatter.enable_propagation()
    try:
        with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
            warnings.simplefilter("error")
            tokenizer = AutoTokenizer.from_pretrained(made.SAMPLE)
            tokenizer("ক" * 5000)
    finally:
        chatter.disable_propagation()
    assert caplog.records == []
    assert len(tokenizer) == made.SIZE == len(set(tokenizer.get_vocab().values()))


def test_control_tokens_are_special_and_llamas_by_name(sample_tokenizer):
    assert sample_tokenizer.get_added_vocab() == {name: 1529 + at for at, name in enumerate(made.CONTROL)}
    assert sample_tokenizer.convert_ids_to_tokens(sample_tokenizer("ক")["input_ids"]) == ["<|begin_of_text|>", "à¦ķ"]
    header = sample_tokenizer("<|start_header_id|>user<|end_header_id|>\n\nকথা।", add_special_tokens=False)["input_ids"]
    assert sample_tokenizer.convert_ids_to_tokens(header)[:4] == [
        "<|start_header_id|>",
        "user",
        "<|end_header_id|>",
        "ĊĊ",
    ]


@pytest.mark.parametrize("text", ["র‍্যাব 😀 ক্‌ষ\r\n\t  উৎসব ১২৩৪৫ 1234567", "\ufffd\ufeffé", "  "])
def test_every_text_comes_back(sample_tokenizer, text):
    ids = sample_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert sample_tokenizer.decode(ids) == text


def test_splitter_is_llamas_own(sample_tokenizer, llama_tokenizer):
    ours, theirs = (json.loads(one.backend_tokenizer.to_str()) for one in (sample_tokenizer, llama_tokenizer))
    assert ours["pre_tokenizer"] == theirs["pre_tokenizer"]
    assert ours["normalizer"] == theirs["normalizer"] is None


def test_sample_model_carries_it_and_knows_its_stops(tmp_path, sample_tokenizer):
    from transformers import AutoTokenizer

    folder = sample.make(3, tmp_path)
    for name in sample.TOKENIZER_FILES:
        assert (folder / name).read_bytes() == (made.SAMPLE / name).read_bytes()
    about = json.loads((folder / "config.json").read_text())
    assert (about["vocab_size"], about["bos_token_id"]) == (made.SIZE, 1529)
    assert (about["pad_token_id"], about["eos_token_id"]) == (1531, [1535, 1530])
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == sample_tokenizer.get_vocab()
    assert chat.stop_ids(sample_tokenizer) == [1535, 1530]
