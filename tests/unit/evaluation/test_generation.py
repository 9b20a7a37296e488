"""Answers: greedy whatever the base model's own settings are, cut off the prompt by length, whole letters."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kaggle_lib.config import RunConfig
from kaggle_lib.evaluation import generation
from kaggle_lib.presets import read_preset

CONTROL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
)


SEED = 2  # this model says no stop token in its first tokens


@pytest.fixture(scope="module")
def tokenizer():
    """A token a byte, and the control tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bare = Tokenizer(BPE(vocab={letter: number for number, letter in enumerate(letters)}, merges=[]))
    bare.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bare.decoder = decoders.ByteLevel()
    bare.add_special_tokens(list(CONTROL))
    return PreTrainedTokenizerFast(tokenizer_object=bare)


@pytest.fixture
def model():
    torch.manual_seed(SEED)
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=262, initializer_range=0.5, **shape)).eval()


def config(**more):
    return RunConfig.create({**read_preset("tiny-cpu"), **more})


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def saying(model, tokenizer, text, *, then=None):
    """Makes the model say `text` after any prompt whose length is 5, then the token `then` (or `text` again)."""
    wanted = [*ids(tokenizer, text), *([tokenizer.convert_tokens_to_ids(then)] if then else [])]
    forward = model.forward

    def scripted(*args, **kwargs):
        output = forward(*args, **kwargs)
        place = output.past_key_values.get_seq_length() - 5
        output.logits[:, -1] = 0.0
        output.logits[:, -1, wanted[place % len(wanted)]] = 9.0
        return output

    model.forward = scripted
    return model


def greedy(model, prompt, count):
    """Step by step over the whole text, without a cache."""
    sequence = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            sequence.append(int(model(input_ids=torch.tensor([sequence])).logits[0, -1].argmax()))
    return sequence[len(prompt) :]


def test_greedy_whatever_the_base_models_own_settings_are(model, tokenizer):
    prompt = ids(tokenizer, "hello")
    expected = greedy(model, prompt, 24)
    assert not {257, 260} & set(expected)  # no stop token among them
    own = model.generation_config
    own.do_sample, own.temperature, own.top_p, own.top_k, own.max_length = True, 5.0, 0.5, 3, 7
    own.repetition_penalty, own.no_repeat_ngram_size, own.num_beams = 3.0, 1, 4
    state = torch.get_rng_state()
    beats = []
    answer = generation.answer(model, tokenizer, prompt, 24, lambda: beats.append(1))
    assert answer.tokens == 24 and not answer.ended
    text = tokenizer.decode(expected)
    assert answer.text == text.removesuffix("\ufffd")
    assert answer.letter_cut == text.endswith("\ufffd")
    assert len(beats) == 24
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("stop", ["<|eot_id|>", "<|end_of_text|>"])
def test_both_stop_tokens_end_an_answer_and_are_not_in_it(model, tokenizer, stop):
    model.generation_config.min_new_tokens = 30  # the base model's own, which would forbid the stop
    answer = generation.answer(
        saying(model, tokenizer, "ভালো", then=stop), tokenizer, ids(tokenizer, "12345"), max_new_tokens=64
    )
    assert answer == generation.Answer(text="ভালো", tokens=13, ended=True, letter_cut=False)


def test_the_prompt_is_cut_off_by_its_length_and_not_by_its_words(model, tokenizer):
    answer = generation.answer(
        saying(model, tokenizer, "12345 assistant 12345", then="<|eot_id|>"), tokenizer, ids(tokenizer, "12345"), 64
    )
    assert answer.text == "12345 assistant 12345"


@pytest.mark.parametrize(
    ("budget", "text", "cut"), [(6, "আম", False), (7, "আম", True), (8, "আম", True), (9, "আমি", False)]
)
def test_only_a_letter_cut_in_half_is_trimmed_and_it_is_counted(model, tokenizer, budget, text, cut):
    answer = generation.answer(saying(model, tokenizer, "আমি"), tokenizer, ids(tokenizer, "12345"), budget)
    assert answer == generation.Answer(text=text, tokens=budget, ended=False, letter_cut=cut)


def test_half_a_letter_that_the_model_itself_ended_with_stays(model, tokenizer):
    wanted = saying(model, tokenizer, "আ\ufffd", then="<|eot_id|>")
    answer = generation.answer(wanted, tokenizer, ids(tokenizer, "12345"), 64)
    assert answer == generation.Answer(text="আ\ufffd", tokens=7, ended=True, letter_cut=False)
    assert generation.trim_half_letter("\ufffdক\ufffd\ufffd") == ("\ufffdক\ufffd", True)
    assert generation.trim_half_letter("\ufffdক") == ("\ufffdক", False)


def test_budget_follows_the_reference_within_the_configuration():
    roomy = config(max_length=4096)
    assert generation.new_token_budget("হ্যাঁ", roomy) == 64
    assert generation.new_token_budget("ক " * 20, roomy) == 140
    assert generation.new_token_budget("ক " * 1000, roomy) == 2048
    assert generation.new_token_budget("ক " * 1000, config(max_length=100)) == 50


def test_decoding_is_described(tokenizer):
    assert generation.describe(config(max_length=256), tokenizer) == {
        "do_sample": False,
        "num_beams": 1,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 50,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "min_new_tokens": 0,
        "method": "greedy",
        "stop_token_ids": [260, 257],
        "max_new_tokens": "7 a word of the reference, at least 64, at most 128",
    }


def test_a_cap_of_the_configuration_stands_in_place_of_the_references_length():
    assert generation.new_token_budget("ক " * 1000, config(max_length=4096, answer_tokens=40)) == 40
    assert generation.new_token_budget("ক", config(max_length=64, answer_tokens=40)) == 32


PROMPTS = ("ক", "hello there, how are you?", "আমি", "a b c", "মন ভালো নেই", "x", "১২৩ কথা বলি চলো আজ")


def in_batches(model, tokenizer, size):
    prompts = [ids(tokenizer, text) for text in PROMPTS]
    budgets = [12, 40, 5, 33, 21, 40, 17]
    found = {}
    for places in generation.batches([len(prompt) for prompt in prompts], size):
        made = generation.answers(model, tokenizer, *([one[place] for place in places] for one in (prompts, budgets)))
        found |= zip(places, made, strict=True)
    assert sorted(found) == list(range(len(PROMPTS)))
    return [found[place] for place in range(len(PROMPTS))]


def test_batches_of_any_size_give_what_one_by_one_gives_in_order(tokenizer):
    torch.manual_seed(5)
    shape = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=262, initializer_range=0.4, **shape)).eval()
    with torch.no_grad():  # so that some answers end by themselves
        model.lm_head.weight[260] *= 2
    alone = in_batches(model, tokenizer, 1)
    assert in_batches(model, tokenizer, 3) == in_batches(model, tokenizer, 7) == alone
    assert {answer.ended for answer in alone} == {True, False}
    assert all(answer.tokens for answer in alone)
    by_hand = [greedy(model, ids(tokenizer, text), one.tokens) for text, one in zip(PROMPTS, alone, strict=True)]
    for tokens, answer in zip(by_hand, alone, strict=True):
        text = tokenizer.decode(tokens[:-1] if answer.ended else tokens)
        assert answer.text == (text.removesuffix("\ufffd") if answer.letter_cut else text)


def test_batches_hold_every_row_once_by_length():
    assert generation.batches([3, 9, 1, 9, 4], 2) == [[1, 3], [4, 0], [2]]
