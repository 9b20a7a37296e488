"""A few questions to the Hub by the standard library alone: is it there, may this token read and write."""

from __future__ import annotations

import json
import os
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any
from urllib.parse import quote

from kaggle_lib.runs.base_model import wanted
from kaggle_lib.session.secrets import Token

SECONDS = 10.0  # of one question: a name that no server resolves has no end of its own
PROBE = "kaggle-lib-write-check"  # a branch that is made and removed at once
SWITCH_ON = (
    "Switch it on in the notebook's editor, on the right under Session options (Internet on; the account needs a "
    "verified phone number), or push with enable_internet, and run again."
)


def offline() -> bool:
    """Whether the Hub may not be asked, as huggingface_hub reads it."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


class _AsItIs(urllib.request.HTTPErrorProcessor):
    """No answer is an error, and no redirection is followed: a token must not reach another host."""

    def http_response(self, request: Any, response: Any) -> Any:
        return response

    https_response = http_response


@dataclass(frozen=True)
class Reply:
    """`status` is 0 where there was none, `reason` then says why."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    reason: str = ""


class Hub:
    """The one of `HF_ENDPOINT`, unless set Hugging Face's. `notes` collects what is odd and ends no session."""

    def __init__(self) -> None:
        self.endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
        self.notes: list[str] = []

    def ask(self, method: str, path: str, token: Token | None = None, body: Any = None) -> Reply:
        """One question, with an end to it."""
        headers = {"User-Agent": "kaggle_lib", "Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token.value}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.endpoint + path, data, headers, method=method)
        replies: list[Reply] = []

        def send() -> None:
            try:
                with urllib.request.build_opener(_AsItIs).open(request, timeout=SECONDS) as answer:
                    replies.append(Reply(answer.status, answer.read(), dict(answer.headers)))
            except (OSError, ValueError, HTTPException) as error:
                reason = getattr(error, "reason", None) or error
                replies.append(Reply(0, reason=getattr(reason, "strerror", None) or str(reason)))

        thread = threading.Thread(target=send, daemon=True)  # getaddrinfo takes no timeout
        thread.start()
        thread.join(SECONDS)
        return replies[0] if replies else Reply(0, reason=f"no answer in {SECONDS:.0f} s")

    def unreachable(self) -> str | None:
        """Why the Hub cannot be reached at all, or None."""
        reply = self.ask("HEAD", "/")
        return None if reply.status else f"{self.endpoint} does not answer ({reply.reason})"

    def model(self, id: str, revision: str | None, token: Token | None) -> tuple[int, list[str]]:
        """(bytes of the base model's files, why it cannot be had: a line, or none)."""
        at = quote(revision or "main", safe="")
        info = self.ask("GET", f"/api/models/{id}/revision/{at}?blobs=true", token)
        head = self.ask("HEAD", f"/{id}/resolve/{at}/config.json", token) if info.status == 200 else info
        what = f"The base model {id} cannot be had: "
        code = {name.lower(): value for name, value in head.headers.items()}.get("x-error-code")
        if code == "GatedRepo":
            account = "with the account that the token is of" if token else "then attach a token as the secret HF_TOKEN"
            return 0, [f"{what}its licence has to be accepted first, on https://huggingface.co/{id}, {account}."]
        if code == "RevisionNotFound":
            return 0, [f"{what}it has no revision {revision!r} on the Hub. Check revision."]
        if head.status in (401, 403, 404) and head is info:
            seen = "the token may read" if token else "can be read without a token"
            return 0, [f"{what}there is no model of that name on the Hub that {seen}. Check base_model, and the token."]
        if head.status == 404:
            return 0, [f"{what}it has no config.json, so it is no model for transformers. Check base_model."]
        if info.status == 200 and 200 <= head.status < 400:
            files = {one["rfilename"]: one.get("size") or 0 for one in json.loads(info.body)["siblings"]}
            return sum(files[name] for name in wanted(list(files))), []
        self._note(head, id)  # a model that was renamed, too: the client follows where it went
        return 0, []

    def not_writable(self, repo: str, token: Token, *, public: bool, make: bool = True) -> Iterator[str]:
        """Why the token cannot write to `repo`, by a real write: the repo where there is none, else a branch. Without
        `make` a repo that is not there stays so, and the token's role is all that is known.

        Creating a repo that is there proves nothing: a token that only reads gets the same answer.
        """
        seen = self.ask("GET", f"/api/models/{repo}", token)
        if seen.status == 404 and not make:
            reply = self.ask("GET", "/api/whoami-v2", token)
            access = json.loads(reply.body).get("auth", {}).get("accessToken", {}) if reply.status == 200 else {}
            reply = Reply(403) if access.get("role") == "read" else reply
        elif seen.status == 404:
            owner, name = repo.split("/")
            body = {"name": name, "organization": owner, "type": "model", "private": not public}
            reply = self.ask("POST", "/api/repos/create", token, body)
        elif seen.status == 200:
            reply = self.ask("POST", f"/api/models/{repo}/branch/{PROBE}", token, {})
            if reply.status < 300 or reply.status == 409:  # 409: left by a session that was killed here
                reply = self.ask("DELETE", f"/api/models/{repo}/branch/{PROBE}", token)
        else:
            reply = seen
        todo = "Store one that may write to it, from https://huggingface.co/settings/tokens."
        if reply.status == 401:
            yield f"The Hugging Face token in {token.place} is not valid any more (HTTP 401). {todo}"
        elif reply.status == 403:
            yield f"The Hugging Face token in {token.place} may not write to {repo} (HTTP 403). {todo}"
        elif not 200 <= reply.status < 300 and reply.status not in (404, 409):  # another session's check was quicker
            self._note(reply, repo)

    def _note(self, reply: Reply, id: str) -> None:
        self.notes.append(f"The Hub answers {reply.status or reply.reason} for {id}: going on, it will be asked again.")
