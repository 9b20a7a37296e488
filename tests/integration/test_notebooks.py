"""The notebooks run under the real papermill from a clean kernel, and their text form alone makes them runnable."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from kaggle_lib.config import parse
from kaggle_lib.presets import read_preset
from kaggle_lib.rating.sheet import CRITERIA

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TEXTS = sorted((ROOT / "notebooks").glob("*.py"))
PAGE = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")


def environment(folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}:{folder / 'stubs'}",
        "PYTHONWARNINGS": "ignore",
        "IPYTHONDIR": str(folder / ".ipython"),
    }


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / words[0], *words[1:]],
        cwd=cwd,
        env=environment(cwd),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def papermill(name: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a notebook, or one below `cwd`, into `out-NAME` beside it."""
    source = cwd / name if (cwd / name).exists() else ROOT / "notebooks" / name
    return run("papermill", "--no-progress-bar", source, cwd / f"out-{name}", *words, cwd=cwd)


def printed(path: Path) -> str:
    notebook: Any = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "".join(output["text"] for output in outputs if output.output_type == "stream")


def code_cells(text: Path) -> list[Any]:
    notebook: Any = nbformat.read(text.with_suffix(".ipynb"), as_version=4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameters(text: Path) -> dict[str, object]:
    """The parameters of a notebook, from its cell."""
    [cell] = [cell for cell in code_cells(text) if "parameters" in cell.metadata.get("tags", [])]
    nodes = ast.parse(cell.source).body
    assert all(isinstance(node, ast.AnnAssign) for node in nodes), "a typed assignment each"
    return {node.target.id: ast.literal_eval(node.value) for node in nodes}  # type: ignore[attr-defined]


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_plain_jupytext_names_kernel_and_language(text: Path, tmp_path: Path) -> None:
    made = tmp_path / "made.ipynb"
    done = run("jupytext", "--quiet", "--to", "ipynb", text, "--output", made, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    metadata = nbformat.read(made, as_version=4).metadata
    assert metadata["kernelspec"] == {"display_name": "Python 3", "language": "python", "name": "python3"}
    assert metadata["language_info"]["name"] == "python"


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.stem)
def test_a_notebook_is_parameters_and_at_most_six_calls(text: Path) -> None:
    assert "run" in parameters(text)
    calls = [cell.source for cell in code_cells(text) if "kl." in cell.source]
    assert calls[0] == "kl.configure(globals())"
    assert 1 <= sum(source.count("kl.") for source in calls) <= 6
    assert "import kaggle_lib as kl" in code_cells(text)[0].source


def test_what_the_train_notebook_shows_is_what_its_preset_says() -> None:
    shown = parameters(ROOT / "notebooks" / "train.py")
    recipe, problems = parse(read_preset(str(shown.pop("preset"))))
    values, more = parse(shown)
    assert problems + more == []
    assert values == {name: recipe[name] for name in values}


def test_the_notebooks_page_names_every_notebook() -> None:
    assert set(re.findall(r"notebooks/([a-z0-9_]+)\.ipynb\)", PAGE)) == {path.stem for path in TEXTS}


# What is refused, before anything is loaded


def refused(done: subprocess.CompletedProcess[str], cwd: Path) -> list[str]:
    """What papermill reports of the cell that failed: the message alone."""
    assert done.returncode != 0
    report = done.stderr.rpartition('Exception encountered at "In [')[2]
    assert not (cwd / "work").exists()
    assert not (cwd / "store").exists()
    return [line for line in report.splitlines()[1:] if line.strip()]


def test_misspelt_parameters_and_values_that_cannot_be_are_a_line_each(tmp_path: Path) -> None:
    words = ("-p", "learning_rte", "0.1", "-r", "padding_free", "flase", "-p", "run", "007")
    assert refused(papermill("train.ipynb", *words, cwd=tmp_path), tmp_path) == [
        "ConfigError: the configuration is not usable, 3 problems:",
        "  learning_rte: papermill was given it, and there is no such key; did you mean learning_rate?",
        "  run: is text, and 7 came as int, so its spelling may be lost; "
        'quote it in a notebook, and with papermill use `-r run "7"` instead of -p',
        "  padding_free: should be true or false, not 'flase'",
    ]


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    done = papermill("quickstart.ipynb", "-r", "data", "nowhere.csv", cwd=tmp_path)
    assert done.returncode != 0
    report = done.stderr.rpartition('Exception encountered at "In [')[2].splitlines()[1:]
    [line] = [line for line in report if line.strip()]
    assert re.match(r"[A-Z]\w+Error: .*nowhere\.csv", line)
    assert not list(tmp_path.glob("work/*/checkpoints/*"))
    assert not list(tmp_path.glob("store/*"))


# From a clean kernel to the end

# A logger that is merely installed: transformers finds it by its metadata, and `init` would wait for an API key.
LOGGER = """
from pathlib import Path
__version__ = "0.30.0"
run = None
def init(*args, **kwargs):
    Path(__file__).with_name("asked").touch()
    input("API key: ")
"""


@pytest.mark.slow
def test_quickstart_by_the_command_of_the_notebooks_page(tmp_path: Path) -> None:
    logger = tmp_path / "stubs" / "wandb" / "__init__.py"
    logger.parent.mkdir(parents=True)
    logger.write_text(LOGGER)
    about = tmp_path / "stubs" / "wandb-0.30.0.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: wandb\nVersion: 0.30.0\n")
    for name in ("notebooks", ".venv"):
        (tmp_path / name).symlink_to(ROOT / name)
    [command] = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    done = subprocess.run(
        ["/bin/sh", "-ec", command],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    text = printed(tmp_path / "out.ipynb")
    assert "Finished: all steps are done. The checkpoint of step 8 is on the store.\n" in text
    assert "Run 007: finished, step 8 of 8\n" in text
    lines = [line for line in text.splitlines() if line.startswith("step ") and " of " in line]
    assert [re.sub(r"(loss |tokens/s |time left )[\d.,]+( s| min)?", r"\1N", line) for line in lines] == [
        "step 5 of 8  loss N  tokens/s N  time left N  checkpoint none yet",
        "step 8 of 8  loss N  tokens/s N  time left N  checkpoint none yet",
    ]
    result = json.loads((tmp_path / "work/007/evaluation/result.json").read_text(encoding="utf-8"))
    assert set(result) >= {"base", "tuned"}
    assert (tmp_path / "work/007/report/index.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["007"]
    assert not logger.with_name("asked").exists()
    assert '"display_data"' not in (tmp_path / "out.ipynb").read_text(encoding="utf-8")  # lines, where nobody looks
    renders(tmp_path / "out.ipynb")


def renders(path: Path) -> None:
    """A finished notebook is shown: it converts, and has no widget without its state."""
    notebook: Any = nbformat.read(path, as_version=4)
    assert all("state" in widget for widget in notebook.metadata.get("widgets", {}).values())
    done = run("jupyter-nbconvert", "--to", "html", "--log-level", "ERROR", path, cwd=path.parent)
    assert done.returncode == 0, done.stderr
    assert "kl.configure" in re.sub(r"<[^>]*>", "", path.with_suffix(".html").read_text(encoding="utf-8"))


HOOKS = """%%writefile mine.py
def format_row(row):
    return None if row["reply"].startswith("-") else {**row, "reply": "Answer: " + row["reply"]}
"""


@pytest.mark.slow
def test_train_takes_parameters_of_every_type_a_file_and_a_row_format_and_evaluate_the_name_alone(
    tmp_path: Path,
) -> None:
    rows = [f"How far is {k} steps?,{'-' if k % 2 else 'It is'} {k} metres on." for k in range(80)]
    (tmp_path / "mine.csv").write_text("\n".join(["prompt,reply", *rows]), encoding="utf-8")
    notebook: Any = nbformat.read(ROOT / "notebooks" / "train.ipynb", as_version=4)
    own = nbformat.v4.new_code_cell('learning_rates = [1, 2]\nimport json as optim\nnote = "mine"')
    notebook.cells[1:1] = [own, nbformat.v4.new_code_cell(HOOKS)]
    nbformat.write(notebook, tmp_path / "train.ipynb")
    typed = ("-p", "max_steps", "3", "-p", "learning_rate", "0.001", "-p", "padding_free", "False")
    text = ("-r", "run", "007", "-r", "epochs", "1.5", "-r", "session_hours", "2", "-r", "max_length", "128")
    small = ("-r", "preset", "tiny-cpu", "-r", "base_model", "sample")
    data = ("-r", "data", "mine.csv", "-r", "question_column", "prompt", "-r", "answer_column", "reply")
    listed = ("-y", "{rows: null, lora_target_modules: [q_proj, v_proj], note: ours, hooks: mine.py}")
    done = papermill("train.ipynb", *typed, *text, *small, *data, *listed, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    out = printed(tmp_path / "out-train.ipynb")
    assert re.search(r"^Data: 36 rows to train on, 2 for validation, 2 for the test; ", out, re.MULTILINE), out
    assert "Finished: all steps are done. The checkpoint of step 3 is on the store.\n" in out
    assert re.search(r"^step 3 of 3  .*  checkpoint none yet  deadline in (2 h 00|1 h 5\d) min$", out, re.MULTILINE)
    config = json.loads((tmp_path / "work/007/run.json").read_text(encoding="utf-8"))["config"]
    wanted = {
        "run": "007",
        "max_steps": 3,
        "learning_rate": 0.001,
        "padding_free": False,
        "epochs": 1.5,
        "session_hours": 2.0,
        "max_length": 128,
        "base_model": "sample",
        "hooks": str(tmp_path / "mine.py"),
        "rows": None,
        "lora_target_modules": ["q_proj", "v_proj"],
        "system_prompt": None,  # "" in the cell
        "lora_alpha": 32,  # of the cell
        "precision": "fp32",  # of the preset
    }
    assert {name: config[name] for name in wanted} == wanted
    done = papermill("evaluate.ipynb", "-r", "run", "007", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Run 007: finished, step 3 of 3\n" in printed(tmp_path / "out-evaluate.ipynb")
    result = json.loads((tmp_path / "work/007/evaluation/result.json").read_text(encoding="utf-8"))
    assert result["base"]["rows"] == result["tuned"]["rows"] == 2
    done = papermill("human_eval.ipynb", "-r", "run", "007", "-p", "pairs", "0", "-p", "singles", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    key = json.loads((tmp_path / "work/007/rating/key.json").read_text(encoding="utf-8"))
    assert sorted(one.get("a", "check") for one in key["items"].values()) == ["base", "base", "check", "tuned", "tuned"]
    given = [
        {"item": item, **dict.fromkeys(CRITERIA, one.get("check", 4 if one.get("a") == "tuned" else 2))}
        for item, one in key["items"].items()
    ]
    (tmp_path / "one.json").write_text(json.dumps({"sheet": key["sheet"], "rater": "one", "ratings": given}))
    done = run("python", "-m", "kaggle_lib", "rate", "score", "one.json", "--set", "run=007", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["criteria"]["empathy"]["difference"]["mean"] == 2.0
    for name in ("train", "evaluate", "human_eval"):
        renders(tmp_path / f"out-{name}.ipynb")


@pytest.mark.slow
def test_the_script_of_the_notebooks_page(tmp_path: Path) -> None:
    [script] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    done = run("python", "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == ("Settings(preset='tiny-cpu', run='mine', max_steps=8, learning_rate=0.001)")
    assert done.stdout.endswith("Finished: all steps are done. The checkpoint of step 4 is on the store.\n")
