"""`make demo`: train, die, resume bit for bit, evaluate; on a bare laptop, without an account.

Every part is the command line that a user would type, in a process of its own, and the kill is a real SIGKILL.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kaggle_lib.errors import UserError
from kaggle_lib.runs import events
from kaggle_lib.runs.folder import RunFolder

FOLDER = Path("demo")
STORE, WORK = str(FOLDER / "store"), FOLDER / "work"
KILL_AT = 30  # of 60 steps


def command(name: str, run: str, store: str = STORE, work: Path = WORK) -> list[str]:
    places = {"run": run, "store": store, "work_dir": work}
    sets = [word for key, value in places.items() for word in ("--set", f"{key}={value}")]
    preset = ["--preset", "tiny-cpu"] if name == "train" else []
    return [sys.executable, "-m", "kaggle_lib", name, *preset, *sets, "--json"]


def call(name: str, run: str, store: str = STORE, work: Path = WORK) -> dict[str, Any]:
    """Run a command to its end; its outcome. Raises UserError where it failed."""
    words = command(name, run, store, work)
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise UserError(f"`{name}` of run {run!r} ended with exit code {done.returncode}.", kept=done.stdout)
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def train_and_kill(run: str, store: str = STORE, work: Path = WORK) -> int:
    """Start a training and end its supervisor by SIGKILL once step `KILL_AT` is done; the last step that was seen."""
    folder = RunFolder(work / run)
    process = subprocess.Popen(command("train", run, store, work), stdout=subprocess.DEVNULL)
    while process.poll() is None:
        steps = events.curve(events.read_all(folder.events))
        if steps and steps[-1]["step"] >= KILL_AT:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            return int(steps[-1]["step"])
        time.sleep(0.05)
    raise UserError(f"The training of run {run!r} ended by itself before step {KILL_AT}.")


def say(line: str) -> None:
    print(f"\n== {line}", flush=True)


def compare(whole: dict[str, Any], resumed: dict[str, Any]) -> None:
    """Show both adapters' hashes. Raises UserError unless they are equal, and the second was a resumed one's."""
    print(f"undisturbed  {whole['adapter_sha256']}\nkilled       {resumed['adapter_sha256']}")
    if whole["adapter_sha256"] != resumed["adapter_sha256"] or resumed["resumed_from"] is None:
        raise UserError("The resumed run differs from the undisturbed one.", kept=f"Both are in {FOLDER}.")
    print("Equal, byte for byte.", flush=True)


def show_evaluation(run_folder: Path) -> None:
    result = json.loads((run_folder / "evaluation" / "result.json").read_text(encoding="utf-8"))
    for side in ("base", "tuned"):
        numbers = result[side]
        bits, perplexity = numbers["bits_per_byte"], numbers["perplexity"]
        print(f"{side:5}  {bits:.3f} bits per byte, perplexity {perplexity:.1f} per token", flush=True)


def main() -> None:
    began = time.monotonic()
    shutil.rmtree(FOLDER, ignore_errors=True)
    say("1. A training that nothing disturbs")
    whole = call("train", "undisturbed")

    say(f"2. The same training, its supervisor killed by SIGKILL after step {KILL_AT}")
    killed_at = train_and_kill("killed")
    print(f"Killed: step {killed_at} was done, and nothing could be saved or said.", flush=True)

    say("3. The same command again")
    resumed = call("train", "killed")
    print(f"Resumed from the checkpoint of step {resumed['resumed_from']}, finished at step {resumed['step']}.")

    say("4. Are the two adapters the same?")
    compare(whole, resumed)

    say("5. The base model and the tuned one on held-out answers")
    call("evaluate", "killed")
    show_evaluation(WORK / "killed")

    say("6. The report")
    call("report", "killed")
    page = WORK / "killed" / "report" / "index.html"
    print(f"Done in {time.monotonic() - began:.0f} s. Open {page} in a browser.")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
