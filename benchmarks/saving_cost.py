"""What saving to the Hub costs the training: a Hub 2 s away, 20 MB/s up, checkpoints as large as an 8B's.

    PYTHONPATH=tests python benchmarks/saving_cost.py --minutes 8

One training (tiny model, LoRA of a rank that makes the checkpoint large) whose store is the loopback Hub, a process of
its own: every request to it waits, and content shares one slow line. Within the run, windows in which the session talks
to the Hub alternate with windows in which it does not, so that the two are measured beside each other:

- blocking: the seconds that the worker itself says a save took;
- supervisor: CPU seconds that uploading takes, above what the supervisor takes anyway; on a machine whose cores are all
  busy that is the most that it can take from the training;
- beside: step seconds a token while the Hub is talked to ÷ those just before and after (median over the windows).

The share of the training that is lost is (blocking + supervisor) ÷ the seconds from save to save.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from kaggle_lib.runs import events
from kaggle_lib.runs.folder import RunFolder

STORE = "hf://loopback/runs"
TICKS = os.sysconf("SC_CLK_TCK")
Windows = list[tuple[float, float]]


def post(url: str, value: Any = None) -> Any:
    data = None if value is None else json.dumps(value).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=60) as answer:
        return json.load(answer)


def cpu_seconds(pid: int) -> float:
    """Of the process, less its children's. Source: proc_pid_stat(5), fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def trained(given: argparse.Namespace, folder: Path) -> tuple[list[dict[str, Any]], Windows, list[tuple[float, float]]]:
    """Train; the run's events, when the Hub was talked to, and (time, CPU seconds of the supervisor)."""
    server = subprocess.Popen(
        [sys.executable, "-m", "support.loopback_hub", "--root", str(folder / "hub")],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout is not None
        hub = json.loads(server.stdout.readline())
        slow = {"action": f"slow_upload({given.rate * 1e6})", "method": "POST|PUT"}
        post(hub["endpoint"] + "/_faults", [{"action": f"latency({given.latency})", "path": "^/(api|loopback)/"}, slow])
        values = {
            "run": "cost",
            "store": STORE,
            "work_dir": folder / "work",
            "lora_r": given.rank,
            "epochs": 10000,
            "max_steps": "",
            "eval_steps": 0,
            "save_steps": given.save_steps,
            "logging_steps": 50,
        }
        words = [word for name, value in values.items() for word in ("--set", f"{name}={value}")]
        environment = {"HF_ENDPOINT": hub["endpoint"], "HF_TOKEN": hub["token"], "HF_HOME": str(folder / "home")}
        process = subprocess.Popen(
            [sys.executable, "-m", "kaggle_lib", "train", "--preset", "tiny-cpu", *words, "--json"],
            env={**os.environ, **environment, "HF_HUB_OFFLINE": "0"},
            stdout=subprocess.DEVNULL,
        )
        samples: list[tuple[float, float]] = []
        run, stop = RunFolder(folder / "work" / "cost"), None
        while process.poll() is None:
            samples.append((time.time(), cpu_seconds(process.pid)))
            if stop is None and events.curve(events.read_all(run.events)):
                stop = time.time() + 60 * given.minutes
            if stop and time.time() > stop:
                process.terminate()
                stop = float("inf")
            time.sleep(0.25)
        assert process.returncode == 75, process.returncode
        requests = [one["time"] for one in post(hub["endpoint"] + "/_state")["requests"]]
    finally:
        server.terminate()
        server.wait()
    return events.read_all(run.events), talked(requests, given.latency), samples


def talked(times: list[float], latency: float) -> Windows:
    """From the first request's start to the last one's end, where the next came within a second of its latency."""
    windows: Windows = []
    for end in sorted(times):
        begin = end - latency
        if windows and begin - windows[-1][1] < 1.0:
            windows[-1] = (windows[-1][0], end)
        else:
            windows.append((begin, end))
    return windows


def share_inside(windows: Windows, begin: float, end: float) -> float:
    return sum(max(0.0, min(end, last) - max(begin, first)) for first, last in windows) / max(end - begin, 1e-9)


def moment(event: dict[str, Any]) -> float:
    return datetime.fromisoformat(event["time"]).timestamp()


def beside(steps: list[dict[str, Any]], windows: Windows) -> list[float]:
    """For each window: seconds a token inside it ÷ those in as long a time around it, in which nothing was sent."""
    ratios = []
    timed = [(moment(step) - step["seconds"], moment(step), step["seconds"] / step["tokens"]) for step in steps]
    for first, last in windows:
        reach = (last - first) / 2
        inside = [cost for begin, end, cost in timed if first <= begin and end <= last]
        around = [
            cost
            for begin, end, cost in timed
            if first - reach <= begin and end <= last + reach and share_inside(windows, begin, end) == 0
        ]
        if min(len(inside), len(around)) >= 5:
            ratios.append(statistics.median(inside) / statistics.median(around))
    return ratios


def interval(values: list[float], chance: random.Random) -> tuple[float, float]:
    """95 % of the medians of resamples (bootstrap)."""
    medians = sorted(statistics.median(chance.choices(values, k=len(values))) for _ in range(2000))
    return medians[50], medians[1949]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="of training, from the first step on")
    parser.add_argument("--save-steps", type=int, default=60, help="steps from save to save")
    parser.add_argument("--rank", type=int, default=1792, help="of LoRA: 1792 makes a checkpoint of 81 MB")
    parser.add_argument("--latency", type=float, default=2.0, help="seconds a request")
    parser.add_argument("--rate", type=float, default=20.0, help="MB/s to the Hub")
    parser.add_argument("--intervals", type=float, nargs="*", default=[600, 1000], help="seconds from save to save")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        happened, windows, samples = trained(given, Path(folder))
    steps = [event for event in happened if event["event"] == "step"]
    saves = [event for event in happened if event["event"] == "save"][1:]
    uploads = [event for event in happened if event["event"] == "upload"]
    first, last = moment(steps[0]), moment(steps[-1])
    windows = [(begin, end) for begin, end in windows if begin > first and end < last and end - begin > 5]
    cpu = {True: [0.0, 0.0], False: [0.0, 0.0]}  # whether the Hub is talked to: [CPU seconds, seconds]
    for (began, before), (ended, after) in pairwise(samples):
        inside = share_inside(windows, began, ended)
        if began > first and ended < last and inside in (0.0, 1.0):
            cpu[inside == 1.0][0] += after - before
            cpu[inside == 1.0][1] += ended - began
    sent = sum(end - begin for begin, end in windows)
    uploads = [one for one in uploads if share_inside(windows, moment(one) - one["seconds"], moment(one)) > 0.99]
    supervisor = (cpu[True][0] / cpu[True][1] - cpu[False][0] / cpu[False][1]) * sent / len(uploads)
    blocking = statistics.median(save["seconds"] for save in saves)
    ratios = beside(steps, windows)
    low, high = interval(ratios, random.Random(0))
    told = {
        "steps": len(steps),
        "seconds a step": round(statistics.median(step["seconds"] for step in steps), 3),
        "checkpoint MB": round(uploads[-1]["bytes"] / 1e6, 1),
        "saves": len(saves),
        "uploads": len(uploads),
        "seconds of an upload": round(statistics.median(upload["seconds"] for upload in uploads), 1),
        "seconds that the Hub is talked to for an upload": round(sent / len(uploads), 1),
        "blocking, seconds a save": round(blocking, 3),
        "supervisor, CPU seconds an upload": round(supervisor, 3),
        "beside ÷ alone": f"{statistics.median(ratios):.3f} ({low:.3f} to {high:.3f}, {len(ratios)} windows)",
    }
    for name, value in told.items():
        print(f"| {name} | {value} |")
    for seconds in [(moment(saves[-1]) - moment(saves[0])) / max(1, len(saves) - 1), *given.intervals]:
        print(f"| lost, a save each {seconds:.0f} s | {100 * (blocking + supervisor) / seconds:.2f} % |")
    print(json.dumps({"given": vars(given), **told}))


if __name__ == "__main__":
    main()
