"""Llama-3.1's chat template: messages to token ids, and to the labels that train the answer alone.

The template is written out here and its date line is the constant that Llama 3.1 ships, so that training, evaluation
and generation see one and the same text. A data file's text is always ordinary text: `<|eot_id|>` in a cell becomes
the tokens of those ten characters, never the control token.

What is too long for `max_length` is cut by one rule, in training and in generation. Headers and the system prompt
stay. The oldest earlier messages of a conversation go first, whole, then the beginning of the text that is left;
only when the prompt's text is gone does an answer lose its own beginning, and `<|eot_id|>` always stays. An earlier
answer of a dialogue that has lost its beginning, or the question before it, is not learned. A cut falls
between letters: a byte-level token may hold a third of a Bengali letter, so up to a few tokens more are dropped until
what is left begins with a whole letter and not with a vowel sign, a joiner or the second half of a conjunct.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from kaggle_lib.config import RunConfig
from kaggle_lib.data.read import Message
from kaggle_lib.errors import ConfigError

BOS, END_OF_TEXT, EOT = "<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"
HEADER, END_OF_HEADER = "<|start_header_id|>", "<|end_header_id|>"
# Id 128004 in both vocabularies: Llama 3.1 names it for padding, older exports of its tokenizer call it reserved.
PADS = ("<|finetune_right_pad_id|>", "<|reserved_special_token_2|>")
IGNORED = -100  # Hugging Face's label for "no loss here"

# The text of the system header that every Llama-3.1 prompt begins with, whether or not a system prompt follows.
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"

TEMPLATE = (
    "{%- set asked = messages[0].role == 'system' %}"
    "{{- bos_token + '<|start_header_id|>system<|end_header_id|>\n\n' }}"
    "{{- 'Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n' }}"
    "{{- (messages[0].content | trim if asked else '') + '<|eot_id|>' }}"
    "{%- for message in (messages[1:] if asked else messages) %}"
    "{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
)

Tokenizer = Any  # a fast transformers tokenizer: byte-level BPE with Llama-3.1's control tokens


@dataclass(frozen=True)
class Encoded:
    """One training example. `input_ids` and `labels` are equally long, at most `max_length` tokens.

    `labels` are -100 over the prompt and the ids themselves from the answer's first token to `<|eot_id|>`, the last
    (the model shifts them); so, too, for each earlier answer that is learned. `answer_bytes`: UTF-8 bytes of the
    learned answers in NFC, of the kept part where the last was cut; `<|eot_id|>` counts none. `unlearned`: how many
    earlier answers should have been learned and were cut.
    """

    input_ids: list[int]
    labels: list[int]
    answer_bytes: int
    cut: Literal["", "prompt", "answer"]
    unlearned: int = 0


@dataclass(frozen=True)
class _Turn:
    """An earlier message as ids. `size`: the text's UTF-8 bytes."""

    role: str
    header: list[int]
    text: list[int]
    size: int

    @property
    def tokens(self) -> int:
        return len(self.header) + len(self.text) + 1  # and the <|eot_id|>


def template_hash() -> str:
    """sha256 of the template's text."""
    return hashlib.sha256(TEMPLATE.encode("utf-8")).hexdigest()


def check(tokenizer: Tokenizer, embeddings: int) -> None:
    """Raises ConfigError where the tokenizer lacks a control token that the template needs, or gives an id for which
    the model has none of its `embeddings`."""
    control = [_control(tokenizer, name) for name in (BOS, END_OF_TEXT, EOT, HEADER, END_OF_HEADER)]
    highest = max(*control, pad_id(tokenizer), tokenizer.vocab_size - 1)
    if highest >= embeddings:
        what = f"it has embeddings for {embeddings} tokens, and its tokenizer gives ids up to {highest}"
        raise ConfigError([f"base_model: {what}, so it is another model's"])


def pad_id(tokenizer: Tokenizer) -> int:
    """The id that pads; never one that ends a text. Raises ConfigError where the tokenizer is not Llama-3.1's."""
    for name in PADS:
        if (found := _find(tokenizer, name)) is not None:
            return found
    raise _foreign(PADS[0])


