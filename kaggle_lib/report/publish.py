"""`publish`: a finished run's adapter, with all that people need to use and to judge it, to a repo's `main`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status

from kaggle_lib.checkpoints.hub_client import Failures, within
from kaggle_lib.checkpoints.hub_repo import Damaged, Repo, Tree
from kaggle_lib.data import formats
from kaggle_lib.errors import ConfigError, NotFinished, StoreError, UserError
from kaggle_lib.files import read_json, write_json, write_text
from kaggle_lib.report import card, page
from kaggle_lib.runs import ledger, resume
from kaggle_lib.runs.opening import only_session, open_run
from kaggle_lib.runs.supervise import restore_finished
from kaggle_lib.session.secrets import hub_token
from kaggle_lib.values import is_hub_id

CARD = "README.md"
SECONDS = 1800.0  # for everything; an adapter has some 50 MB
TRIES = 3
FOLDERS = ("evaluation/", "report/")  # what is in them is replaced as a whole
Say = Callable[[str], None]


@dataclass(frozen=True)
class Published:
    """Where the run's result is: `commit` of `repo`, or `unchanged` where the repo held the very same already."""

    run: str
    repo: str
    commit: str
    step: int
    files: int
    bytes: int
    private: bool
    unchanged: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"outcome": "published", **asdict(self)}


def publish(
    values: Mapping[str, object], *, to: str | None = None, public: bool = False, base: str | None = None, say: Say
) -> Published:
    """Publish a finished run: adapter, tokenizer with the template trained with, generation config, model card,
    evaluation and report, in one commit on `main` of `to` (the store's own repo unless given).

    `base`: the base model's Hub id, where the run had it from a folder. Raises NotFinished; ConfigError for a repo or
    base id that is none; UserError for a card that the Hub refuses, before anything large is sent; StoreError.
    """
    opened = open_run(values, begun=True)
    config, folder = opened.config, opened.folder
    repo_id = to or config.hub_store
    if repo_id is None or not _is_repo(repo_id):
        raise ConfigError(
            [
                f"--to: {repo_id!r} is no repo of the Hub (user/name)"
                if repo_id
                else f"--to: the store is {config.store!r}, so say which repo of the Hub (user/name) to publish to"
            ]
        )
    if base is not None and not _is_repo(base):
        raise ConfigError([f"--base: {base!r} is no model of the Hub (owner/name)"])
    folder.create()
    with only_session(folder):  # choosing renames what it passes over, which a session here may be writing
        found = resume.choose(folder, opened.store, opened.state)
    if found.kind != "finished" or found.manifest is None:
        raise NotFinished(
            f"Run {config.run!r} is not finished (step {found.step}), so there is nothing to publish yet.",
            todo="Run `train` to go on.",
        )
    restore_finished(opened, found.manifest)
    base = base or (config.base_model if opened.base_commit else None)
    token = hub_token()
    if token is None:
        raise UserError("There is no Hub token, and publishing needs one.", todo="Set HF_TOKEN, or `hf auth login`.")
    records = ledger.closed(opened.state.ledger, None)
    page.build(folder, config, records)
    staged = _stage(folder.root / "publish", folder.adapter, folder.evaluation, folder.report)
    with _explained(repo_id), within(SECONDS):
        repo = Repo(repo_id, "main", token.value)
        for left in reversed(range(TRIES)):
            tree = _main(repo, public)
            written = card.write(
                config,
                repo=repo_id,
                base=base,
                commit=opened.base_commit,
                step=found.step,
                total_steps=found.manifest.total_steps,
                ledger=records,
                result=page.read_result(folder),
                existing=repo.read(tree, CARD).decode("utf-8") if CARD in tree.files else None,
            )
            _validate(str(written), token.value)
            write_text(staged / CARD, str(written))
            additions, removed = _changes(staged, tree)
            if not additions and not removed:
                say(f"{repo_id} holds the very same already (commit {tree.commit[:12]}).")
                return _published(config.run, repo_id, tree, found.step, staged, unchanged=True)
            say(f"Publishing run {config.run!r} at step {found.step} to {repo_id}: {len(additions)} files.")
            repo.upload(additions)
            try:
                repo.commit(
                    [*additions, *map(CommitOperationDelete, removed)],
                    tree.commit,
                    f"run {config.run} at step {found.step}",
                )
            except Failures:
                # Somebody else's commit, or an answer that was lost: what is there now decides.
                now = repo.look()
                if not left or now is None or (now.commit == tree.commit):
                    raise
                continue
            break
        after = repo.look()
        assert after is not None
        if missing := [name for name in _files(staged) if name not in after.files]:
            raise StoreError(f"{repo_id} lacks {', '.join(missing)} after the commit.", todo="Publish again.")
    say(f"Published: {constants.ENDPOINT}/{repo_id} ({'private' if after.private else 'public'}).")
    if base and "llama" in base.lower() and not repo_id.split("/")[1].lower().startswith("llama"):
        say("note: Llama's licence wants the name of a model that is given to others to begin with “Llama”.")
    return _published(config.run, repo_id, after, found.step, staged)


