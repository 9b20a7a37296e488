"""Start the workers, watch them, end them, and leave no orphan. Imports no torch.

The launcher and its workers get a session of their own, so a Ctrl-C in the terminal or a notebook's interrupt reaches
only the supervisor; a killed supervisor takes them with it by the kernel's parent-death signal.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.session import secrets

# prctl(PR_SET_PDEATHSIG, SIGKILL) outlives exec; a parent that has died before it is another one by now.
TIE = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execvp(sys.argv[2], sys.argv[2:])"
)


def tied(words: Sequence[str]) -> list[str]:
    """The command `words`, which the kernel kills when the thread that starts it ends.

    By a small Python that becomes the command, and not by Popen's `preexec_fn`: that forks with all locks as they are,
    and runs what libraries have registered for a fork. huggingface_hub's closes its connections there, and waits for
    ever where an upload held their lock.
    """
    return [sys.executable, "-I", "-S", "-c", TIE, str(os.getpid()), *words]


def descendants(pid: int) -> list[int]:
    """Every descendant of `pid`, also those in other sessions, from /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # The command's name may hold spaces and parentheses: fields begin after the last one.
                parent = int((entry / "stat").read_text(errors="replace").rpartition(") ")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        for child in children.get(todo.pop(), []):
            found.append(child)
            todo.append(child)
    return found


@dataclass(frozen=True)
class Meeting:
    """Where the workers of `nodes` machines meet in one attempt: `host` as this machine knows the first one, a `port`
    that no other attempt had, so that nothing of a dead one is found there."""

    host: str
    port: int
    node: int
    nodes: int

    def words(self) -> list[str]:
        """torchrun's static rendezvous: the first machine is node 0, and its first worker rank 0."""
        at = f"--rdzv-endpoint={self.host}:{self.port}"
        return ["--rdzv-backend=static", at, f"--nnodes={self.nodes}", f"--node-rank={self.node}"]


# By itself torchrun gives the workers the machine's name, which in a container need not lead anywhere.
ALONE = ("--standalone", "--local-addr=127.0.0.1")


def command(module: str, folder: RunFolder, processes: int, meeting: Meeting | None = None) -> list[str]:
    """Plain Python for one process, torchrun for several; without restarts, which are the supervisor's."""
    if processes == 1 and meeting is None:
        return [sys.executable, "-m", module, str(folder.root)]
    where = meeting.words() if meeting else ALONE
    torchrun = [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc-per-node={processes}"]
    return [*torchrun, "--max-restarts=0", "-m", module, str(folder.root)]


def hang_seconds(hang_minutes: float, phase: str) -> float:
    """Seconds without a sign of life after which a phase counts as hung: in training there is one every micro-batch;
    start, load, calibration, the first step, a save and an evaluation get four times as long."""
    return 60 * hang_minutes * (1 if phase == "train" else 4)


def environment(processes: int, meeting: Meeting | None = None) -> dict[str, str]:
    """What a worker gets to see: no token, the Hub offline, the package from wherever the notebook or command runs."""
    found = {
        **{name: value for name, value in os.environ.items() if name not in secrets.VARIABLES},
        "KAGGLE_LIB_SUPERVISED": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONIOENCODING": "utf-8",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "1",  # a base model of the Hub was fetched before
        # Waiting OpenMP threads sleep: on a busy machine spinning ones take the cores from those that work.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
    }
    if meeting:  # as torchrun does for several processes of one machine: another number of threads rounds otherwise
        found.setdefault("OMP_NUM_THREADS", "1")
    if processes == 1 and (first := visible_gpus()[:1]):
        # With two GPUs in sight and one process Trainer would split every batch over both (DataParallel).
        found["CUDA_VISIBLE_DEVICES"] = first[0]
    # The package must be found from wherever the notebook or the command runs.
    root = str(Path(__file__).parents[2])
    found["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return found


class Workers:
    """One launch of a worker module over a run folder; its output goes to `worker.log` there.

    Start it from the main thread: the parent-death signal follows the thread that forked. `every_gpu`: one process
    sees them all, for a model that is spread over them.
    """

    def __init__(
        self,
        module: str,
        folder: RunFolder,
        processes: int,
        meeting: Meeting | None = None,
        *,
        every_gpu: bool = False,
    ) -> None:
        self.folder = folder
        folder.clear_requests()
        self.log_path = folder.root / "worker.log"
        self._beat: tuple[int, str] | None = None
        self._beat_seen = time.monotonic()
        log: IO[bytes] = self.log_path.open("wb")
        with log:
            self.process = subprocess.Popen(
                tied(command(module, folder, processes, meeting)),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(0 if every_gpu else processes, meeting),
                start_new_session=True,
            )

    def wait(self, seconds: float) -> bool:
        """Wait up to so long; True when the launcher has ended."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def silent_for(self) -> tuple[float, str]:
        """Seconds since the heartbeat was seen to change, and its phase (`start` before the first).

        By a clock that stands still while the machine is suspended, and is never set.
        """
        try:
            beat = self.folder.heartbeat
            seen = (beat.stat().st_mtime_ns, beat.read_text(encoding="utf-8") or "start")
        except FileNotFoundError:
            seen = (0, "start")
        if seen != self._beat:
            self._beat, self._beat_seen = seen, time.monotonic()
        return time.monotonic() - self._beat_seen, seen[1]

    def how_ended(self) -> str:
        """How the launcher ended by itself, in words; torchrun's own code says nothing of its workers'."""
        code = self.process.returncode
        if code is None:
            return "the workers were ended"
        return f"the worker was killed ({signal.Signals(-code).name})" if code < 0 else f"the workers ended with {code}"

    def end(self) -> None:
        """SIGKILL for the launcher and every descendant; returns when the launcher is gone."""
        end_all(self.process)

    def last_lines(self) -> str:
        """The end of the workers' output, for an error message."""
        return last_lines(self.log_path, 15)


def end_all(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a process and every descendant; returns when it is gone."""
    # Descendants are looked up first: they change parents when the process dies.
    for pid in [*descendants(process.pid), process.pid]:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def last_lines(path: Path, count: int) -> str:
    """The last lines that say something; "" where there is no such file."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    except FileNotFoundError:
        return ""
    return "\n".join([line for line in lines if line.strip()][-count:])


def visible_gpus() -> list[str]:
    """Names of the CUDA GPUs that a process may use, as CUDA_VISIBLE_DEVICES takes them, without importing torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() and name.strip() != "-1"]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(number) for number, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU ")]
