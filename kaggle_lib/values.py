"""A value by the type of its field: text is read, typed values are taken, and nothing is guessed. What a Hub id is."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic.fields import FieldInfo

BROKEN = re.compile("[\x00\ud800-\udfff]")
TRUE, FALSE = ("true", "yes", "on"), ("false", "no", "off")
# huggingface_hub's rule for each part of an id (utils/_validators.py); both together have at most 96 characters.
HUB_NAME = re.compile(r"(?!.*(--|\.\.|\.git$))[A-Za-z0-9_]([A-Za-z0-9._-]*[A-Za-z0-9_])?")


def is_hub_id(text: str) -> bool:
    """Whether `text` can be the id of a repo on the Hub: `name`, or `user/name`."""
    parts = text.split("/")
    return len(parts) <= 2 and len(text) <= 96 and all(HUB_NAME.fullmatch(part) for part in parts)


def _kinds(annotation: Any) -> list[Any]:
    """The plain types a field allows, Literals as they are: `int | Literal["auto"]` gives both."""
    if typing.get_origin(annotation) is Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        return [kind for part in typing.get_args(annotation) for kind in _kinds(part)]
    return [annotation]


def read(name: str, annotation: Any, value: object) -> object:
    """`value` of the field `name` as the type that `annotation` allows. Raises ValueError saying what was expected."""
    kinds = _kinds(annotation)
    literals = _literals(kinds)
    if isinstance(value, str):
        if BROKEN.search(value):  # no file of ours could hold it
            raise ValueError("should be UTF-8 text without NUL")
        if value in literals:
            return value
        text = value.strip()
        if type(None) in kinds and text == "":
            return None
        if bool in kinds and text.lower() in TRUE + FALSE:
            return text.lower() in TRUE
        if int in kinds and re.fullmatch(r"[+-]?[0-9]+", text):
            return int(text)
        if float in kinds and re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text):
            return _finite(float(text))
        if str in kinds:
            return value
        if any(typing.get_origin(kind) is tuple for kind in kinds):
            return tuple(part.strip() for part in text.split(",") if part.strip())
    elif value is None and type(None) in kinds:
        return None
    elif isinstance(value, bool):
        if bool in kinds:
            return value
    elif isinstance(value, int):
        if int in kinds:
            return value
        if float in kinds:
            return _finite(value)
    elif isinstance(value, float) and float in kinds:
        return _finite(value)
    elif isinstance(value, (list, tuple)) and any(typing.get_origin(kind) is tuple for kind in kinds):
        return tuple(value)
    elif isinstance(value, Path) and str in kinds:
        return str(value)
    if str in kinds and isinstance(value, (bool, int, float)):
        raise ValueError(
            f"is text, and {value!r} came as {type(value).__name__}, so its spelling may be lost; "
            f'quote it in a notebook, and with papermill use `-r {name} "{value}"` instead of -p'
        )
    raise ValueError(f"should be {expected(annotation)}, not {value!r}")


def _finite(value: float) -> float:
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond the range
        raise ValueError("should be a finite number, not one of so many digits") from None
    if not math.isfinite(number):
        raise ValueError(f"should be a finite number, not {number}")
    return number


def _literals(kinds: list[Any]) -> list[Any]:
    return [choice for kind in kinds if typing.get_origin(kind) is Literal for choice in typing.get_args(kind)]


def expected(annotation: Any) -> str:
    """What `annotation` allows, in words."""
    kinds = _kinds(annotation)
    names = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        type(None): "empty",
    }
    words = [names[kind] for kind in kinds if kind in names]
    words += ["a list of names"] if any(typing.get_origin(kind) is tuple for kind in kinds) else []
    return " or ".join([*(repr(choice) for choice in _literals(kinds)), *words])


def described(fields: Mapping[str, FieldInfo]) -> list[tuple[str, str, str, str]]:
    """(name, values it takes, default, description) of each field."""
    rows = []
    for name, field in fields.items():
        default = "required" if field.is_required() else _shown(field.default)
        takes = expected(field.annotation).replace("'", "")
        for noun in ("a whole number", "a number"):
            takes = takes.replace(noun, " ".join([noun, *_limits(field)]))
        rows.append((name, takes, default, field.description or ""))
    return rows


def _limits(field: FieldInfo) -> list[str]:
    words = {"ge": "from", "gt": "above", "lt": "below", "le": "to"}
    return [f"{words[key]} {getattr(limit, key)}" for limit in field.metadata for key in words if hasattr(limit, key)]


def _shown(value: object) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def as_clause(message: str) -> str:
    """A sentence, to stand inside of another."""
    return message[:1].lower() + message[1:].removesuffix(".")
