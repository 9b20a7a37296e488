"""`make demo-hub`: a run on the Hub that dies with its machine, and goes on from the Hub on another, bit for bit.

No account is needed: the Hub is the loopback one, a process of its own, asked by the real huggingface_hub over HTTP.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from kaggle_lib import demo
from kaggle_lib.demo import KILL_AT, call, compare, say, show_evaluation, train_and_kill
from kaggle_lib.errors import UserError

FOLDER = demo.FOLDER / "hub"
STORE = "hf://loopback/runs"


def machine(name: str) -> Path:
    """The work folder of another machine: it shares nothing with the others but the Hub and its token."""
    os.environ["HF_HOME"] = str((FOLDER / name / "cache").absolute())
    return FOLDER / name / "work"


def main() -> None:
    began = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    say("1. A training that nothing disturbs, its store a folder")
    whole = call("train", "undisturbed", str(FOLDER / "store"), machine("a"))

    words = [sys.executable, "-m", "support.loopback_hub", "--root", str(FOLDER / "server")]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        told = json.loads(server.stdout.readline())
        os.environ |= {"HF_ENDPOINT": told["endpoint"], "HF_TOKEN": told["token"], "HF_HUB_OFFLINE": "0"}
        say(f"2. The same training, its store {STORE}; its supervisor is killed by SIGKILL after step {KILL_AT}")
        work = machine("b")
        killed_at = train_and_kill("killed", STORE, work)
        shutil.rmtree(work)
        print(f"Killed: step {killed_at} was done, and the machine is gone with its disk.", flush=True)

        say("3. Another machine, which knows the run's name and the store, asks how the run stands")
        work = machine("c")
        found = call("status", "killed", STORE, work)
        step, redone = found["step"], killed_at - found["step"]
        print(f"The checkpoint of step {step} reached the Hub; {redone} later steps died with the machine.", flush=True)

        say("4. It goes on from there")
        resumed = call("train", "killed", STORE, work)
        print(f"Resumed from the checkpoint of step {resumed['resumed_from']}, finished at step {resumed['step']}.")

        say("5. Are the two adapters the same?")
        compare(whole, resumed)

        say("6. A third machine evaluates, and puts the numbers on the Hub")
        work = machine("d")
        call("evaluate", "killed", STORE, work)
        show_evaluation(work / "killed")

        say("7. A fourth machine writes the report, from the Hub alone: three sessions, one curve")
        work = machine("e")
        call("report", "killed", STORE, work)
    finally:
        server.terminate()
        server.wait()
    page = work / "killed" / "report" / "index.html"
    print(f"Done in {time.monotonic() - began:.0f} s. Open {page} in a browser.")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
