"""The notebook's functions, which the command line calls too. Each says on standard output what it does.

All take `preset` (its name) or `config` (a YAML file), and on top any keys of the configuration as keywords; what is
not given comes from `configure`, where a notebook has called it. They return normally for a paused run, and raise a
`UserError` only for what the user has to act on.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_lib.config import RunConfig, parse
from kaggle_lib.errors import ConfigError
from kaggle_lib.runs.outcome import Outcome
from kaggle_lib.settings import Settings

if TYPE_CHECKING:
    from kaggle_lib.report.doctor import Examination


def gather(preset: str | None, config: str | Path | None, values: Mapping[str, object]) -> dict[str, object]:
    """The values of a call: `values`, then what `configure` was given, then the preset or file."""
    return Settings.current.gather(preset, config, values)


def train(preset: str | None = None, config: str | Path | None = None, **values: object) -> Outcome:
    """Train a run: fresh, resumed, or finished already. Returns how this session ended; a paused run is no error."""
    from kaggle_lib.runs import supervise

    return supervise.train(gather(preset, config, values), say=_say)


def evaluate(preset: str | None = None, config: str | Path | None = None, **values: object) -> Outcome:
    """Score base and tuned model on the held-out split, into `evaluation/`. An unfinished run: `not finished`."""
    from kaggle_lib.runs import evaluating

    return evaluating.evaluate(gather(preset, config, values), say=_say)


def report(preset: str | None = None, config: str | Path | None = None, **values: object) -> Path:
    """Write the run's page from this machine's run folder and the store; returns its path."""
    from kaggle_lib.runs import ledger
    from kaggle_lib.runs.opening import open_run

    opened = open_run(gather(preset, config, values), begun=True)
    opened.folder.create()
    opened.store.fetch_events(opened.folder.events)
    if not opened.folder.evaluation.exists():
        opened.store.fetch_kind("evaluation", opened.folder.evaluation)
    from kaggle_lib.report import page  # after the checks: it loads matplotlib

    records = ledger.closed(opened.state.ledger, opened.state.holder())
    path = page.build(opened.folder, opened.config, records, opened.state)
    _say(f"The report is {path}")
    return path


def status(preset: str | None = None, config: str | Path | None = None, **values: object) -> dict[str, Any]:
    """How a run stands, by its store alone; only `run` and `store` are looked at."""
    from kaggle_lib.report.status import as_text
    from kaggle_lib.report.status import status as status_of
    from kaggle_lib.runs.opening import others, store_for

    parsed, problems = parse(gather(preset, config, values))
    if problems:
        raise ConfigError(problems)
    # Base model and data do not matter for looking; all else that could be wrong with `run` and `store` is checked.
    places = {name: parsed[name] for name in ("run", "store", "public_store") if name in parsed}
    looked = RunConfig.create({"base_model": "-", "data": "-", **places})
    store = store_for(looked)
    found = status_of(looked.run, store.peek())
    _say(as_text(found, others(store) if found["state"] == "empty" else ""))
    return found


def doctor(preset: str | None = None, config: str | Path | None = None, **values: object) -> Examination:
    """What is here, and what a run with these settings would miss."""
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
