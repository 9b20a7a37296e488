"""Build the kernel that `kaggle kernels push` sends: one notebook that carries library, parameters and hooks.

Only the text of one file reaches Kaggle, so everything is in it. A clone is needed to build one: the notebooks,
`requirements.txt` and `kernel-metadata.json` lie beside the package.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaggle_lib import hooks
from kaggle_lib.config import RunConfig
from kaggle_lib.data.find import SLUG
from kaggle_lib.errors import UserError
from kaggle_lib.files import dump_json, read_json, write_text
from kaggle_lib.kaggle import wheel
from kaggle_lib.session.secrets import hub_token, kaggle_token

CLONE = Path(__file__).parents[2]
MOST_BYTES = 950_000  # Kaggle refuses a source of about a megabyte
SLUG_OF_A_KERNEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
TOKEN = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|KGAT_[A-Za-z0-9]{20,})")


@dataclass(frozen=True)
class Built:
    """`folder` is what `kaggle kernels push -p` takes; `size`: bytes of the source as push sends it."""

    folder: Path
    notebook: Path
    metadata: dict[str, Any]
    size: int
    wheel_sha256: str


def build(
    notebook: str,
    config: RunConfig,
    into: Path,
    *,
    id: str,
    title: str = "",
    datasets: Sequence[str] = (),
    kernels: Sequence[str] = (),
    token_dataset: str = "",
    more: Mapping[str, object] | None = None,
    clone: Path = CLONE,
) -> Built:
    """Write the notebook (`train`, `evaluate`, …) and `kernel-metadata.json` into the folder `into`.

    `config` becomes the notebook's parameters, `more` those that are no keys; `id` is `user/slug`, and the title is the
    slug unless given. `datasets` and `kernels` are attached beside the corpus; `token_dataset` is one of a file
    `HF_TOKEN`. The same arguments give the same bytes. Raises UserError for what cannot go there.
    """
    raise UserError("not built yet")
