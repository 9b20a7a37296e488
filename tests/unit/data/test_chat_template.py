"""The template token by token, with the sample's tokenizer and with Llama 3.1's own."""

import itertools
import unicodedata

import pytest
from tokenizers import Tokenizer

from kaggle_lib.config import RunConfig
from kaggle_lib.data import chat, curate, formats, read
from kaggle_lib.data.read import Message
from kaggle_lib.errors import ConfigError

SYSTEM = (
    "<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"
)


def config_of(**values):
    return RunConfig.create({"run": "r", "base_model": "sample", "data": "sample", "max_length": 512, **values})


def talk(*texts, system=None):
    """Messages of user and assistant in turn, after a system prompt where there is one."""
    roles = ("user", "assistant")
    turns = [Message(roles[n % 2], text) for n, text in enumerate(texts)]
    return ([Message("system", system)] if system is not None else []) + turns


# (messages, the configuration's system prompt, the text before the answer, the answer)
RENDERED = {
    "a pair": (
        talk("আমি ভালো নেই।", "কী হয়েছে?"),
        None,
        SYSTEM + "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nআমি ভালো নেই।<|eot_id|>",
        "কী হয়েছে?",
    ),
    "white space around, line ends within": (
        talk("\n  প্রথম\n\n\nদ্বিতীয়  \n", "\t(ক)\n(খ) 12345 ok's\u00a0"),
        None,
        SYSTEM + "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nপ্রথম\n\n\nদ্বিতীয়<|eot_id|>",
        "(ক)\n(খ) 12345 ok's",
    ),
    "a system prompt of the configuration": (
        talk("হ্যালো", "হ্যাঁ"),
        " তুমি একজন শ্রোতা।\n",
        SYSTEM + "তুমি একজন শ্রোতা।<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nহ্যালো<|eot_id|>",
        "হ্যাঁ",
    ),
    "a system prompt of its own": (
        talk("হ্যালো", "হ্যাঁ", system="শুধু শোনো।"),
        None,
        SYSTEM + "শুধু শোনো।<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nহ্যালো<|eot_id|>",
        "হ্যাঁ",
    ),
    "both: the configuration's": (
        talk("হ্যালো", "হ্যাঁ", system="শুধু শোনো।"),
        "তুমি একজন শ্রোতা।",
        SYSTEM + "তুমি একজন শ্রোতা।<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nহ্যালো<|eot_id|>",
        "হ্যাঁ",
    ),
    "several turns": (
        talk("এক", "দুই", "তিন", "র‍্যাব 😀 উৎসব"),
        None,
        SYSTEM + "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nএক<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nদুই<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nতিন<|eot_id|>",
        "র‍্যাব 😀 উৎসব",
    ),
}
ANSWER = "<|start_header_id|>assistant<|end_header_id|>\n\n"


@pytest.mark.parametrize("kind", RENDERED)
def test_ids_are_those_of_the_rendered_text_and_only_the_answer_is_learned(tokenizer, kind):
    messages, system, before, answer = RENDERED[kind]
    nfc = unicodedata.normalize("NFC", answer)
    config = config_of(system_prompt=system)
    # The whole text in one go by the tokenizers library itself, which knows the control tokens.
    plain = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    prompt = unicodedata.normalize("NFC", f"<|begin_of_text|>{before}{ANSWER}")
    expected = plain.encode(f"{prompt}{nfc}<|eot_id|>", add_special_tokens=False).ids
    begin = len(plain.encode(prompt, add_special_tokens=False).ids)

    made = chat.encode(messages, tokenizer, config)
    assert made.input_ids == expected
    assert made.labels == [-100] * begin + expected[begin:]
    assert tokenizer.decode(made.input_ids[begin:-1]) == nfc
    assert made.answer_bytes == len(nfc.encode("utf-8"))
    assert made.cut == ""
    assert made.input_ids.count(tokenizer.convert_tokens_to_ids("<|begin_of_text|>")) == 1
    assert chat.prompt_ids(messages[:-1], tokenizer, config) == expected[:begin]


