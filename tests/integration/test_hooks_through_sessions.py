"""A run with a hooks file: it goes where the run goes, and decides what it should; a changed one is refused."""

import json
import math
import os
import shutil
import subprocess
import sys

import pytest
from safetensors.numpy import load_file
from support.bad_input import refused, sets
from support.sessions import ROOT, SMALL, Place

from kaggle_lib.checkpoints.manifest import Manifest, verify
from kaggle_lib.data import curate, read
from kaggle_lib.files import read_json, sha256_of, write_json

pytestmark = pytest.mark.slow

HOOKS = """
from transformers import TrainerCallback


def format_row(row):
    if len(row["Questions"]) < 60:
        return None
    return {**row, "Questions": row["Question-Title"] + "\\n" + row["Questions"]}


def adapt(model, config):
    for name, parameter in model.named_parameters():
        if ".layers.0." in name:
            parameter.requires_grad_(False)
    return model


class Note(TrainerCallback):
    def on_log(self, args, state, control, logs=None, **_):
        print(f"step {state.global_step}: {logs['loss']!r}", flush=True)


def callbacks(config):
    return [Note()]
"""
VALUES = {"rows": 24, "max_steps": 12, "eval_steps": 0}


def python(code, *words, cwd, input=None):
    """Run `code` in a process of its own, as an engineer at a prompt would; what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = ["-c", code, *words] if code else words
    done = subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        input=input,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run."""
    root = tmp_path_factory.mktemp("whole")
    (root / "mine.py").write_text(HOOKS, encoding="utf-8")
    place = Place(root, values={**VALUES, "hooks": root / "mine.py"})
    outcome = place.call()
    assert (outcome["outcome"], outcome["step"]) == ("finished", 12)
    return place


@pytest.fixture(scope="module")
def begun(whole, tmp_path_factory):
    """The same run with the checkpoints of steps 4 and 8 alone, as a session that was killed leaves it."""
    root = tmp_path_factory.mktemp("begun")
    hooks = root / "hooks.py"
    hooks.write_text(HOOKS, encoding="utf-8")
    place = Place(root, values={**VALUES, "hooks": hooks, "keep": 3})
    place.call(max_steps=12)
    for at in (place.folder.checkpoints, place.stored / "checkpoints"):
        shutil.rmtree(at / "step-00000012")
    shutil.rmtree(place.folder.adapter)
    place.folder.outcome.unlink()
    return place


@pytest.fixture
def killed(begun, tmp_path):
    shutil.copytree(begun.root, tmp_path / "there")
    place = Place(tmp_path / "there", values=begun.values)
    place.values = {**begun.values, "hooks": place.root / "hooks.py"}
    return place


def test_each_function_does_what_it_says(whole):
    folder, sha256 = whole.folder, sha256_of(whole.root / "mine.py")
    # format_row: the rows that were trained on, and those left out.
    config = read_config(whole)
    curated = curate.curate(read.read(config), config)
    assert all("\n" in row.question for row in curated.train)
    assert {sample for step in whole.steps() for sample in step["samples"]} == {row.id for row in curated.train}
    assert curated.counts["left out: format_row returned None"] > 0
    # adapt: the frozen layer's B matrices are still zero, the others are not.
    weights = load_file(folder.adapter / "adapter_model.safetensors")
    moved = {name.split(".layers.")[1][0] for name, matrix in weights.items() if "lora_B" in name and matrix.any()}
    assert moved == {"1", "2", "3"}
    # callbacks: each step's own loss.
    log = (folder.root / "worker.log").read_text(encoding="utf-8")
    assert [line for line in log.splitlines() if line.startswith("step ")] == [
        f"step {step['step']}: {step['loss']!r}" for step in whole.steps()
    ]
    # The file goes where the run goes.
    for place in (folder.checkpoint(12), whole.stored / "checkpoints/step-00000012"):
        assert verify(place).files["hooks.py"].sha256 == sha256
        assert (place / "hooks.py").read_text(encoding="utf-8") == HOOKS
    assert (folder.root / "hooks.py").read_text(encoding="utf-8") == HOOKS


