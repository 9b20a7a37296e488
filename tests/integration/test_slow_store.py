"""Training goes on beside a store that does not answer, or fails: what is where is said, and nothing is lost."""

import shutil
import time

import pytest
from filelock import FileLock
from support.sessions import Place

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    place = Place(tmp_path_factory.mktemp("whole"))
    assert place.call()["outcome"] == "finished"
    return place


def hold(place, process):
    """Keep the store from answering once it has the first checkpoint; it takes 60 s until that is an error."""
    while not list(place.stored.glob("checkpoints/step-*")):
        assert process.poll() is None
        time.sleep(0.02)
    lock = FileLock(place.stored / ".lock", thread_local=False)
    lock.acquire()
    return lock


def test_the_worker_does_not_wait_for_a_store_that_hangs(whole, tmp_path):
    place = Place(tmp_path)
    process = place.start()
    lock = hold(place, process)
    place.wait_for_step(process, 24)
    while not (place.folder.checkpoint(24) / "manifest.json").exists():
        time.sleep(0.02)
    assert not (place.stored / "checkpoints/step-00000024").exists()
    lock.release()
    out, err = process.communicate()
    assert process.returncode == 0, err
    assert err.endswith("Finished: all steps are done. The checkpoint of step 24 is on the store.\n"), (out, err)
    assert place.final_bytes() == whole.final_bytes()
    assert place.curve() == whole.curve()


def test_a_session_ends_at_its_deadline_though_the_store_hangs(tmp_path):
    hours = 0.012  # 43 s
    place = Place(tmp_path, values={"epochs": 2000, "save_steps": 20, "eval_steps": 0})
    began = time.monotonic()
    process = place.start(session_hours=hours)
    lock = hold(place, process)
    _, err = process.communicate()
    lock.release()
    assert process.returncode == 75, err
    assert time.monotonic() - began < 3600 * hours + 20
    last = err.splitlines()[-1]
    newest = place.folder.checkpoint_steps()[0]
    assert last.startswith(f"Paused: session_hours={hours:g} are over. The checkpoint of step {newest} is in "), err
    assert "its upload was not done within the last 10 s). Run `train` on this machine again" in last
    status = place.call("status")
    assert status["checkpoint"]["step"] < newest


def test_a_finished_run_that_is_not_on_the_store_says_so_and_a_second_call_brings_it_there(whole, tmp_path):
    place = Place(tmp_path)
    process = place.start()
    place.wait_for_step(process, 6)
    checkpoints = place.stored / "checkpoints"
    checkpoints.rename(place.stored / "away")
    checkpoints.write_text("no folder")
    out, err = process.communicate()
    assert process.returncode == 1, (out, err)
    assert err.count("warning: ") == 1, err
    last = err.splitlines()[-1]
    assert last.startswith(f"Finished: all steps are done. The checkpoint of step 24 is in {place.folder.checkpoints}")
    assert " only; the store has step 4 (The store " in last
    assert last.endswith("). Put that right and run again. On another machine it would be missing.")
    assert place.final_bytes() == whole.final_bytes()

    checkpoints.unlink()
    (place.stored / "away").rename(checkpoints)
    outcome = place.call()
    assert (outcome["outcome"], outcome["on_store"], outcome["resumed_from"]) == ("finished", True, 24)
    shutil.rmtree(place.work)
    assert place.call()["on_store"]
    assert place.final_bytes() == whole.final_bytes()
