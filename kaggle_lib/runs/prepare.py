"""What a worker needs in the run folder before it starts: `run.json`, and the hooks file that was settled on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kaggle_lib import hooks
from kaggle_lib.config import RunConfig
from kaggle_lib.errors import ConfigError, NotFinished, ResumeError
from kaggle_lib.files import write_json
from kaggle_lib.runs import base_model, fork, resume
from kaggle_lib.runs.opening import Opened, new_session_id, only_session, open_run

Say = Callable[[str], None]


def settle_hooks(opened: Opened, found: resume.Resume, say: Say) -> str | None:
    """Settle which hooks file this session uses, in `opened`: the given one, or the checkpoint's where it is not here.

    Returns a sentence where it is another than before, and may be. Raises ConfigError where there is none or it is no
    Python, ResumeError where its content has changed since the checkpoint, unless `allow_code_change`.
    """
    given, was = opened.config.hooks, _carried(found)
    copy = found.path / hooks.NAME if found.path and was else None
    path = Path(given).expanduser() if given else None
    if path and copy and not path.exists():
        opened.hooks = hooks.Source(opened.folder.hooks, copy.read_bytes())
        say(f"hooks: there is no {given} on this machine; the checkpoint of step {found.step} carries it, and is used.")
    else:
        opened.hooks = hooks.read(path) if path else None
    now = opened.hooks.sha256 if opened.hooks else ""
    if opened.hooks:
        opened.config = opened.config.model_copy(update={"hooks": str(opened.hooks.path)})
    if found.kind == "fresh" or now == was:
        return None
    since = f"the checkpoint of step {found.step}"
    what = (
        f"the hooks file {given} has changed since {since}"
        if now and was
        else f"{since} was trained without a hooks file, and {given} was given"
        if now
        else f"{since} was trained with a hooks file, and none is given"
    )
    if opened.config.allow_code_change:
        return f"{what}; going on with allow_code_change=true, so bit for bit ends here."
    put_back = f"Put back what it was trained with (a copy is {copy})" if copy else "Leave it out"
    raise ResumeError(
        [
            f"hooks: {what}, so it would not go on bit for bit. {put_back}, or set allow_code_change=true, or start "
            "another run (run=NAME)"
        ]
    )


def settle_code(opened: Opened, found: resume.Resume, say: Say) -> str | None:
    """`settle_hooks`, and the same for this library's code (see `resume.check_code`)."""
    changed = settle_hooks(opened, found, say)
    if found.kind == "fresh":
        return None
    return resume.check_code(opened.code, opened.config, found.manifest, _carried(found)) or changed


def settle_start(opened: Opened, found: resume.Resume, say: Say) -> None:
    """Settle what the run starts from: the checkpoint that it is forked from, and which commit of a base model of the
    Hub it takes, where that is not frozen with it already.

    Raises ConfigError where the first cannot be started from, UserError where the second may not be read.
    """
    if found.manifest:
        opened.fork = (found.manifest.model_extra or {}).get("fork")
    elif opened.config.fork_from:
        opened.fork = fork.fetch(opened, say)
    if opened.base_commit is None and opened.config.hub_base:
        opened.base_commit = base_model.commit_of(opened.config)


def _carried(found: resume.Resume) -> str:
    """sha256 of the hooks file that the checkpoint carries, or nothing."""
    entry = found.manifest.files.get(hooks.NAME) if found.manifest else None
    return entry.sha256 if entry else ""


def write_run(
    opened: Opened,
    found: resume.Resume,
    *,
    job: str,
    session: str,
    attempt: int = 0,
    config: RunConfig | None = None,
    adapter: str = "adapter",
) -> None:
    """Write `run.json` and the hooks file's copy. `config`: where this launch's is not the session's; `adapter`: the
    folder of the one that is evaluated."""
    if opened.hooks:
        opened.hooks.put(opened.folder.hooks)
    run: dict[str, Any] = {
        "job": job,
        "config": {**(config or opened.config).model_dump(mode="json"), "revision": opened.for_worker().revision},
        "revision": opened.config.revision,  # as it was asked for
        "base_commit": opened.base_commit,
        "fork": opened.fork,
        "extended": found.extended,
        "code": opened.code,
        "session": session,
        "attempt": attempt,
        "fingerprint": opened.fingerprint(),
        "lineage": found.lineage,
        "checkpoint": None if found.kind == "fresh" else found.step,
        "adapter": adapter,
        "cut": found.manifest.cut if found.manifest else None,
    }
    write_json(opened.folder.run_json, run)


def prepare(values: Mapping[str, object], say: Say) -> Path:
    """Get the run folder ready for a worker that is started by hand, and return it. The store is only read.

    Raises what `train` raises before it claims the run, and ConfigError for a finished one.
    """
    opened = open_run(values)
    with only_session(opened.folder):
        found = _chosen(opened, say)
        if found.kind == "finished":
            raise ConfigError([f"run: {opened.config.run!r} is finished, so there is nothing to train"])
        if changed := settle_code(opened, found, say):
            say(f"warning: {changed}")
        settle_start(opened, found, say)
        if opened.base_commit:
            base_model.fetch(opened.config, opened.base_commit, say)
        opened.folder.clear_requests()
        write_run(opened, found, job="train", session=new_session_id())
    say(f"{found.why} Ready for kaggle_lib.training.worker.main({str(opened.folder.root)!r}).")
    return opened.folder.root


def newest(values: Mapping[str, object], say: Say) -> tuple[Opened, resume.Resume]:
    """The run, and its newest checkpoint that verifies, which lies in the run folder then.

    Raises NotFinished where there is none yet, ResumeError where the hooks file has changed since.
    """
    opened = open_run(values, begun=True)
    with only_session(opened.folder):
        found = _chosen(opened, say)
        if found.path is None:
            raise NotFinished(f"Run {opened.config.run!r} has no checkpoint yet.", todo="Train it first.")
        if changed := settle_hooks(opened, found, say):
            say(f"warning: {changed}")
        if opened.hooks:
            opened.hooks.put(opened.folder.hooks)
    if opened.base_commit:
        base_model.fetch(opened.config, opened.base_commit, say)
    return opened, found


def _chosen(opened: Opened, say: Say) -> resume.Resume:
    found = resume.choose(opened.folder, opened.store, opened.state)
    for note in found.notes:
        say(note)
    for skipped in found.skipped:
        say(f"warning: Checkpoint {skipped.step} was passed over: {skipped.file} {skipped.reason}.")
    return found
