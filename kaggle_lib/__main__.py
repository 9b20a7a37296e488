"""The command line: `python -m kaggle_lib COMMAND`. Every command is a thin call of the notebook's function."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import textwrap
from collections.abc import Callable, Iterable
from io import TextIOWrapper
from typing import Annotated, Any, Literal

import typer

from kaggle_lib import __version__, api
from kaggle_lib.config import describe
from kaggle_lib.errors import ConfigError, NotFinished, UserError
from kaggle_lib.files import dump_json
from kaggle_lib.presets import preset_names, read_assignments

ABOUT = f"""Fine-tune on free Kaggle GPUs: one run outlives many sessions, and resumes bit for bit.

Version {__version__}.

\b
Exit codes:
  0    done (train: finished, and on the store)
  75   paused, or another session holds the run, or it is not finished, or (push, chain) not now: run it again to go on
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


Adapter = Annotated[
    Literal["last", "best"], typer.Option(help="That of the last step, or of the step with the best validation.")
]


@app.command(epilog=_keys())
def evaluate(
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    adapter: Adapter = "last",
    as_json: Json = False,
) -> None:
    """Evaluate base and tuned model on the held-out split of a finished run."""
    _call(functools.partial(api.evaluate, adapter=adapter), preset, config, set_, as_json)


@app.command(epilog=_keys(PLACE))
def report(preset: Preset = None, config: Config = None, set_: Set = None, as_json: Json = False) -> None:
    """Write the run's page, one HTML file that needs nothing else."""
    _call(api.report, preset, config, set_, as_json)


@app.command(epilog=_keys(PLACE))
def status(
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every run of the store, a line each; so without a run, too.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say how a run stands, from its store; or all runs of it, in one table."""
    _call(functools.partial(api.status, all=all_), preset, config, set_, as_json)


Kernel = Annotated[str | None, typer.Option(metavar="[OWNER/]SLUG", help="The Kaggle kernel; of the run unless given.")]
TokenDataset = Annotated[
    bool, typer.Option(help="Bring the Hub's token by a private Kaggle dataset; says first what that means.")
]
Yes = Annotated[bool, typer.Option("--yes", help="Make that dataset without asking.")]
Dataset = Annotated[list[str] | None, typer.Option(metavar="OWNER/NAME", help="Attach this Kaggle dataset, too.")]
OutputOf = Annotated[
    list[str] | None,
    typer.Option(metavar="OWNER/SLUG", help="Attach this kernel's output, to rescue a checkpoint from."),
]


@app.command(epilog=_keys())
def push(
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    notebook: Annotated[
        str | None, typer.Option(help="Which of notebooks/ to push; train unless given, t4_check with that preset.")
    ] = None,
    kernel: Kernel = None,
    token_dataset: TokenDataset = False,
    yes: Yes = False,
    dataset: Dataset = None,
    output_of: OutputOf = None,
    as_json: Json = False,
) -> None:
    """Push one session of a run to Kaggle, and say what became of it; exit code 75: not now."""
    given: dict[str, Any] = {"notebook": notebook, "kernel": kernel, "token_dataset": token_dataset, "yes": yes}
    given |= {"datasets": dataset or [], "outputs": output_of or []}
    _call(functools.partial(api.push, **given), preset, config, set_, as_json)


@app.command(epilog=_keys())
def chain(
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    kernel: Kernel = None,
    token_dataset: TokenDataset = False,
    yes: Yes = False,
    dataset: Dataset = None,
    output_of: OutputOf = None,
    once: Annotated[bool, typer.Option("--once", help="One look and at most one act, for a scheduler.")] = False,
    max_sessions: Annotated[int, typer.Option(min=1, help="Stop when so many have trained.")] = 40,
    no_progress: Annotated[int, typer.Option(min=1, help="Stop after so many in a row without a new step.")] = 2,
    poll: Annotated[float, typer.Option(min=0.05, metavar="SECONDS", help="Between two looks.")] = 60.0,
    hang_minutes: Annotated[float, typer.Option(min=0, help="Cancel a session so long after its lease ended.")] = 30.0,
    as_json: Json = False,
) -> None:
    """Push sessions to Kaggle until the run is finished; exit codes: 0 finished, 75 not yet (--once), 1 look at it."""
    given: dict[str, Any] = {"kernel": kernel, "token_dataset": token_dataset, "yes": yes, "once": once, "poll": poll}
    given |= {"max_sessions": max_sessions, "no_progress": no_progress, "hang_minutes": hang_minutes}
    given |= {"datasets": dataset or [], "outputs": output_of or []}
    _call(functools.partial(api.chain, **given), preset, config, set_, as_json)


@app.command(epilog=_keys())
def doctor(
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    hub_selftest: Annotated[
        bool, typer.Option("--hub-selftest", help="Ask the real Hub, in a private scratch repo, what the store needs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say what is here, and what a run with these settings would miss (exit code 1)."""
    _call(functools.partial(api.doctor, hub_selftest=hub_selftest), preset, config, set_, as_json)


@app.command(epilog=_keys())
def plan(preset: Preset = None, config: Config = None, set_: Set = None, as_json: Json = False) -> None:
    """Say what a run will take on Kaggle, before anything is spent: hours, sessions, quota, bytes on the store."""
    _call(api.plan, preset, config, set_, as_json)


@app.command("t4-check", epilog=_keys())
def t4_check(
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    minutes: Annotated[float, typer.Option(min=0, help="Begin no part that would end after so long.")] = 20.0,
    as_json: Json = False,
) -> None:
    """Measure on this machine's GPUs: speed, memory, a second GPU, kill and resume, upload; exit code 1: one failed.

    By the preset t4-check unless another is given.
    """
    _call(functools.partial(api.t4_check, minutes=minutes), preset, config, set_, as_json)


@app.command(epilog=_keys(PLACE))
def chat(
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    both: Annotated[bool, typer.Option("--both", help="The base model beside the tuned one.")] = False,
    tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="0: greedy, the same answer each time.")] = 0.0,
) -> None:
    """Talk to a run's newest checkpoint, letter by letter; Ctrl-C ends an answer, Ctrl-D the chat."""
    _call(functools.partial(api.talk, both=both, tokens=tokens, temperature=temperature), preset, config, set_, False)


