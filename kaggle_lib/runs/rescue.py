"""Kaggle's kept output (`/kaggle/working`): what a session leaves there, and what an earlier one left, now attached.

The run folder lies outside of it. A person finds `<run>/` there: report, evaluation, adapter. What the next session may
need is in `rescue/<run>/`, laid out like a run folder: the newest checkpoint, and the best one that it names, for as
long as the store lacks it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from kaggle_lib.checkpoints.manifest import copy
from kaggle_lib.errors import CheckpointError
from kaggle_lib.files import replace_folder
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.session.where import root, where

NAME = "rescue"
# A kernel's output has been mounted as input/<slug>, input/<kind>/<slug> and input/<kind>/<owner>/<slug>.
LEVELS = 3


def output() -> Path | None:
    """The folder that Kaggle keeps when the session has ended; None elsewhere, where the run folder itself stays."""
    return None if where() == "local" else root() / "working"


def attached(run: str) -> list[Path]:
    """The folders of `run` that outputs of earlier sessions, attached to this notebook, were left with."""
    inputs = root() / "input"
    patterns = (f"{'*/' * level}{NAME}/{run}" for level in range(1, LEVELS + 1))
    return [path for pattern in patterns for path in sorted(inputs.glob(pattern)) if path.is_dir()]


def attached_checkpoints(run: str) -> dict[int, Path]:
    """The checkpoints among them by step; none of them is verified yet."""
    folders = map(RunFolder, attached(run))
    return {step: folder.checkpoint(step) for folder in folders for step in folder.checkpoint_steps()}


class Rescue:
    """What one session leaves in the output."""

    def __init__(self, folder: RunFolder, say: Callable[[str], None]) -> None:
        self.folder, self.say = folder, say
        self.step: int | None = None
        kept = output()
        self.place = RunFolder(kept / NAME / folder.root.name) if kept else None

    def put(self, step: int) -> None:
        """Leave the checkpoint of `step`, verified, in place of any other, and the best one that it names, if that is
        good. A full output ends no training."""
        if self.place is None or self.step == step:
            return
        self.step = step
        aside = self.place.root.with_name(f".{self.place.root.name}.new")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            new = RunFolder(aside)
            new.checkpoints.mkdir(parents=True)
            best = copy(self.folder.checkpoint(step), new.checkpoint(step)).best_step
            if best is not None and best != step and self.folder.checkpoint(best).exists():
                with suppress(CheckpointError):
                    copy(self.folder.checkpoint(best), new.checkpoint(best))
            shutil.copyfile(self.folder.run_json, new.run_json)
            self.clear()
            aside.rename(self.place.root)
        except (OSError, CheckpointError) as error:
            self.say(f"warning: The checkpoint of step {step} could not be left in {self.place.root}: {error}")
            return
        self.say(f"The store lacks the checkpoint of step {step}: it is in the output, {self.place.root}.")

    def clear(self) -> None:
        """The store has the newest checkpoint: nothing need be rescued."""
        if self.place is not None:
            shutil.rmtree(self.place.root, ignore_errors=True)


def keep(folder: RunFolder, say: Callable[[str], None]) -> Path:
    """Copy what a person wants of the run, report, evaluation, adapter and curve, into the output; where it is then."""
    kept = output()
    if kept is None:
        return folder.root
    place = kept / folder.root.name
    try:
        for path in (folder.report, folder.evaluation, folder.adapter, folder.tracking):
            if path.is_dir():
                place.mkdir(exist_ok=True)
                replace_folder(path, place / path.name)
    except OSError as error:  # a full output, mostly
        say(f"warning: {error.filename or place} could not be written ({error.strerror}); all is in {folder.root} too.")
        return folder.root
    return place
