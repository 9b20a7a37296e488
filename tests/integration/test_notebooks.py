"""The notebooks run under the real papermill from a clean kernel, and their text form alone makes them runnable."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TEXTS = sorted((ROOT / "notebooks").glob("*.py"))


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [BIN / words[0], *words[1:]],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{cwd / 'stubs'}",
            "PYTHONWARNINGS": "ignore",
            "IPYTHONDIR": str(cwd / ".ipython"),
        },
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


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
    notebook = nbformat.read(text.with_suffix(".ipynb"), as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    assert all(": " in line and " = " in line for line in tagged[0].source.splitlines())
    calls = [cell for cell in code if "kl." in cell.source]
    assert 1 <= sum(cell.source.count("kl.") for cell in calls) <= 6


@pytest.fixture
def quickstart() -> Path:
    return ROOT / "notebooks" / "quickstart.ipynb"


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
def test_quickstart_from_a_clean_kernel(quickstart: Path, tmp_path: Path) -> None:
    logger = tmp_path / "stubs" / "wandb" / "__init__.py"
    logger.parent.mkdir(parents=True)
    logger.write_text(LOGGER)
    about = tmp_path / "stubs" / "wandb-0.30.0.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Metadata-Version: 2.1\nName: wandb\nVersion: 0.30.0\n")
    words = ("papermill", "--no-progress-bar", quickstart, tmp_path / "out.ipynb", "-r", "run", "007")
    done = run(*words, "-r", "max_steps", "8", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    notebook = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    printed = "".join(
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )
    assert "Finished: all steps are done. The checkpoint of step 8 is on the store.\n" in printed
    assert "Run 007: finished, step 8 of 8\n" in printed
    result = json.loads((tmp_path / "work/007/evaluation/result.json").read_text(encoding="utf-8"))
    assert set(result) >= {"base", "tuned"}
    assert (tmp_path / "work/007/report/index.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["007"]
    assert not logger.with_name("asked").exists()
    # What is left in the notebook renders: no widget without its state.
    assert all("state" in widget for widget in notebook.metadata.get("widgets", {}).values())


@pytest.mark.slow
def test_a_run_name_that_papermill_made_a_number_is_refused_in_one_line(quickstart: Path, tmp_path: Path) -> None:
    words = ("papermill", "--no-progress-bar", quickstart, tmp_path / "out.ipynb", "-p", "run", "007")
    done = run(*words, cwd=tmp_path)
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if "is text, and" in line]
    assert told == [
        "ConfigError: run: is text, and 7 came as int, so its spelling may be lost; "
        'quote it in a notebook, and with papermill use `-r run "7"` instead of -p'
    ]
    assert not (tmp_path / "work").exists()
    assert not (tmp_path / "store").exists()