def eot_id(tokenizer: Tokenizer) -> int:
    """The id that ends a turn. Raises ConfigError where the tokenizer is not Llama-3.1's."""
    return _control(tokenizer, EOT)


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids that end generation: a turn's end and a text's end."""
    return [eot_id(tokenizer), _control(tokenizer, END_OF_TEXT)]


def encode(messages: Sequence[Message], tokenizer: Tokenizer, config: RunConfig, *, every: bool = False) -> Encoded:
    """The training example of `messages`, the last of which is the answer.

    `every`: the earlier answers are learned, too. A `system_prompt` of the configuration stands in place of the
    messages' own. Raises ConfigError where the headers and the system prompt alone leave no room for an answer.
    """
    if not messages or messages[-1].role != "assistant":
        raise ValueError("the last message should be the assistant's")
    text = _text(messages[-1].content)
    answer = _ids(tokenizer, text)
    head, turns, tail = _prompt(messages[:-1], tokenizer, config)
    fixed = len(head) + len(tail) + 1  # and the <|eot_id|>
    left, cut_prompt = _fit(turns, config.max_length - fixed - len(answer), tokenizer)
    room = config.max_length - fixed - sum(turn.tokens for turn in left)
    kept = answer if len(answer) <= room else _last(answer, max(0, room), tokenizer)
    if answer and not kept:  # would teach to say nothing
        raise _no_room(config, config.max_length - room)
    eot = eot_id(tokenizer)
    ids, labels = list(head), [IGNORED] * len(head)
    size = len(_bytes(kept, tokenizer)) if len(kept) < len(answer) else len(text.encode("utf-8"))
    unlearned = sum(turn.role == "assistant" for turn in turns) if every else 0
    for place, turn in enumerate(left):
        ids += [*turn.header, *turn.text, eot]
        if every and turn.role == "assistant" and place:  # at place 0 its question is gone, or its own beginning
            labels += [*[IGNORED] * len(turn.header), *turn.text, eot]
            size, unlearned = size + turn.size, unlearned - 1
        else:
            labels += [IGNORED] * turn.tokens
    return Encoded(
        input_ids=[*ids, *tail, *kept, eot],
        labels=[*labels, *[IGNORED] * len(tail), *kept, eot],
        answer_bytes=size,
        cut="answer" if len(kept) < len(answer) else "prompt" if cut_prompt else "",
        unlearned=unlearned,
    )


def prompt_ids(messages: Sequence[Message], tokenizer: Tokenizer, config: RunConfig, *, room: int = 1) -> list[int]:
    """The prompt from which an answer to `messages` is generated: it ends with the assistant's header.

    Cut as in training where prompt and `room` tokens of answer are longer than `max_length`.
    """
    head, turns, tail = _prompt(messages, tokenizer, config)
    left, _ = _fit(turns, config.max_length - len(head) - len(tail) - room, tokenizer)
    eot = eot_id(tokenizer)
    ids = [*head, *(token for turn in left for token in (*turn.header, *turn.text, eot)), *tail]
    if len(ids) + room > config.max_length:
        raise _no_room(config, len(ids))
    return ids


def _prompt(
    messages: Sequence[Message], tokenizer: Tokenizer, config: RunConfig
) -> tuple[list[int], list[_Turn], list[int]]:
    """What always stays in front, the turns, and the assistant's header."""
    own, turns = "", messages
    if messages and messages[0].role == "system":
        own, turns = messages[0].content, messages[1:]
    if not turns:
        raise ValueError("there is no question")
    system = _text(own if config.system_prompt is None else config.system_prompt)
    eot = eot_id(tokenizer)
    head = [_control(tokenizer, BOS), *_header(tokenizer, "system"), *_same(tokenizer, DATES + system), eot]
    texts = [_text(turn.content) for turn in turns]
    parts = [
        _Turn(turn.role, _header(tokenizer, turn.role), _ids(tokenizer, text), len(text.encode("utf-8")))
        for turn, text in zip(turns, texts, strict=True)
    ]
    return head, parts, _header(tokenizer, "assistant")


