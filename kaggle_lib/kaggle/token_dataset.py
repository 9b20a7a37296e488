"""A private Kaggle dataset that holds the Hub's token, for pushed sessions: secrets do not travel with a push."""

from __future__ import annotations

import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from kaggle_lib.errors import ConfigError, KaggleBusy, KaggleError
from kaggle_lib.kaggle.client import SITE, Client, Said
from kaggle_lib.session.secrets import hub_token

SLUG, FILE = "kaggle-lib-hub-token", "HF_TOKEN"
MEANING = """\
--token-dataset makes the private Kaggle dataset {ref}, a file with the Hugging Face token of {place}.
  Every notebook that it is attached to can read it, and so can whoever gets into your Kaggle account; if you ever make
  the dataset public, so can everybody. Kaggle's secrets are safer, but do not travel with a push.
  Use a fine-grained token that may write to the one repo of the run. To take it back: {site}/datasets/{ref}/settings,
  and https://huggingface.co/settings/tokens."""


def ensure(
    client: Client, say: Callable[[str], None], *, yes: bool, seconds: float = 1200.0, poll: float = 10.0
) -> str:
    """`owner/slug` of the user's dataset with the token, made first where it is missing, after a yes. One that is there
    is used as it is.

    Raises ConfigError without a yes, KaggleError where it cannot be made, KaggleBusy where Kaggle takes longer than
    `seconds` to make it ready.
    """
    ref = f"{client.user()}/{SLUG}"
    state = _state(client.call("datasets", "status", ref))
    if state == "missing":
        token = hub_token()
        if token is None:
            raise ConfigError(["--token-dataset: there is no Hugging Face token here. Set HF_TOKEN"])
        say(MEANING.format(ref=ref, place=token.place, site=SITE))
        if not (yes or _confirmed()):
            raise ConfigError(["--token-dataset: nothing was made. Say yes when asked, or give --yes"])
        _create(client, ref, token.value)
    else:
        say(f"The token is taken from your private dataset {ref} as it is; to renew it, delete the dataset.")
    end = time.monotonic() + seconds
    while state != "ready":
        # For minutes after it was made, a dataset is refused even to its owner.
        state = _state(client.call("datasets", "status", ref))
        if state in ("error", "deleted"):
            raise KaggleError(f"Kaggle could not make the dataset {ref} ({state}).", todo="Delete it, and run again.")
        if state != "ready":
            if time.monotonic() >= end:
                raise KaggleBusy(f"Kaggle is still making the dataset {ref}.", todo="Run this again in a while.")
            time.sleep(poll)
    return ref


def _confirmed() -> bool:
    """Asked at a terminal only: nothing here waits for an answer that nobody can give."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return False
    print("Make it? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _state(said: Said) -> str:
    """A word of Kaggle's, or `missing`, which it also says for a while of one that has just been made."""
    if said.code == 0 and (found := re.search(r"^(\w+)\s*$", said.out, re.MULTILINE)):
        return found[1].lower()
    if re.search(r"\b40[34] Client|denied|resource was not found", said.err):
        return "missing"
    raise KaggleBusy(f"Kaggle does not say whether the token's dataset is there ({said.problem}).", todo="Try again.")


def _create(client: Client, ref: str, token: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)  # readable by this user alone, and gone afterwards
        (folder / FILE).write_text(token, encoding="utf-8")
        about = {"title": SLUG, "id": ref, "licenses": [{"name": "other"}]}
        (folder / "dataset-metadata.json").write_text(json.dumps(about), encoding="utf-8")
        said = client.call("datasets", "create", "-p", str(folder))
    # A retry of the client's own, after a reply that was lost, finds what the first try has made.
    if not re.search(r"dataset is being created|already in use", said.out, re.IGNORECASE):
        error = re.search(r"Dataset creation error: (.*)", said.out)
        raise KaggleError(f"Kaggle did not make the dataset {ref}: {error[1] if error else said.problem}")
