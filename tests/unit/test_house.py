"""Each house rule fails on a small tree that breaks it, and `import kaggle_lib` stays light."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import pytest

ROOT = Path(__file__).parents[2]


def _load() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("house", ROOT / "tests/support/house.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["house"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


house: Any = _load()


def shown(name: str) -> str:
    return f"kaggle_lib/{name if name.startswith('__') else name.replace('__', '/')}.py"


def tree(root: Path, **files: str) -> Path:
    """A made-up package; `runs__supervise="..."` is kaggle_lib/runs/supervise.py."""
    for name, text in files.items():
        path = root / shown(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


# Imports


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("data__read", "import torch", "imports torch at module level; `data` is imported by the supervisor"),
        ("data__read", "from datasets import Dataset", "imports datasets at module level; `data` is imported by"),
        ("data__read", "class A:\n    import torch.nn", "imports torch at module level"),
        ("runs__supervise", "def f():\n    import torch", "imports torch; the supervisor's side never does"),
        ("session__where", "import transformers as t", "imports transformers; the supervisor's side never does"),
        ("api", "from peft import LoraConfig", "imports peft; the supervisor's side never does"),
        ("__main__", "import datasets", "imports datasets; the supervisor's side never does"),
        ("training__worker", "import unsloth", "imports unsloth, which patches libraries process-wide"),
        ("strategies__peft", "def f():\n    import unsloth_zoo", "imports unsloth_zoo, which patches libraries"),
        ("training__worker", "from kaggle_lib.runs.supervise import train", "training imports runs.supervise"),
        ("training__worker", "from kaggle_lib.runs import supervise", "training imports runs.supervise: imports point"),
        ("evaluation__worker", "from ..runs import supervise", "evaluation imports runs.supervise: imports point"),
        (
            "strategies__base",
            "import kaggle_lib.checkpoints.hub",
            "strategies imports checkpoints.hub: the worker",
        ),
        ("training__worker", "import kaggle_lib.kaggle.push", "training imports kaggle.push: imports point the other"),
        ("config", "from kaggle_lib.data import read", "config imports data.read: imports point the other way"),
        ("data__read", "from kaggle_lib.runs.events import now", "data imports runs.events: imports point the other"),
        ("runs__resume", "from kaggle_lib.training import worker", "runs imports training.worker: imports point"),
        ("runs__resume", "from kaggle_lib.report import page", "runs imports report.page: imports point the other way"),
        ("report__page", "from kaggle_lib.api import train", "report imports api: imports point the other way"),
        ("__init__", "from kaggle_lib.training import worker", "kaggle_lib imports training.worker: imports point"),
    ],
)
def test_a_forbidden_import_is_told_with_its_line(name: str, text: str, problem: str, tmp_path: Path) -> None:
    others = ("runs__supervise", "training__worker", "report__page", "data__read", "checkpoints__hub", "kaggle__push")
    found = house.import_rules(tree(tmp_path, **{**dict.fromkeys(others, ""), name: f"import os\n{text}\n"}))
    assert len(found) == 1
    assert found[0].startswith(f"{shown(name)}:{2 + text.count(chr(10))}: {problem}")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("data__tokenise", "def f():\n    import torch\n    from datasets import Dataset"),
        ("data__chat", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch"),
        ("strategies__unsloth", "import unsloth"),
        ("training__worker", "import torch\nfrom kaggle_lib.runs import events, folder\nfrom kaggle_lib import config"),
        ("training__worker", "from kaggle_lib.evaluation.likelihood import score\nfrom kaggle_lib import __version__"),
        ("runs__supervise", "from kaggle_lib.checkpoints import hub\nfrom . import events"),
        ("report__page", "from kaggle_lib.runs.ledger import goodput"),
        ("api", "from kaggle_lib.report import page\nimport kaggle_lib.kaggle.push"),
    ],
)
def test_an_allowed_import_is_not(name: str, text: str, tmp_path: Path) -> None:
    others = {
        "runs__events": "",
        "runs__folder": "",
        "config": "",
        "checkpoints__hub": "",
        "evaluation__likelihood": "",
    }
    assert house.import_rules(tree(tmp_path, **{**others, name: text})) == []


# Sizes


def test_a_file_above_the_limit_and_a_package_above_the_limit_are_told(tmp_path: Path) -> None:
    files = {f"runs__part{number}": "x = 1\n" * 400 for number in range(38)}
    assert house.sizes(tree(tmp_path, **files)) == []
    assert house.sizes(tree(tmp_path, runs__more="x = 1\n" * 401)) == [
        "kaggle_lib/runs/more.py: 401 lines, at most 400",
        "kaggle_lib: 15601 lines of code, at most 15600",
    ]


def test_what_explains_the_code_does_not_count() -> None:
    text = (
        '"""Two\nlines."""\n\nimport os  # why\n\n\ndef f():\n    """Says."""\n    # because\n    return """a\nb"""\n'
    )
    assert house.lines_of_code(text) == 4


# Notebooks

TEXT = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Title

# %% tags=["parameters"]
run: str = "r"

# %%
print(run)
"""


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    text, notebook = folder / "one.py", folder / "one.ipynb"
    text.write_text(TEXT, encoding="utf-8")
    made = jupytext.reads(TEXT, fmt="py:percent")
    made.metadata["language_info"] = {"name": "python"}
    nbformat.write(made, notebook)
    return text, notebook