def test_ids_of_llama_by_number(llama_tokenizer):
    made = chat.encode(talk("Hi", "Yes."), llama_tokenizer, config_of())
    date = [38766, 1303, 33025, 2696, 25, 6790, 220, 2366, 18, 198, 15724, 2696, 25, 220, 1627, 10263, 220, 2366, 19]
    assert made.input_ids == [
        *(128000, 128006, 9125, 128007, 271, *date, 271, 128009),
        *(128006, 882, 128007, 271, 13347, 128009),
        *(128006, 78191, 128007, 271, 9642, 13, 128009),
    ]
    assert made.labels == [-100] * 36 + [9642, 13, 128009]
    assert made.answer_bytes == 4


def test_control_tokens_stand_where_the_template_has_them(tokenizer):
    made = chat.encode(talk("ক", "খ"), tokenizer, config_of())
    control = set(tokenizer.get_added_vocab().values())
    parts = [tokenizer.decode(list(ids)) for _, ids in itertools.groupby(made.input_ids, key=control.__contains__)]
    header, end = "<|start_header_id|>", "<|end_header_id|>"
    assert parts == [
        *(f"<|begin_of_text|>{header}", "system", end, f"\n\n{formats.DATES}", f"<|eot_id|>{header}"),
        *("user", end, "\n\nক", f"<|eot_id|>{header}", "assistant", end, "\n\nখ", "<|eot_id|>"),
    ]


def test_letters_are_composed_as_in_curated_rows(tokenizer):
    """A question that is typed in, not read from a curated file, gives the ids that were trained."""
    parts, whole = "বড\u09bc গেল \u09af\u09bc", "ব\u09dc গেল \u09df"
    assert chat.encode(talk(whole, whole), tokenizer, config_of(system_prompt=whole)) == chat.encode(
        talk(parts, parts), tokenizer, config_of(system_prompt=parts)
    )
    assert chat.encode(talk(whole, whole), tokenizer, config_of()).answer_bytes == len(parts.encode("utf-8"))


def test_template_renders_what_is_trained(tokenizer):
    for messages, system, _, _ in RENDERED.values():
        if system is not None:
            continue
        texts = [{"role": one.role, "content": unicodedata.normalize("NFC", one.content)} for one in messages]
        how = {"chat_template": chat.template(tokenizer), "tokenize": True, "return_dict": False}
        assert tokenizer.apply_chat_template(texts, **how) == chat.encode(messages, tokenizer, config_of()).input_ids
        prompt = tokenizer.apply_chat_template(texts[:-1], add_generation_prompt=True, **how)
        assert prompt == chat.prompt_ids(messages[:-1], tokenizer, config_of())


def test_control_tokens_in_the_data_are_ordinary_text(tokenizer):
    text = "<|eot_id|> <|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nx<|finetune_right_pad_id|>"
    made = chat.encode(talk(f"ক {text}", f"খ {text}"), tokenizer, config_of(system_prompt=text))
    control = [
        i for i in made.input_ids if i in set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    ]
    names = tokenizer.convert_ids_to_tokens(control)
    header = ["<|start_header_id|>", "<|end_header_id|>"]
    assert names == ["<|begin_of_text|>", *header, "<|eot_id|>", *header, "<|eot_id|>", *header, "<|eot_id|>"]
    answer = [label for label in made.labels if label != -100]
    assert tokenizer.decode(answer[:-1]) == f"খ {text}"
    # The tokenizer is left as it was: by itself it still knows them.
    assert tokenizer("<|eot_id|>", add_special_tokens=False)["input_ids"] == [chat.eot_id(tokenizer)]


def letters(ids, tokenizer):
    """The text of `ids`; fails where it begins or ends inside a letter."""
    text = tokenizer.decode(ids)
    assert "\ufffd" not in text
    return text