def read_config(place):
    from kaggle_lib.config import RunConfig

    return RunConfig.from_json(place.folder.read_run()["config"])


def test_a_bare_machine_goes_on_and_evaluates_with_the_carried_file(whole, killed, tmp_path):
    shutil.rmtree(killed.work)
    (killed.root / "hooks.py").unlink()
    killed.work = tmp_path / "another" / "machine"
    resumed = killed.call()
    assert (resumed["outcome"], resumed["resumed_from"]) == ("finished", 8)
    said = (
        f"hooks: there is no {killed.root}/hooks.py on this machine; the checkpoint of step 8 carries it, and is used."
    )
    assert said in resumed["stderr"].splitlines()
    assert killed.final_bytes() == whole.final_bytes()
    assert (
        verify(killed.folder.checkpoint(12)).files["hooks.py"] == verify(whole.folder.checkpoint(12)).files["hooks.py"]
    )
    evaluated = killed.call("evaluate")
    assert evaluated["outcome"] == "finished"
    result = read_json(killed.folder.evaluation / "result.json")
    config = read_config(whole)
    test = curate.curate(read.read(config), config).test
    assert result["tuned"]["rows"] == len(test)
    assert all(sample["question"] in {row.question for row in test} for sample in result["samples"])
    assert all("\n" in sample["question"] for sample in result["samples"])


def test_a_changed_file_is_refused_by_name_and_goes_on_only_where_that_is_allowed(killed):
    path = killed.root / "hooks.py"
    path.write_text(HOOKS.replace("< 60", "< 61"), encoding="utf-8")
    words = killed.command("train")[3:-1]
    copy = killed.folder.checkpoint(8) / "hooks.py"
    todo = (
        f"so it would not go on bit for bit. Put back what it was trained with (a copy is {copy}), or set "
        "allow_code_change=true, or start another run (run=NAME)"
    )
    answer = refused(killed.root, *words, code=2, says=todo)
    assert answer.err == f"hooks: the hooks file {path} has changed since the checkpoint of step 8, {todo}\n"
    without = [word for word in killed.command("train", hooks="")[3:-1] if word]
    answer = refused(killed.root, *without, code=2, says=todo)
    assert answer.err.startswith(
        "hooks: the checkpoint of step 8 was trained with a hooks file, and none is given, so "
    )
    allowed = killed.call(allow_code_change="true")
    assert allowed["outcome"] == "finished"
    assert (
        f"warning: The hooks file {path} has changed since the checkpoint of step 8; going on with "
        "allow_code_change=true, so bit for bit ends here." in allowed["stderr"].splitlines()
    )
    # From here on the changed one is the run's.
    assert Manifest.read(killed.folder.checkpoint(12)).files["hooks.py"].sha256 == sha256_of(path)
    (killed.root / "elsewhere.py").write_bytes(path.read_bytes())
    assert killed.call(hooks=killed.root / "elsewhere.py")["outcome"] == "finished"