def change(notebook: Path, edit: Any) -> None:
    content = json.loads(notebook.read_text(encoding="utf-8"))
    edit(content)
    notebook.write_text(json.dumps(content), encoding="utf-8")


def both_rules(root: Path) -> list[str]:
    return [*house.notebooks_paired(root), *house.notebooks_stripped(root)]


@pytest.mark.parametrize("later", [0, 1])
def test_a_pair_is_compared_by_its_cells_and_time_stamps_mean_nothing(
    later: int, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    hour = 3600
    os.utime(pair[later], (10 * hour, 11 * hour))
    os.utime(pair[1 - later], (10 * hour, 10 * hour))
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in pair]
    assert both_rules(tmp_path) == []
    change(pair[1], lambda content: content["cells"][2]["source"].append("  # edited"))
    edited = pair[1].read_bytes()
    assert house.notebooks_paired(tmp_path) == ["notebooks/one.ipynb: cell 3 has another source than in one.py"]
    assert pair[0].read_bytes() == before[0][0]
    assert pair[1].read_bytes() == edited
    assert sorted(path.name for path in pair[0].parent.iterdir()) == ["one.ipynb", "one.py"]


def test_a_notebook_without_its_pair_is_told(pair: tuple[Path, Path], tmp_path: Path) -> None:
    pair[1].unlink()
    assert house.notebooks_paired(tmp_path) == ["notebooks/one.py: its pair one.ipynb is missing"]
    pair[1].write_text("{}")
    pair[0].unlink()
    assert house.notebooks_paired(tmp_path) == ["notebooks/one.ipynb: its pair one.py is missing"]


@pytest.mark.parametrize(
    ("edit", "problem"),
    [
        (lambda c: c["cells"][1]["metadata"].clear(), "cell 2 has another metadata than in one.py"),
        (lambda c: c["cells"].pop(), "2 cells, and one.py has 3"),
        (lambda c: c["metadata"]["kernelspec"].update(name="other"), "another kernelspec than in one.py"),
        (lambda c: c["metadata"]["kernelspec"].pop("language"), "metadata.kernelspec has no language"),
        (lambda c: c["metadata"].pop("language_info"), "metadata.language_info does not name python"),
        (lambda c: c["metadata"].update(widgets={}), "metadata.widgets was left by a run"),
        (lambda c: c["cells"][2].update(execution_count=1), "cell 3 has an execution count"),
        (
            lambda c: c["cells"][2]["outputs"].append({"output_type": "stream", "name": "stdout", "text": "r"}),
            "cell 3 has outputs",
        ),
        (lambda c: c["cells"][2]["metadata"].update(papermill={}), "cell 3 has metadata.papermill, left by a run"),
    ],
)
def test_what_a_run_left_or_an_edit_changed_is_told(
    edit: Any, problem: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    change(pair[1], edit)
    assert f"notebooks/one.ipynb: {problem}" in both_rules(tmp_path)


# The real tree


@pytest.mark.parametrize("name", list(house.RULES))
def test_the_repository_keeps_the_rule(name: str) -> None:
    assert house.RULES[name](ROOT) == []


HEAVY = ("torch", "transformers", "datasets", "trl", "peft", "pandas", "numpy", "matplotlib", "pyarrow", "unsloth")


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("kaggle_lib", (*HEAVY, "pydantic", "typer", "yaml")),
        ("kaggle_lib.__main__", HEAVY),
        ("kaggle_lib.runs.supervise", HEAVY),
        ("kaggle_lib.report.doctor", HEAVY),
    ],
)
def test_importing_it_imports_nothing_heavy(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_function_report_is_not_replaced_by_the_room_of_its_name() -> None:
    code = "import kaggle_lib.report.status, kaggle_lib as kl; print(kl.report.__module__, kl.report.__name__)"
    for first in ("import kaggle_lib.report.pins; ", "import kaggle_lib; kaggle_lib.report; "):
        done = subprocess.run(
            [sys.executable, "-c", first + code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout == "kaggle_lib.api report\n"


def test_every_public_name_is_there_and_no_other() -> None:
    import kaggle_lib

    for name in kaggle_lib.__all__:
        assert getattr(kaggle_lib, name) is not None
        assert name in dir(kaggle_lib)
    with pytest.raises(AttributeError, match="module 'kaggle_lib' has no attribute 'trian'"):
        kaggle_lib.trian  # noqa: B018
