"""Messages to token ids, and to the labels that train the answer alone, in the format of the tokenizer's family.

A data file's text is always ordinary text: `<|eot_id|>` in a cell becomes the tokens of those ten characters, never the
control token.

What is too long for `max_length` is cut by one rule, in training and in generation. Headers and the system prompt
stay. The oldest earlier messages of a conversation go first, whole, then the beginning of the text that is left;
only when the prompt's text is gone does an answer lose its own beginning, and the token that ends it always stays. An
earlier answer of a dialogue that has lost its beginning, or the question before it, is not learned. A cut falls between
letters: a byte-level token may hold a third of a Bengali letter, so up to a few tokens more are dropped until what is
left begins with a whole letter and not with a vowel sign, a joiner or the second half of a conjunct.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from kaggle_lib.config import RunConfig
from kaggle_lib.data import formats
from kaggle_lib.data.read import ROLES, Message
from kaggle_lib.errors import ConfigError

IGNORED = -100  # Hugging Face's label for "no loss here"
BYTE = re.compile(r"<0x[0-9A-F]{2}>")

Tokenizer = Any  # a fast transformers tokenizer, its BPE of bytes or with bytes to fall back to


@dataclass(frozen=True)
class Encoded:
    """One training example. `input_ids` and `labels` are equally long, at most `max_length` tokens.

    `labels` are -100 over the prompt and the ids themselves from the answer's first token to the one that ends a turn,
    the last (the model shifts them); so, too, for each earlier answer that is learned. `answer_bytes`: UTF-8 bytes of
    the learned answers in NFC, of the kept part where the last was cut; the token that ends a turn counts none.
    `unlearned`: how many earlier answers should have been learned and were cut.
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
    before: tuple[int, ...]
    text: list[int]
    after: tuple[int, ...]
    size: int

    @property
    def tokens(self) -> int:
        return len(self.before) + len(self.text) + len(self.after)


@dataclass(frozen=True)
class _Prompt:
    """`head` always stays in front; `lead` stands before the first turn that is kept, where a system prompt has none
    of its own; `tail`: what the answer follows."""

    head: list[int]
    turns: list[_Turn]
    tail: tuple[int, ...]
    lead: tuple[int, ...]
    ends_user: tuple[int, ...]

    def first(self, turn: _Turn) -> _Turn:
        """The turn as it is where it comes first: a user's text shares its turn with the system prompt."""
        if not self.lead:
            return turn
        return replace(turn, before=self.lead if turn.role == "user" else (*self.lead, *self.ends_user, *turn.before))


def template(tokenizer: Tokenizer) -> str:
    """The Jinja template that we train with."""
    return formats.of(tokenizer).template


def check(tokenizer: Tokenizer, embeddings: int) -> None:
    """Raises ConfigError where the tokenizer is of no family that we train, gives an id for which the model has none of
    its `embeddings`, or reads the parts of a conversation in another way than the whole of it."""
    form = formats.of(tokenizer)
    highest = max(pad_id(tokenizer), *stop_ids(tokenizer), tokenizer.vocab_size - 1)
    if highest >= embeddings:
        what = f"it has embeddings for {embeddings} tokens, and its tokenizer gives ids up to {highest}"
        raise ConfigError([f"base_model: {what}, so it is another model's"])
    texts = ["Be brief.", "Eine Frage:\n\n1 \u0995\u09b7\u09cd\u099f, 23's \U0001f600?", "So \u0995!", "?"]
    messages = [Message(role, text) for role, text in zip((*ROLES, "user"), texts, strict=True)]
    ours = prompt_ids(messages, tokenizer, RunConfig.create({"run": "check", "base_model": "-", "data": "-"}))
    plain = [vars(one) for one in messages]
    how = {"chat_template": form.template, "add_generation_prompt": True, "return_dict": False}
    # A thought may stand in data; what begins and ends turns may not.
    control = {formats.find(tokenizer, name) for name in form.names if "think" not in name}
    if (
        tokenizer.apply_chat_template(plain, **how) != ours
        or control & set(_ids(tokenizer, "".join(form.names)))
        or any(_bytes(_ids(tokenizer, text), tokenizer) != text.encode("utf-8") for text in texts)
    ):
        what = f"its tokenizer reads a text otherwise than {form.family}'s do, by parts or whole"
        raise ConfigError([f"base_model: {what}, so it cannot be trained"])


def pad_id(tokenizer: Tokenizer) -> int:
    """The id that pads; never one that ends a turn. Raises what `formats.of` raises."""
    found = (formats.find(tokenizer, name) for name in formats.of(tokenizer).pads)
    return next(one for one in found if one is not None)


def eot_id(tokenizer: Tokenizer) -> int:
    """The id that ends a turn. Raises what `formats.of` raises."""
    return _fixed(tokenizer, formats.of(tokenizer).stops[0])[0]


def stop_ids(tokenizer: Tokenizer) -> list[int]:
    """The ids that end generation: a turn's end and a text's end. Raises what `formats.of` raises."""
    return [_fixed(tokenizer, name)[0] for name in formats.of(tokenizer).stops]


