"""A built kernel runs under papermill where the repository is not to be seen, to its end or not past its first cell."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from support import loopback_kaggle_image
from support.loopback_hub import OWNER, LoopbackHub
from support.sessions import gone

from kaggle_lib.config import RunConfig
from kaggle_lib.kaggle import kernel
from kaggle_lib.presets import read_preset
from kaggle_lib.runs.launch import descendants

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
BENGALI = "আপনি একজন সহানুভূতিশীল শ্রোতা।"
HOOKS = f'def format_row(row):\n    return {{**row, "Answers": "{BENGALI} " + row["Answers"]}}\n'
SHORT = {"rows": 48, "max_length": 128, "max_steps": 4, "save_steps": 2, "eval_steps": 0, "session_hours": 2}
# As on a machine without Internet: every name fails, numbers go on.
NO_NAMES = """
import socket
found = socket.getaddrinfo
def getaddrinfo(host, *more, **named):
    if host in (None, "127.0.0.1", "localhost", "0.0.0.0", "::1"):
        return found(host, *more, **named)
    raise socket.gaierror(-3, "Temporary failure in name resolution")
socket.getaddrinfo = getaddrinfo
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """A Python with this environment's packages and without the library."""
    return loopback_kaggle_image.build(tmp_path_factory.mktemp("image") / "environment")


def build(tmp_path, preset="tiny-cpu", **values):
    config = RunConfig.create({**read_preset(preset), "run": "first", **values})
    return kernel.build("train", config, tmp_path / "kernel", id="someone/first").notebook


def environment(image, tmp_path, **more):
    hidden = ("PYTHONPATH", "HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "PYTHONUTF8")
    own = {name: value for name, value in os.environ.items() if name not in hidden and not name.endswith("_proxy")}
    own |= {"HOME": str(tmp_path / "home"), "PATH": f"{image.parent}:/usr/bin:/bin", "PYTHONWARNINGS": "ignore"}
    own |= {"KAGGLE_LIB_ROOT": str(tmp_path / "kaggle"), "KAGGLE_KERNEL_RUN_TYPE": "Batch"}
    return {**own, "PYTHONPATH": str(tmp_path / "patches"), **more}


def session(image, notebook, tmp_path, **more):
    """Run it as Kaggle's runner does; (exit code, the executed notebook, what papermill said)."""
    working = tmp_path / "kaggle" / "working"
    for folder in (working, tmp_path / "home", tmp_path / "patches"):
        folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [image, "-m", "papermill", "--no-progress-bar", notebook, tmp_path / "out.ipynb"],
        cwd=working, env=environment(image, tmp_path, **more),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    return done.returncode, nbformat.read(tmp_path / "out.ipynb", as_version=4), done.stderr


def printed(notebook):
    outputs = [output for one in notebook.cells for output in one.get("outputs", [])]
    return "".join(output["text"] for output in outputs if output.output_type == "stream")


def refusal(code, executed, said):
    """The lines of the first cell's error; nothing after it ran."""
    assert code != 0
    # papermill puts a cell of its own before the one that failed.
    ran = [one for one in executed.cells if one.cell_type == "code" and one.execution_count]
    assert [one.execution_count for one in ran] == [1]
    return [line for line in said.rpartition('Exception encountered at "In [')[2].splitlines()[1:] if line.strip()]


def test_to_the_end_with_hooks_and_bengali_under_a_c_locale(image, tmp_path):
    (tmp_path / "mine.py").write_text(HOOKS, encoding="utf-8")
    values = {"store": f"hf://{OWNER}/runs", "hooks": str(tmp_path / "mine.py"), "system_prompt": BENGALI}
    notebook = build(tmp_path, **SHORT, **values)
    with LoopbackHub(tmp_path / "hub") as hub:
        legacy = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "cp1252"}
        code, executed, said = session(image, notebook, tmp_path, **hub.environment(**legacy))
        assert code == 0, said[-3000:]
        files = hub.repo(f"{OWNER}/runs").resolve("run/first", 0).files
    text = printed(executed)
    assert text.startswith("kaggle_lib 0.1.0, run first: looking at this session.\nReady after ")
    assert "Finished: all steps are done. The checkpoint of step 4 is on the store.\n" in text
    assert "checkpoints/step-00000004/manifest.json" in files
    working, temp = tmp_path / "kaggle" / "working", tmp_path / "kaggle" / "temp"
    assert (working / "mine.py").read_text(encoding="utf-8") == HOOKS
    run = json.loads((temp / "work" / "first" / "run.json").read_text(encoding="utf-8"))
    assert (run["config"]["system_prompt"], run["config"]["max_steps"]) == (BENGALI, 4)
    # The library came from the notebook, and is no part of the output.
    [library] = temp.glob("kaggle_lib-*")
    assert re.search(rf"data: {library}/lib/kaggle_lib/data/sample/bengali_sample\.csv", text)
    assert not list(working.rglob("kaggle_lib*"))
    assert hub.token not in (tmp_path / "out.ipynb").read_text(encoding="utf-8")


