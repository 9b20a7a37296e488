"""The run folder: the only thing that passes between the supervisor and the worker."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaggle_lib.checkpoints.manifest import folder_name, step_of
from kaggle_lib.errors import UserError
from kaggle_lib.files import read_json, write_json, write_text


@dataclass(frozen=True)
class RunFolder:
    """Paths inside `work_dir/<run>/`; every file there can be looked at by a person."""

    root: Path

    @property
    def run_json(self) -> Path:
        """Frozen configuration, session, where to resume: written by the supervisor before each launch."""
        return self.root / "run.json"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def events(self) -> Path:
        return self.root / "events"

    @property
    def heartbeat(self) -> Path:
        """Touched after every micro-batch by rank 0; its text is the phase."""
        return self.root / "heartbeat"

    @property
    def outcome(self) -> Path:
        """How the worker ended, in its own words; not there: it was killed."""
        return self.root / "outcome"

    @property
    def save_request(self) -> Path:
        return self.root / "save"

    @property
    def stop_request(self) -> Path:
        return self.root / "stop"

    @property
    def fork(self) -> Path:
        """The checkpoint of another run that this one starts from, if it was forked."""
        return self.root / "fork"

    @property
    def adapter(self) -> Path:
        """The final adapter, as plain PEFT reads it."""
        return self.root / "adapter"

    @property
    def best(self) -> Path:
        """The adapter of the best validation, where it was asked for."""
        return self.root / "best"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def rating(self) -> Path:
        """The blind sheet, its key and what the raters' files gave."""
        return self.root / "rating"

    @property
    def hooks(self) -> Path:
        """The hooks file as the session settled on it, if the run has one."""
        return self.root / "hooks.py"

    @property
    def tracking(self) -> Path:
        """What `report_to` writes on this machine; made anew from the events where it is gone."""
        return self.root / "tracking"

    @property
    def data_sheet(self) -> Path:
        """What the corpus was and what became of each row; written by the worker that has tokenised it."""
        return self.root / "data.json"

    @property
    def cache(self) -> Path:
        """Tokenised rows by fingerprint; shared by all runs of one work_dir, made anew when it is gone."""
        return self.root.parent / ".cache"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / folder_name(step)

    def checkpoint_steps(self) -> list[int]:
        """Steps of all checkpoint folders, finished or not, newest first."""
        if not self.checkpoints.is_dir():
            return []
        found = (step_of(path.name) for path in self.checkpoints.iterdir())
        return sorted((step for step in found if step is not None), reverse=True)

    def create(self) -> None:
        """Make the folder. Raises UserError where that cannot be done."""
        try:
            for path in (self.checkpoints, self.events):
                path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self.unusable(error) from error

    def unusable(self, error: OSError) -> UserError:
        return UserError(
            f"The run folder {self.root} cannot be used: {error.strerror} ({error.filename or self.root}).",
            kept="The store was not changed.",
            todo="Put that right, or give another work_dir.",
        )

    def read_run(self) -> dict[str, Any]:
        return dict(read_json(self.run_json))

    def beat(self, phase: str) -> None:
        try:
            if self.heartbeat.read_text(encoding="utf-8") == phase:
                os.utime(self.heartbeat)  # which a full disk has room for
                return
        except FileNotFoundError:
            pass
        self.heartbeat.write_text(phase, encoding="utf-8")

    def write_outcome(self, outcome: dict[str, Any]) -> None:
        write_json(self.outcome, outcome)

    def read_outcome(self) -> dict[str, Any] | None:
        try:
            return dict(read_json(self.outcome))
        except FileNotFoundError:
            return None

    def request(self, path: Path) -> None:
        write_text(path, "")

    def clear_requests(self) -> None:
        for path in (self.save_request, self.stop_request, self.outcome, self.heartbeat):
            path.unlink(missing_ok=True)
