"""What a run needs of the Hub, asked before it costs a session: an answer, the base model, a store to write to."""

from __future__ import annotations

from kaggle_lib.config import RunConfig
from kaggle_lib.errors import UserError
from kaggle_lib.report.finding import Finding
from kaggle_lib.report.speed import cached
from kaggle_lib.runs.asking import SWITCH_ON, Hub, offline
from kaggle_lib.runs.opening import store_for
from kaggle_lib.session.secrets import Token
from kaggle_lib.session.where import where


def look(config: RunConfig, token: Token | None) -> tuple[int, list[Finding]]:
    """(bytes of the base model that are still to come, what was found). The one thing that is written is a branch of
    the store's repo, where that is there, and it is removed at once."""
    here = cached(config, "config.json") is not None
    if not (config.hub_store or config.hub_base) or (offline() and here and not config.hub_store):
        return 0, []
    hub = Hub()
    if offline():
        return 0, [Finding("Internet", "missing", "HF_HUB_OFFLINE is set, and the run needs the Hub", "Unset it.")]
    if why := hub.unreachable():
        todo = "Check the network (and HF_ENDPOINT, if it is set)." if where() == "local" else SWITCH_ON
        return 0, [Finding("Internet", "missing", why, todo)]
    size, findings = 0, [Finding("Internet", "ok", f"{hub.endpoint} answers")]
    if config.hub_base:
        size, problems = hub.model(config.base_model, config.revision, token)
        findings += [Finding("base model", "missing", problem) for problem in problems]
        if not problems and not hub.notes:
            size = 0 if here else size
            told = "in the cache" if here else f"{size / 1e9:.2f} GB to fetch"
            findings.append(Finding("base model", "ok", f"{config.base_model}, {told}"))
    if config.hub_store and token:
        findings.append(_store(config, config.hub_store, hub, token))
    return size, [*findings, *(Finding("Hub", "note", note) for note in hub.notes)]


def _store(config: RunConfig, repo: str, hub: Hub, token: Token) -> Finding:
    try:
        state = store_for(config).peek()
    except UserError as error:
        return Finding("store", "missing", error.what, error.todo)
    if problem := next(hub.not_writable(repo, token, public=config.public_store, make=False), None):
        return Finding("store", "missing", problem)
    there = "has this run" if state.config else "has no run of this name yet"
    return Finding("store", "ok", f"{config.store} can be read and written to, and {there}")
