"""What a session leaves in Kaggle's kept output, and how a later one finds it, verifies it and goes on from it."""

import shutil

import pytest
from support.checkpoint_folders import LINEAGE, make_checkpoint, make_events, tree

from kaggle_lib.checkpoints.folder_store import FolderStore
from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.manifest import verify
from kaggle_lib.errors import CheckpointError
from kaggle_lib.runs import rescue
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.outcome import Skipped
from kaggle_lib.runs.resume import choose


class OnKaggle:
    def __init__(self, root):
        (root / "working").mkdir()
        self.root, self.said = root, []
        self.folder = RunFolder(root / "temp" / "work" / "r")
        self.folder.create()
        self.folder.run_json.write_text("{}")
        self.store = FolderStore(root / "store", "r")
        self.rescue = rescue.Rescue(self.folder, self.said.append)
        self.left = RunFolder(root / "working" / "rescue" / "r")

    def attach(self, where, *steps, **more):
        place = self.root / "input" / where / "rescue" / "r" / "checkpoints"
        place.mkdir(parents=True, exist_ok=True)
        return [make_checkpoint(place, step, **more)[0] for step in steps]

    def stored(self, step):
        events = make_events(self.root / "events", "A", [1])
        claim = self.store.claim({"code": "c"}, Lease.mine("A"), LINEAGE)
        claim.commit(make_checkpoint(self.root / "made", step)[0], {"id": "A"}, events)
        claim.release("paused", {"id": "A"}, events)

    def choose(self):
        return choose(self.folder, self.store, self.store.peek())


@pytest.fixture
def kaggle(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_LIB_ROOT", str(tmp_path))
    return OnKaggle(tmp_path)


def test_one_checkpoint_is_left_the_newest_and_none_once_the_store_has_it(kaggle):
    for step in (4, 8):
        make_checkpoint(kaggle.folder.checkpoints, step)
        kaggle.rescue.put(step)
        kaggle.rescue.put(step)
        assert kaggle.left.checkpoint_steps() == [step]
        assert tree(kaggle.left.checkpoint(step)) == tree(kaggle.folder.checkpoint(step))
    assert kaggle.said == [
        f"The store lacks the checkpoint of step {step}: it is in the output, {kaggle.left.root}." for step in (4, 8)
    ]
    assert kaggle.left.run_json.read_text() == "{}"
    kaggle.rescue.clear()
    assert list((kaggle.root / "working" / "rescue").iterdir()) == []


def test_a_damaged_checkpoint_is_not_left_and_the_good_one_stays(kaggle):
    make_checkpoint(kaggle.folder.checkpoints, 4)
    kaggle.rescue.put(4)
    path, _ = make_checkpoint(kaggle.folder.checkpoints, 8)
    (path / "optimizer.pt").unlink()
    kaggle.rescue.put(8)
    assert kaggle.left.checkpoint_steps() == [4]
    assert kaggle.said[-1] == (
        f"warning: The checkpoint of step 8 could not be left in {kaggle.left.root}: "
        "step-00000008: optimizer.pt is missing."
    )


def test_elsewhere_than_on_kaggle_nothing_is_left(kaggle):
    shutil.rmtree(kaggle.root / "working")
    make_checkpoint(kaggle.folder.checkpoints, 4)
    rescue.Rescue(kaggle.folder, kaggle.said.append).put(4)
    assert not (kaggle.root / "working").exists()
    assert rescue.keep(kaggle.folder, kaggle.said.append) == kaggle.folder.root
    assert kaggle.said == []


def test_what_a_person_wants_is_copied_into_the_output(kaggle):
    for path in (kaggle.folder.adapter, kaggle.folder.evaluation):
        path.mkdir()
        (path / "file").write_text("old")
    place = rescue.keep(kaggle.folder, kaggle.said.append)
    (kaggle.folder.adapter / "file").write_text("new")
    assert rescue.keep(kaggle.folder, kaggle.said.append) == place == kaggle.root / "working" / "r"
    assert {path.name: (path / "file").read_text() for path in place.iterdir()} == {
        "adapter": "new",
        "evaluation": "old",
    }


@pytest.mark.parametrize("where", ["train", "notebooks/train", "notebooks/me/train"])
def test_an_attached_output_newer_than_the_store_is_gone_on_from_and_goes_there_first(kaggle, where):
    kaggle.stored(4)
    [path] = kaggle.attach(where, 8)
    found = kaggle.choose()
    assert (found.kind, found.step, found.source, found.lineage) == ("resume", 8, "attached", LINEAGE)
    assert found.path == found.to_commit == kaggle.folder.checkpoint(8)
    assert tree(found.path) == tree(path)
    assert found.why == (
        f"Resuming at step 8 of 60, from {kaggle.root}/input/{where}/rescue/r; "
        "the store lacks this one, so it goes there first."
    )


def test_the_best_checkpoint_is_left_beside_the_newest_and_brought_with_it(kaggle):
    for step in (4, 8):
        make_checkpoint(kaggle.folder.checkpoints, step, best=4)
    kaggle.rescue.put(8)
    assert kaggle.left.checkpoint_steps() == [8, 4]
    (kaggle.root / "input").mkdir()
    (kaggle.root / "working").rename(kaggle.root / "input" / "train")
    shutil.rmtree(kaggle.folder.checkpoints)
    kaggle.folder.create()
    assert (kaggle.choose().step, kaggle.folder.checkpoint_steps()) == (8, [8, 4])
    verify(kaggle.folder.checkpoint(4))
    for path in (kaggle.folder.checkpoint(8), kaggle.folder.checkpoint(4)):
        shutil.rmtree(path)
    (kaggle.root / "input/train/rescue/r/checkpoints/step-00000004/optimizer.pt").write_bytes(b"")
    assert (kaggle.choose().step, kaggle.folder.checkpoint_steps()) == (8, [8])  # which needs no best one to go on


def test_an_attached_output_too_deep_or_older_or_of_another_run_is_passed_over(kaggle):
    kaggle.stored(4)
    kaggle.attach("a/b/c/train", 12)
    kaggle.attach("train", 2, 4)
    kaggle.attach("other", 16, lineage="b" * 32)
    found = kaggle.choose()
    assert (found.step, found.source) == (4, "store")
    assert found.skipped == [Skipped(16, "manifest.json", "is of another run of this name (lineage bbbbbbbb)")]


def test_a_damaged_attached_output_is_never_step_0(kaggle):
    [path] = kaggle.attach("train", 8)
    (path / "optimizer.pt").write_bytes(b"")
    with pytest.raises(CheckpointError) as error:
        kaggle.choose()
    assert error.value.what.startswith(
        "Run 'r' has checkpoints, but none verifies: step 8 (optimizer.pt has 0 bytes, not"
    )
    assert error.value.what.endswith("in the attached output).")
    assert list(kaggle.folder.checkpoints.iterdir()) == []