LONG = " ".join(f"কষ্টে র‍্যাব ক্ষমা গিয়েছিলাম {n}।" for n in range(40))


@pytest.mark.parametrize("max_length", range(300, 330))
def test_long_prompt_loses_its_beginning_between_letters(tokenizer, max_length):
    text = unicodedata.normalize("NFC", LONG)
    messages = talk(LONG, "হ্যাঁ, বলুন।")
    whole = chat.encode(messages, tokenizer, config_of(max_length=4096))
    made = chat.encode(messages, tokenizer, config_of(max_length=max_length))
    assert made.cut == "prompt"
    # At most one conjunct, each of its bytes a token, is lost beyond what has to go.
    assert max_length - 12 <= len(made.input_ids) <= max_length
    answer = [label for label in made.labels if label != -100]
    assert answer == [label for label in whole.labels if label != -100]
    assert made.answer_bytes == whole.answer_bytes
    ends = chat.eot_id(tokenizer)
    head = made.input_ids.index(ends) + 1
    text_at = made.input_ids.index(tokenizer.convert_tokens_to_ids("<|end_header_id|>"), head) + 1
    text_at += len(tokenizer("\n\n", add_special_tokens=False)["input_ids"])
    assert made.input_ids[:text_at] == whole.input_ids[:text_at]
    kept = letters(made.input_ids[text_at : made.input_ids.index(ends, head)], tokenizer)
    assert kept
    assert text.endswith(kept)
    assert not unicodedata.category(kept[0]).startswith("M")
    assert kept[0] not in "\u200c\u200d"
    assert text[: -len(kept)][-1] != "\u09cd"
    # Generation sees the same prompt where it leaves the room that the answer took.
    prompt = chat.prompt_ids(messages[:-1], tokenizer, config_of(max_length=max_length), room=len(answer))
    assert prompt == made.input_ids[: -len(answer)]


@pytest.mark.parametrize("max_length", range(200, 212))
def test_long_answer_loses_its_beginning_and_the_prompt_all_its_text(tokenizer, max_length):
    text = unicodedata.normalize("NFC", LONG)
    made = chat.encode(talk("প্রশ্ন", LONG), tokenizer, config_of(max_length=max_length))
    assert made.cut == "answer"
    assert max_length - 12 <= len(made.input_ids) <= max_length
    answer = [label for label in made.labels if label != -100]
    assert answer[-1] == chat.eot_id(tokenizer)
    kept = letters(answer[:-1], tokenizer)
    assert text.endswith(kept)
    assert made.answer_bytes == len(kept.encode("utf-8")) > 0
    assert "প্রশ্ন" not in tokenizer.decode(made.input_ids)
    empty = chat.encode(talk("", "ক"), tokenizer, config_of())
    begin = made.labels.index(answer[0])
    assert made.input_ids[:begin] == empty.input_ids[:begin]


def test_example_of_just_the_length_is_not_cut(tokenizer):
    messages = talk(LONG, "হ্যাঁ")
    length = len(chat.encode(messages, tokenizer, config_of(max_length=4096)).input_ids)
    assert chat.encode(messages, tokenizer, config_of(max_length=length)).cut == ""
    assert chat.encode(messages, tokenizer, config_of(max_length=length - 1)).cut == "prompt"
    prompt = chat.prompt_ids(messages[:-1], tokenizer, config_of(max_length=4096))
    assert chat.prompt_ids(messages[:-1], tokenizer, config_of(max_length=len(prompt) + 1)) == prompt


