"""`doctor --hub-selftest`: what the store on the Hub relies on, asked of the real Hub, in a repo and a bucket that are
made for it and deleted again.

What no server of our own can know is found out here: whether a stale parent is refused, how long reads lag, whether
deleted content is given back and what the token may do about it, how fast content comes and goes.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from huggingface_hub import HfApi

from kaggle_lib.checkpoints.hub_client import Failures, connect, status, within
from kaggle_lib.checkpoints.hub_repo import Damaged, again
from kaggle_lib.config import RunConfig
from kaggle_lib.errors import StoreError, UserError
from kaggle_lib.report.hub_scratch import Found, Scratch, State, why
from kaggle_lib.session.secrets import hub_token

EACH, ALL = 90.0, 900.0  # seconds for one question, and for all of them


@dataclass(frozen=True)
class Answer:
    """What was found of one question, or (`failed`) why nothing was."""

    question: str
    state: State
    text: str
    seconds: float
    values: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.state:7}  {self.question}: {self.text}"


@dataclass(frozen=True)
class Selftest:
    """`exit_code` is 1 where an answer differs from what the store relies on, or could not be had."""

    repo: str
    answers: list[Answer]

    @property
    def exit_code(self) -> int:
        return int(any(answer.state in ("differs", "failed") for answer in self.answers))

    def to_json(self) -> dict[str, Any]:
        answers = [asdict(answer) for answer in self.answers]
        return {"ok": not self.exit_code, "repo": self.repo, "answers": answers}


def selftest(values: Mapping[str, object], say: Callable[[str], None], seconds: float = EACH) -> Selftest:
    """Ask everything, a line each; the scratch repo belongs to the owner of `store`, or else to the token's user. No
    question takes longer than `seconds`. Raises ConfigError for a wrong value, UserError where there is no token.
    """
    config = RunConfig.create({"run": "doctor", "base_model": "sample", "data": "sample", **values})
    token = hub_token()
    if token is None:
        raise UserError("There is no Hugging Face token.", todo="Set HF_TOKEN, or run `hf auth login`.")
    owner = config.hub_store.split("/")[0] if config.hub_store else None
    answers: list[Answer] = []
    connect()

    def ask(question: str, what: Callable[[], Found]) -> Answer:
        answers.append(_ask(question, what, seconds, token.value))
        say(str(answers[-1]))
        return answers[-1]

    api = HfApi(token=token.value, library_name="kaggle_lib")
    user = ask("token", lambda: _token(api)).values.get("user")
    if not (owner or user):
        return Selftest("", answers)
    scratch = Scratch(f"{owner or user}/kaggle-lib-selftest-{secrets.token_hex(8)}", token.value, api)
    try:
        with within(ALL):
            if ask("scratch repo", scratch.made).state != "failed":
                for question, what in scratch.questions():
                    ask(question, what)
    finally:
        ask("scratch removed", scratch.removed)
    return Selftest(scratch.id, answers)


def _ask(question: str, what: Callable[[], Found], seconds: float, token: str) -> Answer:
    began = time.monotonic()
    try:
        with within(seconds):
            found = what()
    except StoreError as error:
        found = Found("failed", error.what, {})
    except Damaged as error:
        found = Found("failed", str(error), {})
    except Failures as error:
        found = Found("failed", why(error, token), {"status": status(error)})
    return Answer(question, *found[:2], round(time.monotonic() - began, 3), found.values)


def _token(api: HfApi) -> Found:
    who = again(api.whoami)
    role = str(who["auth"]["accessToken"].get("role")) if "auth" in who else "unknown"
    text = f"of {who['name']}, its role is {role}"
    return Found("note" if role == "read" else "ok", text, {"user": who["name"], "role": role})
