"""A user's way from a clone to a finished run: real command lines, a loopback Kaggle that runs what was pushed, and a
loopback Hub that keeps it. The first session is killed at the limit; the result has the bytes of an undisturbed run.
"""

import shutil
import time

import pytest
from support.loopback_http import User
from support.loopback_hub import OWNER, LoopbackHub
from support.loopback_kaggle import LoopbackKaggle
from support.quick_sessions import ROOT, Laptop, reach
from support.sessions import SMALL

from kaggle_lib.files import read_json, sha256_of

pytestmark = pytest.mark.slow
TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh"
PRESET = ("--preset", "tiny-cpu")
VALUES = {**SMALL, "run": "chained", "processes": 1, "answer_rows": 4, "answer_tokens": 8, "answer_prompts": "false"}


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


def test_a_run_is_pushed_killed_at_the_limit_chained_to_its_end_and_evaluated_there(hub, kaggle, tmp_path):
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

    chained = laptop.call("chain", *PRESET, "--token-dataset", "--poll", "0.2", **VALUES)
    assert (chained["outcome"], chained["sessions"], len(kaggle.sessions)) == ("finished", 2, 2)
    second = kaggle.sessions[1].wait()
    assert (second.status, second.exit_code) == ("COMPLETE", 0)
    status = laptop.call("status", run="chained")
    assert (status["state"], status["step"]) == ("finished", 24)
    assert status["sessions"][1]["from_step"] == stopped["step"]
    assert status["sessions"][1]["ended_because"] == "finished: all steps are done"

    evaluated = laptop.call(
        "push", "--notebook", "evaluate", "--token-dataset", "--kernel", "evaluates-it", run="chained"
    )
    assert evaluated["outcome"] == "pushed"
    third = kaggle.sessions[2].wait(600)
    assert (third.status, third.exit_code) == ("COMPLETE", 0), third.text

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