def test_a_file_given_to_a_run_that_began_without_one_is_refused(tmp_path):
    place = Place(tmp_path, values={**VALUES, "max_steps": 4})
    place.call()
    for at in (place.folder.checkpoint(4), place.stored / "checkpoints/step-00000004"):
        manifest = read_json(at / "manifest.json")
        (at / "manifest.json").write_text(json.dumps({**manifest, "total_steps": 5}))  # so that there is more to do
    (tmp_path / "hooks.py").write_text(HOOKS, encoding="utf-8")
    says = (
        f"hooks: the checkpoint of step 4 was trained without a hooks file, and {tmp_path}/hooks.py was given, so it "
    )
    answer = refused(tmp_path, *place.command("train", hooks=tmp_path / "hooks.py")[3:-1], code=2, says=says)
    assert ". Leave it out, or set allow_code_change=true, or " in answer.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, ": cannot be read (No such file or directory)"),
        ("def format_row(row:\n", ", line 1: is no Python ('(' was never closed)"),
        ("def format_rows(row): ...", ", line 1: nothing calls format_rows; did you mean format_row?"),
        ("\n1 / 0", ", line 2: it raised ZeroDivisionError: division by zero"),
        (
            "def format_row(row):\n    return row['Text']",
            ", line 2: format_row raised KeyError: 'Text' for the row in ",
        ),
        ("def format_row(row): return 'text'", ", line 1: format_row returned str for the row in line 2 of "),
    ],
    ids=["missing", "syntax", "name", "import", "raises", "type"],
)
def test_a_fault_is_one_message_before_anything_is_claimed_or_loaded(tmp_path, text, says):
    if text is not None:
        (tmp_path / "hooks.py").write_text(text, encoding="utf-8")
    words = ("train", "--preset", "tiny-cpu", *sets(run="run", hooks="hooks.py"))
    (tmp_path / "work/run").mkdir(parents=True)
    for name in ("checkpoints", "events"):
        (tmp_path / "work/run" / name).mkdir()
    refused(tmp_path, *words, code=2, says=f"hooks: {tmp_path / 'hooks.py'}{says}")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def callbacks(config):\n    return 1 / 0", "line 2: callbacks raised ZeroDivisionError: division by zero"),
        ("def adapt(model, config):\n    model.x", "line 2: adapt raised AttributeError: "),
    ],
    ids=["callbacks", "adapt"],
)
def test_a_fault_that_only_a_worker_can_find_ends_the_session_at_once(tmp_path, text, says):
    (tmp_path / "hooks.py").write_text(text, encoding="utf-8")
    place = Place(tmp_path, values={**SMALL, "hooks": tmp_path / "hooks.py"})
    told = place.call(code=1)
    assert told["reason"].startswith(f"hooks: {tmp_path / 'hooks.py'}, {says}")
    assert "Starting again" not in told["stderr"]


# In the engineer's own process


def test_kl_load_gives_what_the_evaluation_measures(whole):
    whole.call("evaluate")
    tuned = read_json(whole.folder.evaluation / "result.json")["tuned"]
    code = """
import json, sys
import kaggle_lib as kl
model, tokenizer = kl.load(run="run", store=sys.argv[1], work_dir=sys.argv[2])
from kaggle_lib.config import RunConfig
from kaggle_lib.data import chat, tokenise
from kaggle_lib.data.steps import cut_of
from kaggle_lib.evaluation import likelihood
from kaggle_lib.runs.folder import RunFolder
from pathlib import Path
folder = RunFolder(Path(sys.argv[2]) / "run")
config = RunConfig.from_json(folder.read_run()["config"])
rows = tokenise.tokenised(config, tokenizer, folder.cache).test
scores = likelihood.score_rows(model, rows, pad_id=chat.pad_id(tokenizer), eot_id=chat.eot_id(tokenizer),
                               max_tokens=cut_of(config).token_budget)
print(json.dumps([likelihood.summarise(scores), model.training, model.config.use_cache]))
"""
    lines = python(code, str(whole.root / "store"), str(whole.work), cwd=whole.root).splitlines()
    assert lines[-2] == "Loaded run 'run' at step 12 of 12."
    summary, training, use_cache = json.loads(lines[-1])
    assert summary == {name: tuned[name] for name in summary}
    assert math.isfinite(summary["nll"])
    assert (training, use_cache) == (False, True)


def test_kl_load_without_a_checkpoint_says_so(tmp_path):
    code = """
import kaggle_lib as kl
kl.prepare(preset="tiny-cpu", run="new")
try:
    kl.load(run="new")
except kl.errors.NotFinished as error:
    print(error)
"""
    said = python(code.replace("import kaggle_lib as kl", "import kaggle_lib as kl, kaggle_lib.errors"), cwd=tmp_path)
    assert said.splitlines()[-1] == "Run 'new' has no checkpoint yet. Train it first."
    assert not (tmp_path / "store").exists()


