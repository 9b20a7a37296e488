"""A user's way from a clone to a finished run: real command lines, a loopback Kaggle that runs what was pushed, and a
loopback Hub that keeps it. The first session is killed at the limit, another machine goes on (by the cell that the docs
give for Colab), and Kaggle ends it; the result has the bytes of an undisturbed run.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from support.loopback_http import User
from support.loopback_hub import OWNER, LoopbackHub
from support.loopback_kaggle import LoopbackKaggle
from support.quick_sessions import ROOT, Laptop, reach
from support.sessions import SMALL

from kaggle_lib.files import read_json, sha256_of
from kaggle_lib.runs import events
from kaggle_lib.runs.launch import descendants

pytestmark = pytest.mark.slow
TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh"
PRESET = ("--preset", "tiny-cpu")
VALUES = {**SMALL, "run": "chained", "processes": 1, "answer_rows": 4, "answer_tokens": 8, "answer_prompts": "false"}
VALUES |= {"lease_wait_minutes": 0.02}


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub(tmp_path / "hub", users={TOKEN: User(OWNER)}) as hub:
        yield hub


@pytest.fixture
def kaggle(tmp_path, hub):
    """Its sessions reach the Hub; the token is not in their environment, and travels in a private dataset."""
    with LoopbackKaggle(tmp_path / "kaggle", session_environment=reach(hub)) as kaggle:
        kaggle.grace = 0.0
        yield kaggle


def wait_for_checkpoint(hub, session, step):
    """Return once the run's branch on the Hub has a checkpoint of that step or a later one."""
    while session.live:
        if ("model", "loopback/runs") in hub.repos:
            repo = hub.repo("loopback/runs")
            for head in list(repo.branches.values()):
                for name in repo.files(head):
                    if name.endswith("/manifest.json") and int(name.split("/")[-2].removeprefix("step-")) >= step:
                        return
        time.sleep(0.2)
    raise AssertionError(f"session {session.id} ended as {session.status} before step {step}\n{session.text}")


class Colab:
    """Another machine, with nothing but the docs' cell, the library, and a stand-in for Colab's secrets."""

    def __init__(self, root, laptop, **more):
        page = (ROOT / "docs" / "other-machines.md").read_text(encoding="utf-8")
        [cell] = [
            text for text in re.findall(r"^```\n(.*?)^```$", page, re.DOTALL | re.MULTILINE) if "userdata" in text
        ]
        assert cell.count('run="first", store="hf://YOUR-NAME/runs"') == 1
        mine = "".join(f", {key}={value!r}" for key, value in more.items())
        cell = cell.replace(
            'run="first", store="hf://YOUR-NAME/runs"', f'run="chained", store="hf://{OWNER}/runs"{mine}'
        )
        (root / "google").mkdir(parents=True)
        (root / "google" / "colab.py").write_text(f"userdata = {{'HF_TOKEN': {TOKEN!r}}}\n")
        environment = {name: value for name, value in laptop.environment.items() if name not in ("HF_TOKEN", "HF_HOME")}
        environment |= {"PYTHONPATH": os.pathsep.join([str(root), str(laptop.clone)]), "HOME": str(root)}
        self.events = root / "work" / "chained" / "events"
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-c", cell],
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
        )

    def train_and_stand_still(self, after):
        """Return once it has made a step of its own, with all its processes stopped: so it holds the run, and writes
        nothing. `after`: the session whose events it has fetched."""
        while not any(
            event["event"] == "step"
            for path in self.events.glob("*.jsonl")
            if path.stem > after
            for event in events.read(path)
        ):
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            os.kill(pid, signal.SIGSTOP)

    def pause(self):
        """SIGTERM to the session alone, which its workers hear of before their next step; what it printed."""
        self.process.send_signal(signal.SIGTERM)
        self.process.send_signal(signal.SIGCONT)
        while not (self.events.parent / "stop").exists():
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.02)
        for pid in descendants(self.process.pid):
            os.kill(pid, signal.SIGCONT)
        out, _ = self.process.communicate()
        assert self.process.returncode == 0, out
        return out


