"""As much of Go's text/template as a Modelfile here uses: fields, `range`, `if`, `else`, `eq`, `ne`, trimmed blanks."""

from __future__ import annotations

import re
from typing import Any

ACTION = re.compile(r"\{\{(-\s)?\s*(.*?)\s*(\s-)?\}\}", re.DOTALL)


def render(template: str, data: dict[str, Any]) -> str:
    """What Go would print. Fails on what it does not know."""
    parts = _split(template)
    out, rest = _body(parts, data, data)
    assert not rest, rest
    return out


def _split(template: str) -> list[tuple[str, str]]:
    parts, at, trim = [], 0, False
    for found in ACTION.finditer(template):
        text = template[at : found.start()]
        text = text.lstrip() if trim else text
        parts.append(("text", text.rstrip() if found[1] else text))
        parts.append(("action", found[2]))
        at, trim = found.end(), bool(found[3])
    parts.append(("text", template[at:].lstrip() if trim else template[at:]))
    return parts


def _body(parts: list[tuple[str, str]], dot: Any, root: Any) -> tuple[str, list[tuple[str, str]]]:
    """What is printed up to the `else` or `end` that closes it, and the parts from there on."""
    out = ""
    while parts:
        (kind, text), parts = parts[0], parts[1:]
        word, _, rest = text.partition(" ")
        if kind == "text":
            out += text
        elif word in ("end", "else"):
            return out, [(kind, text), *parts]
        elif word == "range":
            items, after = _value(rest, dot), parts
            for item in items:
                printed, after = _body(parts, item, root)
                out += printed
            if not items:
                _, after = _body(parts, {}, root)
            assert after[0] == ("action", "end"), after[0]
            parts = after[1:]
        elif word == "if":
            chosen, after = _value(rest, dot), parts
            printed, after = _body(parts, dot, root)
            other = ""
            if after[0] == ("action", "else"):
                other, after = _body(after[1:], dot, root)
            assert after[0] == ("action", "end"), after[0]
            out, parts = out + (printed if chosen else other), after[1:]
        else:
            out += str(_value(text, dot))
    return out, []


def _value(text: str, dot: Any) -> Any:
    words = re.findall(r'"[^"]*"|\S+', text)
    if words[0] in ("eq", "ne"):
        first, second = (_value(word, dot) for word in words[1:])
        return (first == second) is (words[0] == "eq")
    assert len(words) == 1, text
    if text.startswith('"'):
        return text[1:-1]
    assert re.fullmatch(r"\.\w+", text), text
    return dot.get(text[1:], "")
