"""The notebook's functions, which the command line calls too. Each says on standard output what it does.

All take `preset` (its name) or `config` (a YAML file), and on top any keys of the configuration as keywords; what is
not given comes from `configure`, where a notebook has called it. They return normally for a paused run, and raise a
`UserError` only for what the user has to act on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_lib.config import RunConfig, parse
from kaggle_lib.errors import ConfigError
from kaggle_lib.runs.outcome import Outcome
from kaggle_lib.settings import Settings

if TYPE_CHECKING:
    from kaggle_lib.kaggle.chain import Chained
    from kaggle_lib.kaggle.push import Pushed
    from kaggle_lib.report.doctor import Examination
    from kaggle_lib.report.hub_selftest import Selftest
    from kaggle_lib.report.publish import Published
    from kaggle_lib.runs.best import Which
    from kaggle_lib.runs.chatting import Chat


# Base model and data do not matter for looking; all else that could be wrong is checked.
NEITHER: dict[str, object] = {"base_model": "-", "data": "-"}


def gather(preset: str | None, config: str | Path | None, values: Mapping[str, object]) -> dict[str, object]:
    """The values of a call: `values`, then what `configure` was given, then the preset or file."""
    return Settings.current.gather(preset, config, values)


def _places(values: Mapping[str, object], *names: str) -> dict[str, object]:
    """Of `values` those `names` that were given, by their types. Raises ConfigError for whatever is wrong with any."""
    parsed, problems = parse(values)
    if problems:
        raise ConfigError(problems)
    return {name: parsed[name] for name in names if name in parsed}


def train(preset: str | None = None, config: str | Path | None = None, **values: object) -> Outcome:
    """Train a run: fresh, resumed, or finished already. Returns how this session ended; a paused run is no error."""
    from kaggle_lib.runs import supervise

    return supervise.train(gather(preset, config, values), say=_say)


def join(
    address: str, preset: str | None = None, config: str | Path | None = None, *, wait: float = 15.0, **values: object
) -> Outcome:
    """Train with the session of another machine that waits at `address` (host:port), and return how it ended. `values`
    may say where `data`, `base_model` and `work_dir` are here. `wait`: minutes, where nobody is there."""
    from kaggle_lib.runs import machines

    return machines.join(address, _places(gather(preset, config, values), *machines.OWN), wait, say=_say)


def evaluate(
    preset: str | None = None, config: str | Path | None = None, *, adapter: Which = "last", **values: object
) -> Outcome:
    """Score base and tuned model on the held-out split, into `evaluation/`. An unfinished run: `not finished`.
    `adapter`: last, or that of the step with the best validation: best."""
    from kaggle_lib.runs import evaluating

    return evaluating.evaluate(gather(preset, config, values), say=_say, adapter=adapter)


def report(preset: str | None = None, config: str | Path | None = None, **values: object) -> Path:
    """Write the run's page from this machine's run folder and the store; returns its path."""
    from kaggle_lib.runs import ledger, rescue
    from kaggle_lib.runs.opening import open_run

    opened = open_run(gather(preset, config, values), begun=True)
    opened.folder.create()
    opened.store.fetch_events(opened.folder.events)
    if not opened.folder.evaluation.exists():
        opened.store.fetch_kind("evaluation", opened.folder.evaluation)
    from kaggle_lib.report import page

    records = ledger.closed(opened.state.ledger, opened.state.holder())
    path = page.build(opened.folder, opened.config, records, opened.state)
    path = rescue.keep(opened.folder, _say) / path.relative_to(opened.folder.root)
    _say(f"The report is {path}")
    return path


def chat(
    preset: str | None = None,
    config: str | Path | None = None,
    *,
    tokens: int = 512,
    temperature: float = 0.0,
    **values: object,
) -> Chat:
    """A conversation with the run's newest checkpoint: `chat("…")` prints the answer letter by letter, `chat.both("…")`
    base and tuned. `tokens`: most of an answer; `temperature`: 0 is greedy. `chat.close()` gives the memory back.
    """
    from kaggle_lib.runs.chatting import Chat

    return Chat(gather(preset, config, values), tokens=tokens, temperature=temperature, say=_say)


def talk(
    preset: str | None = None,
    config: str | Path | None = None,
    *,
    both: bool = False,
    tokens: int = 512,
    temperature: float = 0.0,
    **values: object,
) -> None:
    """`chat` in a terminal, until its input ends."""
    from kaggle_lib.runs import chatting

    chatting.talk(gather(preset, config, values), both=both, tokens=tokens, temperature=temperature, say=_say)


def publish(
    preset: str | None = None,
    config: str | Path | None = None,
    *,
    to: str | None = None,
    public: bool = False,
    base: str | None = None,
    adapter: Which = "last",
    form: str = "adapter",
    quantization: str = "q8_0",
    scratch: str | None = None,
    llama_cpp: str | None = None,
    **values: object,
) -> Published:
    """Publish a finished run to the Hub's `main`: adapter, tokenizer, generation config, card, evaluation, report, in
    one commit. `to`: the repo (user/name), the store's own unless given; `base`: the base model's Hub id, where the run
    had it from a folder. `adapter`: of the last step, or of the best validation. `form`: adapter, merged (16-bit
    weights) or gguf, of that `quantization`; a form is made in the folder `scratch`, the run folder unless given, and a
    GGUF file by llama.cpp in the folder `llama_cpp`. Raises NotFinished.
    """
    from kaggle_lib.report.publish import Making, publish

    making = Making(form, quantization, scratch, llama_cpp, adapter)
    return publish(gather(preset, config, values), to=to, public=public, base=base, making=making, say=_say)


def rate_build(
    preset: str | None = None, config: str | Path | None = None, *, pairs: int = 50, singles: int = 20, **values: object
) -> dict[str, str]:
    """A blind page for raters from the run's answers: `pairs` of base against tuned, and both answers of `singles`
    messages one by one. Returns the paths of page, sheet and key; the key is not for the raters.
    """
    from kaggle_lib.rating import commands
    from kaggle_lib.runs.opening import open_run

    opened = open_run(gather(preset, config, values), begun=True)
    opened.folder.create()
    if not opened.folder.evaluation.exists():
        opened.store.fetch_kind("evaluation", opened.folder.evaluation)
    drawn = commands.exchanges(opened.folder)
    return commands.build(opened.folder, drawn, seed=opened.config.seed, pairs=pairs, singles=singles, say=_say)


def rate_score(
    files: str | Path | Sequence[str | Path],
    preset: str | None = None,
    config: str | Path | None = None,
    *,
    key: str | Path | None = None,
    judge: str | Path | None = None,
    **values: object,
) -> dict[str, Any]:
    """What the raters' `files` (files, or folders of them) say, with intervals and agreement; also `rating/result.json`
    of the run folder. `key`: where it is not the run's own. `judge`: a model's ratings, which are tested, not counted.
    """
    from kaggle_lib.rating import commands
    from kaggle_lib.runs.folder import RunFolder

    looked = RunConfig.create(NEITHER | _places(gather(preset, config, values), "run", "work_dir"))
    given = [files] if isinstance(files, (str, Path)) else list(files)
    return commands.evaluate(
        RunFolder(Path(looked.work_dir).absolute() / looked.run),
        [Path(one) for one in given],
        key=None if key is None else Path(key),
        judge=None if judge is None else Path(judge),
        say=_say,
    )


def status(
    preset: str | None = None, config: str | Path | None = None, *, all: bool = False, **values: object
) -> dict[str, Any]:
    """How a run stands, by its store alone; only `run` and `store` are looked at. `all`, or no `run`: {`runs`}, a row
    for each run of the store."""
    from kaggle_lib.report import runs
    from kaggle_lib.report.status import as_text
    from kaggle_lib.report.status import status as status_of
    from kaggle_lib.runs.opening import others, store_for

    places = _places(gather(preset, config, values), "run", "store", "public_store")
    looked = RunConfig.create({"run": "-", **NEITHER, **places})
    store = store_for(looked)
    if all or "run" not in places:
        named = ((name, store_for(looked.model_copy(update={"run": name}))) for name in store.runs())
        rows = runs.runs(named)
        _say(runs.as_text(rows, looked.store))
        return {"runs": rows}
    found = status_of(looked.run, store.peek())
    _say(as_text(found, others(store) if found["state"] == "empty" else ""))
    return found


def push(
    preset: str | None = None,
    config: str | Path | None = None,
    *,
    notebook: str | None = None,
    kernel: str | None = None,
    token_dataset: bool = False,
    yes: bool = False,
    datasets: Sequence[str] = (),
    outputs: Sequence[str] = (),
    **values: object,
) -> Pushed:
    """Push one session of the run to Kaggle. `kernel`: `owner/slug`, or a slug; `datasets`, `outputs` (of kernels, to
    rescue from): attached to it; `token_dataset`: the Hub's token in a private dataset, made after a `yes`."""
    from kaggle_lib.kaggle import push
    from kaggle_lib.kaggle.client import Client

    token: Any = ("yes" if yes else "ask") if token_dataset else "no"
    notebook = notebook or ("t4_check" if preset == "t4-check" else "train")
    plan = push.Plan(notebook, kernel, tuple(datasets), tuple(outputs), token)
    return push.push(gather(preset, config, values), plan, Client(), _say)


