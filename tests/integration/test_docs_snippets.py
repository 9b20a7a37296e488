"""Every snippet of docs/ runs, as the cells of one notebook a page; what a page shows is what was printed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
# Runs the cells of the file in argv[1]; what each printed goes to a file beside it.
RUNNER = """
import json, os, subprocess, sys
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
for number, (kind, text) in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))):
    out = os.open(f"{sys.argv[1]}.{number}", os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1), os.dup2(out, 2)
    if kind == "bash":
        subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True)
    else:
        shell.run_cell(text).raise_error()
    sys.stdout.flush(), sys.stderr.flush()
"""


def cells(page):
    """(kind, text) of each snippet, and {its number: the lines of output that the page shows}."""
    found, shown = [], {}
    for kind, text in FENCE.findall(page.read_text(encoding="utf-8")):
        if kind in ("python", "bash"):
            found.append((kind, text))
        elif kind == "text":
            shown[len(found) - 1] = text.splitlines()
    return found, shown


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if cells(page)[0]], ids=lambda page: page.stem)
def test_the_snippets_of_a_page(page, tmp_path):
    found, shown = cells(page)
    book, place = tmp_path / "cells.json", tmp_path / "place"
    book.write_text(json.dumps(found), encoding="utf-8")
    place.mkdir()
    (place / ".venv").symlink_to(Path(sys.prefix))
    shutil.copytree(ROOT / "notebooks", place / "notebooks")
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, str(book)],
        cwd=place,
        env={
            **os.environ,
            "IPYTHONDIR": str(tmp_path / "ipython"),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        },
        stdin=subprocess.DEVNULL,
        check=False,
    )
    printed = [
        path.read_text(encoding="utf-8") if (path := book.with_name(f"{book.name}.{number}")).exists() else ""
        for number in range(len(found))
    ]
    assert done.returncode == 0, "".join(printed)[-4000:]
    for number, lines in shown.items():
        for line in lines:
            assert line in printed[number].splitlines(), f"{line!r} is not in what snippet {number} printed"


def test_every_page_with_snippets_is_run_and_no_fence_is_left_out():
    kinds = {kind for page in PAGES for kind, _ in FENCE.findall(page.read_text(encoding="utf-8"))}
    assert kinds <= {"python", "bash", "text", ""}
    assert {"your-own-data", "hooks", "another-model", "debugging"} <= {page.stem for page in PAGES if cells(page)[0]}