def test_a_damaged_notebook_is_refused(image, tmp_path):
    notebook = build(tmp_path)
    text = notebook.read_text(encoding="utf-8")
    middle = text.index("PACKED = ") + 50_000
    notebook.write_text(text[:middle] + ("A" if text[middle] != "A" else "B") + text[middle + 1 :], encoding="utf-8")
    assert refusal(*session(image, notebook, tmp_path)) == [
        "Refused: This notebook is damaged: its library is not the one that was packed. Push it again."
    ]
    assert not list((tmp_path / "kaggle").rglob("kaggle_lib*"))


def test_without_internet_gpu_corpus_and_token_the_recipe_is_refused_in_a_line_each(image, tmp_path):
    (tmp_path / "patches").mkdir()
    (tmp_path / "patches" / "sitecustomize.py").write_text(NO_NAMES)
    notebook = build(tmp_path, "bengali-8b-t4", store="hf://someone/runs")
    lines = refusal(*session(image, notebook, tmp_path))
    assert [line.split(":")[0] for line in lines] == ["Refused", "data", "No Internet"]
    assert lines[0].startswith("Refused: No GPU: this session has none. Choose GPU T4 x2 as accelerator")
    assert lines[2].startswith(
        "No Internet: https://huggingface.co does not answer (Temporary failure in name resolution). Switch it on in "
    )


def test_a_notebook_that_was_pushed_without_the_library_says_how_to_push_it(image, tmp_path):
    lines = refusal(*session(image, ROOT / "notebooks" / "train.ipynb", tmp_path))
    assert lines[-1] == (
        "ImportError: kaggle_lib is not in this image: push from a clone, `python -m kaggle_lib push`."
    )


# A kernel's calls, as its cells make them: what it interrupts pauses, what dies with it is gone.
KERNEL = """
import sys
from pathlib import Path
from kaggle_lib.kaggle.calls import Library

kl = Library(sys.executable, {}, Path(), "0.1.0")
preset = "tiny-cpu"
run, store, work_dir = "first", sys.argv[1] + "/store", sys.argv[1] + "/work"
max_steps, save_steps, eval_steps, rows, max_length = 500, 500, 0, 48, 128
try:
    learning_rte = 3
    kl.configure({**globals(), "In": ["run = 'first'; learning_rte = 3", "x = 1  # PACKED = "]})
except Exception as error:
    print(f"{type(error).__name__}: {error}", flush=True)
print(kl.configure(globals()), flush=True)
outcome = kl.train(logging_steps=5)
print(outcome.outcome, type(kl.status()).__name__, flush=True)
print(type(kl.report()).__name__, flush=True)
kl.train(logging_steps=5)
"""


def test_an_interrupt_pauses_and_a_killed_kernel_leaves_nobody(tmp_path):
    kernel_ = subprocess.Popen(
        [sys.executable, "-c", KERNEL, str(tmp_path)],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", cwd=ROOT,
    )  # fmt: skip
    seen = []

    def until(begins):
        for line in kernel_.stdout:
            seen.append(line.rstrip("\n"))
            if line.startswith(begins):
                return
        raise AssertionError("\n".join(seen))

    until("step 10 of 500")
    os.kill(kernel_.pid, signal.SIGINT)
    until("PosixPath")
    assert (
        seen[0] == "ConfigError: learning_rte: there is no such key; did you mean learning_rate? A variable of your "
        "own belongs in another cell"
    )
    assert seen[1].startswith("Settings(preset='tiny-cpu', run='first', ")
    assert "paused dict" in seen
    until("step ")
    below = descendants(kernel_.pid)
    assert len(below) >= 2  # the supervisor and its worker
    kernel_.kill()
    kernel_.wait()
    kernel_.stdout.close()
    assert gone(below)
