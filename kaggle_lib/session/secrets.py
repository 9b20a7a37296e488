"""Where this machine keeps its tokens. A token itself is never shown, logged or written by us."""

from __future__ import annotations

import os
import string
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from kaggle_lib.errors import UserError
from kaggle_lib.session.where import root

HUB_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
OF_TRACKERS = ("WANDB_API_KEY", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "TRACKIO_WRITE_TOKEN")
# What no process of ours needs that only computes: a worker is started without them.
VARIABLES = (*HUB_VARIABLES, "KAGGLE_API_TOKEN", "KAGGLE_KEY", "KAGGLE_USER_SECRETS_TOKEN", *OF_TRACKERS)


@dataclass(frozen=True)
class Token:
    """`place` says where it lies: a variable's name or a file. `value` is left out of every representation."""

    place: str
    value: str = field(repr=False)


def hub_token() -> Token | None:
    """The Hugging Face token: of the environment, of Kaggle's secrets, of a dataset attached there that holds it in a
    file HF_TOKEN or HF_TOKEN.txt, or of `hf auth login`; None: there is none.

    Raises UserError for one that cannot be a token, and says what is wrong with it, never what it is.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    file = Path(os.environ.get("HF_TOKEN_PATH") or home / "token").expanduser()
    variables = (Token(name, os.environ[name]) for name in HUB_VARIABLES if name in os.environ)
    label = HUB_VARIABLES[0]
    found = next(variables, None) or _secret(label) or _attached(label) or _file(file)
    return found and Token(found.place, _checked(found))


def kaggle_token() -> Token | None:
    """The credentials that the `kaggle` client would use, or None."""
    home = Path.home() / ".kaggle"
    folder = Path(os.environ.get("KAGGLE_CONFIG_DIR") or home)
    pair = _variable("KAGGLE_KEY") if _variable("KAGGLE_USERNAME") else None
    return _variable("KAGGLE_API_TOKEN") or _file(home / "access_token") or pair or _file(folder / "kaggle.json")


def setting(name: str) -> str | None:
    """The variable `name` of the environment, or the secret of that name that is attached on Kaggle."""
    found = _variable(name) or _secret(name)
    return found.value if found else None


def _variable(name: str) -> Token | None:
    value = os.environ.get(name, "").strip()
    return Token(name, value) if value else None


def _secret(label: str) -> Token | None:
    """The secret `label` that is attached to this Kaggle notebook."""
    try:
        from kaggle_secrets import UserSecretsClient  # type: ignore[import-not-found]  # of Kaggle's image only
    except ImportError:
        return None
    try:
        return Token(f"the Kaggle secret {label}", UserSecretsClient().get_secret(label))
    except Exception:  # BackendError and others: none is attached, or this session was started without any
        return None


def _attached(label: str) -> Token | None:
    """The file `label` in a dataset that is attached to this Kaggle notebook: what a pushed one may have to do with."""
    for place in ("*", "datasets/*/*", "d/*/*"):  # how Kaggle has mounted a dataset at one time or another
        for name in (label, f"{label}.txt", label.lower(), f"{label.lower()}.txt"):
            for path in sorted((root() / "input").glob(f"{place}/{name}")):
                with suppress(OSError):
                    return Token(str(path), path.read_text(encoding="utf-8", errors="replace"))
    return None


def _file(path: Path) -> Token | None:
    try:
        value = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return Token(str(path), value) if value else None


def _checked(token: Token) -> str:
    """The token's value without the space or end of line that was pasted with it. Raises UserError."""
    value = token.value.strip()
    odd = next((letter for letter in value if letter not in string.ascii_letters + string.digits + "_-.~+/="), None)
    if not value:
        problem = "holds only spaces" if token.value else "is empty"
    elif odd is None:
        return value
    elif value[0] == value[-1] and value[0] in "\"'`":
        problem = "has quotes around it"
    elif odd.isspace():
        problem = "has a space or an end of line inside"
    else:
        problem = f"has a character that is in no token, U+{ord(odd):04X}, at place {value.index(odd) + 1}"
    raise UserError(
        f"The Hugging Face token in {token.place} {problem}.",
        todo="Store it anew, from https://huggingface.co/settings/tokens, or remove it there.",
    )
