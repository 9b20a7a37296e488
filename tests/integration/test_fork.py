"""`fork_from=run@step`: a new run with another's adapter, a new optimizer and schedule, and a record of it."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from support.sessions import Place

from kaggle_lib.checkpoints.manifest import Manifest

pytestmark = pytest.mark.slow
STILL = {"learning_rate": 1e-12, "max_steps": 2, "save_steps": 1, "eval_steps": 0}


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A finished run of 24 steps whose last two checkpoints are kept, at steps 20 and 24."""
    place = Place(tmp_path_factory.mktemp("parent"), run="parent", values={"keep_best": False})
    assert place.call()["outcome"] == "finished"
    return place


def test_a_fork_starts_from_the_adapter_alone_and_says_so(parent, tmp_path):
    place = Place(parent.root, run="fork", values={**STILL, "fork_from": "parent@20"})
    outcome = place.call()
    assert (outcome["outcome"], outcome["resumed_from"], outcome["step"]) == ("finished", None, 2)
    said = "Starting from the adapter of run 'parent' at step 20, with a new optimizer and schedule."
    assert said in outcome["stderr"].splitlines()
    started, ended = (
        load_file(folder / "adapter_model.safetensors")
        for folder in (parent.folder.checkpoint(20), place.folder.adapter)
    )
    assert started.keys() == ended.keys()
    for name, tensor in started.items():
        assert torch.allclose(tensor, ended[name], atol=1e-9), name
    optimizer = torch.load(place.folder.checkpoint(2) / "optimizer.pt", weights_only=True)
    assert {int(state["step"]) for state in optimizer["state"].values()} == {2}
    assert [step for step, *_ in place.curve()] == [1, 2]
    # Recorded in every checkpoint, in the ledger and on the report, and kept when the run goes on elsewhere.
    id = Manifest.read(parent.stored / "checkpoints/step-00000020").nonce
    forked = {"run": "parent", "step": 20, "id": id}
    manifests = [json.loads(path.read_text()) for path in place.stored.glob("checkpoints/*/manifest.json")]
    assert [manifest["fork"] for manifest in manifests] == [forked, forked]
    (record,) = [json.loads(path.read_text()) for path in place.stored.glob("ledger/*.json")]
    assert record["forked_from"] == "parent@20"
    place.call("report")
    assert "parent@20" in (place.folder.report / "index.html").read_text()
    shutil.rmtree(place.stored / "checkpoints/step-00000002")
    place.work = tmp_path / "another machine"
    resumed = place.call()
    assert (resumed["resumed_from"], resumed["adapter_sha256"]) == (1, outcome["adapter_sha256"])
    manifest = Manifest.read(place.folder.checkpoint(2))
    assert manifest.model_extra["fork"] == forked
    assert manifest.lineage != Manifest.read(parent.folder.checkpoint(24)).lineage


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"fork_from": "parent@3"}, "fork_from: there is no parent@3 on {store!r}; there is parent@24, parent@20\n"),
        ({"fork_from": "none@3"}, "fork_from: there is no none@3 on {store!r}; there is no checkpoint of that run\n"),
        (
            {"fork_from": "parent@24", "lora_r": 4, "lora_target_modules": "q_proj"},
            "fork_from: run 'parent' has lora_r 16, not 4, lora_target_modules ('q_proj', 'k_proj', 'v_proj', 'o_proj')"
            ", not ('q_proj',); its adapter fits only where they are the same\n",
        ),
    ],
)
def test_what_cannot_be_forked_is_refused_before_anything_is_claimed(parent, values, says):
    place = Place(parent.root, run="refused", values={**STILL, **values})
    assert place.call(code=2)["stderr"].endswith(says.format(store=str(parent.root / "store")))
    assert not place.stored.exists()
