"""What every worker does at its start and at its end; the evaluation's worker, too."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import traceback
from collections.abc import Callable
from typing import Any

import kaggle_lib
from kaggle_lib.checkpoints.manifest import NAME, verify
from kaggle_lib.errors import UserError
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.session.machine import die_with_parent

STACK = ("transformers", "peft", "trl", "accelerate", "bitsandbytes")
OF_UNSLOTH = ("unsloth", "unsloth_zoo", "xformers", "triton")


def versions() -> dict[str, str]:
    """What bit-for-bit depends on beside our own configuration; recorded with every session and checkpoint."""
    import torch

    used = [name for name in OF_UNSLOTH if "unsloth" in sys.modules and name in sys.modules]
    return {
        "kaggle_lib": kaggle_lib.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        **{name: importlib.metadata.version(name) for name in STACK},
        **{name: importlib.metadata.version(name) for name in used},
    }


def failure(error: Exception) -> dict[str, Any]:
    """What `outcome` says of an error; `user`: it was raised on purpose, so starting again would not help."""
    return {
        "outcome": "failed",
        "reason": str(error) or repr(error),
        "user": isinstance(error, UserError),
        "error": type(error).__name__,
        "traceback": "".join(traceback.format_exception(error)),
    }


def supervised() -> bool:
    """Whether a supervisor started this process; else it is a person, at a debugger."""
    return "KAGGLE_LIB_SUPERVISED" in os.environ


def by_hand(folder: RunFolder) -> dict[str, Any]:
    """`run.json` for a worker without a supervisor: it goes on from the newest checkpoint that lies here, and what
    was asked of the last worker is not asked of it.

    Raises CheckpointError where that one is damaged: passing over it is a session's business.
    """
    run = folder.read_run()
    folder.clear_requests()
    run["attempt"] += 1
    for step in folder.checkpoint_steps():
        if (folder.checkpoint(step) / NAME).exists():  # else a save that was cut off
            manifest = verify(folder.checkpoint(step))
            if manifest.lineage == run["lineage"]:
                ended = {"finished": manifest.finished, "stopped_early": manifest.stopped_early}
                return {**run, "checkpoint": step, "cut": manifest.cut, **ended}
    return run


def run(main: Callable[[str], object]) -> None:
    """Run a worker's `main` with the run folder of the command line, as a process that dies with its supervisor.

    A worker under torchrun is killed when torchrun is, and torchrun when the supervisor is: so there is no orphan.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    if not supervised():
        main(sys.argv[1])  # a debugger wants the error itself
        return
    die_with_parent()
    try:
        main(sys.argv[1])
    except UserError as error:
        sys.exit(f"error: {error}")