def chain(
    preset: str | None = None,
    config: str | Path | None = None,
    *,
    kernel: str | None = None,
    token_dataset: bool = False,
    yes: bool = False,
    datasets: Sequence[str] = (),
    outputs: Sequence[str] = (),
    once: bool = False,
    max_sessions: int = 40,
    no_progress: int = 2,
    poll: float = 60.0,
    hang_minutes: float = 30.0,
    **values: object,
) -> Chained:
    """Push sessions until the run is finished, or (`once`) take one step of that. `poll`: seconds between two looks."""
    from kaggle_lib.kaggle import chain, push
    from kaggle_lib.kaggle.client import Client

    token: Any = ("yes" if yes else "ask") if token_dataset else "no"
    plan = push.Plan("train", kernel, tuple(datasets), tuple(outputs), token)
    plan = replace(plan, confirm=min(60.0, 10 * poll), poll=min(5.0, poll))
    limits = chain.Limits(max_sessions, no_progress, poll, min(120.0, 2 * poll), hang_minutes)
    return chain.chain(gather(preset, config, values), plan, limits, Client(), _say, once=once)


def plan(preset: str | None = None, config: str | Path | None = None, **values: object) -> dict[str, Any]:
    """What the run will take on Kaggle: hours, sessions, quota, checkpoints. Nothing is spent, claimed or loaded."""
    from kaggle_lib.report.plan import as_text
    from kaggle_lib.report.plan import plan as plan_of

    found = plan_of(gather(preset, config, values))
    _say(as_text(found))
    return found


