"""Sessions on the loopback Kaggle that take a moment: the real kernel, with a notebook that writes to the real store
what a training session would (claim, record, checkpoint, release) and trains nothing.

`QUICK` in the sessions' environment says how one goes: `step` adds 10 steps of 30; `idle` adds none; `fail` raises
before it claims; `die` ends after its claim without a word; `silent` claims for a second and then gives no sign.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from support.loopback_hub import LoopbackHub
from support.loopback_kaggle import LoopbackKaggle

ROOT = Path(__file__).parents[2]
OF_A_CLONE = ("kernel-metadata.json", "pyproject.toml", "requirements.txt", "README.md")
STORE, RUN, KERNEL = "hf://loopback/runs", "quick-run", "loopback/quick-run"
VALUES = {"run": RUN, "store": STORE, "base_model": "sample", "data": "sample", "precision": "fp32"}
VALUES |= {"optim": "adamw_torch", "quantization": "none"}

SESSION = """
import json, os, sys, time
from pathlib import Path
from kaggle_lib.checkpoints import lease
from kaggle_lib.checkpoints.manifest import Manifest, folder_name
from kaggle_lib.config import RunConfig, code_hash, fingerprint
from kaggle_lib.runs import events, ledger
from kaggle_lib.runs.opening import new_session_id, store_for
from kaggle_lib.session.where import kaggle_session

how = os.environ["QUICK"]
if how == "fail":
    sys.exit("no reason to live")
given = json.loads(sys.argv[1])
config = RunConfig.create({name: value for name, value in given.items() if name in RunConfig.model_fields})
store = store_for(config)
newest = max((stored.step for stored in store.peek().checkpoints), default=0)
session = new_session_id()
log = events.EventLog(Path("events"), session)
if how == "silent":
    lease.SHORTEST = lease.UNMEASURED = 1.0
frozen = {"config": config.model_dump(mode="json"), "code": code_hash(), "base_commit": None}
claim = store.claim(frozen, lease.Lease.mine(session), "a" * 32, config.take_over)
log.write("session", job="train", from_step=newest, kernel=config.kernel, kaggle_session=kaggle_session())
record = lambda: ledger.record(list(events.read(log.path)))
claim.renew(record(), log.path.parent)
print("claimed", session, flush=True)
if how == "silent":
    time.sleep(3600)
if how == "die":
    os._exit(9)
time.sleep(float(os.environ.get("QUICK_SECONDS", "0")))
step = newest
if how == "step":
    step = newest + 10
    folder = Path("checkpoints") / folder_name(step)
    folder.mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_bytes(b"weights %d" % step)
    about = {"lineage": "a" * 32, "session": session, "versions": {}, "cut": {}}
    Manifest.write(folder, step=step, total_steps=30, fingerprint=fingerprint(config, code_hash()), **about)
    log.write("save", step=step, seconds=0.1, bytes=10)
    claim.commit(folder, record(), log.path.parent)
word = "finished" if step == 30 else "paused"
log.write("end", outcome=word, reason="quick", step=step, on_store=step)
claim.release("quick", record(), log.path.parent)
"""

CELL = """
import json, os, subprocess, sys
given = {name: value for name, value in globals().items() if name[0] != "_" and len(str(value)) < 200}
given = {name: value for name, value in given.items() if isinstance(value, (str, int, float, list, type(None)))}
done = subprocess.Popen(
    [sys.executable, "-c", SESSION, json.dumps(given)],
    env={**os.environ, "PYTHONPATH": str(FOLDER / "lib")},
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
)
for line in done.stdout:
    print(line, end="", flush=True)
assert done.wait() == 0, done.returncode
"""


def make_clone(folder: Path) -> Path:
    """What a kernel is built from, with the quick notebook in the place of `train`."""
    folder.mkdir()
    shutil.copytree(ROOT / "kaggle_lib", folder / "kaggle_lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in OF_A_CLONE:
        shutil.copy(ROOT / name, folder / name)
    new = nbformat.v4
    parameters = new.new_code_cell('run = ""\nstore = ""', metadata={"tags": ["parameters"]})
    cells = [parameters, new.new_code_cell(f"SESSION = {SESSION!r}"), new.new_code_cell(CELL)]
    kernelspec = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernelspec, "language_info": {"name": "python"}}
    (folder / "notebooks").mkdir()
    nbformat.write(new.new_notebook(cells=cells, metadata=metadata), folder / "notebooks" / "train.ipynb")
    return folder


class Laptop:
    """A user's machine with a clone, a Kaggle account (whose kernel has the secret) and a Hub token."""

    def __init__(self, folder: Path, hub: LoopbackHub, kaggle: LoopbackKaggle, *, token: bool = False):
        self.clone = make_clone(folder)
        mine = {**hub.environment(), **kaggle.environment(token=token), "PYTHONPATH": str(self.clone)}
        self.environment = {**os.environ, **mine}

    def start(self, command: str, *words: str, **values: object) -> subprocess.Popen[str]:
        given = [word for key, value in {**VALUES, **values}.items() for word in ("--set", f"{key}={value}")]
        return subprocess.Popen(
            [sys.executable, "-m", "kaggle_lib", command, *words, *given, "--json"],
            cwd=self.clone,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
        )

    def call(self, command: str, *words: str, code: int = 0, **values: object) -> dict:
        """The JSON that it prints, and `stderr`. Its exit code must be `code`."""
        process = self.start(command, *words, **values)
        out, err = process.communicate()
        assert process.returncode == code, f"exit {process.returncode}, not {code}\n{out}\n{err}"
        assert not any(line.startswith("Traceback") for line in err.splitlines()), err  # the session's own are indented
        return {**json.loads(out), "stderr": err}


def reach(hub: LoopbackHub) -> dict[str, str]:
    """What a session's environment needs to come to the Hub; the token is in the kernel's secret."""
    return {name: value for name, value in hub.environment().items() if name not in ("HF_TOKEN", "HF_HOME")}


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


@contextmanager
def quick_kaggle(root: Path, hub: LoopbackHub) -> Iterator[LoopbackKaggle]:
    """A loopback Kaggle whose sessions reach `hub`, have its token, and add a step."""
    with LoopbackKaggle(root, session_environment=reach(hub) | {"QUICK": "step"}) as kaggle:
        kaggle.grace, kaggle.secrets_travel = 0.0, True
        kaggle.attach_secret(KERNEL, "HF_TOKEN", hub.token)
        yield kaggle


def saves(kaggle: LoopbackKaggle) -> list[Any]:
    """The pushes that it was sent."""
    return [call for call in kaggle.calls if call.call == "SaveKernel"]