def test_from_kaggle_to_another_machine_and_back_to_the_end_and_evaluated_there(hub, kaggle, tmp_path):
    laptop = Laptop(tmp_path / "clone", hub, kaggle)
    shutil.copytree(ROOT / "notebooks", laptop.clone / "notebooks", dirs_exist_ok=True)  # the real ones
    here = {"store": tmp_path / "store", "work_dir": tmp_path / "whole"}
    undisturbed = laptop.start("train", *PRESET, **VALUES, **here)

    pushed = laptop.call("push", *PRESET, "--token-dataset", "--yes", **VALUES)
    assert (pushed["outcome"], pushed["kernel"], pushed["version"]) == ("pushed", "loopback/chained", 1)
    [first] = kaggle.sessions
    wait_for_checkpoint(hub, first, 4)
    kaggle.limit = 0.0
    first.wait()
    assert (first.status, first.exit_code, first.output) == ("ERROR", 137, None)
    kaggle.limit = 3600.0
    assert undisturbed.wait() == 0, undisturbed.communicate()
    stopped = laptop.call("status", run="chained")
    assert (stopped["state"], 4 <= stopped["step"] < 24) == ("running", True)  # its lease is good for a while

    # Another machine takes the run over. While it trains nothing is pushed, and a scheduled session writes nothing.
    colab = Colab(tmp_path / "colab", laptop, take_over=stopped["lease"]["session"])
    colab.train_and_stand_still(stopped["lease"]["session"])
    held = laptop.call("status", run="chained")
    holder, head = held["lease"]["session"], dict(hub.repo("loopback/runs").branches)
    scheduled = kaggle.run_in_editor("loopback/chained")
    refused = laptop.call("push", *PRESET, "--token-dataset", code=75, **VALUES)
    assert refused["reason"].startswith(f"Session {holder} on ")
    assert "holds run 'chained': nothing was pushed." in refused["reason"]
    scheduled.wait()
    assert scheduled.status == "ERROR"
    assert f"LeaseHeld: Run 'chained' is held by session {holder}" in scheduled.text
    waited = laptop.call("chain", *PRESET, "--token-dataset", "--once", "--poll", "0.2", code=75, **VALUES)
    assert (waited["did"], waited["reason"].partition(" until")[0]) == ("wait", f"session {holder} holds the run")
    assert dict(hub.repo("loopback/runs").branches) == head
    assert len(kaggle.sessions) == 2
    assert "asked to end by SIGTERM" in colab.pause()
    paused = laptop.call("status", run="chained")
    assert (paused["state"], stopped["step"] < paused["step"] < 24) == ("paused", True)

    chained = laptop.call("chain", *PRESET, "--token-dataset", "--poll", "0.2", **VALUES)
    assert (chained["outcome"], chained["sessions"], len(kaggle.sessions)) == ("finished", 3, 3)
    last = kaggle.sessions[2].wait()
    assert (last.status, last.exit_code) == ("COMPLETE", 0)
    status = laptop.call("status", run="chained")
    assert (status["state"], status["step"]) == ("finished", 24)
    assert [session["from_step"] for session in status["sessions"]] == [0, stopped["step"], paused["step"]]
    assert [session["ended_because"] for session in status["sessions"]] == [
        "killed",
        "paused: asked to end by SIGTERM",
        "finished: all steps are done",
    ]

    evaluated = laptop.call(
        "push", "--notebook", "evaluate", "--token-dataset", "--kernel", "evaluates-it", run="chained"
    )
    assert evaluated["outcome"] == "pushed"
    evaluation = kaggle.sessions[3].wait(600)
    assert (evaluation.status, evaluation.exit_code) == ("COMPLETE", 0), evaluation.text

    work = tmp_path / "home"
    mine = laptop.call("train", *PRESET, **VALUES, work_dir=work)
    assert (mine["outcome"], mine["step"]) == ("finished", 24)
    adapters = [place / "chained" / "adapter" / "adapter_model.safetensors" for place in (work, here["work_dir"])]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()
    result = read_json(work / "chained" / "evaluation" / "result.json")
    assert result["adapter_sha256"] == sha256_of(adapters[1])
    assert result["tuned"]["bits_per_byte"] < result["base"]["bits_per_byte"]

    texts = [session.text + session.version.source for session in kaggle.sessions]
    assert not [text for text in texts if TOKEN in text]
