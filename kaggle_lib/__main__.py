"""The command line: `python -m kaggle_lib COMMAND`. Every command is a thin call of the notebook's function."""

from __future__ import annotations

import contextlib
import os
import sys
import textwrap
from collections.abc import Callable, Iterable
from io import TextIOWrapper
from typing import Annotated, Any

import typer

from kaggle_lib import __version__, api
from kaggle_lib.config import describe
from kaggle_lib.errors import ConfigError, LeaseHeld, NotFinished, UserError
from kaggle_lib.files import dump_json
from kaggle_lib.presets import preset_names, read_assignments

ABOUT = f"""Fine-tune on free Kaggle GPUs: one run outlives many sessions, and resumes bit for bit.

Version {__version__}.

\b
Exit codes:
  0    done (train: finished, and on the store)
  75   paused, or another session holds the run, or it is not finished: run it again to go on
  130  stopped by the second Ctrl-C
  1    an error, in one message
  2    wrong usage or configuration, or settings that contradict the run's frozen ones
"""
PLACE = ("run", "store", "work_dir")


def _keys(names: Iterable[str] | None = None) -> str:
    """The keys with what they take, their default and description; all of them unless `names` are given."""
    lines = ["\b", "Keys for --set, presets and files:"]
    for name, values, default, description in describe():
        if names is None or name in names:
            lines.append(f"  {name} ({values}; {'required' if default == 'required' else f'default: {default}'})")
            lines += textwrap.wrap(description, 72, initial_indent="      ", subsequent_indent="      ")
    if names is not None:
        lines.append("Others are accepted and not looked at; `train --help` lists them.")
    return "\n".join(lines)


app = typer.Typer(
    name="kaggle_lib",
    help=ABOUT,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Preset = Annotated[
    str | None, typer.Option("--preset", metavar="NAME", help=f"Start from a preset: {', '.join(preset_names())}.")
]
Config = Annotated[str | None, typer.Option("--config", metavar="FILE", help="Start from a YAML file of `key: value`.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set one key on top; may be repeated.")
]
Json = Annotated[
    bool, typer.Option("--json", help="Print the result as one JSON object; progress goes to standard error.")
]


@app.command(epilog=_keys())
def train(preset: Preset = None, config: Config = None, set_: Set = None, as_json: Json = False) -> None:
    """Train a run: fresh, resumed, or finished already; says which and why."""
    _call(api.train, preset, config, set_, as_json)


@app.command(epilog=_keys())
def evaluate(preset: Preset = None, config: Config = None, set_: Set = None, as_json: Json = False) -> None:
    """Evaluate base and tuned model on the held-out split of a finished run."""
    _call(api.evaluate, preset, config, set_, as_json)


@app.command(epilog=_keys(PLACE))
def report(preset: Preset = None, config: Config = None, set_: Set = None, as_json: Json = False) -> None:
    """Write the run's page, one HTML file that needs nothing else."""
    _call(api.report, preset, config, set_, as_json)


@app.command(epilog=_keys(PLACE))
def status(preset: Preset = None, config: Config = None, set_: Set = None, as_json: Json = False) -> None:
    """Say how a run stands, from its store."""
    _call(api.status, preset, config, set_, as_json)


@app.command(epilog=_keys())
def doctor(preset: Preset = None, config: Config = None, set_: Set = None, as_json: Json = False) -> None:
    """Say what is here, and what a run with these settings would miss (exit code 1)."""
    _call(api.doctor, preset, config, set_, as_json)


def _call(
    function: Callable[..., Any], preset: str | None, config: str | None, words: list[str] | None, as_json: bool
) -> None:
    """Call one of the notebook's functions; its result, or its error, decides what is printed and the exit code."""
    try:
        with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
            values = read_assignments(words or [])
            if taken := {"preset", "config"} & set(values):
                raise ConfigError([f"--set {name}=…: is an option of its own, --{name}" for name in sorted(taken)])
            result = function(preset, config, **values)
    except UserError as error:
        print(error, file=sys.stderr)
        if as_json:
            _print_json({"outcome": _word(error), "reason": str(error)})
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        if as_json:
            _print_json({"outcome": "stopped", "reason": "interrupted"})
        raise typer.Exit(130) from None
    except Exception as error:
        # A bug of ours: it keeps its traceback, and a program that reads our output still gets its object.
        if as_json:
            _print_json({"outcome": "failed", "reason": f"{type(error).__name__}: {error}"})
        raise
    if as_json:
        _print_json(api.plain(result))
    raise typer.Exit(getattr(result, "exit_code", 0))


def _word(error: UserError) -> str:
    if isinstance(error, NotFinished):
        return "not finished"
    return "paused" if isinstance(error, LeaseHeld) else "failed"


_printed: list[Any] = []


def _print_json(value: Any) -> None:
    _printed.append(value)
    print(dump_json(value), end="", flush=True)


def _speak_utf8() -> None:
    """Under a locale that is not UTF-8, start again in UTF-8 mode: Bengali in arguments and paths would be broken."""
    if sys.getfilesystemencoding() != "utf-8":
        program, *words = sys.orig_argv
        os.execve(sys.executable, [program, "-X", "utf8", *words], {**os.environ, "PYTHONUTF8": "1"})
    for stream in (sys.stdout, sys.stderr):
        # PYTHONIOENCODING may still say something else, which would end the run with a UnicodeEncodeError.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def main() -> None:
    """Run the command line and exit with its code."""
    _speak_utf8()
    try:
        app(prog_name="python -m kaggle_lib")
    except SystemExit as end:
        # Our own errors have printed their object; this one is of the parser, which knows nothing of --json.
        if end.code == 2 and "--json" in sys.argv and not _printed:
            _print_json({"outcome": "failed", "reason": "wrong usage; standard error says what"})
        raise


if __name__ == "__main__":
    main()
