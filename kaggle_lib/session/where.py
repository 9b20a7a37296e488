"""Where this process runs: a Kaggle batch run, a Kaggle notebook that someone has open, or anywhere else."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

Where = Literal["kaggle-batch", "kaggle-interactive", "local"]

ROOT_VARIABLE = "KAGGLE_LIB_ROOT"


def root() -> Path:
    """The folder that holds Kaggle's `input`, `working` and `temp`; `KAGGLE_LIB_ROOT` replaces `/kaggle`."""
    return Path(os.environ.get(ROOT_VARIABLE) or "/kaggle")


def where() -> Where:
    """Kaggle is known by its run type and its folders alone.

    Other names that begin with `KAGGLE_` (user name, key, token) are the command line client's, and a laptop has them.
    """
    if not (root() / "working").is_dir():
        return "local"
    return "kaggle-batch" if os.environ.get("KAGGLE_KERNEL_RUN_TYPE", "").lower() == "batch" else "kaggle-interactive"


def on_scratch(path: str) -> Path:
    """The path of files that may be lost: a relative one lies in `temp` on Kaggle, because what is in the working
    directory there is kept as the notebook's output, 20 GB at most.
    """
    return Path(path) if where() == "local" else root() / "temp" / path


def kaggle_session() -> int | None:
    """The number of this Kaggle session, by which alone it can be cancelled; None where it is not to be seen.

    Only the container's name has it, `kaggle_<token>-<number>-webtier`.
    """
    name = re.fullmatch(r"kaggle_.+-([0-9]+)-webtier", os.environ.get("KAGGLE_CONTAINER_NAME", ""))
    return int(name[1]) if name else None
