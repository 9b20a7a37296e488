"""Where this process runs: a Kaggle batch run, a Kaggle notebook that someone has open, or anywhere else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

Where = Literal["kaggle-batch", "kaggle-interactive", "local"]

ROOT_VARIABLE = "KAGGLE_LIB_ROOT"


def root() -> Path:
    """The folder that holds Kaggle's `input` and `working`; `KAGGLE_LIB_ROOT` replaces `/kaggle`."""
    return Path(os.environ.get(ROOT_VARIABLE) or "/kaggle")


def where() -> Where:
    """Kaggle is known by its run type and its folders alone.

    Other names that begin with `KAGGLE_` (user name, key, token) are the command line client's, and a laptop has them.
    """
    if not (root() / "working").is_dir():
        return "local"
    return "kaggle-batch" if os.environ.get("KAGGLE_KERNEL_RUN_TYPE", "").lower() == "batch" else "kaggle-interactive"
