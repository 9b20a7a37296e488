"""What the loopback Kaggle knows: accounts, kernels with their versions, datasets, and answered calls."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Account:
    """`key` is the old credential, sent with the user's name; `token` the newer one, sent alone."""

    name: str
    key: str
    token: str


@dataclass(frozen=True)
class Version:
    """`fields` is the request that made it, as the client sent it; sources that were refused are not in it."""

    number: int
    source: str
    fields: dict[str, Any]

    @property
    def internet(self) -> bool:
        return bool(self.fields.get("enableInternet"))

    def sources(self, kind: str) -> list[str]:
        """`kind`: dataset, kernel or model."""
        return list(self.fields.get(f"{kind}DataSources", []))


@dataclass
class Kernel:
    ref: str
    id: int
    title: str
    versions: list[Version] = field(default_factory=list)

    @property
    def slug(self) -> str:
        return self.ref.partition("/")[2]


@dataclass
class Dataset:
    """A dataset, or a version of a model. It is processed until `ready`, in seconds since 1970."""

    ref: str
    id: int
    folder: Path
    private: bool = True
    title: str = ""
    version: int = 0
    ready: float = 0.0

    @property
    def content(self) -> Path:
        return self.folder / str(self.version)

    @property
    def processing(self) -> bool:
        return time.time() < self.ready


@dataclass(frozen=True)
class Call:
    """An answered request: `call` is the API's method or the path; `status` is 0 where the reply was lost."""

    call: str
    user: str | None
    body: dict[str, Any]
    status: int
    time: float
    faults: tuple[str, ...] = ()


def slugify(title: str) -> str:
    """The slug that Kaggle makes of a title."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
