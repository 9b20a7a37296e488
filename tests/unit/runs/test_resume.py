"""A session goes on from the newest checkpoint that verifies, wherever it lies, and says what it passed over."""

import json
import os
import shutil

import pytest
from support.checkpoint_folders import LINEAGE, make_checkpoint, make_events, tree

from kaggle_lib import config as configs
from kaggle_lib.checkpoints.folder_store import FolderStore
from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.manifest import verify
from kaggle_lib.errors import CheckpointError, ResumeError, StoreError
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.outcome import Skipped
from kaggle_lib.runs.resume import check_code, choose

OTHER = "b" * 32


class Run:
    """A run folder and a store; `local` and `stored` make checkpoints of the same bytes in each."""

    def __init__(self, tmp_path):
        self.tmp_path = tmp_path
        self.folder = RunFolder(tmp_path / "work" / "r")
        self.folder.create()
        self.store = FolderStore(tmp_path / "store", "r")
        self.stored_root = tmp_path / "store" / "r"

    def local(self, *steps, **more):
        for step in steps:
            make_checkpoint(self.folder.checkpoints, step, **more)

    def stored(self, *steps, **more):
        events = make_events(self.tmp_path / "events", "A", [1])
        held = self.store.peek().lease
        claim = self.store.claim({"code": "c"}, Lease.mine("A"), LINEAGE, take_over=held and held.session)
        for step in steps:
            claim.commit(make_checkpoint(self.tmp_path / "made", step, **more)[0], {"id": "A"}, events)
        claim.release("paused", {"id": "A"}, events)

    def choose(self):
        return choose(self.folder, self.store, self.store.peek())

    def names(self):
        return sorted(path.name for path in self.folder.checkpoints.iterdir())


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def cut(path, size):
    with path.open("r+b") as file:
        file.truncate(size)


def flip(path):
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


# Where there is nothing to go on from


def test_without_any_checkpoint_the_run_starts_at_step_0_with_a_new_lineage(run):
    found, again = run.choose(), run.choose()
    assert (found.kind, found.step, found.source, found.path, found.manifest) == ("fresh", 0, "none", None, None)
    assert (found.to_commit, found.skipped, found.notes) == (None, [], [])
    assert found.why == (
        f"Starting at step 0: there is no checkpoint of this run in {run.folder.root} or {run.stored_root}."
    )
    assert len(found.lineage) == 32 and found.lineage != again.lineage
    assert not run.stored_root.exists()


def test_a_claimed_store_without_checkpoints_keeps_its_lineage(run):
    run.stored()
    assert (run.choose().kind, run.choose().lineage) == ("fresh", LINEAGE)


def test_a_save_that_was_cut_off_is_no_checkpoint_and_is_kept_beside(run):
    run.local(10)
    (run.folder.checkpoint(10) / "manifest.json").unlink()
    before = tree(run.folder.checkpoint(10))
    found = run.choose()
    reason = "is missing, so the save was never finished"
    assert (found.kind, found.skipped) == ("fresh", [Skipped(10, "manifest.json", reason)])
    kept = run.folder.checkpoints / "step-00000010.unfinished-1"
    assert found.notes == [f"The save of step 10 in the run folder was cut off; it is kept as {kept}."]
    assert tree(kept) == before
    assert run.names() == ["step-00000010.unfinished-1"]
    assert run.choose().notes == []


# Local and stored together


def test_the_newest_local_one_is_taken_where_the_store_has_it_too(run):
    run.local(10, 20)
    run.stored(10, 20)
    found = run.choose()
    assert (found.kind, found.step, found.source) == ("resume", 20, "local")
    assert found.path == run.folder.checkpoint(20)
    assert (found.stored.step, found.to_commit) == (20, None)
    assert found.manifest.step == 20
    assert found.why == f"Resuming at step 20 of 60, from {run.folder.root}."


def test_a_newer_stored_one_is_fetched_in_every_byte(run):
    run.local(10)
    run.stored(10, 20)
    found = run.choose()
    assert (found.step, found.source, found.to_commit) == (20, "store", None)
    assert found.path == run.folder.checkpoint(20)
    assert tree(found.path) == tree(run.stored_root / "checkpoints/step-00000020")
    assert found.why == f"Resuming at step 20 of 60, from the store {run.stored_root}."
    assert run.names() == ["step-00000010", "step-00000020"]


