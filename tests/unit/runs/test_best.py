"""The best checkpoint's adapter, from wherever it is good; and where it is nowhere, that is said."""

import shutil

import pytest
from support.checkpoint_folders import LINEAGE, content, make_checkpoint, make_events, tree

from kaggle_lib.checkpoints.folder_store import FolderStore
from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.config import RunConfig
from kaggle_lib.errors import CheckpointError, ConfigError, UserError
from kaggle_lib.runs import best, resume
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.opening import Opened

WEIGHTS = "adapter_model.safetensors"
LOST = "The checkpoint of the best validation, step 20 with 4.8000 bits per byte, can be had neither from "


class Run:
    """A finished run of 60 steps, in the run folder and on the store, whose best step is 20."""

    def __init__(self, tmp_path, marked=20):
        self.store = FolderStore(tmp_path / "store", "r")
        self.folder = RunFolder(tmp_path / "work" / "r")
        self.folder.create()
        claim = self.store.claim({"code": "c"}, Lease.mine("A"), LINEAGE)
        for step, named in ((20, marked and 20), (60, marked)):
            made, _ = make_checkpoint(self.folder.checkpoints, step, best=named)
            claim.commit(made, {"id": "A"}, make_events(tmp_path / "events", "A", [1]))
        claim.release("finished", {"id": "A"}, tmp_path / "events")
        self.stored = tmp_path / "store/r/checkpoints/step-00000020"
        self.local = self.folder.checkpoint(20)

    def adapter(self, which="best"):
        config = RunConfig.create({"run": "r", "base_model": "sample", "data": "sample"})
        state = self.store.peek()
        opened = Opened(config, "c", self.store, state, self.folder, fresh=False)
        return best.adapter(opened, resume.choose(self.folder, self.store, state), which)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def weights(step):
    return content(step, WEIGHTS, 3000)


def flip(path):
    path.write_bytes(b"!" + path.read_bytes()[1:])


def test_last_and_best_lie_beside_each_other(run):
    manifest, place = run.adapter("last")
    assert (manifest.step, place, (place / WEIGHTS).read_bytes()) == (60, run.folder.adapter, weights(60))
    manifest, place = run.adapter()
    assert (manifest.step, place, (place / WEIGHTS).read_bytes()) == (20, run.folder.best, weights(20))
    assert set(tree(place)) == {WEIGHTS, "adapter_config.json", "tokenizer.json"}
    assert (run.folder.adapter / WEIGHTS).read_bytes() == weights(60)


@pytest.mark.parametrize("here", ["gone", "damaged", "unfinished", "another"])
def test_what_is_not_good_here_is_fetched_from_the_store_and_left_as_it_is(run, here, tmp_path):
    if here == "damaged":
        flip(run.local / WEIGHTS)
    elif here == "unfinished":
        (run.local / "manifest.json").unlink()
    else:
        shutil.rmtree(run.local)
        if here == "another":  # of a session that went another way: its validation was another one
            make_checkpoint(run.folder.checkpoints, 20, salt="other", best=10)
    before = tree(run.local)
    manifest, place = run.adapter()
    assert (manifest.step, (place / WEIGHTS).read_bytes()) == (20, weights(20))
    assert tree(run.local) == before
    assert [path.name for path in run.folder.root.glob(".best*")] == []


def test_where_neither_place_has_it_that_is_one_error_and_the_last_is_there(run):
    shutil.rmtree(run.local)
    flip(run.stored / WEIGHTS)
    with pytest.raises(CheckpointError) as caught:
        run.adapter()
    assert str(caught.value).startswith(LOST)
    assert str(caught.value).endswith(
        f"{WEIGHTS} has another sha256 than its manifest says. The last one, step 60, is there. Take that one: "
        "--adapter last."
    )
    shutil.rmtree(run.stored)
    with pytest.raises(CheckpointError, match=r": it was not kept \(keep_best=false\), or has been removed\. The last"):
        run.adapter()
    assert not run.folder.best.exists()
    assert (run.adapter("last")[1] / WEIGHTS).read_bytes() == weights(60)


def test_another_word_is_refused_and_a_run_without_validation_has_no_best(run, tmp_path):
    with pytest.raises(ConfigError, match=r"^adapter: should be last or best, not 'bset'$"):
        run.adapter("bset")
    with pytest.raises(UserError, match=r"^Run 'r' has had no validation \(eval_steps=0\?\), so none of its"):
        Run(tmp_path / "without", marked=None).adapter()
