"""README, docs, help and code say the same: every command, key, target, path and name that is written down exists."""

import re
from pathlib import Path

import pytest
from support import docs

from kaggle_lib.__main__ import app
from kaggle_lib.config import RunConfig
from kaggle_lib.presets import preset_names

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {command.name or command.callback.__name__ for command in app.registered_commands}
COMMANDS |= {group.name for group in app.registered_groups}


def test_the_page_of_keys_is_made_from_the_configuration():
    assert docs.PAGE.read_text(encoding="utf-8") == docs.page(), "run `python tests/support/docs.py`"


def test_every_command_is_in_the_readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"kaggle_lib {command} " in text or f"kaggle_lib {command}`" in text, command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page):
    text = page.read_text(encoding="utf-8")
    for command in re.findall(r"python -m kaggle_lib ([a-z0-9-]+)", text):
        assert command in COMMANDS, command
    for key in re.findall(r"--set (?!key=value)([a-z_]+)=", text):
        assert key in RunConfig.model_fields, key
    for preset in re.findall(r"--preset ([a-z0-9-]+)", text):
        assert preset in preset_names(), preset
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE):
        assert target in targets, target
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (page.parent / link).exists(), link


def test_every_name_in_the_house_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\| `(kaggle_lib/[a-z]*/?[a-z_.]*)` \| (.*) \|$", text, re.MULTILINE)
    folders = {f"kaggle_lib/{path.parent.name}/" for path in (ROOT / "kaggle_lib").glob("*/__init__.py")}
    assert folders - {room for room, _ in rooms} == {"kaggle_lib/presets/"}
    for room, content in rooms:
        assert (ROOT / room).exists(), room
        files = re.findall(r"`([a-z0-9_]+\.py)`", content)
        for name in files:
            assert (ROOT / room / name).is_file(), f"{room}{name}"
        if (ROOT / room).is_dir():
            there = {path.name for path in (ROOT / room).glob("*.py")} - {"__init__.py"}
            assert there == set(files), f"{room}: {there ^ set(files)}"
    for name in re.findall(r"\b((?:runs|checkpoints|training|evaluation|strategies)/[a-z_]+\.py)", text):
        assert (ROOT / "kaggle_lib" / name).is_file(), name
    # What the run folder is said to hold are the paths that the code uses.
    from kaggle_lib.runs.folder import RunFolder

    folder = RunFolder(Path("x"))
    drawn = re.search(r"run folder: .*\n(.*)\n(.*)\n", text)
    names = re.findall(r"[a-z]+(?:\.json)?", f"{drawn[1]} {drawn[2]}")
    paths = [
        folder.run_json, folder.checkpoints, folder.events, folder.heartbeat, folder.outcome, folder.save_request,
        folder.stop_request, folder.adapter, folder.evaluation, folder.report,
    ]  # fmt: skip
    assert names == [path.name for path in paths]


def test_the_recipe_in_the_house_words_is_explained_once():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for word in ("run", "session", "attempt", "checkpoint", "manifest", "store", "lease", "ledger", "goodput", "step"):
        assert text.count(f"**{word}**:") == 1, word
