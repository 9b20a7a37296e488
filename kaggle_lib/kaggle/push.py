"""Push one session of a run to Kaggle: checked before anything is sent, and believed only for what has happened.

What resuming would refuse, and what Kaggle would take in silence and not do, is refused here. Nothing is sent while a
session is known to be live, by Kaggle's word or by the run's lease; a reply that was lost is never sent again blindly.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from kaggle_lib import hooks
from kaggle_lib.config import parse
from kaggle_lib.errors import ConfigError, KaggleBusy, KaggleError, LeaseHeld, NotFinished
from kaggle_lib.files import read_json, write_text
from kaggle_lib.kaggle.client import Client, Pulled, Reply, editor
from kaggle_lib.kaggle.kernel import BEGINNING, CLONE, NOBODY, build
from kaggle_lib.kaggle.token_dataset import ensure as token_dataset_of
from kaggle_lib.runs import resume
from kaggle_lib.runs.opening import Opened, open_run
from kaggle_lib.runs.prepare import settle_code

Say = Callable[[str], None]
INTO = Path("build/push")
OWNER, SLUG = re.compile(r"[A-Za-z0-9_-]{1,50}"), re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
SOURCES = {
    "dataset_sources": (re.compile(r"[\w-]+/[\w.-]+(/\d+)?"), "owner/name"),
    "kernel_sources": (re.compile(r"[\w-]+/[\w.-]+(/\d+)?"), "owner/name"),
    "model_sources": (re.compile(r"[\w-]+/[\w.-]+/[\w.-]+/[\w.-]+/\d+"), "owner/model/framework/variation/version"),
}


@dataclass(frozen=True)
class Plan:
    """What to push.

    `kernel`: `owner/slug`, or a slug; None: the one of the run. `datasets`: attached beside the corpus; `kernels`:
    whose outputs are, to rescue from; `rescue`: the kernel's own, too, if Kaggle takes it. `token`: put the Hub's token
    into a dataset (`ask`: after a yes). `into`: the folder of all runs' kernels. `confirm`, `poll`: seconds to wait for
    what Kaggle shows, and between two looks. `unrecorded`: how many sessions before this one left no record.
    """

    notebook: str = "train"
    kernel: str | None = None
    datasets: tuple[str, ...] = ()
    kernels: tuple[str, ...] = ()
    token: Literal["no", "ask", "yes"] = "no"
    rescue: bool = False
    into: Path = INTO
    confirm: float = 60.0
    poll: float = 5.0
    unrecorded: int = 0


@dataclass(frozen=True)
class Pushed:
    """`next`: what comes next, for a person. `version`, `size` (bytes of the source): null where nothing was pushed."""

    outcome: Literal["pushed", "finished"]
    run: str
    kernel: str
    url: str
    next: str
    version: int | None = None
    size: int | None = None
    state: str = ""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def push(values: Mapping[str, object], plan: Plan, client: Client, say: Say) -> Pushed:
    """Push the notebook of `plan` for the run that `values` name, and say what became of it.

    Raises ConfigError and ResumeError before anything is sent, LeaseHeld and KaggleBusy for "not now", NotFinished for
    an evaluation of an unfinished run, KaggleError for what Kaggle refused, or took without a source that it needs.
    """
    opened = open_for_kaggle(values)
    with only_one(plan.into / opened.config.run):
        return push_opened(opened, plan, client, say)


def push_opened(opened: Opened, plan: Plan, client: Client, say: Say) -> Pushed:
    """The same, for a run that has been looked at; the caller holds `only_one`."""
    config, state = opened.config, opened.state
    found = stored_checkpoint(opened)
    name = kernel_id(plan.kernel, opened, client)
    if plan.notebook == "train" and found and found.kind == "finished":
        text = f"Run {config.run!r} is finished on {opened.store.place}: nothing was pushed."
        say(text)
        return Pushed("finished", config.run, name, editor(name), next_step("finished", config.run, name))
    if plan.notebook not in BEGINNING and (found is None or found.kind != "finished"):
        raise NotFinished(f"Run {config.run!r} is not finished, so {plan.notebook} was not pushed.", todo="Train it.")
    if found:
        refuse_what_resuming_refuses(opened, found, say)
    holder = state.holder()
    if holder and holder != config.take_over:
        assert state.lease is not None
        raise LeaseHeld(
            f"Session {holder} on {state.lease.host} holds run {config.run!r}: nothing was pushed.",
            session=holder,
            host=state.lease.host,
            todo=f"Wait until it has ended, or give take_over={holder} if you know that it no longer runs.",
        )
    token_dataset = "" if plan.token == "no" else token_dataset_of(client, say, yes=plan.token == "yes")
    built = build(
        plan.notebook,
        opened.config.model_copy(update={"kernel": name}),
        plan.into / config.run,
        id=name,
        datasets=plan.datasets,
        kernels=(*plan.kernels, *([name] if plan.rescue else [])),
        token_dataset=token_dataset,
    )
    metadata = read_json(built.folder / "kernel-metadata.json")
    if problems := problems_of(metadata):
        raise ConfigError(problems, title="Kaggle would not take this kernel as it is meant")
    mark = {"push": secrets.token_hex(8), **mark_of(opened, plan)}
    write_mark(built.notebook, mark)
    before = client.status(name)
    if before.live:
        raise KaggleBusy(
            f"A session of {name} is {before.state} on Kaggle: nothing was pushed.",
            todo=f"Wait until it has ended, or stop it at {editor(name)}.",
        )
    if before.state == "unknown":
        raise KaggleBusy(f"Kaggle does not say whether {name} runs ({before.message}): nothing was pushed.")
    reply, pulled = send(client, built.folder, name, mark["push"], plan)
    problems = dropped(reply, metadata, pulled)
    if plan.rescue and (own := f"kernel {name}") in problems:
        problems.remove(own)
        say(f"warning: Kaggle does not attach {name}'s own output, so nothing can be rescued from it.")
    if problems:
        raise KaggleError(
            f"Kaggle started version {reply.version or '?'} of {name} without {', '.join(problems)}.",
            kept="Its session ends by itself where it needs them.",
            todo=f"Check their spelling and that you may read them, stop the session at {editor(name)}, push again.",
        )
    status = client.status(name)
    url = reply.url or f"https://www.kaggle.com/code/{name}"
    version = f"version {reply.version}" if reply.version else "a new version"
    say(f"Pushed {version} of {name} ({built.size:,} bytes); Kaggle says: {status.state}. {url}")
    todo = next_step("first" if before.state == "none" else "pushed", config.run, name, bool(token_dataset))
    say(todo)
    return Pushed("pushed", config.run, name, url, todo, reply.version, built.size, status.state)


def send(client: Client, folder: Path, name: str, nonce: str, plan: Plan) -> tuple[Reply, Pulled | None]:
    """Push once. Raises KaggleBusy and KaggleError where no session has come of it, or that cannot be known."""
    reply = client.push(folder)
    if reply.kind == "full":
        raise KaggleBusy(f"Kaggle has no room for a session now: {reply.problem}", todo="Run this again later.")
    if reply.kind == "refused":
        raise KaggleError(f"Kaggle refused the kernel {name}: {reply.problem}", kept="Nothing was started.")
    if reply.kind == "pushed":
        if reply.url and f"/{name.lower()}" not in reply.url.lower():
            raise KaggleError(
                f"Kaggle pushed to another kernel than {name}: {reply.url}",
                todo="Stop it there; the title has to give the slug, and the slug must not belong to another kernel.",
            )
        pulled = client.pull(name)
        return reply, pulled if pulled and pulled.mark.get("push") == nonce else None
    end = time.monotonic() + plan.confirm
    while True:
        pulled, status = client.pull(name), client.status(name)
        if pulled and pulled.mark.get("push") == nonce:
            return replace(reply, kind="pushed"), pulled
        if status.live:
            return replace(reply, kind="pushed"), None
        if time.monotonic() >= end:
            known = status.state != "unknown"
            what = "no session has started" if known else "Kaggle does not say whether a session has started"
            raise KaggleBusy(
                f"The reply to the push of {name} was lost ({reply.problem}), and {what}.",
                todo=f"Look at {editor(name)}, or run this again: it looks before it pushes.",
            )
        time.sleep(plan.poll)


def dropped(reply: Reply, metadata: Mapping[str, Any], pulled: Pulled | None) -> list[str]:
    """The sources that were sent and are not attached: as push says, and, because it does not say all of them, by what
    the pushed version has."""
    missing = list(reply.dropped)
    for key in SOURCES if pulled else ():
        assert pulled is not None
        parts = 5 if key == "model_sources" else 2  # without the version of a dataset or a kernel
        there = {str(source.lower().split("/")[:parts]) for source in pulled.metadata.get(key) or []}
        wanted = metadata.get(key) or []
        kind = key.removesuffix("_sources")
        missing += [f"{kind} {one}" for one in wanted if str(one.lower().split("/")[:parts]) not in there]
    return list(dict.fromkeys(missing))


def open_for_kaggle(values: Mapping[str, object]) -> Opened:
    """Open the run, read only. Raises ConfigError for a store that a session on Kaggle would lose with its machine."""
    store = str(values.get("store", ""))
    if not store.startswith("hf://"):
        lost = f"store: {store or 'a folder'!r} would be lost with Kaggle's machine. Give store=hf://user/repo"
        raise ConfigError([*parse(values)[1], lost])
    return open_run(values)


def stored_checkpoint(opened: Opened) -> resume.Resume | None:
    """What a session would go on from, by the store alone; nothing is fetched, so no hash is checked."""
    for stored in opened.state.checkpoints:
        manifest = stored.manifest
        if stored.problem is None and manifest and manifest.lineage == opened.state.lineage:
            kind: Literal["finished", "resume"] = "finished" if manifest.finished else "resume"
            found = resume.Resume(kind, stored.step, "store", manifest.lineage, "", stored=stored, manifest=manifest)
            return found.extend(opened.config.extend_epochs)
    return None


def refuse_what_resuming_refuses(opened: Opened, found: resume.Resume, say: Say) -> None:
    """Raises ResumeError for edited training code or an edited hooks file, as the session would."""
    given, carried = opened.config.hooks, found.manifest and found.manifest.files.get(hooks.NAME)
    if carried and given and not Path(given).expanduser().exists():
        opened.config = opened.config.model_copy(update={"hooks": None})  # the checkpoint carries it
        changed = resume.check_code(opened.code, opened.config, found.manifest, carried.sha256)
    else:
        changed = settle_code(opened, found, say)
    if changed:
        say(f"warning: {changed}")


def newest_session(opened: Opened) -> str:
    """The id of the newest session in the ledger, or nothing; ids sort by their time."""
    return max((record["id"] for record in opened.state.ledger), default="")


def kernel_id(given: str | None, opened: Opened, client: Client) -> str:
    """`owner/slug` of the kernel: as given, or of the run's last session, or as the clone's kernel-metadata.json has it
    once its owner is filled in, or the user's with the run's name as slug."""
    if given and "/" in given:
        return given
    run = opened.config.run
    if not given:
        known = [record["kernel"] for record in opened.state.ledger if record.get("kernel")]
        own = known[-1] if known else str(read_json(CLONE / "kernel-metadata.json").get("id", ""))
        if own and not own.startswith(f"{NOBODY}/"):
            return own
    slug = given or re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    return f"{client.user()}/{slug if given or len(slug) >= 5 else f'kaggle-lib-{slug}'}"


def problems_of(metadata: Mapping[str, Any]) -> list[str]:
    """What Kaggle would refuse, or take and understand otherwise than it is meant, a line each."""
    from slugify import slugify  # of the `kaggle` client, which makes slugs by it

    problems = []
    owner, _, slug = str(metadata.get("id", "")).partition("/")
    title = str(metadata.get("title", ""))
    if not OWNER.fullmatch(owner) or owner == NOBODY or not SLUG.fullmatch(slug) or len(slug) > 50:
        problems.append(f"id: {metadata.get('id')!r} is no kernel's. Write owner/slug: a-z, 0-9 and -, at most 50")
    if not 5 <= len(title) <= 50:
        problems.append(f"title: {title!r} has {len(title)} characters, and Kaggle wants 5 to 50")
    elif not problems and slugify(title) != slug.lower():
        problems.append(
            f"title: {title!r} gives the slug {slugify(title)!r}, not {slug!r}: Kaggle would push to another kernel"
        )
    for key, (pattern, form) in SOURCES.items():
        for source in metadata.get(key) or []:
            if not pattern.fullmatch(source):
                problems.append(f"{key}: {source!r} is not {form}")
    return problems


def mark_of(opened: Opened, plan: Plan) -> dict[str, Any]:
    """What tells later which session a push was to start, and what there was before it."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "run": opened.config.run,
        "store": opened.config.store,
        "notebook": plan.notebook,
        "after": newest_session(opened),
        "unrecorded": plan.unrecorded,
    }


