"""A run whose checkpoints, store, settings or code are not as they should be: one message each, and nothing lost."""

import json
import shutil
import subprocess
import time

import pytest
from filelock import FileLock
from support.bad_input import ROOT, ask, ask_all, refused, sets, state
from support.checkpoint_folders import dead_lease

from kaggle_lib.checkpoints import lease as leases

pytestmark = pytest.mark.slow

SMALL = {"rows": 16, "max_length": 96, "max_steps": 8, "save_steps": 4, "eval_steps": 0, "eval_rows": 4}
TRAIN = ("train", "--preset", "tiny-cpu", *sets(run="run", **SMALL))
HERE, STORED = "work/run/checkpoints", "store/run/checkpoints"
NEWEST, BEFORE = "step-00000008", "step-00000004"
FILES = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "manifest.json",
    "optimizer.pt",
    "scheduler.pt",
    "tokenizer.json",
    "trainer_state.json",
)
HARM = {
    "missing": lambda path: path.unlink(),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "changed": lambda path: path.write_bytes(b"!" + path.read_bytes()[1:]),
    "emptied": lambda path: path.write_bytes(b""),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run with the checkpoints of steps 4 and 8."""
    folder = tmp_path_factory.mktemp("made")
    answer = ask(folder, *TRAIN)
    assert (answer.code, answer.told["outcome"], answer.told["step"]) == (0, "finished", 8)
    assert {path.name for path in (folder / HERE / NEWEST).iterdir()} >= set(FILES)
    return folder


@pytest.fixture
def finished(made, tmp_path):
    return shutil.copytree(made, tmp_path / "there")


@pytest.fixture
def unfinished(finished):
    for place in (HERE, STORED):
        shutil.rmtree(finished / place / NEWEST)
    shutil.rmtree(finished / "work/run/adapter")
    return finished


def hold(folder, session="20260101T000000-00000000", pid=None):
    """A lease of another session in the store, of the living process `pid` or of one that is gone."""
    lease = dead_lease(session)
    if pid:
        lease = lease.model_copy(update={"pid": pid, "pid_started": leases._started(pid)})
    lease = lease.model_copy(update={"expires": time.time() + 1800})
    (folder / "store/run/lease.json").write_text(lease.model_dump_json())
    return lease


@pytest.fixture
def somebody():
    process = subprocess.Popen(["sleep", "600"])
    yield process.pid
    process.kill()
    process.wait()


# Checkpoints


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("harm", HARM)
def test_damage_in_the_run_folder_is_made_good_from_the_store(finished, file, harm):
    HARM[harm](finished / HERE / NEWEST / file)
    damaged, before = state(finished / HERE / NEWEST), state(finished / STORED)
    answer = ask(finished, *TRAIN)
    assert (answer.code, answer.told["outcome"], answer.told["step"]) == (0, "finished", 8)
    cut_off = (harm, file) == ("missing", "manifest.json")
    kept = f"{HERE}/{NEWEST}.{'unfinished' if cut_off else 'damaged'}-1"
    assert kept in answer.lines[0]
    assert state(finished / kept) == damaged
    assert state(finished / HERE / NEWEST) == before_of(before, NEWEST)
    assert state(finished / STORED) == before
    [skipped] = answer.told["skipped_checkpoints"]
    assert (skipped["step"], skipped["file"]) == (8, file)


def before_of(files, name):
    return {path.removeprefix(f"{name}/"): content for path, content in files.items() if path.startswith(f"{name}/")}


@pytest.mark.parametrize(
    ("file", "harm"),
    [("optimizer.pt", "truncated"), ("manifest.json", "emptied"), ("adapter_model.safetensors", "missing")],
)
def test_status_passes_over_what_is_damaged_on_the_store(finished, file, harm):
    HARM[harm](finished / STORED / NEWEST / file)
    before = state(finished)
    answer = ask(finished, "status", *sets(run="run"))
    assert (answer.code, answer.told["step"], answer.told["checkpoint"]["step"]) == (0, 4, 4)
    assert state(finished) == before


@pytest.mark.parametrize("harm", HARM)
def test_damage_in_both_places_goes_back_to_the_checkpoint_before(finished, harm):
    for place in (HERE, STORED):
        HARM[harm](finished / place / NEWEST / "optimizer.pt")
    stored = state(finished / STORED)
    answer = ask(finished, "evaluate", *sets(run="run"))
    assert (answer.code, answer.told["outcome"]) == (75, "not finished")
    assert answer.told["reason"] == "not finished, skipped: step 4 of 8 is done; run `train` to go on"
    assert "Checkpoint 8 was passed over: optimizer.pt " in answer.err
    assert f"{NEWEST}.damaged-1" in answer.err
    assert state(finished / STORED) == stored
    assert {path.name for path in (finished / HERE).iterdir()} == {BEFORE, f"{NEWEST}.damaged-1"}


@pytest.mark.parametrize("command", [TRAIN, ("evaluate", *sets(run="run"))], ids=["train", "evaluate"])
def test_without_any_good_checkpoint_nothing_begins_anew(finished, command):
    for place in (HERE, STORED):
        HARM["truncated"](finished / place / NEWEST / "optimizer.pt")
        HARM["missing"](finished / place / BEFORE / "scheduler.pt")
    answer = refused(
        finished, *command, code=1, says="Run 'run' has checkpoints, but none verifies: step 8 (optimizer.pt has "
    )
    assert "step 4 (scheduler.pt is missing, in the run folder and on the store)" in answer.err
    assert answer.err.endswith(
        "Nothing was removed or renamed. Restore one of them from a copy, or start another run (run=NAME).\n"
    )


# The store


@pytest.mark.parametrize("file", ["config.json", "head.json", "lease.json", "ledger"])
@pytest.mark.parametrize("command", ["train", "status", "evaluate", "report"])
def test_damaged_files_of_the_store(finished, file, command):
    path = finished / "store/run" / file
    if file == "ledger":
        [path] = path.iterdir()
    path.write_bytes(b'{"torn": ')
    says = f"The store's file {path.relative_to(finished)} is damaged. Nothing was changed. "
    refused(finished, command, *sets(run="run"), code=1, says=says)


def change(path, **values):
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


FROZEN = {
    "a key that is gone": ({"colour": "red"}, "colour: Extra inputs are not permitted"),
    "a value of another type": ({"epochs": "two"}, "epochs: Input should be a valid number"),
}


@pytest.mark.parametrize("kind", FROZEN)
def test_frozen_configuration_of_another_version(finished, kind):
    more, says = FROZEN[kind]
    path = finished / "store/run/config.json"
    change(path, config={**json.loads(path.read_text())["config"], **more})
    for command in (TRAIN, ("report", *sets(run="run"))):
        answer = refused(finished, *command, code=1, says=says)
        assert answer.err.startswith("store/run/config.json is damaged, or of a version of kaggle_lib that this one ")


def test_store_without_its_configuration(finished):
    (finished / "store/run/config.json").unlink()
    says = "The store store/run holds a run, but its config.json is missing. Nothing was changed. "
    refused(finished, *TRAIN, code=1, says=says)


def test_store_lost_and_the_run_folder_damaged(finished):
    shutil.rmtree(finished / "store")
    for content in (b"{", b"[]", b"{}", b""):
        (finished / "work/run/run.json").write_bytes(content)
        refused(
            finished, *TRAIN, code=1, says="work/run/run.json is damaged, or of a version of kaggle_lib that this one "
        )


def test_store_lost_and_a_finished_run_here(finished):
    shutil.rmtree(finished / "store")
    answer = ask(finished, *TRAIN)
    assert (answer.code, answer.told["step"], answer.told["on_store"]) == (0, 8, True)
    assert state(finished / STORED / NEWEST) == state(finished / HERE / NEWEST)


# Leases


def test_a_living_session_holds_the_run(unfinished, somebody):
    lease = hold(unfinished, pid=somebody)
    says = f"Run 'run' is held by session {lease.session} on {lease.host} until "
    answer = refused(unfinished, *TRAIN, *sets(lease_wait_minutes=0), code=75, says=says)
    assert answer.err.endswith(f"Wait, or give take_over={lease.session} if you know that it no longer runs.\n")
    assert answer.told["outcome"] == "paused"
    says = "; take_over names another session, 20250101T000000-ffffffff."
    refused(unfinished, *TRAIN, *sets(take_over="20250101T000000-ffffffff"), code=75, says=says)


@pytest.mark.parametrize("how", ["dead", "taken over"])
def test_a_lease_that_no_longer_counts(finished, somebody, how):
    lease = hold(finished, pid=None if how == "dead" else somebody)
    shutil.rmtree(finished / STORED / NEWEST)  # so that there is something to claim the run for
    answer = ask(finished, *TRAIN, *(sets(take_over=lease.session) if how != "dead" else []))
    assert (answer.code, answer.told["outcome"], answer.told["on_store"]) == (0, "finished", True)
    assert state(finished / STORED / NEWEST) == state(finished / HERE / NEWEST)
    assert not (finished / "store/run/lease.json").exists()


def test_another_session_works_in_the_run_folder(unfinished):
    with FileLock(unfinished / "work/run/.lock"):
        says = f"Another process on this machine works in {unfinished}/work/run. Wait until it has ended, or end it.\n"
        for command in (TRAIN, ("evaluate", *sets(run="run"))):
            refused(unfinished, *command, code=75, says=says)


def test_store_that_cannot_be_written(finished):
    shutil.rmtree(finished / STORED / NEWEST)
    (finished / "store/run/.lock").unlink(missing_ok=True)
    (finished / "store/run/.lock").mkdir()
    before = state(finished)
    answer = ask(finished, *TRAIN)
    assert answer.code == 1
    assert answer.lines[-1].startswith("The store store/run cannot be claimed: Is a directory (")
    assert answer.told["reason"] == answer.lines[-1]
    assert state(finished) == before


# Settings and code


CONTRADICTIONS = {
    "learning_rate": ({"learning_rate": "1e-3"}, "learning_rate: this run has 0.002, you gave 0.001. Leave it out"),
    "data": ({"data": "other.csv"}, "data: this run has 'sample', you gave 'other.csv'. Leave it out to go on"),
    "base_model": ({"base_model": "./other"}, "base_model: this run has 'sample', you gave './other'. Leave it"),
    "seed": (
        {"seed": 7},
        "seed: this run has 42, you gave 7. Leave it out to go on, or start another run (run=NAME)\n",
    ),
    "several": (
        {"seed": 7, "lora_r": 8},
        "run 'run' has begun with other values, 2 problems:\n"
        "  seed: this run has 42, you gave 7. Leave it out to go on, or start another run (run=NAME)\n"
        "  lora_r: this run has 16, you gave 8. Leave it out to go on, or start another run (run=NAME)\n",
    ),
    "typing error": ({"sead": 7}, "sead: there is no such key; did you mean seed?\n"),
    "processes": ({"processes": 5}, "processes: 5 processes cannot share a step of 4 samples\n"),
}


@pytest.mark.parametrize("kind", CONTRADICTIONS)
def test_values_that_contradict_the_frozen_ones(unfinished, kind):
    values, says = CONTRADICTIONS[kind]
    answer = refused(unfinished, "train", *sets(run="run", **values), code=2, says=says)
    assert answer.err.startswith(says)


def test_changed_code_is_refused_unless_allowed(unfinished):
    other = unfinished / "elsewhere"
    shutil.copytree(ROOT / "kaggle_lib", other / "kaggle_lib", ignore=shutil.ignore_patterns("__pycache__"))
    with (other / "kaggle_lib/data/steps.py").open("a") as file:
        file.write("# another version\n")
    env = {"PYTHONDONTWRITEBYTECODE": "1"}
    says = "or set allow_code_change=true, or start another run (run=NAME)\n"
    answer = refused(unfinished, *TRAIN, code=2, says=says, package=other, env=env)
    assert answer.err.startswith(
        "allow_code_change: this library's code (data/, strategies/, training/) or its defaults "
    )
    answer = ask(unfinished, *TRAIN, *sets(allow_code_change="true"), package=other, env=env)
    assert (answer.code, answer.told["outcome"], answer.told["resumed_from"]) == (0, "finished", 4)
    assert "going on with allow_code_change=true, so bit for bit ends here." in answer.err


# Runs that are not there, or not finished


def test_unknown_runs(finished):
    says = "run: there is no run 'rum' in 'store'; there are run\n"
    for command in ("evaluate", "report"):
        refused(finished, command, *sets(run="rum"), code=2, says=says)
    refused(
        finished,
        "report",
        *sets(run="run", store="elsewhere", work_dir="w"),
        code=2,
        says="in 'elsewhere', and no other\n",
    )
    answer = ask(finished, "status", *sets(run="rum"))
    assert (answer.code, answer.told["state"], answer.told["step"]) == (0, "empty", 0)
    assert answer.err == "Run rum: nothing is on the store yet; there are run.\n"


def test_unfinished_run_is_not_evaluated(unfinished):
    before = state(unfinished)
    answer = ask(unfinished, "evaluate", *sets(run="run"))
    assert (answer.code, answer.told["outcome"], answer.told["step"]) == (75, "not finished", 4)
    assert answer.err == "Run 'run': not finished, skipped: step 4 of 8 is done; run `train` to go on.\n"
    assert state(unfinished) == before


def test_report_beside_what_is_damaged(finished):
    result = finished / "work/run/evaluation/result.json"
    result.parent.mkdir(exist_ok=True)
    for content in (b'{"torn', b"{}", b"[]"):
        result.write_bytes(content)
        refused(finished, "report", *sets(run="run"), code=1, says="work/run/evaluation/result.json is damaged. ")
    shutil.rmtree(result.parent)
    (finished / "work/run/report").write_text("mine")
    refused(finished, "report", *sets(run="run"), code=1, says="work/run cannot be used: File exists (")


# What only the worker can find out


WORKER = {
    "no such model": ({"base_model": "./nowhere"}, "The base model './nowhere' cannot be loaded: "),
    "no name of a model": ({"base_model": "x" * 300}, f"The base model '{'x' * 300}' cannot be loaded: "),
    "no model in the folder": ({"base_model": "./empty"}, "The base model './empty' cannot be loaded: "),
    "no such layer": (
        {"lora_target_modules": "q_proj,w_proj"},
        "lora_target_modules: 'sample' has no layer named w_proj",
    ),
    "fp16 on a CPU": ({"precision": "fp16"}, "precision=fp16 needs a CUDA GPU, and this machine has none that torch"),
    "8 bit on a CPU": ({"optim": "adamw_8bit"}, "optim=adamw_8bit needs a CUDA GPU, and this machine has none that"),
    "no room": (
        {"max_length": 16},
        "max_length: 16 leaves no room for an answer, the template's headers and the system",
    ),
}


def test_what_the_worker_finds_is_told_once(tmp_path):
    questions = {}
    for number, (kind, (values, _)) in enumerate(WORKER.items()):
        (tmp_path / str(number) / "empty").mkdir(parents=True)
        questions[kind] = (
            tmp_path / str(number),
            "train",
            "--preset",
            "tiny-cpu",
            *sets(run="run", **{**SMALL, **values}),
        )
    for kind, answer in ask_all(questions).items():
        says = WORKER[kind][1]
        assert answer.code == 1, answer
        assert answer.lines[-1].startswith(says), answer.err
        assert answer.told == {"outcome": "failed", "reason": answer.lines[-1]}
        assert "Starting again" not in answer.err
        assert len(answer.lines) <= 4, answer.err
        status = ask(questions[kind][0], "status", *sets(run="run")).told
        assert (status["state"], status["step"], status["lease"]) == ("failed", 0, None), kind
        assert status["sessions"][0]["ended_because"].startswith(f"failed: {says}"[:60])