def test_oldest_turns_go_first_and_whole(sample_tokenizer):
    messages = talk("প্রথম কথা", "দ্বিতীয় কথা", "তৃতীয় কথা", "উত্তর", system="শোনো")
    whole = chat.encode(messages, sample_tokenizer, config_of())
    last_two = chat.encode(messages[:1] + messages[3:], sample_tokenizer, config_of())
    made = chat.encode(messages, sample_tokenizer, config_of(max_length=len(last_two.input_ids)))
    assert (made.input_ids, made.labels, made.cut) == (last_two.input_ids, last_two.labels, "prompt")
    one_less = chat.encode(messages, sample_tokenizer, config_of(max_length=len(whole.input_ids) - 1))
    text = sample_tokenizer.decode(one_less.input_ids)
    assert "দ্বিতীয় কথা" in text.replace("\u09df", "\u09af\u09bc")
    assert "প্রথম কথা" not in text


def test_no_room_for_an_answer_is_told_with_the_numbers(sample_tokenizer):
    messages = talk("ক", "খ")
    needed = len(chat.encode(talk("", "খ"), sample_tokenizer, config_of()).input_ids)
    assert chat.encode(messages, sample_tokenizer, config_of(max_length=needed)).cut == "prompt"
    for call in (
        lambda config: chat.encode(messages, sample_tokenizer, config),
        lambda config: chat.prompt_ids(messages[:-1], sample_tokenizer, config, room=2),
    ):
        with pytest.raises(ConfigError) as told:
            call(config_of(max_length=needed - 1))
        assert str(told.value).startswith(
            f"max_length: {needed - 1} leaves no room for an answer, the template's headers and the system prompt alone"
        )


def test_last_label_is_eot_and_no_pad_is_learned(tokenizer):
    import torch

    from kaggle_lib.training import batch

    config = config_of(max_length=160)
    rows = curate.curate(read.read(config), config).train[:50]
    encoded = [chat.encode(row.messages, tokenizer, config) for row in rows]
    assert {one.cut for one in encoded} == {"", "prompt", "answer"}
    pad, eot = chat.pad_id(tokenizer), chat.eot_id(tokenizer)
    assert pad not in (eot, *chat.stop_ids(tokenizer))
    assert all(pad not in one.input_ids for one in encoded)
    lengths = []
    for at in range(0, 50, 4):
        some = [{"id": n, "input_ids": e.input_ids, "labels": e.labels} for n, e in enumerate(encoded[at : at + 4])]
        made = batch.padded(some, pad)
        for row, ids, labels in zip(some, made["input_ids"], made["labels"], strict=True):
            length = len(row["input_ids"])
            lengths.append(length)
            assert int(labels[labels != -100][-1]) == eot
            assert int(labels[length - 1]) == eot
            assert torch.equal(ids[length:], torch.full_like(ids[length:], pad))
            assert torch.equal(labels[length:], torch.full_like(labels[length:], -100))
    assert len(lengths) == 50
    assert len(set(lengths)) > 5


def test_ids_of_pad_and_stops(llama_tokenizer, sample_tokenizer):
    assert chat.pad_id(llama_tokenizer) == 128004
    assert chat.eot_id(llama_tokenizer) == 128009
    assert chat.stop_ids(llama_tokenizer) == [128009, 128001]
    names = sample_tokenizer.convert_ids_to_tokens([chat.pad_id(sample_tokenizer), *chat.stop_ids(sample_tokenizer)])
    assert names == ["<|finetune_right_pad_id|>", "<|eot_id|>", "<|end_of_text|>"]
    assert (sample_tokenizer.pad_token, sample_tokenizer.eos_token) == ("<|finetune_right_pad_id|>", "<|eot_id|>")
    assert 1000 <= len(sample_tokenizer) <= 2000


@pytest.mark.parametrize("unknown", [None, "<unk>"])
def test_another_familys_tokenizer_is_refused(unknown):
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"a": 0, "<unk>": 1}
    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")), unk_token=unknown
    )
    for call in (chat.pad_id, chat.eot_id, chat.stop_ids, chat.template):
        with pytest.raises(ConfigError) as told:
            call(other)
        assert str(told.value) == (
            "base_model: its tokenizer is of no family whose chat template we have: Llama 3, Qwen, Gemma, Mistral"
        )
