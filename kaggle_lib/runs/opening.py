"""Open a run: what was asked for, what its store says, where it lives here. Read only; nothing is claimed yet."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from kaggle_lib.checkpoints.folder_store import FolderStore
from kaggle_lib.checkpoints.store import Store, StoreState
from kaggle_lib.config import RunConfig, code_hash, fingerprint, merge, parse
from kaggle_lib.errors import ConfigError, LeaseHeld, UserError
from kaggle_lib.hooks import Source
from kaggle_lib.runs import rescue
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.session.secrets import hub_token
from kaggle_lib.session.where import on_scratch


@dataclass
class Opened:
    """`fresh`: neither the store nor this machine's run folder knows the run. `hooks`: what `settle_hooks` chose.
    `base_commit`: where the base model is of the Hub, its commit, which the run keeps though a branch moves.
    `fork`: the checkpoint of another run that this one started from (`run`, `step`, `id`), if it was forked.
    """

    config: RunConfig
    code: str
    store: Store
    state: StoreState
    folder: RunFolder
    fresh: bool
    hooks: Source | None = None
    base_commit: str | None = None
    fork: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.config.payload == "bucket":  # which the first look at the store did not know yet
            self.store = store_for(self.config)

    def fingerprint(self) -> str:
        """Of the configuration and of the code that trains now, which an `allow_code_change` may have made another."""
        return fingerprint(self.config, code_hash(), self.hooks.sha256 if self.hooks else "")

    def frozen(self) -> dict[str, Any]:
        """What the claim leaves on the store: the configuration, the hash of our code, the base model's commit."""
        return {"config": self.config.model_dump(mode="json"), "code": self.code, "base_commit": self.base_commit}

    def for_worker(self) -> RunConfig:
        """The configuration to load the base model with: at the commit that the run began with."""
        return self.config.model_copy(update={"revision": self.base_commit} if self.base_commit else {})


def store_for(config: RunConfig) -> Store:
    """The store of `config.run`. Raises UserError for a Hub token that cannot be one."""
    if config.hub_store is None:
        return FolderStore(Path(config.store), config.run)
    from kaggle_lib.checkpoints.hub import HubStore  # it loads huggingface_hub, which a folder does without

    token = hub_token()
    return HubStore(
        config.hub_store,
        config.run,
        token.value if token else None,
        public=config.public_store,
        bucket=config.payload == "bucket",
    )


def open_run(values: Mapping[str, object], *, begun: bool = False) -> Opened:
    """The run that `values` (given explicitly) name. A run that has begun keeps its frozen configuration.

    Raises ConfigError for a wrong value, or, where it has to have `begun`, for a run that nobody knows; ResumeError
    for a value that contradicts the frozen ones; StoreError; UserError where the frozen ones cannot be read.
    """
    parsed, problems = parse(values)
    places = ("run", "store", "public_store", "work_dir")
    if "run" not in parsed or any(problem.split(":")[0] in places for problem in problems):
        RunConfig.create(values)  # raises with everything that is wrong
    defaults = {name: field.default for name, field in RunConfig.model_fields.items() if not field.is_required()}
    place = {**defaults, **{name: parsed[name] for name in places if name in parsed}}
    try:
        # Only the names that say where to look; the whole is checked below, against the frozen one where there is one.
        looked = RunConfig.create({"base_model": "-", "data": "-", **place})
    except ConfigError:
        if problems:
            RunConfig.create(values)
        raise
    store = store_for(looked)
    work_dir = on_scratch(looked.work_dir)
    folder = RunFolder(work_dir.absolute() / looked.run)
    state = store.peek()
    known = state.config
    where = f"{store.place}/config.json"
    if known is None:
        for known_by in (folder, *map(RunFolder, rescue.attached(looked.run))):
            if known is None:
                known, where = _known_here(known_by), str(known_by.run_json)
    if known is None and begun:
        there = others(store) or ", and no other"
        raise ConfigError(problems or [f"run: there is no run {looked.run!r} in {looked.store!r}{there}"])
    if known is None:
        config = RunConfig.create(values).model_copy(update={"work_dir": str(work_dir)})
        return Opened(config, code_hash(), store, state, folder, fresh=True)
    frozen, code = _frozen(known, where)
    # Where it is stored and worked on is this session's, not the machine's that began it; so is whom it takes over, and
    # who works with it.
    here = {name: getattr(looked, name) for name in places}
    here |= {"take_over": None, "kernel": None, "allow_code_change": False, "nodes": 1, "rendezvous": None}
    config = merge(frozen.model_copy(update=here), values).model_copy(update={"work_dir": str(work_dir)})
    return Opened(config, code, store, state, folder, fresh=False, base_commit=known.get("base_commit"))


def _known_here(folder: RunFolder) -> dict[str, Any] | None:
    """What the run folder knows of a run that its store has lost, or has not been told of yet."""
    try:
        run = folder.read_run()
        if run.get("base_commit"):
            run["config"]["revision"] = run["revision"]
        return run
    except FileNotFoundError:
        return None
    except OSError as error:
        raise folder.unusable(error) from error
    except (ValueError, TypeError, KeyError):
        raise _unreadable(str(folder.run_json), "it is no JSON object") from None


def _frozen(known: Mapping[str, Any], where: str) -> tuple[RunConfig, str]:
    """The configuration and the hash of our code that a run began with, as `where` holds them."""
    config, code = known.get("config"), known.get("code")
    if not isinstance(config, dict) or not isinstance(code, str):
        raise _unreadable(where, "it has no configuration or no hash of the code")
    try:
        return RunConfig.from_json(config), code
    except ValidationError as error:
        first = error.errors()[0]
        raise _unreadable(where, f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None


def _unreadable(where: str, why: str) -> UserError:
    return UserError(
        f"{where} is damaged, or of a version of kaggle_lib that this one cannot read ({why}).",
        kept="Nothing was changed.",
        todo="Restore it from a copy, or use the version that began the run, or start another run (run=NAME).",
    )


def others(store: Store) -> str:
    """The runs that are there, for a misspelt name or a wrong store."""
    found = store.runs()
    return f"; there are {', '.join(found)}" if found else ""


def new_session_id() -> str:
    """Begins with the start's time in UTC, so that ids sort; unique by its random end."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(4)}"


@contextmanager
def only_session(folder: RunFolder) -> Iterator[None]:
    """Hold the run folder for this process; the kernel lets go of it however the process ends.

    Raises LeaseHeld where another process on this machine works in it.
    """
    folder.create()
    lock = FileLock(folder.root / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise LeaseHeld(
            f"Another process on this machine works in {folder.root}.", todo="Wait until it has ended, or end it."
        ) from None
    except OSError as error:
        raise folder.unusable(error) from error
    try:
        yield
    finally:
        lock.release()