@app.command(epilog=_keys(PLACE))
def publish(
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    to: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="The Hub repo; the store's own by itself.")
    ] = None,
    public: Annotated[
        bool, typer.Option("--public", help="Make it public, or take one that is; else private.")
    ] = False,
    base: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="The base model's Hub id, where it was a folder.")
    ] = None,
    adapter: Adapter = "last",
    form: Annotated[
        str, typer.Option(metavar="FORM", help="adapter; merged: 16-bit weights; gguf: for llama.cpp and Ollama.")
    ] = "adapter",
    quantization: Annotated[
        str, typer.Option(metavar="KIND", help="Of a GGUF file: f16, bf16, q8_0, or q6_k, q5_k_m, q4_k_m, q4_k_s.")
    ] = "q8_0",
    scratch: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Where a form is made; the run folder by itself.")
    ] = None,
    llama_cpp: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="llama.cpp's folder; ~/.unsloth/llama.cpp by itself.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Publish a finished run's result with its card, evaluation and report to the Hub's `main`, in one commit."""
    call = functools.partial(api.publish, to=to, public=public, base=base, form=form, quantization=quantization)
    given: dict[str, Any] = {"adapter": adapter, "scratch": scratch, "llama_cpp": llama_cpp}
    _call(functools.partial(call, **given), preset, config, set_, as_json)


@app.command(epilog=_keys(("work_dir", "data", "base_model")))
def join(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The first machine's `rendezvous`.")],
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    wait: Annotated[float, typer.Option(min=0, metavar="MINUTES", help="Give up where nobody is there.")] = 15.0,
    as_json: Json = False,
) -> None:
    """Train with another machine's session, which has `nodes` set; ends with that session, and with its exit code."""
    _call(functools.partial(api.join, address, wait=wait), preset, config, set_, as_json)


rate = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="People rate the answers, blind.")
app.add_typer(rate, name="rate")


@rate.command("build", epilog=_keys(PLACE))
def rate_build(
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    pairs: Annotated[int, typer.Option(min=0, help="Messages with both answers side by side.")] = 50,
    singles: Annotated[int, typer.Option(min=0, help="Messages whose two answers are rated one by one.")] = 20,
    as_json: Json = False,
) -> None:
    """Write the raters' page from an evaluated run: one HTML file that works anywhere, and its key."""
    _call(functools.partial(api.rate_build, pairs=pairs, singles=singles), preset, config, set_, as_json)


@rate.command("score", epilog=_keys(PLACE))
def rate_score(
    files: Annotated[list[str], typer.Argument(help="The raters' files (JSON or CSV), or folders of them.")],
    preset: Preset = None,
    config: Config = None,
    set_: Set = None,
    key: Annotated[str | None, typer.Option(metavar="FILE", help="The sheet's key; the run's own by itself.")] = None,
    judge: Annotated[str | None, typer.Option(metavar="FILE", help="A model's ratings, to be tested.")] = None,
    as_json: Json = False,
) -> None:
    """Open the key and say what the raters found: means, win rate, intervals, agreement."""
    _call(functools.partial(api.rate_score, files, key=key, judge=judge), preset, config, set_, as_json)


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
    return "paused" if error.exit_code == 75 else "failed"


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
