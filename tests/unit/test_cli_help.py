"""The command line: complete help, one clear message for each mistake, exit codes, any locale, no standard input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kaggle_lib.config import describe
from kaggle_lib.presets import preset_names

ROOT = Path(__file__).parents[2]
LEAST = ("--set", "run=r", "--set", "base_model=sample", "--set", "data=sample")
COMMANDS = ("train", "evaluate", "report", "status", "push", "chain", "doctor", "plan", "t4-check", "chat", "publish")
LOOKS_AT_PLACE_ONLY = ("report", "status", "chat", "publish")
PLACE = ("run", "store", "work_dir")
# A console that can hold no Bengali, as on a Windows machine or in a bare container.
LEGACY = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252", "PYTHONCOERCECLOCALE": "0"}


def call(*words: str, cwd: Path = ROOT, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of the command line with its standard input closed."""
    done = subprocess.run(
        ["/bin/sh", "-c", 'exec "$0" -m kaggle_lib "$@" <&-', sys.executable, *words],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **(environment or {})},
        capture_output=True,
        check=False,
    )
    return done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")


@pytest.fixture(scope="module")
def helps() -> dict[str, str]:
    found = {}
    for command in COMMANDS:
        code, out, err = call(command, "--help")
        assert (code, err) == (0, "")
        found[command] = out
    return found


def test_the_help_lists_every_command_and_every_exit_code() -> None:
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    listed = out[out.index("Commands:") :].splitlines()[1:]
    assert [line.split()[0] for line in listed if line.startswith("  ") and line[2] != " "] == [
        *COMMANDS,
        "join",
        "rate",
    ]
    for number in ("0 ", "75 ", "130 ", "1 ", "2 "):
        assert f"\n    {number}" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_names_its_keys_with_values_default_and_description(
    command: str, helps: dict[str, str]
) -> None:
    flat = " ".join(helps[command].split())
    for name, takes, default, description in describe():
        shown = "required" if default == "required" else f"default: {default}"
        described = f"{name} ({takes}; {shown}) {' '.join(description.split())}"
        assert (described in flat) == (command not in LOOKS_AT_PLACE_ONLY or name in PLACE), name
    for option in ("--preset NAME", "--config FILE", "--set KEY=VALUE", *([] if command == "chat" else ["--json"])):
        assert option in flat
    for preset in preset_names():
        assert preset in flat


def test_the_help_is_the_same_under_a_legacy_locale(helps: dict[str, str]) -> None:
    assert call("train", "--help", environment=LEGACY) == (0, helps["train"], "")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistake_is_one_message_on_standard_error(command: str, tmp_path: Path) -> None:
    message = "learning_rates: there is no such key; did you mean learning_rate?\n"
    if command in ("push", "chain"):  # to Kaggle no folder travels, and that comes in the same message
        lost = "store: 'a folder' would be lost with Kaggle's machine. Give store=hf://user/repo\n"
        message = f"the configuration is not usable, 2 problems:\n  {message}  {lost}"
    assert call(command, *LEAST, "--set", "learning_rates=1", cwd=tmp_path) == (2, "", message)
    assert list(tmp_path.iterdir()) == []


def test_with_json_a_mistake_is_also_one_object(tmp_path: Path) -> None:
    code, out, err = call("train", *LEAST, "--set", "seed=x", "--set", "keep=0", "--json", cwd=tmp_path)
    assert code == 2
    assert json.loads(out) == {"outcome": "failed", "reason": err.removesuffix("\n")}
    assert err.splitlines()[0] == "the configuration is not usable, 2 problems:"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "seed"], "--set seed: should be key=value"),
        (["--set", "preset=tiny-cpu"], "--set preset=…: is an option of its own, --preset"),
        (["--preset", "tiny"], "preset: 'tiny' is not one of bengali-8b-t4, bengali-8b-t4-full, t4-check, tiny-cpu"),
        (["--preset", "tiny-cpu", "--config", "a.yaml"], "preset: give a preset or a config file, not both"),
        (["--config", "a.yaml"], "a.yaml: cannot be read (No such file or directory)"),
    ],
)
def test_where_the_values_come_from_is_checked(words: list[str], message: str, tmp_path: Path) -> None:
    assert call("train", *words, cwd=tmp_path) == (2, "", message + "\n")


@pytest.mark.parametrize("environment", [{"LC_ALL": "C.UTF-8"}, LEGACY])
def test_bengali_is_printed_under_any_locale(environment: dict[str, str], tmp_path: Path) -> None:
    code, out, err = call("status", "--set", "run=প্রথম", "--json", cwd=tmp_path, environment=environment)
    message = "run: 'প্রথম' is no run name. Use letters, digits, dot, dash, underscore; at most 64"
    assert (code, err) == (2, message + "\n")
    assert json.loads(out)["reason"] == message
    assert "প্রথম" in out


def test_wrong_usage_is_2_and_with_json_an_object() -> None:
    code, out, err = call("train", "--sett", "a=b")
    assert (code, out) == (2, "")
    assert "No such option" in err
    code, out, err = call("train", "--json", "--sett", "a=b")
    assert code == 2
    assert json.loads(out) == {"outcome": "failed", "reason": "wrong usage; standard error says what"}
    assert call("tarin")[0] == 2
    message = "'gpu-1' is no address. Write host:port, as `rendezvous` of the first machine has it\n"
    assert call("join", "gpu-1") == (2, "", message)


def test_the_status_of_a_run_that_nobody_began_is_empty_and_creates_nothing(tmp_path: Path) -> None:
    words = ["status", "--set", "run=007"]
    assert call(*words, cwd=tmp_path) == (0, "Run 007: nothing is on the store yet.\n", "")
    code, out, err = call(*words, "--json", cwd=tmp_path)
    assert (code, err) == (0, "Run 007: nothing is on the store yet.\n")
    found = json.loads(out)
    assert (found["run"], found["state"], found["step"], found["sessions"]) == ("007", "empty", 0, [])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_a_run_that_nobody_began_has_nothing_to_evaluate_or_report(command: str, tmp_path: Path) -> None:
    message = "run: there is no run 'ghost' in 'store', and no other\n"
    assert call(command, "--set", "run=ghost", cwd=tmp_path) == (2, "", message)
    assert list(tmp_path.iterdir()) == []


def test_a_command_without_its_run_says_so(tmp_path: Path) -> None:
    code, out, err = call("report", cwd=tmp_path)
    assert (code, out) == (2, "")
    assert "run: missing. The run's name: letters, digits, dot, dash, underscore; at most 64.\n" in err
