"""What a limit takes away, for every limit there is: first the prompt's text, then the answer's beginning."""

import unicodedata

import pytest

from kaggle_lib.config import RunConfig
from kaggle_lib.data import chat
from kaggle_lib.data.read import Message
from kaggle_lib.errors import ConfigError

TEXT = "ক্ষ্ম র‍্যাব 👨‍👩‍👧 क्या ড়ঢ়য় উৎসব"
TALK = [
    Message("system", "শোনো।"),
    Message("user", f"আগে {TEXT}"),
    Message("assistant", f"হ্যাঁ {TEXT}"),
    Message("user", f"কেন? {TEXT}"),
    Message("assistant", f"কারণ {TEXT}"),
]
# The longest of the letters above in bytes, each of which may be a token: the family, with its two joiners.
LETTER = 18


def config_of(max_length, **values):
    return RunConfig.create(
        {"run": "r", "base_model": "sample", "data": "sample", "max_length": max(16, max_length), **values}
    )


def nfc(message):
    return unicodedata.normalize("NFC", message.content)


def whole_letters(kept, text):
    """Whether `kept` is an end of `text` that begins where a letter does."""
    if not text.endswith(kept):
        return False
    before = text[: len(text) - len(kept)][-1:]
    joined = before == "\u200d" or (before and unicodedata.combining(before) == 9)
    return not kept or not (joined or kept[0] == "\u200d" or unicodedata.category(kept[0])[0] == "M")


def turns(ids, tokenizer):
    """(role, text) of each turn; the header's blank line is no part of the text."""
    found = []
    for part in tokenizer.decode(ids).split("<|eot_id|>")[:-1]:
        header, text = part.removeprefix("<|begin_of_text|>").split("<|end_header_id|>")
        assert text.startswith("\n\n")
        found.append((header.removeprefix("<|start_header_id|>"), text[2:]))
    return found


@pytest.mark.parametrize("first", [0, 3], ids=["conversation", "pair"])
def test_every_limit(tokenizer, first):
    messages = [*TALK[:1], *TALK[max(1, first) :]]
    whole = chat.encode(messages, tokenizer, config_of(4096))
    answer = [label for label in whole.labels if label != -100]
    head = whole.input_ids.index(chat.eot_id(tokenizer)) + 1
    least = len(
        chat.encode([TALK[0], Message("user", ""), Message("assistant", "।")], tokenizer, config_of(512)).labels
    )
    seen = []
    for limit in range(len(whole.input_ids), least - 2, -1):
        try:
            made = chat.encode(messages, tokenizer, config_of(limit))
        except ConfigError as error:
            assert limit < least + LETTER
            assert str(error).startswith(f"max_length: {limit} leaves no room for an answer")
            continue
        seen.append(made.cut)
        assert limit - LETTER < len(made.input_ids) <= limit or limit == len(whole.input_ids)
        assert len(made.labels) == len(made.input_ids)
        assert made.input_ids[:head] == whole.input_ids[:head]
        learned = [label for label in made.labels if label != -100]
        assert made.labels == [-100] * (len(made.labels) - len(learned)) + learned
        assert made.input_ids[-len(learned) :] == learned
        assert learned[-1] == chat.eot_id(tokenizer)
        assert len(learned) > 1

        told = turns(made.input_ids, tokenizer)
        assert told[0][0] == "system"
        assert told[0][1].endswith("\n\nশোনো।")
        kept = told[1:]
        assert [role for role, _ in kept] == [message.role for message in messages[-len(kept) :]]
        # Whole turns go from the front; the one that now stands first has lost its beginning, the others nothing.
        for (_, text), message in zip(kept[1:-1], messages[-len(kept) + 1 : -1], strict=True):
            assert text == nfc(message)
        assert whole_letters(kept[0][1], nfc(messages[-len(kept)]))
        if made.cut == "answer":
            assert len(kept) == 2
            assert kept[0][1] == ""
            assert whole_letters(kept[1][1], nfc(messages[-1]))
            assert 0 < made.answer_bytes == len(kept[1][1].encode("utf-8")) < whole.answer_bytes
        else:
            assert learned == answer
            assert made.answer_bytes == whole.answer_bytes
        prompt = made.input_ids[: -len(learned)]
        if made.cut != "answer":
            assert chat.prompt_ids(messages[:-1], tokenizer, config_of(limit), room=len(answer)) == prompt
    assert seen == sorted(seen, key=["", "prompt", "answer"].index)
    assert (seen.count(""), seen.count("prompt") > 20, seen.count("answer") > 10) == (1, True, True)


def test_system_prompt_of_the_configuration_stays_at_every_limit(sample_tokenizer):
    for limit in range(70, 120):
        made = chat.encode(TALK, sample_tokenizer, config_of(limit, system_prompt="তুমি একজন ভালো শ্রোতা।"))
        system = turns(made.input_ids, sample_tokenizer)[0][1]
        assert system.endswith("2024\n\n" + unicodedata.normalize("NFC", "তুমি একজন ভালো শ্রোতা।"))


@pytest.mark.parametrize(
    ("text", "begins"),
    [
        ("কে", "ক"),
        ("ক্ষ্মা", "ক"),
        ("ক্‌ষ", "কষ"),  # the non-joiner keeps the two apart
        ("র‍্যা", "র"),
        ("ক্‍ষ", "ক"),
        ("क्या", "क"),
        ("ড়", "ড"),
        ("👨‍👩‍👧", "👨"),
        ("e\u0301a", "ea"),
    ],
)
def test_letters_begin_at(text, begins):
    content = text.encode("utf-8")
    places = [at for at in range(len(content)) if chat._begins_letter(content, at)]
    assert "".join(content[at:].decode("utf-8")[0] for at in places) == begins
