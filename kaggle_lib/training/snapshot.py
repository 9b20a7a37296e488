"""A checkpoint's state, written and read: adapter, optimizer, schedule, scaler, Trainer's state, tokenizer, events."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from kaggle_lib import hooks
from kaggle_lib.checkpoints.manifest import Manifest
from kaggle_lib.config import RunConfig
from kaggle_lib.errors import CheckpointError
from kaggle_lib.runs import events
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.strategies import adapter

OPTIMIZER, SCHEDULER, SCALER, STATE = "optimizer.pt", "scheduler.pt", "scaler.pt", "trainer_state.json"
REST = 25_000_000  # bytes: Llama-3.1's tokenizer has 17 million, the events of 10,000 steps 3 million
ROOM = "Make room there, or set work_dir to another disk, and run again."


def write(folder: RunFolder, trainer: Any, config: RunConfig, manifest: dict[str, Any]) -> Manifest:
    """Write the checkpoint of the trainer's step into the run folder, its manifest last.

    `manifest` holds the fields that are not found here. Raises CheckpointError for an adapter that is not finite, and
    where the disk has no room for it or does not take it; nothing is left of it then.
    """
    step = trainer.state.global_step
    target = folder.checkpoint(step)
    if target.exists():  # a save that was cut off; damaged ones have been set aside before
        shutil.rmtree(target)
    try:
        _check_room(trainer, folder)
        target.mkdir(parents=True)
        adapter.write(trainer.model, config, target)
        torch.save(trainer.optimizer.state_dict(), target / OPTIMIZER)
        torch.save(trainer.lr_scheduler.state_dict(), target / SCHEDULER)
        if trainer.accelerator.scaler is not None:
            torch.save(trainer.accelerator.scaler.state_dict(), target / SCALER)
        trainer.state.save_to_json(str(target / STATE))
        trainer.processing_class.save_pretrained(target)
        if config.hooks:
            shutil.copyfile(folder.hooks, target / hooks.NAME)
        events.copy_until(folder.events, target / "events", step)
        return Manifest.write(target, step=step, **manifest)
    except (CheckpointError, OSError, RuntimeError, SafetensorError) as error:  # RuntimeError: torch's own writer
        shutil.rmtree(target, ignore_errors=True)
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"The checkpoint of step {step} could not be written to {folder.checkpoints}: {error}", todo=ROOM
        ) from error


def _check_room(trainer: Any, folder: RunFolder) -> None:
    """A checkpoint is the adapter and its optimizer state, some text and the tokenizer."""
    state = (value for values in trainer.optimizer.state.values() for value in values.values())
    tensors = [*adapter.state(trainer.model).values(), *(value for value in state if torch.is_tensor(value))]
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors) + REST
    free = shutil.disk_usage(folder.checkpoints).free
    if free < needed:
        raise CheckpointError(
            f"There is no room for the checkpoint of step {trainer.state.global_step}: it needs {needed / 1e6:.0f} MB, "
            f"and {folder.checkpoints} has {free / 1e6:.0f} MB.",
            todo=ROOM,
        )


def load(path: Path) -> Any:
    """What torch saved in `path`, tensors on the CPU. Raises CheckpointError where it is missing or unreadable."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent.name}: {path.name} is missing, so the run cannot go on exactly.") from None
    except Exception as error:  # torch raises whatever pickle and zip raise
        raise CheckpointError(f"{path.parent.name}: {path.name} cannot be read ({error}).") from error
