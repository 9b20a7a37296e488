"""Where the seconds go from the start of a session to its first step, by the events of a run.

    python benchmarks/first_step.py RUN_FOLDER...                # the sessions that are there
    python benchmarks/first_step.py --folder /tmp/bench          # first trains `tiny-cpu`, pauses and resumes it

| part | from, to |
|---|---|
| launch | the supervisor's first event, to the worker's first: its process, its libraries |
| load | the worker's first event, to calibration or training: base model, adapter, rows |
| calibration | the three peaks of memory and the token budget; on a GPU only |
| first step | the trainer's start, what is compiled at first use, and the step |
| next step | the second step, to compare |
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PARTS = ("launch", "load", "calibration", "first step", "next step")


def parts(session: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of each part of one attempt's events, in the order in which they were written; those that it has."""
    from kaggle_lib.runs.events import seconds_between

    marks: list[tuple[str, str]] = []
    for event in session:
        if event["event"] == "session":
            marks.append(("launch", event["time"]))
        elif event["event"] == "phase" and event["phase"] in ("load", "calibration", "train"):
            marks.append(({"train": "first step"}.get(event["phase"], event["phase"]), event["time"]))
        elif event["event"] == "step" and marks and marks[-1][0] in ("first step", "next step"):
            marks.append(("next step" if marks[-1][0] == "first step" else "end", event["time"]))
    pairs = itertools.pairwise(marks)
    return {name: seconds_between(begin, end) for (name, begin), (_, end) in pairs if name in PARTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="run folders: work/NAME")
    parser.add_argument("--folder", type=Path, help="train `tiny-cpu` in two sessions there, and look at that")
    arguments = parser.parse_args()
    if arguments.folder:
        values = {"run": "first", "work_dir": arguments.folder / "work", "store": arguments.folder / "store"}
        words = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
        for limit in (["--set", "session_hours=0.004"], ["--set", "session_hours="]):
            command = [sys.executable, "-m", "kaggle_lib", "train", "--preset", "tiny-cpu", *words, *limit]
            subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        arguments.runs.append(arguments.folder / "work" / "first")
    from kaggle_lib.runs import events

    print(f"{time.strftime('%Y-%m-%d')}: {' '.join(sys.argv)}\n\n| session | {' | '.join(PARTS)} | to the first step |")
    print("|---" * (len(PARTS) + 2) + "|")
    for run in arguments.runs:
        for path in sorted((run / "events").glob("*.jsonl"), key=lambda path: path.stat().st_mtime):
            found = parts(list(events.read(path)))
            if found:  # a session without a first step was over before it
                whole = sum(found.get(part, 0.0) for part in PARTS[:-1])
                shown = [f"{found[part]:.2f}" if part in found else "–" for part in PARTS]
                print(f"| {path.stem} | {' | '.join(shown)} | {whole:.1f} |")


if __name__ == "__main__":
    main()
