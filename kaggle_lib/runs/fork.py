"""`fork_from=run@step`: a new run that starts from the adapter of another run's checkpoint on the same store.

Optimizer, schedule and data are the new run's own; what makes the adapter fit has to be the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

from kaggle_lib.config import RunConfig
from kaggle_lib.errors import ConfigError
from kaggle_lib.runs.opening import Opened, store_for

SAME = ("base_model", "revision", "lora_r", "lora_alpha", "lora_bias", "lora_target_modules")


def fetch(opened: Opened, say: Callable[[str], None]) -> dict[str, Any]:
    """Bring the checkpoint that `fork_from` names to the run folder's `fork/`; returns what is recorded of it: `run`,
    `step`, `id`. The base model's commit is taken from its run.

    Raises ConfigError where there is none, or its adapter would not fit; CheckpointError where it is damaged.
    """
    config, target = opened.config, opened.folder.fork
    assert config.fork_from is not None
    run, _, step = config.fork_from.rpartition("@")
    store = store_for(config.model_copy(update={"run": run}))
    state = store.peek()
    stored = next((one for one in state.checkpoints if one.step == int(step)), None)
    if state.config is None or stored is None:
        there = ", ".join(f"{run}@{one.step}" for one in state.checkpoints) or "no checkpoint of that run"
        raise ConfigError([f"fork_from: there is no {config.fork_from} on {config.store!r}; there is {there}"])
    parent = RunConfig.from_json(state.config["config"])
    if other := [name for name in SAME if getattr(parent, name) != getattr(config, name)]:
        told = ", ".join(f"{name} {getattr(parent, name)!r}, not {getattr(config, name)!r}" for name in other)
        raise ConfigError([f"fork_from: run {run!r} has {told}; its adapter fits only where they are the same"])
    shutil.rmtree(target, ignore_errors=True)
    opened.folder.create()
    manifest = store.fetch(stored, target)
    opened.base_commit = state.config.get("base_commit")
    say(f"Starting from the adapter of run {run!r} at step {step}, with a new optimizer and schedule.")
    return {"run": run, "step": manifest.step, "id": manifest.nonce}