def test_a_lost_work_folder_is_brought_back_without_any_link_to_the_old_place(run, tmp_path):
    run.local(10)
    run.stored(10)
    shutil.rmtree(run.folder.root)
    found = run.choose()
    assert (found.step, found.source) == (10, "store")
    verify(run.folder.checkpoint(10))
    places = list(run.folder.root.rglob("*"))
    assert not any(path.is_symlink() for path in places)
    assert not any(path.stat().st_nlink > 1 for path in places if path.is_file())
    assert str(tmp_path).encode() not in b"".join(tree(run.folder.root).values())


def test_a_newer_local_one_is_taken_and_has_to_be_committed_first(run):
    run.stored(10)
    run.local(10, 20)
    found = run.choose()
    assert (found.step, found.source, found.stored) == (20, "local", None)
    assert found.to_commit == run.folder.checkpoint(20)
    assert found.why == (
        f"Resuming at step 20 of 60, from {run.folder.root}; the store lacks this one, so it goes there first."
    )


def test_an_empty_store_takes_the_lineage_of_the_newest_good_local_one_and_that_is_said(run):
    run.local(10, lineage=OTHER)
    run.local(20)
    found = run.choose()
    assert (found.step, found.lineage, found.to_commit) == (20, LINEAGE, run.folder.checkpoint(20))
    assert found.why == (
        f"Resuming at step 20 of 60, from {run.folder.root}; the store {run.stored_root} has no checkpoint of this "
        f"run, so this one goes there first (to start anew instead, remove {run.folder.root} or give another run=NAME)."
    )


def test_other_bytes_of_the_same_step_on_the_store_are_not_the_same_checkpoint(run):
    run.local(10)
    run.stored(10, salt="other")
    found = run.choose()
    assert (found.source, found.stored, found.to_commit) == ("local", None, run.folder.checkpoint(10))


def test_a_finished_run_is_finished_from_either_place(run):
    run.stored(60)
    found = run.choose()
    assert (found.kind, found.step, found.source) == ("finished", 60, "store")
    assert found.why == f"Finished: step 60 of 60, from the store {run.stored_root}."
    found = run.choose()
    assert (found.kind, found.source, found.to_commit) == ("finished", "local", None)
    shutil.rmtree(run.stored_root / "checkpoints/step-00000060")
    assert run.choose().to_commit == run.folder.checkpoint(60)


def test_an_early_stopped_run_is_finished_and_cannot_be_extended(run):
    early = "early stopping at step 40: no improvement since step 20"
    run.stored(40, best=20, stopped_early=early)
    found = run.choose()
    assert (found.kind, found.step, found.manifest.best_step) == ("finished", 40, 20)
    assert found.why == f"Finished: step 40 of 60 ({early}), from the store {run.stored_root}."
    assert found.extend(0) is found
    extended = found.extend(1)
    assert (extended.kind, extended.added) == ("finished", ())
    assert extended.notes == [
        f"extend_epochs=1 adds nothing after {early}. Another run can start there: fork_from=RUN@40."
    ]


# Other runs of the same name


def test_local_ones_of_another_lineage_are_passed_over_named_and_kept(run):
    run.stored(10)
    run.local(20, lineage=OTHER)
    before = tree(run.folder.checkpoint(20))
    found = run.choose()
    assert (found.step, found.source, found.lineage) == (10, "store", LINEAGE)
    assert found.skipped == [Skipped(20, "manifest.json", "is of another run of this name (lineage bbbbbbbb)")]
    kept = run.folder.checkpoints / "step-00000020.foreign-1"
    assert found.notes == [f"The checkpoint of step 20 in the run folder is another run's; it is kept as {kept}."]
    assert tree(kept) == before
    assert found.why == (
        f"Resuming at step 10 of 60, from the store {run.stored_root}; passed over: step 20 (manifest.json is of "
        "another run of this name (lineage bbbbbbbb), in the run folder)."
    )


def test_local_ones_of_another_lineage_do_not_keep_a_new_run_from_starting(run):
    run.stored()
    run.local(20, lineage=OTHER)
    found = run.choose()
    assert (found.kind, found.lineage, [item.step for item in found.skipped]) == ("fresh", LINEAGE, [20])
    assert run.names() == ["step-00000020.foreign-1"]


