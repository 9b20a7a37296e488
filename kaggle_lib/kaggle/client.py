"""The real `kaggle` command line, asked in a process of its own: what it says is read, its exit code is not believed.

Every call ends within a time limit, reads nothing from standard input and speaks UTF-8 in any locale. Only what the
command line lacks, to cancel a session, is asked of its SDK. Written against kaggle 2.2.5.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from kaggle_lib.errors import KaggleBusy, KaggleError
from kaggle_lib.runs.launch import tied
from kaggle_lib.session.secrets import HUB_VARIABLES

SITE = "https://www.kaggle.com"
SECONDS = 120.0
NO_LOGIN = "Authentication required"
# Words of Kaggle's own for "not now": slots, the weekly quota, no machine free. Anything
# else that it refuses is for a person to put right.
NOT_NOW = re.compile(
    r"maximum (batch|weekly|interactive)|session count|(gpu|tpu|weekly)[^.]{0,20} quota|capacity"
    r"|no \w+ (is|are) (currently )?available|(resources?|gpus?|accelerators?) (is|are) (currently )?(un|not )available"
    r"|try again later|being processed|rate limit|\b429\b",
    re.IGNORECASE,
)
NOT_SENT = re.compile(r"NewConnectionError|NameResolutionError|ConnectTimeout|Failed to establish")
# What the client prints where Kaggle may have done as it was told: a server's error, a broken connection, a reply that
# it could not read. Its other errors are refusals, of Kaggle's or of its own.
MAYBE_DONE = re.compile(
    r"problem on Kaggle's side|\b5\d\d Server Error|Connection ?Pool|Connection aborted|ConnectionError|timed out"
    r"|re-run with `kaggle --debug|Traceback|Expecting value",
    re.IGNORECASE,
)
CANCEL = """
import sys
from kaggle.api.kaggle_api_extended import KaggleApi
from kagglesdk.kernels.types.kernels_api_service import ApiCancelKernelSessionRequest
api = KaggleApi()
api.authenticate()
request = ApiCancelKernelSessionRequest()
request.kernel_session_id = int(sys.argv[1])
with api.build_kaggle_client() as client:
    print(client.kernels.kernels_api_client.cancel_kernel_session(request).error_message)
"""

State = Literal["none", "new", "queued", "running", "cancelling", "complete", "error", "cancelled", "unknown"]
STATES: dict[str, State] = {
    "QUEUED": "queued",
    "RUNNING": "running",
    "COMPLETE": "complete",
    "ERROR": "error",
    "CANCEL_REQUESTED": "cancelling",
    "CANCEL_ACKNOWLEDGED": "cancelled",
    "NEW_SCRIPT": "new",
}
LIVE = ("queued", "running", "cancelling")
ENDED = ("complete", "error", "cancelled")


@dataclass(frozen=True)
class Said:
    """One call's end. `code` is None where it did not end within its time."""

    code: int | None
    out: str
    err: str

    @property
    def problem(self) -> str:
        """The line that says what went wrong: the command line's first one, or the last one of a traceback."""
        if self.code is None:
            return "it did not answer in time"
        if NO_LOGIN in self.out + self.err:
            return NO_LOGIN
        told = self.err if self.err.strip() else self.out
        lines = [line.strip() for line in told.splitlines() if line.strip() and not line.startswith("Warning:")]
        return (
            (lines[-1] if "Traceback (most recent call last):" in lines else lines[0]) if lines else "it said nothing"
        )


@dataclass(frozen=True)
class Status:
    """What Kaggle says of a notebook's last session. `message`: why it failed, in Kaggle's words."""

    state: State
    message: str = ""

    @property
    def live(self) -> bool:
        return self.state in LIVE


@dataclass(frozen=True)
class Reply:
    """What a push came to. `full`: not now; `refused`: a person has to act; `lost`: it may have started a session.

    `dropped`: sources that Kaggle did not take, though it started the session.
    """

    kind: Literal["pushed", "full", "refused", "lost"]
    version: int | None = None
    url: str = ""
    problem: str = ""
    dropped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Quota:
    """The week's GPU hours: what is left of how many, and when they are refilled (null: not said)."""

    left: float
    total: float
    refresh: str | None


@dataclass(frozen=True)
class Pulled:
    """The newest version of a notebook: its metadata as the command line writes it, and `mark`, what `push` left."""

    metadata: Mapping[str, Any]
    mark: Mapping[str, Any] = field(default_factory=dict)


def read_status(said: Said) -> Status:
    """`none` for a notebook that is not there (or not yours: Kaggle says the same); `unknown` for no answer."""
    found = re.search(r'has status "(?:KernelWorkerStatus\.)?(\w+)"', said.out)
    if said.code == 0 and found:
        message = re.search(r'^Failure message: "(.*)"$', said.out, re.DOTALL | re.MULTILINE)
        return Status(STATES.get(found[1], "unknown"), message[1].strip() if message else "")
    if said.code == 1 and re.search(r"Cannot access kernel|resource was not found|\b404 Client", said.err):
        return Status("none")
    return Status("unknown", said.problem)


