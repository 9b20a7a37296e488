"""Real sessions by the real command line, and real kills of anything in their process trees."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from kaggle_lib.runs import events
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.launch import descendants

ROOT = Path(__file__).parents[2]
# A run of 24 steps over two epochs, which saves often and takes seconds.
SMALL = {"rows": 48, "max_length": 128, "epochs": 2, "max_steps": "", "save_steps": 4, "eval_steps": 8, "eval_rows": 4}


@dataclass
class Place:
    """One run's store and work folder below `root`, and the values it is trained with."""

    root: Path
    run: str = "run"
    values: dict = field(default_factory=dict)
    work: Path = None

    def __post_init__(self):
        self.work = self.work or self.root / "work"

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.work / self.run)

    @property
    def stored(self) -> Path:
        return self.root / "store" / self.run

    def command(self, name: str, **more) -> list[str]:
        given = {"run": self.run, "store": self.root / "store", "work_dir": self.work}
        if name == "train":
            given |= {**SMALL, **self.values}
        words = [word for key, value in {**given, **more}.items() for word in ("--set", f"{key}={value}")]
        preset = ["--preset", "tiny-cpu"] if name == "train" else []
        return [sys.executable, "-m", "kaggle_lib", name, *preset, *words, "--json"]

    def start(self, name: str = "train", **more) -> subprocess.Popen:
        return subprocess.Popen(
            self.command(name, **more),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            cwd=ROOT,
        )

    def call(self, name: str = "train", code: int = 0, **more) -> dict:
        """Run a command to its end; its JSON. Its exit code must be `code`, and it must have no traceback."""
        process = self.start(name, **more)
        out, err = process.communicate()
        assert process.returncode == code, f"exit {process.returncode}, not {code}\n{out}\n{err}"
        assert "Traceback" not in err, err
        return {**json.loads(out), "stderr": err}

    def steps(self) -> list[dict]:
        return events.curve(events.read_all(self.folder.events))

    def curve(self) -> list[tuple]:
        return [(event["step"], event["samples"], event["loss"], event["lr"]) for event in self.steps()]

    def final_bytes(self) -> dict[str, bytes]:
        """What must be equal to the last byte after any history."""
        final = self.folder.checkpoint(self.folder.checkpoint_steps()[0])
        return {
            name: (final / name).read_bytes() for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt")
        }

    def wait_for_step(self, process: subprocess.Popen, step: int) -> None:
        """Return once `step` is done; fails where the session ends before."""
        while process.poll() is None:
            if any(event["step"] >= step for event in self.steps()):
                return
            time.sleep(0.02)
        raise AssertionError(f"ended before step {step}: {process.communicate()}")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def gone(pids: list[int], seconds: float = 20) -> bool:
    """Whether all of them end within so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def train_under_fire(
    place: Place,
    kills: int,
    seed: int,
    lose_work: float = 0.0,
    disturb: Callable[[random.Random], None] = lambda chance: None,
    says: str = "launches in a row came to no new checkpoint",
) -> dict:
    """Train to the end while up to `kills` random SIGKILLs hit anything in the process tree; what happened.

    With probability `lose_work` the work folder is gone after a session died. Every session's end must be one of:
    killed, finished, or (the workers killed too often in a row) an error that says so: one with a match of `says`.
    `disturb` is called before each kill.
    """
    chance = random.Random(seed)
    done = {"kills": 0, "sessions": 0, "errors": 0, "lost": 0, "victims": [], "from": []}
    while True:
        process = place.start()
        done["sessions"] += 1
        while done["kills"] < kills and process.poll() is None:
            disturb(chance)
            # Early ones hit start-up and loading; the later ones steps and saves.
            end = time.monotonic() + chance.choice([chance.uniform(0, 3), chance.uniform(3, 14)])
            while time.monotonic() < end and process.poll() is None:
                time.sleep(0.02)
            tree = descendants(process.pid)
            victim = chance.choice([process.pid, *tree])
            if process.poll() is not None or not alive(victim):
                continue
            os.kill(victim, signal.SIGKILL)
            done["kills"] += 1
            done["victims"].append("supervisor" if victim == process.pid else "worker")
            if victim == process.pid:
                process.wait()
                assert gone(tree), f"orphans after a kill of the supervisor: {[pid for pid in tree if alive(pid)]}"
        out, err = process.communicate()
        assert "Traceback (most recent call last)" not in err, err
        if process.returncode == 0:
            outcome = json.loads(out)
            assert outcome["outcome"] == "finished", outcome
            assert outcome["on_store"], outcome
            return {**done, "outcome": outcome}
        assert process.returncode in (-signal.SIGKILL, 1), (process.returncode, out, err)
        if process.returncode == 1:
            assert re.search(says, err), err
            done["errors"] += 1
        if chance.random() < lose_work:
            shutil.rmtree(place.work, ignore_errors=True)
            done["lost"] += 1
        assert done["sessions"] < 4 * kills + 10, done
