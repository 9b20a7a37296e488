"""What a validation decides: which step is the best so far, whether it is saved, and whether the run ends there."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch.distributed as dist

if TYPE_CHECKING:
    from kaggle_lib.training.trainer import RunTrainer


def note(trainer: RunTrainer, bits_per_byte: float) -> None:
    """Keep the best step's number and value in Trainer's state, which every checkpoint holds."""
    state = trainer.state
    if math.isfinite(bits_per_byte) and (state.best_metric is None or bits_per_byte < state.best_metric):
        state.best_metric, state.best_global_step = bits_per_byte, state.global_step


def follow(trainer: RunTrainer) -> None:
    """Ask for a save at a new best, and for the run's end; after each validation, on every rank, all the same."""
    state, control = trainer.state, trainer.control
    if trainer.processes > 1:  # the first one alone has scored
        told = [state.best_metric, state.best_global_step]
        dist.broadcast_object_list(told, src=0)
        state.best_metric, state.best_global_step = told
    if trainer.config.keep_best and state.best_metric is not None and state.best_global_step == state.global_step:
        control.should_save = True
    trainer.ended = ended(trainer)
    if trainer.ended:
        control.should_save = control.should_training_stop = True


def ended(trainer: RunTrainer) -> dict[str, str]:
    """`stopped_early`: why the run ends at this validation, before its last step; empty: it goes on.

    How many validations were in vain is counted from two steps, this one and the best one, and from nothing else: so a
    resumed run ends where an uninterrupted one does.
    """
    state, every, patience = trainer.state, trainer.config.eval_steps, trainer.config.early_stopping_patience
    step, best = state.global_step, 0 if state.best_metric is None else state.best_global_step
    if not patience or step == state.max_steps or step // every - best // every < patience:
        return {}
    return {"stopped_early": f"early stopping at step {step}: no improvement since step {best}"}
