"""A session that does everything but train: it goes on, saves, uploads and ends as `train` does, and loads no torch.

The content of a step's checkpoint comes from the adapter of the step before, so that the last one's bytes prove that
each step was made from the right one. The first line on standard output is JSON: the session and where it went on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from pathlib import Path

from support.checkpoint_folders import FILES, content, make_checkpoint

from kaggle_lib.checkpoints.hub import HubStore
from kaggle_lib.errors import UserError
from kaggle_lib.runs import resume
from kaggle_lib.runs.custody import Custody
from kaggle_lib.runs.events import EventLog
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.opening import new_session_id, only_session

WEIGHTS = "adapter_model.safetensors"
CONFIG = {"config": {"seed": 42}, "code": "c0de"}


def salt(weights: bytes) -> str:
    """What the next step is made of."""
    return hashlib.sha256(weights).hexdigest()


def expected(step: int) -> bytes:
    """The adapter of a run that nothing has disturbed."""
    weights = b""
    for number in range(1, step + 1):
        weights = content(number, WEIGHTS, FILES[WEIGHTS], salt(weights))
    return weights


def session(store: HubStore, folder: RunFolder, steps: int, pace: float) -> bool:
    """Go on to step `steps`, `pace` seconds each; whether the store has its checkpoint."""
    found = resume.choose(folder, store, store.peek())
    log = EventLog(folder.events, new_session_id())
    if found.kind == "finished" and found.to_commit is None:
        print(json.dumps({"session": log.session, "from": found.step}), flush=True)
        return True
    custody = Custody(store, folder, log, lambda line: print(line, file=sys.stderr, flush=True), keep=2)
    custody.take(CONFIG, found.lineage, None, wait_minutes=0.5)
    found = resume.choose(folder, store, store.peek())
    store.fetch_events(folder.events)
    log.write("session", job="train", from_step=found.step, resumed_from=found.step, host="here", processes=1)
    print(json.dumps({"session": log.session, "from": found.step}), flush=True)
    custody.begin(found.manifest if found.stored else None)
    weights = (found.path / WEIGHTS).read_bytes() if found.path else b""
    for step in range(found.step + 1, steps + 1):
        custody.check()
        time.sleep(pace)
        parts = {"lineage": found.lineage, "total_steps": steps, "salt": salt(weights)}
        weights = (make_checkpoint(folder.checkpoints, step, **parts)[0] / WEIGHTS).read_bytes()
        log.write("step", step=step, seconds=pace)
        log.write("save", step=step, seconds=0.0)
    custody.settle(60.0)
    custody.end("finished", "all steps are done", steps, None)
    return custody.stored_step == steps


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m support.saver", description=__doc__)
    parser.add_argument("--repo", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--pace", type=float, default=0.15)
    given = parser.parse_args()
    store = HubStore(given.repo, given.run, os.environ["HF_TOKEN"])
    folder = RunFolder(given.work / given.run)
    with only_session(folder):
        sys.exit(not session(store, folder, given.steps, given.pace))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