def read_push(said: Said) -> Reply:
    """What a push came to, by its words."""
    pushed = re.search(r"Kernel version (?:(\d+) )?successfully pushed\.\s+Please check progress at (\S*)", said.out)
    if pushed:
        dropped = re.findall(r"not valid (\w+) sources and could\s+not be added to the kernel: \[(.*)\]", said.out)
        names = tuple(f"{kind} {name.strip(chr(39))}" for kind, listed in dropped for name in listed.split(", "))
        return Reply("pushed", int(pushed[1]) if pushed[1] else None, pushed[2], dropped=names)
    if error := re.search(r"^Kernel push error: (.*)", said.out, re.MULTILINE):
        return Reply("full" if NOT_NOW.search(error[1]) else "refused", problem=error[1].strip())
    if said.code == 1 and NOT_SENT.search(said.err):
        return Reply("full", problem=f"it cannot be reached ({said.problem})")
    if said.code == 1 and not MAYBE_DONE.search(said.err):
        return Reply("full" if NOT_NOW.search(said.problem) else "refused", problem=said.problem)
    return Reply("lost", problem=said.problem)


def read_quota(said: Said) -> Quota | None:
    """The GPU row of `kaggle quota --csv`; None where it has none."""
    start = said.out.find("resource,")
    for row in csv.DictReader(said.out[max(start, 0) :].splitlines()):
        if row.get("resource") == "GPU":
            try:
                left, total = (float(row[name].removesuffix("h")) for name in ("remaining", "total"))
            except (KeyError, ValueError, AttributeError):
                return None
            return Quota(left, total, row.get("refreshAt") or None)
    return None


class Client:
    """The command line, as this user is logged in: by KAGGLE_USERNAME and KAGGLE_KEY or kaggle.json, or by
    KAGGLE_API_TOKEN or ~/.kaggle/access_token. `seconds`: the time limit of one call.
    """

    def __init__(self, seconds: float = SECONDS) -> None:
        self.seconds = seconds
        if importlib.util.find_spec("kaggle") is None:
            raise KaggleError("The `kaggle` client is not installed.", todo="`pip install kaggle`, and run again.")

    @staticmethod
    def words(*words: str) -> list[str]:
        return [sys.executable, "-m", "kaggle", "-W", *words]

    @staticmethod
    def environment() -> dict[str, str]:
        """Without the Hub's token, which is none of Kaggle's business."""
        kept = {name: value for name, value in os.environ.items() if name not in HUB_VARIABLES}
        return {**kept, "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}

    def call(self, *words: str) -> Said:
        """Raises KaggleError where nobody is logged in."""
        said = self._run(self.words(*words))
        if said.problem == NO_LOGIN:
            raise KaggleError(
                "Kaggle does not know who you are: no credentials, or none that are valid.",
                todo=f"Set KAGGLE_API_TOKEN, or store a token of {SITE}/settings/api in ~/.kaggle/access_token, or set "
                "KAGGLE_USERNAME and KAGGLE_KEY.",
            )
        return said

    def _run(self, words: list[str]) -> Said:
        try:
            done = subprocess.run(
                tied(words),  # no push goes on behind the back of a chain that was started again
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                env=self.environment(),
                timeout=self.seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return Said(None, "", "")
        return Said(done.returncode, done.stdout, done.stderr)

    def user(self) -> str:
        """The name that this user is logged in with. Raises KaggleBusy where Kaggle does not say."""
        said = self.call("config", "view")
        if found := re.search(r"^- username: (?!None$)(\S+)$", said.out, re.MULTILINE):
            return found[1]
        raise KaggleBusy(f"Kaggle does not say who you are ({said.problem}).", todo="Try again, or give --kernel.")

    def status(self, kernel: str) -> Status:
        return read_status(self.call("kernels", "status", kernel))

    def push(self, folder: Path) -> Reply:
        return read_push(self.call("kernels", "push", "-p", str(folder)))

    def quota(self) -> Quota | None:
        """None where Kaggle does not say."""
        return read_quota(self.call("quota", "--csv"))

    def pull(self, kernel: str) -> Pulled | None:
        """The newest version of a notebook; None where Kaggle does not give it."""
        with tempfile.TemporaryDirectory() as folder:
            if self.call("kernels", "pull", kernel, "-p", folder, "-m").code != 0:
                return None
            try:
                metadata = json.loads((Path(folder) / "kernel-metadata.json").read_text(encoding="utf-8"))
                notebook = json.loads((Path(folder) / metadata["code_file"]).read_text(encoding="utf-8"))
                mark = notebook["metadata"].get("kaggle_lib")
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                return None
        return Pulled(metadata, mark if isinstance(mark, dict) else {})

    def cancel(self, session: int) -> str:
        """Ask Kaggle to end a session, by its number. Returns what is wrong, or nothing."""
        said = self._run([sys.executable, "-c", CANCEL, str(session)])
        return said.out.strip() if said.code == 0 else said.problem

    def follow(self, kernel: str) -> subprocess.Popen[str]:
        """The live log of the newest session, line by line on standard output, until either ends."""
        return subprocess.Popen(
            tied(self.words("kernels", "logs", "-f", kernel)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            errors="replace",
            env={**self.environment(), "PYTHONUNBUFFERED": "1"},
        )


def editor(kernel: str) -> str:
    """Where a notebook is edited: secrets are attached there, and running sessions stopped."""
    return f"{SITE}/code/{kernel}/edit"
