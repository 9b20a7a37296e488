"""A person's notebook: a real kernel, its live view, the interrupt once and twice, and a message in place of a wall."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import KernelManager
from support.sessions import alive, gone

from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.launch import descendants

ROOT = Path(__file__).parents[2]
PARAMETERS = """
import kaggle_lib as kl
preset: str = "tiny-cpu"
run: str = "live"
session_hours: float = 2.0
max_steps: int = 2000
epochs: float = 100.0
save_steps: int = 1000
eval_steps: int = 0
"""


class Notebook:
    """A kernel, used as a front end with a person uses it."""

    def __init__(self, folder: Path) -> None:
        self.manager = KernelManager(kernel_name="python3")
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(folder / ".ipython")}
        self.manager.start_kernel(cwd=str(folder), env=environment)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=60)
        self.pid = int(self.run("import os; os.getpid()")["result"])

    def run(
        self, code: str, seen: Callable[[str], None] = lambda text: None, allow_stdin: bool = True
    ) -> dict[str, Any]:
        """Run a cell to its end: its printed text, its result, its error, and the texts of each display in order.

        `seen` is called with every text as it comes: a printed one or a display's.
        """
        asked = self.client.execute(code, allow_stdin=allow_stdin)
        cell: dict[str, Any] = {"text": "", "result": None, "error": None, "displays": {}, "html": ""}
        while True:
            message = self.client.get_iopub_msg(timeout=120)
            if message["parent_header"].get("msg_id") != asked:
                continue
            kind, content = message["msg_type"], message["content"]
            if kind == "status" and content["execution_state"] == "idle":
                return cell
            if kind == "stream":
                cell["text"] += content["text"]
                seen(content["text"])
            if kind == "execute_result":
                cell["result"] = content["data"]["text/plain"]
            if kind == "error":
                cell["error"] = content["traceback"]
            if kind in ("display_data", "update_display_data"):
                shown = cell["displays"].setdefault(content["transient"]["display_id"], [])
                assert (kind == "display_data") == (not shown)
                shown.append(content["data"]["text/plain"])
                cell["html"] = content["data"]["text/html"]
                seen(content["data"]["text/plain"])

    def close(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


@pytest.fixture
def notebook(tmp_path: Path) -> Iterator[Notebook]:
    opened = Notebook(tmp_path)
    yield opened
    opened.close()


def in_training(text: str) -> int | None:
    """The step that a view in training shows."""
    found = re.match(r"Run live: training  step (\d+) of 2000", text)
    return int(found[1]) if found else None


@pytest.mark.slow
def test_interrupted_once_it_pauses_with_a_save_and_twice_it_stops_and_the_kernel_lives(
    notebook: Notebook, tmp_path: Path
) -> None:
    folder = RunFolder(tmp_path / "work" / "live")
    shown = notebook.run(f"{PARAMETERS}\nkl.configure(globals())")
    assert shown["result"].startswith("Settings(preset='tiny-cpu', run='live', epochs=100.0, max_steps=2000, ")
    asked: list[int] = []
    saving: list[int] = []

    def once(text: str) -> None:
        if in_training(text) and not saving:
            saving.append(1)
            folder.request(folder.save_request)  # by a terminal, or the file browser: the cell is busy
        elif not asked and re.search(r"checkpoint \d+ on the store", text):
            asked.append(1)
            notebook.manager.interrupt_kernel()

    cell = notebook.run("outcome = kl.train()", once)
    assert cell["error"] is None
    assert "Interrupted: saving and pausing. Once more stops at once, without saving.\n" in cell["text"]
    step, saved = folder.checkpoint_steps()
    assert 0 < saved < step < 1000
    assert not folder.save_request.exists()
    assert f"Paused: interrupted. The checkpoint of step {step} is on the store.\n" in cell["text"]
    assert notebook.run("(outcome.outcome, outcome.step, outcome.on_store)")["result"] == f"('paused', {step}, True)"
    # One view, no lines, and it ends as the session did.
    [views] = cell["displays"].values()
    assert not re.search(r"^step ", cell["text"], re.MULTILINE)
    assert re.fullmatch(
        rf"Run live: paused, interrupted  step {step} of 2000  loss \d\.\d{{4}}  tokens/s [\d,]+  "
        rf"checkpoint {step} on the store",
        views[-1],
    )
    during = next(view for view in views if in_training(view))
    assert re.search(r"  time left [\d hmins]+  checkpoint none yet  deadline in [\d hmin]+$", during)
    assert f"{step} of 2000" in cell["html"]

    def twice(text: str) -> None:
        now = in_training(text)
        if len(asked) == 1 and now and now > step:
            asked.append(2)
            workers.extend(descendants(notebook.pid))
            for pid in workers:  # frozen, so that they cannot pause before the second one
                os.kill(pid, signal.SIGSTOP)
            notebook.manager.interrupt_kernel()
        elif len(asked) == 2 and "Interrupted: saving and pausing." in text:
            asked.append(3)
            notebook.manager.interrupt_kernel()

    workers: list[int] = []
    cell = notebook.run("outcome = kl.train()", twice)
    assert cell["error"] is None
    assert f"Resuming at step {step} of 2000" in cell["text"]
    assert notebook.run("(outcome.outcome, outcome.step, outcome.on_store)")["result"] == f"('stopped', {step}, True)"
    assert workers
    assert gone(workers), [pid for pid in workers if alive(pid)]
    [views] = cell["displays"].values()
    assert views[-1].startswith("Run live: stopped, stopped at once by the second interrupt  step ")
    assert views[-1].endswith(f"  checkpoint {step} on the store")
    # Other values, and again: what the cells say now is what counts.
    shown = notebook.run('run = "live again"\nkl.configure(globals())\nkl.train()')
    assert shown["error"] == [
        "ConfigError: run: 'live again' is no run name. Use letters, digits, dot, dash, underscore; at most 64"
    ]
    assert notebook.run("del run\nkl.configure(globals())\n6 * 7")["result"] == "42"


def test_a_mistake_is_its_message_alone_and_nothing_is_loaded(notebook: Notebook, tmp_path: Path) -> None:
    cell = notebook.run(f"{PARAMETERS}\nlearning_rat: float = 1.0")
    assert cell["error"] is None
    cell = notebook.run("kl.configure(globals())")
    assert cell["error"] == [
        "ConfigError: learning_rat: there is no such key; did you mean learning_rate? "
        "A variable of your own belongs in another cell"
    ]
    loaded = "import sys; [name for name in ('torch', 'transformers', 'datasets') if name in sys.modules]"
    assert notebook.run(loaded)["result"] == "[]"
    assert not (tmp_path / "work").exists()


def test_a_view_is_for_a_person_and_lines_for_a_batch(notebook: Notebook, tmp_path: Path) -> None:
    here = "from kaggle_lib.runs.live import Live; Live.here() is None"
    assert notebook.run(here)["result"] == "False"
    assert notebook.run(here, allow_stdin=False)["result"] == "True"  # as papermill and nbconvert run a cell
    (tmp_path / "kaggle" / "working").mkdir(parents=True)
    on_kaggle = "import os; os.environ.update(KAGGLE_LIB_ROOT='kaggle', KAGGLE_KERNEL_RUN_TYPE={!r}); {}"
    assert notebook.run(on_kaggle.format("Batch", here))["result"] == "True"
    assert notebook.run(on_kaggle.format("Interactive", here))["result"] == "False"
