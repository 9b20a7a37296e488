"""A Hugging Face Hub on 127.0.0.1 for the real client: private repos, tokens, LFS and Xet, and faults as a script.

Set HF_ENDPOINT (or use `environment`) and call huggingface_hub as usual. All data lies under `root`: a server that was
stopped, or killed, starts again on it. By itself: `python -m support.loopback_hub --root DIR [--port N] [--no-xet]`.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import json
import os
import secrets
import shutil
import signal
import tempfile
import threading
import traceback
import uuid
from pathlib import Path
from typing import Any

from support import loopback_faults, loopback_xet
from support.loopback_api import routes
from support.loopback_buckets import Bucket
from support.loopback_http import Record, Refused, Reply, Request, Server, User, now
from support.loopback_repo import Repo, write_whole
from support.loopback_script import Served

TOKEN, READ_TOKEN = "hf_loopbackwrite000000000000000000000", "hf_loopbackread0000000000000000000000"
OWNER = "loopback"


class LoopbackHub(Served):
    """Serves from the moment it is entered (or `start`) until it is left (or `stop`).

    `users`: {token: User}; by default a token that writes and one that only reads, both of the user `loopback`. A repo
    belongs to the user whose name its id begins with. `root`: by default a new folder, which `stop` removes.
    """

    def __init__(
        self, root: Path | None = None, *, xet: bool = True, users: dict[str, User] | None = None, port: int = 0
    ):
        self._made = root is None
        self.root = Path(root) if root else Path(tempfile.mkdtemp(prefix="loopback-hub-"))
        self.xet = xet
        self.users = users or {TOKEN: User(OWNER), READ_TOKEN: User(OWNER, write=False)}
        self.token = next((token for token, user in self.users.items() if user.write), TOKEN)
        self.read_token = next((token for token, user in self.users.items() if not user.write), READ_TOKEN)
        self.page_size = 1000
        self.requests: list[Record] = []
        self.faults = loopback_faults.Faults()
        if script := os.environ.get("LOOPBACK_FAULTS"):
            self.faults.load(json.loads(Path(script).read_text()))
        self.lock = threading.RLock()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.buckets: dict[str, Bucket] = {}
        self._key = self._load()
        self.cas = loopback_xet.Cas(self.root / "xet")
        self.tag = self.key("cas")[:8]  # a client's cache of what is stored must not outlive this root
        self._server = Server(port, self.exchange)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        super().stop()
        if self._made:
            shutil.rmtree(self.root, ignore_errors=True)

    def repo(self, id: str, kind: str = "model") -> Repo:
        """Raises KeyError where there is none."""
        return self.repos[kind, id]

    def environment(self, **more: str) -> dict[str, str]:
        """Variables for a client's process: this Hub, the writing token, and a cache of its own."""
        home = self.root / "clients" / uuid.uuid4().hex[:8]
        home.mkdir(parents=True)
        values = {"HF_ENDPOINT": self.endpoint, "HF_TOKEN": self.token, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
        values |= {"HF_HUB_DISABLE_XET": "0" if self.xet else "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
        values |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_XET_CLIENT_CONNECT_TIMEOUT": "2s"}
        values |= {"HF_XET_CLIENT_READ_TIMEOUT": "5s", "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "2"}
        return {**values, "HF_XET_CLIENT_RETRY_BASE_DELAY": "50ms", **more}

    def lead_client(self, patch: Any, **more: str) -> None:
        """Point this process's huggingface_hub here, its cache and its Xet session too; pytest's `patch` undoes it."""
        from huggingface_hub import constants
        from huggingface_hub.utils._xet import XET_CONNECTION_INFO_CACHE, abort_xet_session
        from huggingface_hub.utils.tqdm import progress_bar_states

        values = self.environment(**more)
        home = Path(values["HF_HOME"])
        for name, value in values.items():
            patch.setenv(name, value)
        patch.setattr(constants, "ENDPOINT", self.endpoint)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", not self.xet)
        patch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{self.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        )
        patch.setitem(progress_bar_states, "_global", False)
        patch.setattr(constants, "HF_HOME", str(home))
        patch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        patch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
        XET_CONNECTION_INFO_CACHE.clear()  # it knows addresses, and a port may come again
        abort_xet_session()  # the next one reads the environment

    def create_repo(self, id: str, kind: str = "model", private: bool = True, author: str = OWNER) -> Repo:
        folder = self.root / "repos" / uuid.uuid4().hex
        self.repos[kind, id] = Repo.create(folder, id, kind, private, author)
        return self.repos[kind, id]

    def delete_repo(self, id: str, kind: str = "model") -> None:
        repo = self.repos.pop((kind, id))
        (repo.folder / "repo.json").unlink()
        shutil.rmtree(repo.folder)

    def bucket(self, id: str) -> Bucket:
        """Raises KeyError where there is none."""
        return self.buckets[id]

    def create_bucket(self, id: str, private: bool = True) -> Bucket:
        self.buckets[id] = Bucket(self.root / "buckets" / uuid.uuid4().hex, id, private)
        self.buckets[id].save()
        return self.buckets[id]

    def delete_bucket(self, id: str) -> None:
        shutil.rmtree(self.buckets.pop(id).folder)

    def object_content(self, repo: Repo, sha256: str) -> bytes:
        path, stored = repo.object_path(sha256), repo.objects[sha256]
        if stored.xet is not None and not path.is_file():
            write_whole(path, loopback_xet.materialise(self, f"{repo.kind}/{repo.id}", stored.xet, stored.size))
        return path.read_bytes()

    def holder(self, name: str) -> Repo | Bucket | None:
        """A repo or bucket by kind/id."""
        kind, _, id = name.partition("/")
        return self.buckets.get(id) if kind == "bucket" else self.repos.get((kind, id))

    def key(self, path: str) -> str:
        """What opens `path` without a token."""
        return hmac.new(self._key, path.encode(), hashlib.sha256).hexdigest()

    def signed(self, path: str) -> str:
        """An address for content. Its host has another name than the Hub, so clients send it no token."""
        return f"{self.endpoint.replace('127.0.0.1', 'localhost')}{path}?key={self.key(path)}"

    def wait(self, seconds: float) -> None:
        """Sleep, but no longer than this Hub serves."""
        self._server.stopping.wait(seconds)

    def exchange(self, request: Request) -> Reply:
        """Answer one request under the script of faults, and keep a record of it."""
        if request.path in ("/_faults", "/_state"):
            return self._drive(request)
        if request.path.startswith(loopback_xet.INNER):
            return self._answer(request)
        reply = loopback_faults.exchange(self, request, self._answer)
        status = 0 if reply.dropped else reply.status
        self.requests.append(Record(request.method, request.path, status, now(), reply.faults))
        return reply

    def _drive(self, request: Request) -> Reply:
        """What other processes see and set: GET /_state, and GET, POST or DELETE /_faults."""
        if request.path == "/_state":
            with self.lock:
                return Reply.json(self.state())
        try:
            if request.method == "DELETE":
                self.faults.clear()
            elif request.method == "POST":
                self.faults.load(request.json())
        except (TypeError, ValueError) as error:
            return Reply.json({"error": str(error)}, 400)
        return Reply.json(self.faults.told())

    def _answer(self, request: Request) -> Reply:
        try:
            if request.token is not None and request.path.startswith("/api/"):
                request.user = self.users.get(request.token)
                if request.user is None:
                    raise Refused(401, "Invalid credentials in Authorization header")
            elif request.token is not None:
                request.user = self.users.get(request.token)
            endpoint, named = routes.find(request)
            if request.path.startswith(loopback_xet.INNER):
                return endpoint(self, request, **named)  # asked by an endpoint, which holds the lock
            with self.lock:
                return endpoint(self, request, **named)
        except Refused as refused:
            return refused.reply()
        except Exception:
            traceback.print_exc()
            return Refused(500, f"The loopback Hub broke at {request.method} {request.path}").reply()

    def state(self) -> dict[str, Any]:
        """What this Hub holds, for processes that cannot look into it."""
        told = {}
        for (kind, id), repo in self.repos.items():
            heads = {name: {"commit": head, "files": repo.files(head)} for name, head in repo.branches.items()}
            told[f"{kind}s/{id}"] = {"private": repo.private, "branches": heads, "stored_bytes": repo.stored_bytes()}
        for id, bucket in self.buckets.items():
            files = {path: {"size": entry.size, "xet": entry.xet} for path, entry in bucket.files.items()}
            told[f"buckets/{id}"] = {"private": bucket.private, "files": files, "stored_bytes": bucket.stored_bytes()}
        requests = [vars(record) for record in list(self.requests)]
        return {"endpoint": self.endpoint, "repos": told, "requests": requests, "faults": self.faults.told()}

    def _load(self) -> bytes:
        """Read what lies under `root`; the key for signatures."""
        self.root.mkdir(parents=True, exist_ok=True)
        for folder in (self.root / "repos").glob("*"):
            if (folder / "repo.json").is_file():
                repo = Repo.load(folder)
                self.repos[repo.kind, repo.id] = repo
            else:
                shutil.rmtree(folder)
        for folder in (self.root / "buckets").glob("*/bucket.json"):
            bucket = Bucket.load(folder.parent)
            self.buckets[bucket.id] = bucket
        key = self.root / "key"
        if not key.is_file():
            key.write_bytes(secrets.token_bytes(32))
        return key.read_bytes()


def main(words: list[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C; the first line printed is JSON: endpoint, token, read_token."""
    parser = argparse.ArgumentParser(prog="python -m support.loopback_hub", description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--no-xet", action="store_true")
    given = parser.parse_args(words)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with LoopbackHub(given.root, xet=not given.no_xet, port=given.port) as hub:
        print(json.dumps({"endpoint": hub.endpoint, "token": hub.token, "read_token": hub.read_token}), flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