def write_mark(notebook: Path, mark: Mapping[str, Any]) -> None:
    """Leave in the notebook's own metadata what tells this push from another, once Kaggle shows it again."""
    content = read_json(notebook)
    content["metadata"]["kaggle_lib"] = dict(mark)
    write_text(notebook, json.dumps(content, ensure_ascii=False, indent=1) + "\n")


@contextmanager
def only_one(into: Path) -> Iterator[None]:
    """One push or chain at a time on this machine; raises KaggleBusy for a second one."""
    into.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(into.with_name(f".{into.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise KaggleBusy(f"Another push or chain works in {into}.", todo="Wait until it has ended.") from None
    try:
        yield
    finally:
        lock.release()


def next_step(what: Literal["first", "pushed", "finished"], run: str, name: str, token: bool = False) -> str:
    """What a person does next."""
    chain = f"`python -m kaggle_lib chain` with the same settings goes on until run {run!r} is finished."
    if what == "finished":
        return "`python -m kaggle_lib push --notebook evaluate` with the same settings evaluates it."
    if what == "pushed" or token:
        return chain
    return (
        f"First session of this kernel: attach the secret HF_TOKEN once, at {editor(name)} (Add-ons, Secrets), and "
        f"run it again; until then a session ends at its first cell and says so. Then {chain}"
    )
