"""A base model of the Hub: which commit a run takes, and its files in the cache before the workers start.

The supervisor fetches it once; the workers load it offline and need no token.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_lib.errors import UserError
from kaggle_lib.session.secrets import hub_token

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

    from kaggle_lib.config import RunConfig

SECONDS = 30.0  # of one question to the Hub
TRIES = 3  # of one file
# The names that transformers writes and reads; a repo may hold the same weights in other forms, which are left there.
SAFETENSORS = re.compile(r"model(-\d+-of-\d+)?\.safetensors")
PICKLED = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
BESIDE = (".json", ".jinja", ".model", ".txt")


def commit_of(config: RunConfig) -> str:
    """The commit that `revision` (a branch, a tag, a commit; the main branch unless set) names now; of the cache where
    huggingface_hub is offline. Raises UserError where there is none, or it may not be read."""
    with _explained(config):
        if _offline():
            return cached(config, config.revision).name
        return str(_look(config, config.revision).sha)


def fetch(config: RunConfig, commit: str, say: Callable[[str], None]) -> None:
    """Bring the model's files at `commit` to huggingface_hub's cache. Raises UserError where that cannot be done."""
    with _explained(config):
        if _offline():
            cached(config, commit)
            return
        from httpx import HTTPError
        from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache
        from huggingface_hub.constants import HF_HUB_CACHE

        token = _token()
        try:
            info = _look(config, commit)
        except (HTTPError, OSError) as error:
            if isinstance(error, errors.HfHubHTTPError) and error.response.status_code < 500:
                raise
            cached(config, commit)  # of this very commit, so it cannot be stale
            say(f"The Hub does not answer ({type(error).__name__}): taking {config.base_model} from the cache.")
            return
        sizes = {one.rfilename: one.size or 0 for one in info.siblings or []}
        missing = {
            name: sizes[name]
            for name in wanted(list(sizes))
            if not isinstance(try_to_load_from_cache(config.base_model, name, revision=commit), str)
        }
        if not missing:
            return
        total, done = sum(missing.values()), 0
        _check_room(config, total, Path(HF_HUB_CACHE))
        say(f"Fetching the base model {config.base_model} ({commit[:12]}): {len(missing)} files, {total / 1e9:.2f} GB.")
        for number, (name, size) in enumerate(missing.items(), start=1):
            for left in reversed(range(TRIES)):
                try:
                    hf_hub_download(config.base_model, name, revision=commit, token=token)
                    break
                except OSError:  # a part that has come is kept, and gone on from
                    if not left:
                        raise
            done += size
            if size > total / 50:
                say(f"{done / 1e9:.2f} of {total / 1e9:.2f} GB are here ({number} of {len(missing)} files).")


def wanted(names: list[str]) -> list[str]:
    """Of a repo's files those that are loaded: weights once, as safetensors where there are any, and what is small."""
    weights = next((found for form in (SAFETENSORS, PICKLED) if (found := list(filter(form.fullmatch, names)))), [])
    return [*(name for name in names if "/" not in name and name.endswith(BESIDE)), *weights]


def _offline() -> bool:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return HF_HUB_OFFLINE


def _token() -> Any:
    token = hub_token()
    return token.value if token else False  # not the client's own search, which knows nothing of Kaggle's secrets


def _look(config: RunConfig, revision: str | None) -> ModelInfo:
    from huggingface_hub import HfApi

    return HfApi(token=_token()).model_info(config.base_model, revision=revision, timeout=SECONDS, files_metadata=True)


def cached(config: RunConfig, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(config.base_model, revision=revision, local_files_only=True))


def _check_room(config: RunConfig, needed: int, cache: Path) -> None:
    there = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UserError(
            f"There is no room for the base model {config.base_model!r}: it needs {needed / 1e9:.1f} GB, and {cache} "
            f"has {free / 1e9:.1f} GB.",
            todo="Make room there, or set HF_HOME to a folder on another disk.",
        )


@contextmanager
def _explained(config: RunConfig) -> Iterator[None]:
    """What the client raises, as one error that says what to do."""
    from httpx import HTTPError
    from huggingface_hub import errors

    try:
        yield
    except (OSError, HTTPError, RuntimeError, errors.RevisionResolutionError) as error:
        what, kept = f"The base model {config.base_model!r} cannot be loaded: ", "Nothing has been changed."
        if isinstance(error, errors.GatedRepoError):
            why = "its licence has to be accepted first"
            todo = f"Accept it on https://huggingface.co/{config.base_model}, with the account that the token is of."
        elif isinstance(error, errors.RepositoryNotFoundError):
            why = "there is no folder of that name here, and no model on the Hub that "
            why += "the token may read" if hub_token() else "can be read without a token"
            todo = "Check base_model; a private or gated one needs a token: set HF_TOKEN."
        elif isinstance(error, errors.RevisionNotFoundError):
            why, todo = f"it has no revision {config.revision!r} on the Hub", "Check revision."
        elif isinstance(error, (errors.LocalEntryNotFoundError, errors.RevisionResolutionError)) and _offline():
            why = "huggingface_hub is offline (HF_HUB_OFFLINE), and its cache does not have it"
            todo = "Unset HF_HUB_OFFLINE, or give a folder."
        else:
            why, todo = f"{type(error).__name__}: {' '.join(str(error).split())}", "Try again, or give a folder."
        raise UserError(f"{what}{why}.", kept=kept, todo=todo) from error