def test_stored_ones_of_another_lineage_alone_are_an_error(run):
    run.stored(20, lineage=OTHER)
    with pytest.raises(CheckpointError, match=r"none verifies: step 20 \(manifest\.json is of another run"):
        run.choose()


# Damage


def test_the_newest_two_cut_by_a_power_failure_are_named_and_kept_and_the_third_is_taken(run):
    run.local(10, 20, 30)
    run.stored(10, 20, 30)
    for place in (run.folder.checkpoints, run.stored_root / "checkpoints"):
        for path in (place / "step-00000030").rglob("*"):
            if path.is_file():
                cut(path, 0)
        cut(place / "step-00000020/adapter_model.safetensors", 1500)
    before, stored = tree(run.folder.checkpoints), tree(run.stored_root)
    found = run.choose()
    assert (found.kind, found.step, found.source, found.to_commit) == ("resume", 10, "local", None)
    assert found.skipped == [
        Skipped(30, "manifest.json", "is empty"),
        Skipped(20, "adapter_model.safetensors", "has 1500 bytes, not 3000"),
    ]
    assert found.why == (
        f"Resuming at step 10 of 60, from {run.folder.root}; passed over: "
        "step 30 (manifest.json is empty, in the run folder and on the store), "
        "step 20 (adapter_model.safetensors has 1500 bytes, not 3000, in the run folder and on the store)."
    )
    folder = run.folder.checkpoints
    assert found.notes == [
        f"The checkpoint of step {step} in the run folder is damaged; it is kept as "
        f"{folder / f'step-000000{step}.damaged-1'}."
        for step in (30, 20)
    ]
    assert run.names() == ["step-00000010", "step-00000020.damaged-1", "step-00000030.damaged-1"]
    after = tree(run.folder.checkpoints)
    assert {name.replace(".damaged-1", ""): data for name, data in after.items()} == before
    assert tree(run.stored_root) == stored

    again = run.choose()  # what lies on the store is still named, what was moved here is not moved again
    assert (again.step, again.skipped, again.notes) == (10, found.skipped, [])


def test_a_damaged_local_one_is_replaced_by_the_stored_one_of_the_same_step(run):
    run.local(20)
    run.stored(20)
    flip(run.folder.checkpoint(20) / "optimizer.pt")
    found = run.choose()
    assert (found.step, found.source) == (20, "store")
    assert found.skipped == [Skipped(20, "optimizer.pt", "has another sha256 than its manifest says")]
    verify(run.folder.checkpoint(20))
    assert run.names() == ["step-00000020", "step-00000020.damaged-1"]


def test_a_stored_one_whose_damage_only_its_hash_shows_is_passed_over(run):
    run.stored(10, 20)
    flip(run.stored_root / "checkpoints/step-00000020/scheduler.pt")
    found = run.choose()
    assert (found.step, found.source) == (10, "store")
    assert found.skipped == [Skipped(20, "scheduler.pt", "has another sha256 than its manifest says")]
    assert run.names() == ["step-00000010"]


def test_where_none_verifies_it_is_an_error_that_names_each_and_nothing_is_moved(run):
    run.local(10, 30)
    run.stored(20)
    cut(run.folder.checkpoint(30) / "optimizer.pt", 0)
    (run.folder.checkpoint(10) / "tokenizer.json").unlink()
    flip(run.stored_root / "checkpoints/step-00000020/scheduler.pt")
    before = tree(run.tmp_path)
    for _ in range(2):  # the second look is no milder than the first
        with pytest.raises(CheckpointError) as caught:
            run.choose()
        assert str(caught.value) == (
            "Run 'r' has checkpoints, but none verifies: "
            "step 30 (optimizer.pt has 0 bytes, not 5000, in the run folder), "
            "step 20 (scheduler.pt has another sha256 than its manifest says, on the store), "
            "step 10 (tokenizer.json is missing, in the run folder). "
            "Nothing was removed or renamed. "
            "Restore one of them from a copy, or start another run (run=NAME)."
        )
    assert tree(run.tmp_path) == before


