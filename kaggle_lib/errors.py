"""Errors a user can read: each says what happened, what was kept, and what to do next.

`UserError` is the base of all that is raised on purpose; anything else is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence


class UserError(Exception):
    """Something the user can act on. `exit_code` is what the command line ends with."""

    exit_code = 1

    def __init__(self, what: str, *, kept: str = "", todo: str = "") -> None:
        self.what, self.kept, self.todo = what, kept, todo
        super().__init__(" ".join(part for part in (what, kept, todo) if part))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback; papermill reports the same and fails all the same."""
        return [f"{type(self).__name__}: {self}"]


class ConfigError(UserError):
    """The parameters are wrong; `problems` holds every one of them, a line each."""

    exit_code = 2

    def __init__(self, problems: Sequence[str], *, title: str = "the configuration is not usable") -> None:
        self.problems = list(problems)
        if len(self.problems) == 1:
            super().__init__(self.problems[0])
        else:
            super().__init__(f"{title}, {len(self.problems)} problems:\n  " + "\n  ".join(self.problems))


class ResumeError(ConfigError):
    """The parameters contradict the frozen ones of a run that has begun."""


class DataError(UserError):
    """A data file cannot be read for certain."""


class StoreError(UserError):
    """The store could not be read or written. Never means "there is no checkpoint"."""


class LeaseHeld(UserError):
    """Another session may still be writing this run: `session` on `host`, for `seconds_left`, where that is known."""

    exit_code = 75

    def __init__(
        self, what: str, *, session: str = "", host: str = "", seconds_left: float | None = None, todo: str = ""
    ) -> None:
        self.session, self.host, self.seconds_left = session, host, seconds_left
        super().__init__(what, todo=todo)


class LeaseLost(UserError):
    """Another session has taken this run over; this one must stop and write nothing more."""


class CheckpointError(UserError):
    """A checkpoint is damaged, or none that is there verifies. `file` and `reason`: what fails in the one."""

    def __init__(self, what: str, *, file: str = "", reason: str = "", kept: str = "", todo: str = "") -> None:
        self.file, self.reason = file, reason
        super().__init__(what, kept=kept, todo=todo)


class WorkerError(UserError):
    """The worker ended with an error, or kept dying without progress."""


class NotFinished(UserError):
    """The run is not finished, so there is nothing to evaluate or publish yet."""

    exit_code = 75


class KaggleError(UserError):
    """Kaggle refused something, or did something else than it was asked for."""


class KaggleBusy(KaggleError):
    """Not now: a session is live, slots, machines or the week's hours are used up, or Kaggle does not answer."""

    exit_code = 75
