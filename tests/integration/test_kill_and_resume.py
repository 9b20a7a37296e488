"""However a session dies, the next one goes on bit for bit; nothing is lost beyond the last complete checkpoint."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from support.sessions import Place, gone, train_under_fire

from kaggle_lib.checkpoints.manifest import verify
from kaggle_lib.runs.launch import descendants

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    place = Place(tmp_path_factory.mktemp("whole"))
    outcome = place.call()
    assert (outcome["outcome"], outcome["step"], outcome["total_steps"]) == ("finished", 24, 24)
    assert outcome["resumed_from"] is None
    return place


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory):
    """The uninterrupted run of two processes."""
    place = Place(tmp_path_factory.mktemp("whole-of-two"), values={"processes": 2})
    assert place.call()["outcome"] == "finished"
    return place


def test_supervisor_killed_in_the_second_epoch_then_resumed_on_another_machine(whole, tmp_path):
    place = Place(tmp_path)
    process = place.start()
    place.wait_for_step(process, 18)  # in the second of two epochs of 12 steps
    tree = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert tree
    assert gone(tree)
    shutil.rmtree(place.root / "work")
    place.work = tmp_path / "another" / "machine"
    stored = sorted(path.name for path in (place.stored / "checkpoints").iterdir() if path.name.startswith("step-"))
    resumed = place.call()
    assert f"step-{resumed['resumed_from']:08d}" == stored[-1]
    assert resumed["resumed_from"] >= 12
    assert place.final_bytes() == whole.final_bytes()
    # One continuous curve, equal in every sample, loss and learning rate; each epoch holds every row exactly once.
    assert place.curve() == whole.curve()
    samples = [sample for _, ids, _, _ in place.curve() for sample in ids]
    assert sorted(samples[:48]) == sorted(samples[48:])
    assert len(set(samples[:48])) == 48
    # The best step is known by its number, and nothing on the second machine leads to the first.
    final = place.folder.checkpoint(24)
    assert verify(final).best["step"] in (8, 16, 24)
    assert json.loads((final / "trainer_state.json").read_text())["best_model_checkpoint"] is None
    for path in place.work.rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or str(tmp_path / "work").encode() not in path.read_bytes(), path


def test_worker_killed_is_started_again_in_the_same_session(whole, tmp_path):
    place = Place(tmp_path)
    process = place.start()
    place.wait_for_step(process, 10)
    os.kill(descendants(process.pid)[-1], signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == 0, err
    assert "The worker was killed (SIGKILL). Starting again from the last checkpoint." in err
    assert place.final_bytes() == whole.final_bytes()
    assert place.curve() == whole.curve()
    status = place.call("status")
    assert (status["state"], status["step"], len(status["sessions"])) == ("finished", 24, 1)


def test_two_processes_killed_and_resumed(whole_of_two, tmp_path):
    place = Place(tmp_path, values={"processes": 2})
    process = place.start()
    place.wait_for_step(process, 6)
    ranks = [pid for pid in descendants(process.pid) if b"training.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(ranks[-1], signal.SIGKILL)  # the launcher, its other worker and the session follow or go on
    place.wait_for_step(process, 14)
    tree = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(tree) >= 3
    assert gone(tree)
    assert place.call()["resumed_from"] >= 8
    assert place.final_bytes() == whole_of_two.final_bytes()
    assert place.curve() == whole_of_two.curve()


def test_random_kills_of_anything(whole, tmp_path):
    place = Place(tmp_path)
    fire = train_under_fire(place, kills=4, seed=5, lose_work=0.4)
    assert fire["kills"] >= 1
    assert place.final_bytes() == whole.final_bytes(), fire
    assert place.curve() == whole.curve()


def test_one_then_two_then_one_process(whole, tmp_path):
    place = Place(tmp_path)
    for processes, until in ((1, 6), (2, 14)):
        process = place.start(processes=processes)
        place.wait_for_step(process, until)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate()
        assert process.returncode == 75, err
    assert place.call(processes=1)["outcome"] == "finished"
    status = place.call("status")
    assert [session["from_step"] == 0 for session in status["sessions"]] == [True, False, False]
    assert [step for step, *_ in place.curve()] == list(range(1, 25))
    for mine, theirs in zip(place.curve(), whole.curve(), strict=True):
        assert mine[:2] == theirs[:2]
        assert mine[2] == pytest.approx(theirs[2], abs=2e-6)


def test_train_on_a_finished_run_restores_what_is_gone_and_loads_no_torch(whole, tmp_path):
    place = Place(tmp_path)
    shutil.copytree(whole.root, tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "work")
    outcome = place.call()
    assert (outcome["outcome"], outcome["step"], outcome["on_store"]) == ("finished", 24, True)
    assert "is finished: step 24 of 24, nothing to train." in outcome["stderr"]
    assert (place.folder.adapter / "adapter_model.safetensors").read_bytes() == whole.final_bytes()[
        "adapter_model.safetensors"
    ]
    assert not (place.folder.root / "worker.log").exists()
    assert place.curve() == whole.curve()


@pytest.mark.soak
@pytest.mark.parametrize(("processes", "seed"), [(1, 1), (2, 2)])
def test_soak_thirty_random_kills(processes, seed, tmp_path):
    values = {"processes": processes, "epochs": 60, "save_steps": 8}  # 720 steps, so that thirty kills find it alive
    whole = Place(tmp_path / "whole", values=values)
    whole.call()
    place = Place(tmp_path / "killed", values=values)
    fire = train_under_fire(place, kills=30, seed=seed, lose_work=0.3)
    print(f"\n{processes} processes: {fire}")
    assert fire["kills"] == 30
    assert place.final_bytes() == whole.final_bytes()
    assert place.curve() == whole.curve()