def test_a_store_that_fails_is_never_taken_for_an_empty_one(run):
    run.local(10)
    run.stored(10, 20)
    state = run.store.peek()
    run.stored_root.rename(run.tmp_path / "gone")
    run.stored_root.symlink_to(run.stored_root)  # a loop
    with pytest.raises(StoreError, match="Too many levels of symbolic links"):
        choose(run.folder, run.store, state)
    with pytest.raises(StoreError, match="Too many levels of symbolic links"):
        run.choose()
    assert run.names() == ["step-00000010"]


def test_a_local_one_that_may_not_be_read_is_no_damage(run):
    run.local(10, 20)
    path = run.folder.checkpoint(20) / "optimizer.pt"
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(CheckpointError) as caught:
        run.choose()
    assert str(caught.value) == (
        f"The checkpoint {path.parent} cannot be read: Too many levels of symbolic links ({path}). "
        "Nothing was removed or renamed. Put that right and run again."
    )
    assert run.names() == ["step-00000010", "step-00000020"]


def test_half_a_fetch_of_a_killed_session_does_not_stay(run):
    run.stored(10)
    for name in (".fetched-00000030", "..fetched-00000020.incoming"):
        (run.folder.checkpoints / name).mkdir()
        (run.folder.checkpoints / name / "optimizer.pt").write_bytes(b"half")
    assert run.choose().step == 10
    assert run.names() == ["step-00000010"]


# Every kind of broken checkpoint


def edit(**changes):
    def broken(folder):
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        for key, value in changes.items():
            if value is None:
                del manifest[key]
            else:
                manifest[key] = value
        path.write_text(json.dumps(manifest))

    return broken


def listed(name):
    return edit(files={name: {"size": 1, "sha256": "0" * 64}})


def as_folder(name):
    def broken(folder):
        (folder / name).unlink()
        (folder / name).mkdir()

    return broken


def appended(folder):
    (folder / "optimizer.pt").write_bytes((folder / "optimizer.pt").read_bytes() + b"\0")


