"""One commit to a repo's `main` on the Hub: what is there, what is new, the card validated before anything large."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants
from huggingface_hub.utils._headers import build_hf_headers
from huggingface_hub.utils._http import get_session, hf_raise_for_status

from kaggle_lib.checkpoints.hub_client import Failures, within
from kaggle_lib.checkpoints.hub_repo import Damaged, Repo, Tree
from kaggle_lib.errors import StoreError, UserError
from kaggle_lib.files import write_text

CARD = "README.md"
SECONDS, RATE = 1800.0, 2e6  # for everything, and a second more for so many bytes; an adapter has some 50 MB
TRIES = 3
FOLDERS = ("evaluation/", "report/")  # what is in them is replaced as a whole
# The weights of each form, by their names. A repo holds one form: beside an adapter, transformers loads that.
WEIGHTS: dict[str, str] = {
    "adapter": r"adapter_(config\.json|model\..+)",
    "merged": r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?",
    "gguf": r".+\.gguf",
}
Say = Callable[[str], None]


def check(repo: Repo, public: bool, form: str) -> None:
    """Raises UserError where the repo, if there is one, cannot be published to."""
    with explained(repo.id), within(SECONDS):
        if (tree := repo.look()) is not None:
            _check(repo, tree, public, form)


def send(
    repo: Repo,
    files: Mapping[str, Path],
    card: Callable[[str | None], str],
    form: str,
    public: bool,
    what: str,
    say: Say,
) -> tuple[Tree, bool]:
    """Commit `files` (by name in the repo; the card's is written here) to `main`: what it holds then, and whether it
    held the very same before.

    `card`: the card's text, given the one that is there; it may be asked several times. Raises UserError, StoreError.
    """
    size = sum(path.stat().st_size for name, path in files.items() if name != CARD)
    with explained(repo.id), within(SECONDS + size / RATE):
        for left in reversed(range(TRIES)):
            tree = _main(repo, public, form)
            text = card(repo.read(tree, CARD).decode("utf-8") if CARD in tree.files else None)
            _validate(text, repo.token)
            write_text(files[CARD], text)
            additions, removed = _changes(files, tree, form)
            if not additions and not removed:
                say(f"{repo.id} holds the very same already (commit {tree.commit[:12]}).")
                return tree, True
            say(f"Publishing {what} to {repo.id}: {len(additions)} files.")
            repo.upload(additions)
            try:
                repo.commit([*additions, *map(CommitOperationDelete, removed)], tree.commit, what)
            except Failures:
                # Somebody else's commit, or an answer that was lost: what is there now decides.
                now = repo.look()
                if not left or now is None or (now.commit == tree.commit):
                    raise
                continue
            break
        after = repo.look()
        assert after is not None
        if missing := [name for name in files if name not in after.files]:
            raise StoreError(f"{repo.id} lacks {', '.join(missing)} after the commit.", todo="Publish again.")
    say(f"Published: {constants.ENDPOINT}/{repo.id} ({'private' if after.private else 'public'}).")
    return after, False


def _main(repo: Repo, public: bool, form: str) -> Tree:
    """`main` of the repo, which is made private where there is none."""
    tree = repo.look()
    if tree is None:
        repo.create(private=not public)
        tree = repo.look()
        assert tree is not None
    _check(repo, tree, public, form)
    return tree


def _check(repo: Repo, tree: Tree, public: bool, form: str) -> None:
    """A public repo is refused unless asked for; so is one with another form of a model."""
    if not tree.private and not public:
        raise UserError(
            f"{repo.id} is public, so everybody could read what is published there.",
            kept="Nothing was sent.",
            todo="Make it private, publish to another one, or ask for it: --public.",
        )
    for other, names in WEIGHTS.items():
        if other != form and (found := [name for name in tree.files if re.fullmatch(names, name)]):
            raise UserError(
                f"{repo.id} holds another form of a model ({other}: {found[0]}), and a repo can hold one only.",
                kept="Nothing was sent.",
                todo="Publish each form to a repo of its own: --to USER/NAME.",
            )


def _validate(text: str, token: str | None) -> None:
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


def _changes(files: Mapping[str, Path], tree: Tree, form: str) -> tuple[list[CommitOperationAdd], list[str]]:
    """What is new or different, and what an earlier publication has left in folders of ours and of its shards."""
    additions = [
        CommitOperationAdd(name, str(path))
        for name, path in files.items()
        if name not in tree.files or not tree.files[name].holds(path)
    ]
    ours = [name for name in tree.files if name.startswith(FOLDERS)]
    if form == "merged":
        ours += [name for name in tree.files if re.fullmatch(WEIGHTS[form], name)]
    return additions, [name for name in ours if name not in files]


@contextmanager
def explained(repo: str) -> Iterator[None]:
    try:
        yield
    except (*Failures, Damaged) as error:
        said = re.sub(r"\s+", " ", str(error)).strip()[:300]
        raise StoreError(
            f"The run could not be published to {repo}: {said or type(error).__name__}.",
            kept="Everything is still here and on the store.",
            todo="Publish again; what has arrived is not sent twice.",
        ) from error
