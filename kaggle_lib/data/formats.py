"""How families of models write a conversation: the templates that we train with, chosen by what a tokenizer has.

They are written out here, so that training, evaluation and generation see one and the same text. A model that comes
with a chat template is trained with one of these only where both write a question alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from kaggle_lib.data.read import ROLES
from kaggle_lib.errors import ConfigError

CONTROL = re.compile(r"(</?\|?\w+\|?>|\[/?[A-Z]+\])")
# The text of the system header that every Llama-3.1 prompt begins with, whether or not a system prompt follows.
DATES = "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n"


@dataclass(frozen=True)
class Format:
    """`before` and `after` are what stands around a text of each role; in them and in `begin` what `CONTROL` matches
    is a control token. The assistant's `after` begins with the first of `stops`; the first of `pads` that is there
    pads.

    `preamble`: what a system prompt begins with (the system's turn is left out where both are empty); None: the family
    knows no such role, and a system prompt stands before the first user's text, an empty line between.
    """

    family: str
    begin: str
    before: Mapping[str, str]
    after: Mapping[str, str]
    stops: tuple[str, ...]
    pads: tuple[str, ...]
    preamble: str | None = ""

    @cached_property
    def names(self) -> list[str]:
        """Its control tokens, without the pads."""
        text = "".join([self.begin, *self.before.values(), *self.after.values(), *self.stops])
        return list(dict.fromkeys(CONTROL.findall(text)))

    @cached_property
    def template(self) -> str:
        """The same for transformers: Jinja."""

        def texts(of: Mapping[str, str]) -> str:
            return "{" + ", ".join(f"'{role}': {_quoted(text)}" for role, text in of.items()) + "}[message.role]"

        system, joined = "", " + (system + '\\n\\n' if loop.first and system else '')"
        if self.preamble is not None:
            before, after = _quoted(self.before["system"] + self.preamble), _quoted(self.after["system"])
            turn, joined = f"{{{{- {before} + system + {after} }}}}", ""
            system = turn if self.preamble else f"{{%- if system %}}{turn}{{%- endif %}}"
        return (
            "{%- set asked = messages[0].role == 'system' %}"
            "{%- set system = messages[0].content | trim if asked else '' %}"
            f"{{{{- {_quoted(self.begin)} }}}}{system}"
            "{%- for message in (messages[1:] if asked else messages) %}"
            f"{{{{- {texts(self.before)}{joined} + message.content | trim + {texts(self.after)} }}}}"
            "{%- endfor %}"
            f"{{%- if add_generation_prompt %}}{{{{- {_quoted(self.before['assistant'])} }}}}{{%- endif %}}"
        )


def _quoted(text: str) -> str:
    return "'" + text.replace("\n", "\\n") + "'"


_CHATML = Format(
    "Qwen",
    "",
    {role: f"<|im_start|>{role}\n" for role in ROLES},
    dict.fromkeys(ROLES, "<|im_end|>\n"),
    stops=("<|im_end|>", "<|endoftext|>"),
    pads=("<|endoftext|>",),
)
FORMATS = (
    Format(
        "Llama 3",
        "<|begin_of_text|>",
        {role: f"<|start_header_id|>{role}<|end_header_id|>\n\n" for role in ROLES},
        dict.fromkeys(ROLES, "<|eot_id|>"),
        stops=("<|eot_id|>", "<|end_of_text|>"),
        # Id 128004 in both vocabularies: Llama 3.1 names it for padding, older exports of its tokenizer reserve it.
        pads=("<|finetune_right_pad_id|>", "<|reserved_special_token_2|>"),
        preamble=DATES,
    ),
    _CHATML,
    # Qwen 3 told not to think. Earlier answers have the empty thought, too, as each that is learned must begin so.
    replace(_CHATML, before={**_CHATML.before, "assistant": "<|im_start|>assistant\n<think>\n\n</think>\n\n"}),
    Format(
        "Gemma",
        "<bos>",
        {"user": "<start_of_turn>user\n", "assistant": "<start_of_turn>model\n"},
        {"user": "<end_of_turn>\n", "assistant": "<end_of_turn>\n"},
        stops=("<end_of_turn>", "<eos>"),
        pads=("<pad>",),
        preamble=None,
    ),
    Format(
        "Mistral",
        "<s>",
        {"user": "[INST]", "assistant": ""},
        {"user": "[/INST]", "assistant": "</s>"},
        stops=("</s>",),
        pads=("<pad>",),
        preamble=None,
    ),
)


@lru_cache(maxsize=8)
def of(tokenizer: Any) -> Format:
    """The format of a tokenizer's family. Raises ConfigError where it is of none, or where its own chat template
    writes a question in another way."""
    lacking = [_lacking(tokenizer, one) for one in FORMATS]
    own = getattr(tokenizer, "chat_template", None) and _question(tokenizer)
    for one, missing in zip(FORMATS, lacking, strict=True):
        question = one.before["user"] + "?" + one.after["user"] + one.before["assistant"]
        if not missing and (not own or own.endswith(question)):
            return one
    # Nearest is the one of which least is missing; of a stranger everything is.
    nearest, missing = min(zip(FORMATS, lacking, strict=True), key=lambda pair: len(pair[1]) / len(pair[0].names))
    if not missing:
        what = f"its own chat template writes a question as {own!r}, which no family that we train does"
        raise ConfigError([f"base_model: {what}; a local copy without chat_template is trained as {nearest.family}"])
    if len(missing) > len(nearest.names):
        families = ", ".join(dict.fromkeys(one.family for one in FORMATS))
        raise ConfigError([f"base_model: its tokenizer is of no family whose chat template we have: {families}"])
    raise ConfigError([f"base_model: its tokenizer has no {missing[0]}, which {nearest.family}'s chat template needs"])


def _lacking(tokenizer: Any, one: Format) -> list[str]:
    missing = [name for name in one.names if find(tokenizer, name) is None]
    return missing if any(find(tokenizer, name) is not None for name in one.pads) else [*missing, one.pads[0]]


def _question(tokenizer: Any) -> str:
    """A question as the tokenizer's own template writes it, up to where the answer begins, or what it raises."""
    try:
        text: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    except Exception as error:  # whatever a stranger's template does
        return f"{type(error).__name__}: {error}"
    return text


def find(tokenizer: Any, name: str) -> int | None:
    """The id of a control token. A tokenizer may answer with its unknown token's id for a name that it lacks."""
    found = tokenizer.convert_tokens_to_ids(name)
    return int(found) if found is not None and tokenizer.convert_ids_to_tokens(found) == name else None