def encode(messages: Sequence[Message], tokenizer: Tokenizer, config: RunConfig, *, every: bool = False) -> Encoded:
    """The training example of `messages`, the last of which is the answer.

    `every`: the earlier answers are learned, too. A `system_prompt` of the configuration stands in place of the
    messages' own. Raises ConfigError where the headers and the system prompt alone leave no room for an answer.
    """
    if not messages or messages[-1].role != "assistant":
        raise ValueError("the last message should be the assistant's")
    text = _text(messages[-1].content)
    answer = _ids(tokenizer, text)
    prompt = _prompt(messages[:-1], tokenizer, config)
    head, tail = prompt.head, prompt.tail
    fixed = len(head) + len(tail) + 1  # and the token that ends the answer
    left, cut_prompt = _fit(prompt, config.max_length - fixed - len(answer), tokenizer)
    room = config.max_length - fixed - sum(turn.tokens for turn in left)
    kept = answer if len(answer) <= room else _last(answer, max(0, room), tokenizer)
    if answer and not kept:  # would teach to say nothing
        raise _no_room(config, config.max_length - room)
    eot = eot_id(tokenizer)
    ids, labels = list(head), [IGNORED] * len(head)
    size = len(_bytes(kept, tokenizer)) if len(kept) < len(answer) else len(text.encode("utf-8"))
    unlearned = sum(turn.role == "assistant" for turn in prompt.turns) if every else 0
    for place, turn in enumerate(left):
        ids += [*turn.before, *turn.text, *turn.after]
        if every and turn.role == "assistant" and place:  # at place 0 its question is gone, or its own beginning
            labels += [*[IGNORED] * len(turn.before), *turn.text, eot, *[IGNORED] * (len(turn.after) - 1)]
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
    prompt = _prompt(messages, tokenizer, config)
    left, _ = _fit(prompt, config.max_length - len(prompt.head) - len(prompt.tail) - room, tokenizer)
    turns = (token for turn in left for token in (*turn.before, *turn.text, *turn.after))
    ids = [*prompt.head, *turns, *prompt.tail]
    if len(ids) + room > config.max_length:
        raise _no_room(config, len(ids))
    return ids


def _prompt(messages: Sequence[Message], tokenizer: Tokenizer, config: RunConfig) -> _Prompt:
    own, turns = "", messages
    if messages and messages[0].role == "system":
        own, turns = messages[0].content, messages[1:]
    if not turns:
        raise ValueError("there is no question")
    system = _text(own if config.system_prompt is None else config.system_prompt)
    form = formats.of(tokenizer)
    before, after = ({role: _fixed(tokenizer, text) for role, text in of.items()} for of in (form.before, form.after))
    head = list(_fixed(tokenizer, form.begin))
    lead: tuple[int, ...] = ()
    if form.preamble is None:
        lead = (*before["user"], *_same(tokenizer, f"{system}\n\n")) if system else ()
    elif form.preamble or system:
        head += [*before["system"], *_same(tokenizer, form.preamble + system), *after["system"]]
    texts = [_text(turn.content) for turn in turns]
    parts = [
        _Turn(turn.role, before[turn.role], _ids(tokenizer, text), after[turn.role], len(text.encode("utf-8")))
        for turn, text in zip(turns, texts, strict=True)
    ]
    return _Prompt(head, parts, before["assistant"], lead, after["user"])


def _fit(prompt: _Prompt, room: int, tokenizer: Tokenizer) -> tuple[list[_Turn], bool]:
    """The turns, cut from the start to `room` tokens, and whether anything was cut.

    What stands around the last turn's text stays even where there is no room for it.
    """
    left = [prompt.first(prompt.turns[0]), *prompt.turns[1:]]
    cut = False
    while (excess := sum(turn.tokens for turn in left) - room) > 0:
        cut, turn = True, left[0]
        if len(left) == 1 or excess <= len(turn.text):
            left[0] = replace(turn, text=_last(turn.text, max(0, len(turn.text) - excess), tokenizer))
            break
        left[:2] = [prompt.first(left[1])]
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


@lru_cache(maxsize=8)
def _of_bytes(tokenizer: Tokenizer) -> bool:
    """Whether its letters are GPT-2's for bytes; else they are text, with a token for each byte that it lacks."""
    return formats.find(tokenizer, "<0x0A>") is None


def _bytes(ids: list[int], tokenizer: Tokenizer) -> bytes:
    tokens = tokenizer.convert_ids_to_tokens(ids)
    if _of_bytes(tokenizer):
        alphabet = _alphabet()
        return bytes(alphabet[letter] for token in tokens for letter in token)
    return b"".join(
        bytes([int(token[3:5], 16)]) if BYTE.fullmatch(token) else token.replace("\u2581", " ").encode("utf-8")
        for token in tokens
    )


def _text(content: str) -> str:
    return unicodedata.normalize("NFC", content).strip()


def _ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """`text` as ordinary text: no BOS, and no control token whatever it says."""
    return list(tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


@lru_cache(maxsize=64)
def _same(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The ids of what stands in every example: most of a short one's time goes into asking the tokenizer."""
    return tuple(_ids(tokenizer, text))


@lru_cache(maxsize=256)
def _fixed(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The ids of a format's own text, in which control tokens stand."""
    parts = ((part, formats.find(tokenizer, part)) for part in formats.CONTROL.split(text) if part)
    return tuple(
        one
        for part, control in parts
        for one in ((control,) if control is not None and formats.CONTROL.fullmatch(part) else _ids(tokenizer, part))
    )


def _no_room(config: RunConfig, taken: int) -> ConfigError:
    return ConfigError(
        [
            f"max_length: {config.max_length} leaves no room for an answer, the template's headers and the system "
            f"prompt alone take {taken} tokens"
        ]
    )