def _fit(turns: list[_Turn], room: int, tokenizer: Tokenizer) -> tuple[list[_Turn], bool]:
    """The turns, cut from the start to `room` tokens, and whether anything was cut.

    The last turn's header and its `<|eot_id|>` stay even where there is no room for them.
    """
    left = list(turns)
    excess = sum(turn.tokens for turn in left) - room
    cut = excess > 0
    while excess > 0:
        turn = left[0]
        if len(left) == 1 or excess <= len(turn.text):
            left[0] = replace(turn, text=_last(turn.text, max(0, len(turn.text) - excess), tokenizer))
            break
        excess -= turn.tokens
        del left[0]
    return left, cut


def _last(ids: list[int], room: int, tokenizer: Tokenizer) -> list[int]:
    """The longest end of `ids` of at most `room` tokens that begins with a whole letter."""
    pieces = [_bytes([token], tokenizer) for token in ids]
    whole = b"".join(pieces)
    first = len(ids) - room
    at = sum(len(piece) for piece in pieces[:first])
    while first < len(ids) and not _begins_letter(whole, at):
        at += len(pieces[first])
        first += 1
    return ids[first:]


def _begins_letter(text: bytes, at: int) -> bool:
    """Whether a letter of the UTF-8 `text` begins at byte `at`: no continuation byte, mark, joiner, nor a conjunct's
    consonant after its hasanta."""
    if text[at] & 0xC0 == 0x80:
        return False
    letter = text[at : at + 4].decode("utf-8", "ignore")[0]
    before = text[max(0, at - 4) : at].decode("utf-8", "ignore")[-1:]
    joins = before == "\u200d" or (before != "" and unicodedata.combining(before) == 9)  # 9: any script's hasanta
    return not joins and not unicodedata.category(letter).startswith("M") and letter not in "\u200c\u200d"


@lru_cache(maxsize=1)
def _alphabet() -> dict[str, int]:
    """GPT-2's byte-level alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}


def _bytes(ids: list[int], tokenizer: Tokenizer) -> bytes:
    alphabet = _alphabet()
    return bytes(alphabet[letter] for token in tokenizer.convert_ids_to_tokens(ids) for letter in token)


def _text(content: str) -> str:
    return unicodedata.normalize("NFC", content).strip()


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """`text` as ordinary text: no BOS, and no control token whatever it says."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


@lru_cache(maxsize=64)
def _same(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The ids of what stands in every example: most of a short one's time goes into asking the tokenizer."""
    return tuple(_ids(tokenizer, text))


def _header(tokenizer: Tokenizer, role: str) -> list[int]:
    # The blank line is tokenised alone: Llama-3.1's splitter never joins it to the text that follows.
    return [
        _control(tokenizer, HEADER),
        *_same(tokenizer, role),
        _control(tokenizer, END_OF_HEADER),
        *_same(tokenizer, "\n\n"),
    ]


def _control(tokenizer: Tokenizer, name: str) -> int:
    found = _find(tokenizer, name)
    if found is None:
        raise _foreign(name)
    return found


def _find(tokenizer: Tokenizer, name: str) -> int | None:
    """The id of a control token. A tokenizer may answer with its unknown token's id for a name that it lacks."""
    found = tokenizer.convert_tokens_to_ids(name)
    return int(found) if found is not None and tokenizer.convert_ids_to_tokens(found) == name else None


def _foreign(name: str) -> ConfigError:
    return ConfigError(
        [f"base_model: its tokenizer has no {name}, so it is not one of the Llama 3.1 family that this version trains"]
    )


def _no_room(config: RunConfig, taken: int) -> ConfigError:
    return ConfigError(
        [
            f"max_length: {config.max_length} leaves no room for an answer, the template's headers and the system "
            f"prompt alone take {taken} tokens"
        ]
    )
