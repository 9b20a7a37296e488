"""Sessions that end in every way there is: accidents of the workers inside them, and what ends the session itself."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

from support.sessions import ROOT, Place, gone

from kaggle_lib.checkpoints.manifest import verify
from kaggle_lib.runs import events
from kaggle_lib.runs.launch import descendants

HOOKS = Path(__file__).with_name("provoking_hooks.py")
STEPS = 60
VALUES = {
    "hooks": HOOKS,
    "rows": 80,
    "epochs": 3,  # 60 steps
    "save_steps": 5,
    "eval_steps": 0,
    "hang_minutes": 0.2,  # 12 s in training, 48 s for all else
}
# What the ledger says of a session that ended so, and its exit code.
ENDS = {
    "deadline": ("paused: session_hours=", 75),
    "interrupt": ("paused: interrupted", 75),
    "twice": ("stopped: stopped at once by the second interrupt", 130),
    "sigterm": ("paused: asked to end by SIGTERM", 75),
    "killed": ("killed", -signal.SIGKILL),
    "loss": ("failed: The loss of step ", 1),
    "fill": ("failed: ", 1),
    "finish": ("finished: all steps are done", 0),
}
# What a warning says of an accident inside a session, after which it went on.
ACCIDENTS = {
    "raise": "The worker raised RuntimeError: an accident in step {step}. Starting again from the last checkpoint.",
    "freeze": "The workers hung: no sign of life for ",
    "block": "The workers hung: no sign of life for ",
    "kill": "The worker was killed (SIGKILL). Starting again from the last checkpoint.",
    "memory": "Out of memory in step {step}: done again with the same random numbers; ",
}


def can_mount() -> bool:
    """Whether a small disk can be mounted for a test."""
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"]
    return subprocess.run(probe, capture_output=True, check=False).returncode == 0


def place_for(root: Path, strategy: str, **values) -> Place:
    return Place(root, values={**VALUES, "strategy": strategy, **values})


def log_files(place: Place) -> set[Path]:
    """The events of all sessions, here; those that are still to be fetched from the store, too."""
    return {
        place.folder.events / path.name
        for where in (place.folder.root, place.stored)
        for path in where.glob("events/*.jsonl")  # not one that is on its way under a passing name
    }


def stored_step(place: Place) -> int:
    """The newest step that the store holds."""
    return max(int(path.name.removeprefix("step-")) for path in (place.stored / "checkpoints").glob("step-*"))


def session(place: Place, end: str, at: int, accidents=(), slow: float = 0.0, hours: float = 0.0) -> dict:
    """One session from wherever the run is, ended by `end` at about step `at`; what the command printed as JSON.

    `accidents`: (what, step) that happen inside it before. Asserts its exit code, what the ledger says, that the
    store holds a checkpoint that verifies, and that no process is left.
    """
    provoke = place.root / "provoke"
    provoke.mkdir(parents=True, exist_ok=True)
    for what, step in [*accidents, *([(end, at)] if end in ("loss", "fill") else [])]:
        (provoke / f"{what}-{step}").touch()
    (provoke / "slow").unlink(missing_ok=True)
    if slow:
        (provoke / "slow").write_text(str(slow))
    words = place.command("train", **({"session_hours": hours} if end == "deadline" else {}))
    disk = place.root / "disk"
    if end == "fill":
        disk.mkdir(exist_ok=True)
        words = place.command("train", work_dir=disk / "work")
        words = ["unshare", "--mount", "sh", "-c", f'mount -t tmpfs -o size=48m tmpfs {disk} && exec "$@"', "-", *words]
    before = log_files(place)
    err_path = place.root / "stderr"
    with err_path.open("w") as err:
        process = subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=err,
            encoding="utf-8",
            cwd=ROOT,
            env={**os.environ, "PROVOKE": str(provoke), "FILL": str(disk)},
        )
    if end in ("interrupt", "twice", "sigterm", "killed"):
        while not any(
            event["step"] >= at
            for path in log_files(place) - before
            for event in events.read(path)
            if event["event"] == "step"
        ):
            assert process.poll() is None, err_path.read_text()
            time.sleep(0.02)
        tree = descendants(process.pid)
        process.send_signal({"sigterm": signal.SIGTERM, "killed": signal.SIGKILL}.get(end, signal.SIGINT))
        if end == "twice":
            while "Once more stops at once" not in err_path.read_text():
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
        assert gone(tree), f"left after {end}: {tree}"
    else:
        out, _ = process.communicate()
    said = err_path.read_text()
    because, code = ENDS[end]
    assert process.returncode == code, (end, process.returncode, out, said)
    assert "Traceback" not in said or "raise" in dict(accidents), said  # a worker's last lines are shown
    left = sorted(path.name for path in provoke.glob("*-*"))
    assert left == [], f"never happened: {left}\n{said}"
    record = place.call("status")["sessions"][-1]
    assert record["ended_because"].startswith(because), (end, record, said)
    assert [verify(path) for path in (place.stored / "checkpoints").glob("step-*")]
    warnings = [event["message"] for event in events.read_all(place.folder.events) if event["event"] == "warning"]
    for what, step in accidents:
        wanted = ACCIDENTS[what].format(step=step)
        assert any(message.startswith(wanted) for message in warnings), (wanted, warnings)
    return {"said": said, **(json.loads(out) if out.strip() else {})}
