"""`extend_epochs`: a finished run goes on with a new piece of schedule, bit for bit through a kill, and is recorded."""

import json
import math
import os
import shutil
import signal

import pytest
from support.sessions import Place, gone

from kaggle_lib.checkpoints.manifest import Manifest
from kaggle_lib.runs.launch import descendants

pytestmark = pytest.mark.slow
VALUES = {"epochs": 1, "save_steps": 3, "eval_steps": 0, "warmup_ratio": 0.2}  # 12 steps an epoch
RATE = 2e-3


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of one epoch, extended by one, and by another one."""
    place = Place(tmp_path_factory.mktemp("whole"), values={**VALUES, "learning_rate": RATE})
    assert place.call()["step"] == 12
    kept = {name: (place.folder.checkpoint(12) / name).read_bytes() for name in ("manifest.json", "optimizer.pt")}
    place.began = kept
    outcome = place.call(extend_epochs=1)
    assert (outcome["outcome"], outcome["resumed_from"], outcome["step"]) == ("finished", 12, 24)
    assert "Extending the finished run by 1 epochs, from step 12 on." in outcome["stderr"].splitlines()
    assert place.call(extend_epochs=2)["step"] == 36
    return place


def expected_rates():
    """Cosine after a warm-up of ceil(0.2 * 12) = 3 steps, anew in each piece of 12 steps."""
    one = [k / 3 if k < 3 else (1 + math.cos(math.pi * (k - 3) / 9)) / 2 for k in range(12)]
    return [RATE * rate for rate in 3 * one]


def test_each_piece_has_its_own_schedule_and_goes_on_with_the_next_epoch(whole):
    steps = whole.steps()
    assert [event["step"] for event in steps] == list(range(1, 37))
    assert [event["lr"] for event in steps] == pytest.approx(expected_rates(), abs=1e-12)
    samples = [sample for event in steps for sample in event["samples"]]
    assert sorted(samples[:48]) == sorted(samples[48:96]) == sorted(samples[96:])


def test_it_is_recorded_and_doing_it_again_changes_nothing(whole):
    again = whole.call(extend_epochs=2)
    assert (again["outcome"], again["step"], again["resumed_from"]) == ("finished", 36, None)
    assert Manifest.read(whole.folder.checkpoint(36)).model_extra["extended"] == [1.0, 1.0]
    records = [json.loads(path.read_text()) for path in sorted(whole.stored.glob("ledger/*.json"))]
    assert [record["extended"] for record in records] == [[], [1.0], [1.0, 1.0]]
    assert [(record["from_step"], record["to_step"]) for record in records] == [(0, 12), (12, 24), (24, 36)]
    # Each end that was reached stays on the store.
    assert (whole.stored / "checkpoints/step-00000012/manifest.json").read_bytes() == whole.began["manifest.json"]
    assert whole.call("status")["state"] == "finished"


def test_killed_in_the_extension_and_resumed_elsewhere_without_asking_again(whole, tmp_path):
    place = Place(tmp_path, values=whole.values)
    place.call()
    process = place.start(extend_epochs=1)
    place.wait_for_step(process, 22)
    tree = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert gone(tree)
    assert place.call("evaluate", code=75)["outcome"] == "not finished"
    shutil.rmtree(place.work)
    place.work = tmp_path / "another machine"
    resumed = place.call()
    assert resumed["resumed_from"] in (15, 18, 21)
    assert (resumed["outcome"], resumed["step"]) == ("finished", 24)
    assert place.call(extend_epochs=2)["step"] == 36
    assert place.final_bytes() == whole.final_bytes()
    assert place.curve() == whole.curve()
