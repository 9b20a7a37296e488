"""A run that is watched: the curve by `report_to`, a checkpoint by the file `save`, and a broken tracker beside it."""

import json
import os
import subprocess
import time

import pytest
from support.sessions import Place

from kaggle_lib.runs import events

KEY = "0123456789abcdef" * 3
# As one that is installed: it asks whoever it finds, and says its key.
WANDB = """
import os
from pathlib import Path
run = None
class Settings:
    def __init__(self, **more):
        pass
def init(**more):
    Path(__file__).with_name("asked").touch()
    raise RuntimeError(f"{os.environ['WANDB_API_KEY']} is no key" + input("Your API key: "))
"""


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    path = tmp_path / "stubs" / "wandb" / "__init__.py"
    path.parent.mkdir(parents=True)
    path.write_text(WANDB)
    monkeypatch.setenv("PYTHONPATH", str(path.parents[1]), prepend=os.pathsep)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    return path


def test_a_tracker_without_a_key_is_one_error_before_anything_is_claimed(wandb, tmp_path):
    place = Place(tmp_path)
    done = subprocess.run(
        place.command("train", report_to="wandb"), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == (
        "report_to: wandb has no key. Put it into WANDB_API_KEY (on Kaggle: a secret), or set "
        "WANDB_MODE=offline, or set report_to=none\n"
    )
    assert not place.stored.exists()
    assert not wandb.with_name("asked").exists()


def wait_for(process, found):
    """Return what `found` gives once it is something; fails where the session ends before."""
    while process.poll() is None:
        if value := found():
            return value
        time.sleep(0.02)
    raise AssertionError(f"ended before: {process.communicate()}")


@pytest.mark.slow
def test_two_processes_save_when_asked_beside_a_broken_tracker_and_tensorboard_has_the_whole_curve(
    wandb, tmp_path, monkeypatch
):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    place = Place(tmp_path, values={"save_steps": 1000, "epochs": 8})  # 96 steps
    first = place.start(processes=2, report_to="wandb")
    place.wait_for_step(first, 2)
    place.folder.request(place.folder.save_request)
    asked = wait_for(first, place.folder.checkpoint_steps)
    wait_for(first, lambda: any(event["event"] == "upload" for event in events.read_all(place.folder.events)))
    assert not place.folder.save_request.exists()
    place.wait_for_step(first, asked[0] + 2)  # it has gone on
    wait_for(first, wandb.with_name("asked").exists)
    wait_for(first, lambda: any(event["event"] == "warning" for event in events.read_all(place.folder.events)))
    place.folder.request(place.folder.stop_request)
    out, err = first.communicate()
    assert first.returncode == 75, err
    assert len(asked) == 1
    assert 2 < asked[0] < json.loads(out)["step"] < 96
    why = "wandb does not take the curve (EOFError: EOF when reading a line)."
    [record] = place.call("status", code=0)["sessions"]
    assert record["to_step"] == json.loads(out)["step"]
    [path] = (place.stored / "ledger").iterdir()
    assert json.loads(path.read_text(encoding="utf-8"))["warnings"] == [
        f"{why} The training goes on, and what is missing is written later."
    ]
    assert f"warning: {why} The training goes on, and what is missing is written later.\n" in err
    assert f"warning: {why} The next session writes what is missing, or `python -m" in err
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    # Another machine, and one that works: the steps of both sessions, each once.
    done = place.call(processes=1, report_to="tensorboard", work_dir=tmp_path / "there")
    assert done["outcome"] == "finished"
    there = Place(tmp_path, work=tmp_path / "there")
    shown = EventAccumulator(str(there.folder.tracking)).Reload().Scalars("train/loss")
    assert [one.step for one in shown] == list(range(1, 97))
    assert [one.value for one in shown] == [pytest.approx(loss, rel=1e-6) for _, _, loss, _ in there.curve()]
