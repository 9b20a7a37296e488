"""One session of the loopback Kaggle: the pushed notebook, run by papermill in folders and processes of its own.

As reported of Kaggle: at the limit the kernel's process group gets SIGINT, everything SIGKILL a moment later, and the
output is lost; after a clean exit, a crash and a cancel it is kept, without symlinks, empty folders and exec bits.
(Kaggle also makes an HTML page of the notebook, with nbconvert; here that is left out.)
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from support import loopback_kaggle_container as container
from support.loopback_kaggle_image import gpu

if TYPE_CHECKING:
    from support.loopback_kaggle import LoopbackKaggle
    from support.loopback_kaggle_records import Version

REPOSITORY = Path(__file__).parents[2]
OVER_LIMIT = "Your notebook was stopped because it exceeded the max allowed execution duration."
NO_MACHINE = "Unable to allocate the requested accelerator: no capacity is available. Please try again later."
LIVE = ("QUEUED", "RUNNING", "CANCEL_REQUESTED")


def enter_words() -> list[str]:
    """What opens a container for a session, or nothing where this system does not let us."""
    unshare = shutil.which("unshare")
    words = [str(unshare), "--pid", "--fork", "--kill-child=KILL", "--mount-proc", "--uts"]
    words += ["--map-root-user"] if os.getuid() else []
    works = unshare and subprocess.run([*words, "--net", "true"], capture_output=True, check=False).returncode == 0
    return words if works else []


@dataclass(frozen=True)
class Plan:
    """What Kaggle's side does to one session. Seconds it waits for a machine, and for which it is said to run after
    its end; `capacity`: no machine comes at all; `end_as`: the status told of it once it has ended by itself.
    """

    queue: float = 0.0
    linger: float = 0.0
    capacity: bool = False
    end_as: str = ""
    gpus: tuple[str, ...] | None = None


@dataclass
class Session:
    """`started` and `ended` are seconds since 1970; `output` is the folder of what was kept, None where nothing was."""

    kaggle: LoopbackKaggle
    id: int
    kernel: str
    version: Version
    secrets: dict[str, str]
    plan: Plan
    gpus: tuple[str, ...] = ()
    status: str = "QUEUED"
    failure: str = ""
    created: float = field(default_factory=time.time)
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None
    output: Path | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    secrets_token: str = field(default_factory=lambda: uuid.uuid4().hex)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __post_init__(self) -> None:
        self.folder = self.kaggle.root / "sessions" / str(self.id)
        self.folder.mkdir()
        self.container_name = f"kaggle_{uuid.uuid4().hex[:8]}-{self.id}-webtier"
        self.pid: int | None = None
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True, name=f"session-{self.id}")

    def start(self) -> None:
        self._thread.start()

    def cancel(self) -> None:
        with self.changed:
            if self.status in LIVE:
                self.status = "CANCEL_REQUESTED"
        self._cancelled.set()

    def join(self) -> None:
        self._thread.join()

    @property
    def live(self) -> bool:
        return self.ended is None

    @property
    def seconds(self) -> float:
        """How long it has run, as it is billed."""
        return 0.0 if self.started is None else (self.ended or time.time()) - self.started

    @property
    def log(self) -> str:
        """The log as Kaggle keeps it: a JSON list of pieces of output with the seconds at which they came."""
        return json.dumps(self.events) if self.events else ""

    @property
    def text(self) -> str:
        return "".join(event["data"] for event in self.events)

    def wait(self, seconds: float = 300.0) -> Session:
        """Return once it has ended. Raises TimeoutError."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.ended is not None, seconds):
                raise TimeoutError(f"session {self.id} is {self.status} after {seconds} s\n{self.text}")
        return self

    def wait_for(self, text: str, seconds: float = 300.0) -> None:
        """Return once `text` stands in the log. Raises TimeoutError, also where the session ends without it."""
        with self.changed:
            self.changed.wait_for(lambda: text in self.text or self.ended is not None, seconds)
            if text not in self.text:
                raise TimeoutError(f"session {self.id} is {self.status} and never said {text!r}\n{self.text}")

    def told(self) -> dict[str, Any]:
        """This session as other processes see it."""
        names = ("id", "kernel", "status", "failure", "created", "started", "ended", "exit_code", "gpus", "pid")
        told = {name: getattr(self, name) for name in names}
        kept = str(self.output) if self.output else None
        return {**told, "version": self.version.number, "output": kept, "log": self.text}

    def _live(self) -> None:
        try:
            self._pass()
        except Exception:  # else whoever waits for its end would wait for ever
            self._say("stderr", traceback.format_exc())
            self._end("ERROR", "The loopback Kaggle broke; the log says where.")

    def _pass(self) -> None:
        self._pause(self.plan.queue)
        if self.plan.capacity and not self._cancelled.is_set():
            return self._end("ERROR", NO_MACHINE)
        if self._cancelled.is_set():
            return self._end("CANCEL_ACKNOWLEDGED")
        with self.changed:
            self.status, self.started = "RUNNING", time.time()
        status, failure = self._run()
        if status in ("COMPLETE", "ERROR") and self.plan.end_as:
            status = self.plan.end_as
        self._pause(self.plan.linger)
        return self._end(status, failure)

    def _pause(self, seconds: float) -> None:
        self._cancelled.wait(seconds)

    def _end(self, status: str, failure: str = "") -> None:
        with self.changed:
            self.status, self.failure, self.ended = status, failure, time.time()
            self.changed.notify_all()

    def _run(self) -> tuple[str, str]:
        """The session's process from start to end: its status and Kaggle's word on why it failed."""
        root, home, temporary = (self.folder / name for name in ("kaggle", "home", "tmp"))
        for folder in (root / "input", root / "working", root / "temp", home, temporary, self.folder / "empty"):
            folder.mkdir(parents=True)
        self.kaggle.mount(self.kernel.partition("/")[0], self.version, root / "input")
        source = self.folder / "kernel.ipynb"
        source.write_text(self.version.source, encoding="utf-8")
        python = self.kaggle.python
        words = [str(python), "-m", "papermill", str(source), str(root / "working" / "__notebook__.ipynb")]
        words += ["--cwd", str(root / "working"), "--no-progress-bar"]
        words += ["--stdout-file", "/dev/stdout", "--stderr-file", "/dev/stderr"]
        internet = self.version.internet
        enter = self.kaggle.enter and [*self.kaggle.enter, *([] if internet else ["--net"])]
        assert enter or internet, "this system has no containers, so the loopback Kaggle cannot take Internet away"
        told = {"command": words, "enter": enter, "internet": internet, "host": f"kaggle-{self.id}"}
        told |= {"hidden": [str(folder) for folder in hidden(self.kaggle.root)], "empty": str(self.folder / "empty")}
        plan = self.folder / "plan.json"
        plan.write_text(json.dumps(told))
        process = subprocess.Popen(
            [str(python), "-I", "-S", container.__file__, str(plan)],
            cwd=root / "working",
            env=self._environment(root, home, temporary),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.pid = process.pid
        readers = [
            threading.Thread(target=self._read, args=(name, stream), daemon=True)
            for name, stream in (("stdout", process.stdout), ("stderr", process.stderr))
        ]
        for reader in readers:
            reader.start()
        reason = self._watch(process)
        for reader in readers:
            reader.join()
        self.exit_code = 137 if reason == "limit" else process.returncode
        if reason == "limit":
            self._say("stderr", f"Timeout waiting for execute reply ({self.kaggle.limit:.0f}s).\n^C\n")
        else:
            self.output = kept(root / "working", self.folder / "output")
        shutil.rmtree(root)  # the machine is gone
        for folder in (home, temporary):
            shutil.rmtree(folder)
        if reason == "cancel":
            return "CANCEL_ACKNOWLEDGED", ""
        if reason == "limit":
            return "ERROR", OVER_LIMIT
        return ("COMPLETE", "") if process.returncode == 0 else ("ERROR", "")

    def _environment(self, root: Path, home: Path, temporary: Path) -> dict[str, str]:
        bins = [str(self.kaggle.python.parent), "/usr/local/bin", "/usr/bin", "/bin"]
        kaggle = {
            "KAGGLE_LIB_ROOT": str(root),
            "KAGGLE_KERNEL_RUN_TYPE": "Batch",
            "KAGGLE_URL_BASE": self.kaggle.endpoint,
            "KAGGLE_USER_SECRETS_TOKEN": self.secrets_token,
            "KAGGLE_CONTAINER_NAME": self.container_name,
        }
        system = {"PATH": ":".join(bins), "HOME": str(home), "TMPDIR": str(temporary), "LANG": "C.UTF-8"}
        return {**system, **kaggle, "LOOPBACK_GPUS": json.dumps([gpu(name) for name in self.gpus])} | (
            self.kaggle.session_environment
        )

    def _watch(self, process: subprocess.Popen[bytes]) -> str:
        """Wait for the process's end, and bring it about at the limit or when cancelled; why it ended."""
        began = time.monotonic()
        while process.poll() is None:
            over = time.monotonic() - began > self.kaggle.limit
            reason = "cancel" if self._cancelled.wait(0.02) else "limit" if over else ""
            if reason:
                self._end_processes(process)
                return reason
        return "exit"

    def _end_processes(self, process: subprocess.Popen[bytes]) -> None:
        """SIGINT to the kernel's process group, which jupyter puts in a session of its own; then SIGKILL to all."""
        for pid in [] if self.kaggle.stopping.is_set() else container.descendants(process.pid):
            if b"ipykernel_launcher" in command_of(pid):
                os.killpg(os.getpgid(pid), signal.SIGINT)
                break
        try:
            process.wait(0 if self.kaggle.stopping.is_set() else self.kaggle.grace)
        except subprocess.TimeoutExpired:
            container.end_all([*container.descendants(process.pid), process.pid])
        process.wait()

    def _read(self, name: str, stream: IO[bytes]) -> None:
        for line in stream:
            self._say(name, line.decode("utf-8", "replace"))

    def _say(self, name: str, data: str) -> None:
        with self.changed:
            seconds = round(time.time() - (self.started or self.created), 3)
            self.events.append({"stream_name": name, "time": seconds, "data": data})
            with (self.folder / "log").open("a", encoding="utf-8") as file:  # for a person, after a test has failed
                file.write(data)
            self.changed.notify_all()


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def hidden(root: Path) -> list[Path]:
    """The repository's own folders, which a session must not see; not its environment, and none that holds `root`."""
    folders = (path for path in REPOSITORY.iterdir() if path.is_dir() and not path.name.startswith("."))
    needed = (root.resolve(), Path(sys.prefix).resolve())
    return sorted(path for path in folders if not any(place.is_relative_to(path.resolve()) for place in needed))


def kept(working: Path, output: Path) -> Path:
    """What Kaggle keeps of /kaggle/working, moved to `output`."""
    working.rename(output)
    for place, folders, names in os.walk(output, topdown=False):
        for path in (Path(place) / name for name in (*names, *folders)):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                path.unlink()
            elif path.is_file():
                path.chmod(0o644)
            elif not any(path.iterdir()):
                path.rmdir()
    return output