BY_HAND = """
import json, os, sys
from kaggle_lib.training import worker
before = os.getppid()
print(json.dumps(worker.main(sys.argv[1])))
assert os.getppid() == before
"""


def test_the_worker_by_hand_goes_on_from_what_lies_there_and_the_next_session_commits_it(whole, killed):
    killed.folder.stop_request.write_text("")  # the killed session was being asked to stop
    last = python(BY_HAND, str(killed.folder.root), cwd=killed.root).splitlines()[-1]
    assert json.loads(last) == {"outcome": "finished", "step": 12, "total_steps": 12, "reason": "all steps are done"}
    assert [step["step"] for step in killed.steps()] == list(range(1, 13))
    assert killed.final_bytes() == whole.final_bytes()
    assert not (killed.stored / "checkpoints/step-00000012").exists()
    # Once more, in the folder of a run that is finished: nothing is left to do, and nothing is done.
    manifest = (killed.folder.checkpoint(12) / "manifest.json").read_bytes()
    assert json.loads(python(BY_HAND, str(killed.folder.root), cwd=killed.root).splitlines()[-1])["step"] == 12
    assert (killed.folder.checkpoint(12) / "manifest.json").read_bytes() == manifest
    told = killed.call()
    assert (told["outcome"], told["on_store"], told["step"]) == ("finished", True, 12)
    assert verify(killed.stored / "checkpoints/step-00000012") == verify(killed.folder.checkpoint(12))


def test_a_breakpoint_in_the_users_own_hooks_file_is_hit(tmp_path):
    (tmp_path / "hooks.py").write_text(HOOKS, encoding="utf-8")
    code = """
import kaggle_lib as kl
print(kl.prepare(preset="tiny-cpu", run="new", hooks="hooks.py", rows=8, max_length=96, max_steps=2, eval_steps=0))
"""
    folder = python(code, cwd=tmp_path).splitlines()[-1]
    assert folder == str(tmp_path / "work/new")
    line = HOOKS.splitlines().index("    for name, parameter in model.named_parameters():") + 1
    commands = f"b {tmp_path / 'hooks.py'}:{line}\nc\np type(model).__name__, config.run\ncl 1\nc\nq\n"
    said = python("", "-m", "pdb", "-m", "kaggle_lib.training.worker", folder, cwd=tmp_path, input=commands)
    assert f"> {tmp_path / 'hooks.py'}({line})adapt()" in said
    assert "('PeftModelForCausalLM', 'new')" in said
    assert "step 2: " in said
    assert "The program finished and will be restarted" in said
    assert read_json(tmp_path / "work/new/outcome")["outcome"] == "finished"


def test_an_edited_hooks_file_is_no_longer_what_was_prepared_and_that_is_said(killed):
    path = killed.root / "hooks.py"
    run = killed.folder.read_run()
    run["config"]["hooks"] = str(path)
    write_json(killed.folder.run_json, run)
    path.write_text("raise RuntimeError\n", encoding="utf-8")
    said = python(BY_HAND, str(killed.folder.root), cwd=killed.root)
    copy = killed.folder.root / "hooks.py"
    assert f"hooks: {path} is not, or no longer, what this session began with; its copy {copy} is used." in said


def test_a_damaged_checkpoint_is_not_passed_over_by_hand(killed):
    (killed.folder.checkpoint(8) / "optimizer.pt").unlink()
    code = """
import sys
from kaggle_lib.errors import CheckpointError
from kaggle_lib.training import worker
try:
    worker.main(sys.argv[1])
except CheckpointError as error:
    print(error)
"""
    said = python(code, str(killed.folder.root), cwd=killed.root)
    assert said.splitlines()[-1] == "step-00000008: optimizer.pt is missing."