def half_a_manifest(folder):
    cut(folder / "manifest.json", (folder / "manifest.json").stat().st_size // 2)


def as_file(folder):
    shutil.rmtree(folder)
    folder.write_text("no folder")


def as_fifo(folder):
    (folder / "scheduler.pt").unlink()
    os.mkfifo(folder / "scheduler.pt")


HASH = "has another sha256 than its manifest says"
BROKEN = {
    "file missing": (lambda f: (f / "scheduler.pt").unlink(), "scheduler.pt", "is missing"),
    "file in a folder missing": (lambda f: shutil.rmtree(f / "events"), "events/s1.jsonl", "is missing"),
    "truncated": (lambda f: cut(f / "optimizer.pt", 4999), "optimizer.pt", "has 4999 bytes, not 5000"),
    "empty": (lambda f: cut(f / "optimizer.pt", 0), "optimizer.pt", "has 0 bytes, not 5000"),
    "a byte more": (appended, "optimizer.pt", "has 5001 bytes, not 5000"),
    "another content": (lambda f: flip(f / "adapter_config.json"), "adapter_config.json", HASH),
    "file became a folder": (as_folder("tokenizer.json"), "tokenizer.json", "is not a file"),
    "file became a pipe": (as_fifo, "scheduler.pt", "is not a file"),
    "dangling link": (
        lambda f: ((f / "scheduler.pt").unlink(), (f / "scheduler.pt").symlink_to("nowhere")),
        "scheduler.pt",
        "is missing",
    ),
    "folder became a file": (as_file, "manifest.json", "is not a file"),
    "manifest empty": (lambda f: cut(f / "manifest.json", 0), "manifest.json", "is empty"),
    "manifest torn": (half_a_manifest, "manifest.json", "is not a manifest (Invalid JSON: "),
    "manifest no JSON": (
        lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"),
        "manifest.json",
        "is not a manifest (Invalid JSON: ",
    ),
    "manifest a list": (
        lambda f: (f / "manifest.json").write_text("[]"),
        "manifest.json",
        "is not a manifest (Input should be an object)",
    ),
    "manifest became a folder": (as_folder("manifest.json"), "manifest.json", "is not a file"),
    "manifest of another step": (edit(step=19), "manifest.json", "is of step 19"),
    "manifest without lineage": (edit(lineage=None), "manifest.json", "is not a manifest (lineage: Field required)"),
    "manifest without files": (
        edit(files={}),
        "manifest.json",
        "is not a manifest (files: Value error, no file is listed)",
    ),
    "absolute name": (
        listed("/etc/passwd"),
        "manifest.json",
        "is not a manifest (files: Value error, '/etc/passwd' is no name of a file inside a checkpoint)",
    ),
    "name that leads out": (
        listed("../../adapter_model.safetensors"),
        "manifest.json",
        "is not a manifest (files: Value error, '../../adapter_model.safetensors' is no name of a file inside a ",
    ),
    "name with a detour": (
        listed("events/../x"),
        "manifest.json",
        "is not a manifest (files: Value error, 'events/../x'",
    ),
    "name of nothing": (listed(""), "manifest.json", "is not a manifest (files: Value error, '' is no name"),
    "the manifest itself": (listed("manifest.json"), "manifest.json", "is not a manifest (files: Value error, 'mani"),
}


@pytest.mark.parametrize("place", ["local", "stored"])
@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_checkpoint_is_passed_over_for_the_one_before_with_one_clear_reason(run, kind, place):
    breaks, file, reason = BROKEN[kind]
    run.local(10)
    run.stored(10)
    if place == "local":
        run.local(20)
        broken = run.folder.checkpoint(20)
    else:
        run.stored(20)
        broken = run.stored_root / "checkpoints/step-00000020"
    breaks(broken)
    found = run.choose()
    assert (found.kind, found.step, found.source) == ("resume", 10, "local")
    [skipped] = found.skipped
    assert (skipped.step, skipped.file) == (20, file)
    assert skipped.reason.startswith(reason)
    assert "\n" not in skipped.reason and len(skipped.reason) < 200
    kept = run.folder.checkpoints / "step-00000020.damaged-1"
    assert kept.exists() if place == "local" else broken.exists()
    assert not run.folder.checkpoint(20).exists()


def test_a_stored_one_without_its_manifest_is_damage_for_it_was_whole_once(run):
    run.stored(10)
    (run.stored_root / "checkpoints/step-00000010/manifest.json").unlink()
    with pytest.raises(
        CheckpointError, match=r"manifest\.json is missing, so the save was never finished, on the store"
    ):
        run.choose()


# The code


@pytest.fixture
def config():
    return configs.RunConfig.create({"run": "r", "base_model": "sample", "data": "sample"})


def manifest_of(tmp_path, config, code):
    return make_checkpoint(tmp_path, 20, fingerprint=configs.fingerprint(config, code))[1]


def test_the_same_code_goes_on_in_silence(tmp_path, config):
    code = configs.code_hash()
    assert check_code(code, config) is None
    assert check_code(code, config, manifest_of(tmp_path, config, code)) is None


def test_changed_code_is_refused_and_the_key_that_allows_it_is_named(tmp_path, config):
    for manifest in (None, manifest_of(tmp_path, config, "0" * 64)):
        with pytest.raises(ResumeError) as caught:
            check_code("0" * 64, config, manifest)
        assert caught.value.exit_code == 2
        assert str(caught.value) == (
            "allow_code_change: this library's code (data/, strategies/, training/) or its defaults changed since this "
            f"run's last session, so it would not go on bit for bit (code {configs.code_hash()[:12]}, the run began "
            "with 000000000000). Use the version it was trained with, or set allow_code_change=true, or start another "
            "run (run=NAME)"
        )


def test_changed_code_goes_on_where_it_is_allowed_and_that_is_said(tmp_path, config):
    allowed = config.model_copy(update={"allow_code_change": True})
    assert check_code("0" * 64, allowed, manifest_of(tmp_path, config, "0" * 64)) == (
        "this library's code (data/, strategies/, training/) or its defaults changed since this run's last session; "
        "going on with allow_code_change=true, so bit for bit ends here."
    )


def test_a_checkpoint_made_by_this_code_goes_on_though_the_run_began_with_another(tmp_path, config):
    assert check_code("0" * 64, config, manifest_of(tmp_path, config, configs.code_hash())) is None


def test_a_checkpoint_made_by_another_code_is_refused_though_the_run_began_with_this_one(tmp_path, config):
    with pytest.raises(ResumeError):
        check_code(configs.code_hash(), config, manifest_of(tmp_path, config, "0" * 64))
