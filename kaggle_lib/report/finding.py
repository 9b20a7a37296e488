"""One thing that `doctor` has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """`missing`: a run with these settings would fail, and `todo` says what to do; `note`: worth knowing."""

    topic: str
    state: Literal["ok", "note", "missing"]
    text: str
    todo: str = ""
