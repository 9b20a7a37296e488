"""Where this machine keeps its tokens. A token itself is never shown, logged or written by us."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Token:
    """`place` says where it lies: a variable's name or a file. `value` is left out of every representation."""

    place: str
    value: str = field(repr=False)


def hub_token() -> Token | None:
    """The Hugging Face token that huggingface_hub would use, or None."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    return _variable("HF_TOKEN") or _variable("HUGGING_FACE_HUB_TOKEN") or _file(file)


def kaggle_token() -> Token | None:
    """The credentials that the `kaggle` client would use, or None."""
    home = Path.home() / ".kaggle"
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR") or home)
    pair = _variable("KAGGLE_KEY") if _variable("KAGGLE_USERNAME") else None
    return _variable("KAGGLE_API_TOKEN") or _file(home / "access_token") or pair or _file(folder / "kaggle.json")


def _variable(name: str) -> Token | None:
    value = _clean(os.environ.get(name, ""))
    return Token(name, value) if value else None


def _file(path: Path) -> Token | None:
    try:
        value = _clean(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None
    return Token(str(path), value) if value else None


def _clean(text: str) -> str:
    """Pasted secrets carry a trailing newline, or the quotes around them."""
    return text.strip().strip("\"'").strip()