def t4_check(
    preset: str | None = None, config: str | Path | None = None, minutes: float = 20.0, **values: object
) -> dict[str, Any]:
    """Measure what this machine's GPUs do with a run of these settings, in about so many minutes; the result is in the
    run's report on the store, too, as `t4-check.json`. Raises UserError where a part of it has failed.
    """
    from kaggle_lib.kaggle import t4_check as checking

    if not (preset or config or Settings.current.preset or Settings.current.config):
        preset = "t4-check"
    found = checking.check(gather(preset, config, values), _say, minutes)
    _say(checking.as_text(found))
    return found


def doctor(
    preset: str | None = None, config: str | Path | None = None, *, hub_selftest: bool = False, **values: object
) -> Examination | Selftest:
    """What is here, and what a run with these settings would miss. `hub_selftest`: how the real Hub answers what the
    store asks of it, in a private scratch repo that is made and deleted again."""
    if hub_selftest:
        from kaggle_lib.report.hub_selftest import selftest

        return selftest(gather(preset, config, values), _say)
    from kaggle_lib.report.doctor import as_text, examine

    found = examine(gather(preset, config, values))
    _say(as_text(found))
    return found


def load(preset: str | None = None, config: str | Path | None = None, **values: object) -> tuple[Any, Any]:
    """(model, tokenizer) of the run's newest checkpoint that verifies, for inference, in this process: it imports
    torch, and the model stays in the GPU's memory until it is deleted. Raises NotFinished where there is none yet.
    """
    from kaggle_lib import strategies
    from kaggle_lib.runs.prepare import newest

    opened, found = newest(gather(preset, config, values), _say)
    assert found.path is not None and found.manifest is not None
    model, tokenizer = strategies.tuned(opened.for_worker(), found.path, opened.folder.cache)
    _say(f"Loaded run {opened.config.run!r} at step {found.step} of {found.manifest.total_steps}.")
    return model, tokenizer


def prepare(preset: str | None = None, config: str | Path | None = None, **values: object) -> Path:
    """Get the run folder ready for `training.worker.main`, called by hand under a debugger; returns its path."""
    from kaggle_lib.runs import prepare

    return prepare.prepare(gather(preset, config, values), say=_say)


def plain(result: Any) -> Any:
    """What `--json` prints of a function's result."""
    if isinstance(result, Path):
        return {"page": str(result)}
    return result.to_json() if hasattr(result, "to_json") else result


def _say(line: str) -> None:
    print(line, flush=True)
