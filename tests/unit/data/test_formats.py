"""Which family a tokenizer is of, and those that would be trained wrongly by any family's format."""

import json

import pytest
from support.families import FAMILIES, tokenizer_of
from tokenizers import Tokenizer

from kaggle_lib.data import chat, formats
from kaggle_lib.errors import ConfigError

OTHERWISE = "base_model: its tokenizer reads a text otherwise than {}'s do, by parts or whole, so it cannot be trained"


def refusal(tokenizer):
    with pytest.raises(ConfigError) as told:
        chat.check(tokenizer, 10_000)
    return str(told.value)


def changed(tokenizer, change):
    """The tokenizer with its JSON changed."""
    from transformers import PreTrainedTokenizerFast

    content = json.loads(tokenizer.backend_tokenizer.to_str())
    change(content)
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(content)))
    made.chat_template = tokenizer.chat_template
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tokenizer_is_of_its_family_with_and_without_its_own_template(family):
    tokenizer = tokenizer_of(family)
    chat.check(tokenizer, len(tokenizer))
    found = formats.of(tokenizer)
    assert found.family.lower() in family
    # What is saved with a checkpoint is of the same format.
    again = changed(tokenizer, lambda content: None)
    again.chat_template = found.template
    assert formats.of(again) is found
    bare = changed(tokenizer, lambda content: None)
    bare.chat_template = None
    assert formats.of(bare).family == found.family
    thinks = "<think>" in found.before["assistant"]
    assert thinks == (family == "qwen3")
    if thinks:
        assert "<think>" not in formats.of(bare).before["assistant"]  # nothing says that it thinks


def test_another_way_to_write_a_question_is_refused():
    tokenizer = tokenizer_of("qwen2")
    tokenizer.chat_template = (
        "{% for one in messages %}<|im_start|>{{ one.role }}: {{ one.content }}<|im_end|>{% endfor %}"
    )
    assert refusal(tokenizer) == (
        "base_model: its own chat template writes a question as '<|im_start|>user: ?<|im_end|>', which no family that "
        "we train does; a local copy without chat_template is trained as Qwen"
    )
    other = tokenizer_of("qwen2")
    other.chat_template = "{{ raise_exception('never') }}"
    assert "writes a question as 'TemplateError: never', which" in refusal(other)


def test_what_would_be_read_otherwise_is_refused():
    # A space before each text, as SentencePiece's dummy prefix puts it.
    prefixed = changed(
        tokenizer_of("gemma2"),
        lambda content: content.update(
            normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, content["normalizer"]]}
        ),
    )
    assert refusal(prefixed) == OTHERWISE.format("Gemma")

    # Control tokens that a text in the data would become.
    def plain(content):
        for token in content["added_tokens"]:
            token["special"] = False

    assert refusal(changed(tokenizer_of("mistral"), plain)) == OTHERWISE.format("Mistral")

    # No bytes to fall back to: a letter that was not seen is lost.
    def without_bytes(content):
        content["model"]["byte_fallback"] = False

    assert refusal(changed(tokenizer_of("gemma3"), without_bytes)) == OTHERWISE.format("Gemma")


def test_more_ids_than_embeddings_and_a_missing_token_are_told():
    tokenizer = tokenizer_of("mistral")
    highest = tokenizer.vocab_size - 1
    with pytest.raises(ConfigError, match=f"it has embeddings for {highest} tokens, and its tokenizer gives ids up to"):
        chat.check(tokenizer, highest)

    def renamed(content):
        content["added_tokens"][4]["content"] = "[/ANSWER]"
        content["model"]["vocab"]["[/ANSWER]"] = content["model"]["vocab"].pop("[/INST]")

    assert refusal(changed(tokenizer, renamed)) == (
        "base_model: its tokenizer has no [/INST], which Mistral's chat template needs"
    )