def _is_repo(text: str) -> bool:
    return "/" in text and is_hub_id(text)


def _stage(into: Path, adapter: Path, evaluation: Path, report: Path) -> Path:
    """All files but the card, as they will be in the repo."""
    shutil.rmtree(into, ignore_errors=True)
    shutil.copytree(adapter, into)
    write_json(into / "generation_config.json", _generation_config(into))
    for source in (evaluation, report):
        for path in sorted(source.rglob("*")) if source.is_dir() else []:
            inside = path.relative_to(source).parts
            # `parts` is what an evaluation goes on from; the answers and scores have all of it.
            if path.is_file() and inside[0] != "parts" and not any(part.startswith(".") for part in inside):
                target = into / source.name / path.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
    return into


def _generation_config(folder: Path) -> dict[str, Any]:
    """The stops and the pad of the tokenizer there, so that an answer ends for whoever loads it."""
    added = {one["content"]: one["id"] for one in read_json(folder / "tokenizer.json").get("added_tokens", [])}
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    form = next(one for one in formats.FORMATS if one.template == template)
    return {
        "do_sample": False,
        "eos_token_id": [added[name] for name in form.stops if name in added],
        "pad_token_id": next((added[name] for name in form.pads if name in added), None),
    }


def _main(repo: Repo, public: bool) -> Tree:
    """`main` of the repo, which is made private where there is none; a public one is refused unless asked for."""
    tree = repo.look()
    if tree is None:
        repo.create(private=not public)
        tree = repo.look()
        assert tree is not None
    if not tree.private and not public:
        raise UserError(
            f"{repo.id} is public, so everybody could read what is published there.",
            kept="Nothing was sent.",
            todo="Make it private, publish to another one, or ask for it: --public.",
        )
    return tree


def _validate(text: str, token: str) -> None:
    """Ask the Hub whether the card is in order. Raises UserError with what it says."""
    asked = {"content": text, "repoType": "model"}
    url = f"{constants.ENDPOINT}/api/validate-yaml"
    answer = get_session().post(url, json=asked, headers=build_hf_headers(token=token))
    if answer.status_code not in (200, 400):
        hf_raise_for_status(answer)
    if errors := [one["message"] for one in answer.json().get("errors", [])]:
        raise UserError(
            f"The Hub refuses the model card: {'; '.join(errors)}.",
            kept="Nothing was sent.",
            todo="If it is of what a person wrote into the card's metadata there, correct it there.",
        )


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _changes(staged: Path, tree: Tree) -> tuple[list[CommitOperationAdd], list[str]]:
    """What is new or different, and what an earlier publication has left in folders of ours."""
    names = _files(staged)
    additions = [
        CommitOperationAdd(name, str(staged / name))
        for name in names
        if name not in tree.files or not tree.files[name].holds(staged / name)
    ]
    return additions, [name for name in tree.files if name.startswith(FOLDERS) and name not in names]


def _published(run: str, repo: str, tree: Tree, step: int, staged: Path, *, unchanged: bool = False) -> Published:
    names = _files(staged)
    size = sum((staged / name).stat().st_size for name in names)
    return Published(run, repo, tree.commit, step, len(names), size, tree.private, unchanged)


@contextmanager
def _explained(repo: str) -> Iterator[None]:
    try:
        yield
    except (*Failures, Damaged) as error:
        said = re.sub(r"\s+", " ", str(error)).strip()[:300]
        raise StoreError(
            f"The run could not be published to {repo}: {said or type(error).__name__}.",
            kept="Everything is still here and on the store.",
            todo="Publish again; what has arrived is not sent twice.",
        ) from error
