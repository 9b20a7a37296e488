"""A checkpoint's state, written and read: adapter, optimizer, schedule, scaler, Trainer's state, tokenizer, events."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from kaggle_lib.checkpoints.manifest import Manifest
from kaggle_lib.config import RunConfig
from kaggle_lib.errors import CheckpointError
from kaggle_lib.runs import events
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.strategies import adapter

OPTIMIZER, SCHEDULER, SCALER, STATE = "optimizer.pt", "scheduler.pt", "scaler.pt", "trainer_state.json"


def write(folder: RunFolder, trainer: Any, config: RunConfig, manifest: dict[str, Any]) -> Manifest:
    """Write the checkpoint of the trainer's step into the run folder, its manifest last.

    `manifest` holds the fields that are not found here. Raises CheckpointError for an adapter that is not finite.
    """
    target = folder.checkpoint(trainer.state.global_step)
    if target.exists():  # a save that was cut off; damaged ones have been set aside before
        shutil.rmtree(target)
    target.mkdir(parents=True)
    try:
        adapter.write(trainer.model, config, target)
    except CheckpointError:
        shutil.rmtree(target)
        raise
    torch.save(trainer.optimizer.state_dict(), target / OPTIMIZER)
    torch.save(trainer.lr_scheduler.state_dict(), target / SCHEDULER)
    if trainer.accelerator.scaler is not None:
        torch.save(trainer.accelerator.scaler.state_dict(), target / SCALER)
    trainer.state.save_to_json(str(target / STATE))
    trainer.processing_class.save_pretrained(target)
    events.copy_until(folder.events, target / "events", trainer.state.global_step)
    return Manifest.write(target, step=trainer.state.global_step, **manifest)


def load(path: Path) -> Any:
    """What torch saved in `path`, tensors on the CPU. Raises CheckpointError where it is missing or unreadable."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent.name}: {path.name} is missing, so the run cannot go on exactly.") from None
    except Exception as error:  # torch raises whatever pickle and zip raise
        raise CheckpointError(f"{path.parent.name}: {path.name} cannot be read ({error}).") from error
