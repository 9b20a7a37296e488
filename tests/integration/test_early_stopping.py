"""Sessions of two processes that end by early stopping: what is told of it, resumed on a bare machine, and the best."""

import json
import shutil

import pytest
from support.sessions import Place

from kaggle_lib.checkpoints.folder_store import FolderStore
from kaggle_lib.checkpoints.manifest import verify

pytestmark = pytest.mark.slow
# So high a rate ruins the model soon.
VALUES = {"learning_rate": 0.3, "max_steps": 40, "eval_steps": 2, "save_steps": 3, "early_stopping_patience": 2}
VALUES |= {"processes": 2, "lr_scheduler_type": "constant"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    place = Place(tmp_path_factory.mktemp("whole"), values=VALUES)
    place.outcome = place.call()
    place.end = verify(place.folder.checkpoint(place.outcome["step"]))
    return place


def stored(place):
    return [one.step for one in FolderStore(place.stored.parent, place.run).peek().checkpoints]


def test_an_early_end_is_an_end_for_everything_that_asks(whole):
    outcome, best = whole.outcome, whole.end.best_step
    step, early = outcome["step"], f"early stopping at step {outcome['step']}: no improvement since step {best}"
    assert step == best + 4 < 40 == outcome["total_steps"]
    assert (outcome["outcome"], outcome["reason"], outcome["on_store"]) == ("finished", early, True)
    assert f"Finished: {early}. The checkpoint of step {step} is on the store." in outcome["stderr"]
    assert f"Step {step} of 40, on the store: {step}. Next: evaluate it." in outcome["stderr"]
    (record,) = [json.loads(path.read_text()) for path in whole.stored.glob("ledger/*.json")]
    assert record["ended_because"] == f"finished: {early}"
    told = whole.call("status")
    assert (told["state"], told["step"], told["stopped_early"]) == ("finished", step, early)
    assert told["best"] == whole.end.best
    assert len(stored(whole)) == 3 and {step, best} < set(stored(whole))
    shutil.rmtree(whole.folder.adapter)
    again = whole.call(extend_epochs=1)
    assert (again["outcome"], again["step"], again["adapter_sha256"]) == ("finished", step, outcome["adapter_sha256"])
    assert f"is finished: step {step} of 40 ({early}), nothing to train." in again["stderr"]
    assert f"extend_epochs=1 adds nothing after {early}." in again["stderr"]
    assert whole.folder.adapter.is_dir()


def test_from_the_best_checkpoint_of_the_store_a_bare_machine_comes_to_the_same_end(whole, tmp_path):
    place, best = Place(tmp_path, values=VALUES), whole.end.best_step
    shutil.copytree(whole.stored, place.stored)
    for step in stored(place):
        if step > best:
            shutil.rmtree(place.stored / f"checkpoints/step-{step:08d}")
    outcome = place.call()
    assert (outcome["resumed_from"], outcome["step"]) == (best, whole.outcome["step"])
    assert outcome["reason"] == whole.outcome["reason"]
    assert place.final_bytes() == whole.final_bytes()
    assert place.curve() == whole.curve()
    assert verify(place.stored / f"checkpoints/step-{best:08d}").best == whole.end.best
