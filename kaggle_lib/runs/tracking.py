"""`report_to`: what a session needs for it, and the process that writes the curve beside the training.

Trainer's own integrations would write from the worker: which has no token, does the steps since the last checkpoint
again after a crash, and waits where a server does not answer. The events have each step once, so they are replayed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from kaggle_lib.errors import ConfigError
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.launch import end_all, environment, last_lines, tied
from kaggle_lib.session import secrets

Say = Callable[[str], None]
MODULE = "kaggle_lib.runs.trackers"
SETTINGS = {
    "trackio": ("TRACKIO_SPACE_ID",),
    "wandb": ("WANDB_API_KEY",),
    "mlflow": ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"),
}
QUIET = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "0", "DO_NOT_TRACK": "1", "WANDB_ERROR_REPORTING": "false"}
PAUSE_SECONDS = 60.0  # after the tracker has failed
SHORTEST_END, LONGEST_END, LAST_WORDS = 2.0, 30.0, 10.0  # seconds that it has at the session's end, and leaves


def settings(tracker: str) -> dict[str, str]:
    """What the tracker's process must know, from the environment or Kaggle's secrets: variables.

    Raises ConfigError where the package or a key is not there.
    """
    found = {name: value for name in SETTINGS.get(tracker, ()) if (value := secrets.setting(name))}
    asks = tracker == "wandb" and not found and os.environ.get("WANDB_MODE", "online") == "online"
    key_file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()  # where `wandb login` leaves it
    problem = ""
    if importlib.util.find_spec(tracker) is None:
        problem = f"the package {tracker} is not installed here. Install it (pip install {tracker})"
    elif asks and not (key_file.is_file() and b"wandb" in key_file.read_bytes()):
        problem = "wandb has no key. Put it into WANDB_API_KEY (on Kaggle: a secret), or set WANDB_MODE=offline"
    elif re.search("://[^/]*@", found.get("MLFLOW_TRACKING_URI", "")):
        problem = "MLFLOW_TRACKING_URI has a password in it. Use MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    elif "TRACKIO_SPACE_ID" in found and not (token := secrets.hub_token()):
        problem = "TRACKIO_SPACE_ID needs a Hugging Face token that may write. Put it into HF_TOKEN"
    elif "TRACKIO_SPACE_ID" in found and token:
        found["HF_TOKEN"] = token.value
    if problem:
        raise ConfigError([f"report_to: {problem}, or set report_to=none"])
    return found


class Tracking:
    """Keeps the tracker's process alive for a session. Whatever it does, the training neither waits for it nor ends."""

    def __init__(self, folder: RunFolder, warn: Say, say: Say) -> None:
        self.folder, self.warn, self.say = folder, warn, say
        self.log_path = folder.root / "tracking.log"
        self.tracker, self.problem, self._told = "none", "", False
        self._settings: dict[str, str] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._due = 0.0

    def settle(self, tracker: str) -> None:
        """Take the session's `report_to`. Raises ConfigError where it cannot be used."""
        self._settings = settings(tracker) if tracker != "none" else {}
        self.tracker = tracker

    def tend(self) -> None:
        """Start the process, and again some time after it has failed. `run.json` has to be there."""
        if self._process is None:
            if self.tracker != "none" and time.monotonic() >= self._due:
                self._process = self._start()
        elif self._process.poll() is not None:
            self.problem, self._process, self._due = self._why(), None, time.monotonic() + PAUSE_SECONDS
            self._tell("The training goes on, and what is missing is written later.")

    def _start(self) -> subprocess.Popen[bytes]:
        words = tied([sys.executable, "-m", MODULE, str(self.folder.root.absolute()), self.tracker])
        known = {**environment(0), **QUIET, **self._settings}
        with self.log_path.open("wb") as log:
            return subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=log, stderr=log, env=known, start_new_session=True
            )

    def close(self, left: float | None) -> None:
        """Let the process write the last steps, and say it once more where the curve is not whole.

        `left`: seconds to the session's deadline, or None.
        """
        seconds = LONGEST_END if left is None else min(max(left - LAST_WORDS, SHORTEST_END), LONGEST_END)
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            try:
                self.problem = self._why() if self._process.wait(seconds) else ""
            except subprocess.TimeoutExpired:
                self.problem = f"{self.tracker} did not take the last steps in time."
            end_all(self._process)
        if self.problem:
            again = f"python -m {MODULE} {self.folder.root} {self.tracker}"
            self._tell(f"The next session writes what is missing, or `{again}`.", last=True)
        self._process, self.tracker, self.problem = None, "none", ""

    def _tell(self, then: str, last: bool = False) -> None:
        """A warning, which the ledger keeps, once; among the last lines of the session again."""
        if not self._told:
            self.warn(f"{self.problem} {then}")
        elif last:
            self.say(f"warning: {self.problem} {then}")
        self._told = True

    def _why(self) -> str:
        """The process' last line, without the values that it was given: ledger and notebook keep what is said."""
        said = last_lines(self.log_path, 1) or "it was killed"
        for value in self._settings.values():
            said = said.replace(value, "***")
        return f"{self.tracker} does not take the curve ({said.rstrip('.')})."
