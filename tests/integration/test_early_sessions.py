"""Sessions of two processes that end by early stopping: what is told of it, resumed on a bare machine, and the best."""

import json
import shutil

import pytest
from huggingface_hub import HfApi, snapshot_download
from support.loopback_hub import LoopbackHub
from support.sessions import Place

from kaggle_lib import api
from kaggle_lib.checkpoints.folder_store import FolderStore
from kaggle_lib.checkpoints.manifest import verify

pytestmark = pytest.mark.slow
WEIGHTS = "adapter_model.safetensors"
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


def test_the_best_adapter_is_evaluated_and_published_as_what_it_is(whole, tmp_path, monkeypatch, capsys):
    best, final = whole.end.best_step, whole.end.step
    values = {"run": whole.run, "store": str(whole.root / "store"), "work_dir": str(whole.work)}
    few = {"answer_rows": 2, "answer_tokens": 4, "processes": 1}
    assert api.evaluate(adapter="best", **few, **values).step == best
    wanted = verify(whole.folder.checkpoint(best)).files[WEIGHTS].sha256
    result = json.loads((whole.folder.evaluation / "result.json").read_text(encoding="utf-8"))
    assert (result["step"], result["adapter_sha256"]) == (best, wanted)

    def published(which):
        done = api.publish(to="loopback/r", adapter=which, **values)
        snapshot_download("loopback/r", revision=done.commit, local_dir=tmp_path / which)
        return done.step, (tmp_path / which / WEIGHTS).read_bytes(), (tmp_path / which / "README.md").read_text()

    with LoopbackHub(tmp_path / "hub") as hub:
        hub.lead_client(monkeypatch)
        step, weights, card = published("last")
        assert (step, weights) == (final, (whole.folder.checkpoint(final) / WEIGHTS).read_bytes())
        assert f"step {final} of 40 ({whole.end.stopped_early})." in card
        # The evaluation is the other one's, so nothing of it is told of this one.
        assert "This adapter has not been evaluated yet." in card
        assert f"than this one of step {final}, so it is not published with it." in capsys.readouterr().out
        assert not [name for name in HfApi().list_repo_files("loopback/r") if name.startswith("evaluation/")]
        step, weights, card = published("best")
        assert (step, weights) == (best, (whole.folder.checkpoint(best) / WEIGHTS).read_bytes())
        bits = whole.end.best["bits_per_byte"]
        assert f"step {best} of 40, the best of its validations with {bits:.4f} bits per byte." in card
        measured = next(one for one in result["measures"] if one["name"] == "bits_per_byte")
        assert f"| {measured['base']:.3f} | {measured['tuned']:.3f} |" in card
        assert (tmp_path / "best/evaluation/result.json").read_bytes() == (
            whole.folder.evaluation / "result.json"
        ).read_bytes()
        said = "This evaluation is of another adapter"
        pages = {which: (tmp_path / which / "report/index.html").read_text() for which in ("last", "best")}
        assert {which: said in page for which, page in pages.items()} == {"last": True, "best": False}
    assert (whole.folder.adapter / WEIGHTS).read_bytes() == (whole.folder.checkpoint(final) / WEIGHTS).read_bytes()
