"""A Kaggle on 127.0.0.1 for the real `kaggle` command line: it runs what is pushed, and lies as Kaggle does.

    with LoopbackKaggle(session_environment=hub.environment()) as kaggle:
        subprocess.run(["kaggle", "kernels", "push", "-p", "folder"], env={**os.environ, **kaggle.environment()})
        kaggle.sessions[-1].wait()

The client has one way that leads away from Kaggle, and it ends at port 80 of `localhost`; so it is led here as to a
proxy (`environment`). The proxy forwards what is meant for other ports of this machine (a loopback Hub), and nothing
else. Sessions run in the image of loopback_kaggle_image, within what loopback_kaggle_container opens for them, with
`KAGGLE_LIB_ROOT` for `/kaggle`. Faults: loopback_kaggle_faults.
By itself: `python -m support.loopback_kaggle --root DIR [--port N] [--set NAME=VALUE]…`; other processes then look at
GET /_state, and drive it by /_faults and POST /_do (an object whose one key names what to do, see `_do`).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from support import loopback_kaggle_datasets  # noqa: F401  # registers its methods
from support.loopback_http import Reply, Request, Server
from support.loopback_kaggle_api import machine
from support.loopback_kaggle_exchange import exchange
from support.loopback_kaggle_faults import Faults
from support.loopback_kaggle_image import build
from support.loopback_kaggle_records import Account, Call, Dataset, Kernel, Version
from support.loopback_kaggle_session import Plan, Session, enter_words
from support.loopback_script import Served

USER = Account("loopback", "0123456789abcdef0123456789abcdef", "KGAT_0123456789abcdef0123456789abcdef")
SETTINGS = ("limit", "grace", "slots", "quota_hours", "gpu_hours", "processing_seconds", "secrets_travel", "mount_as")


class LoopbackKaggle(Served):
    """Serves from the moment it is entered (or `start`) until it is left (or `stop`), and no session outlives it.

    `limit`: seconds that a session may last; `grace`: between SIGINT and SIGKILL at its end. What a push asks for as
    `--timeout` is kept and, as reported, does nothing. `secrets_travel`: a pushed version carries the secrets that
    were attached in the editor; two independent reports say that it does not, so neither does it here unless asked.
    `gpu_hours`: used this week before the first session. `mount_as`: how an attached source's folder is named.
    `session_environment`: what is added to every session's environment, such as the address of a loopback Hub.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        port: int = 0,
        accounts: tuple[Account, ...] = (USER,),
        session_environment: dict[str, str] | None = None,
        without: tuple[str, ...] = (),
    ):
        self._made = root is None
        self.root = (Path(root) if root else Path(tempfile.mkdtemp(prefix="loopback-kaggle-"))).absolute()
        self.accounts = accounts
        self.session_environment = dict(session_environment or {})
        self.limit, self.grace, self.slots = 12 * 3600.0, 2.0, 2
        self.quota_hours, self.gpu_hours, self.quota_refresh = 30.0, 0.0, time.time() + 3 * 86400
        self.processing_seconds = 0.0
        self.secrets_travel = False
        self.mount_as = "{slug}"  # or "datasets/{owner}/{slug}", or "d/{owner}/{slug}"
        self.kernels: dict[str, Kernel] = {}
        self.secrets: dict[str, dict[str, str]] = {}  # of a kernel, as attached in the editor
        self.datasets: dict[str, Dataset] = {}
        self.models: dict[str, Dataset] = {}
        self.sessions: list[Session] = []
        self.blobs: dict[str, str] = {}
        self.calls: list[Call] = []
        self.faults = Faults()
        self.lock = threading.RLock()
        self._numbers = 100_000_000
        for name in ("sessions", "blobs", "clients"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        self.python = build(self.root / "image", without)
        self.enter = enter_words()
        self._server = Server(port, self.exchange)
        self.stopping = self._server.stopping
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def stop(self) -> None:
        super().stop()
        for session in self.sessions:
            session.cancel()
        for session in self.sessions:
            session.join()
        if self._made:
            shutil.rmtree(self.root, ignore_errors=True)

    def environment(self, account: Account | None = None, *, token: bool = False) -> dict[str, str]:
        """Variables for a client's process, with a home of its own: the old credentials, or the newer token."""
        account = account or self.accounts[0]
        home = self.root / "clients" / uuid.uuid4().hex[:8]
        home.mkdir(parents=True)
        old = {"KAGGLE_USERNAME": account.name, "KAGGLE_KEY": account.key}
        values = {"KAGGLE_API_ENVIRONMENT": "LOCALHOST", "HOME": str(home), "KAGGLE_CONFIG_DIR": str(home / ".kaggle")}
        for name in ("http_proxy", "no_proxy"):
            values[name] = values[name.upper()] = self.endpoint if name == "http_proxy" else "127.0.0.1"
        return {**values, **({"KAGGLE_API_TOKEN": account.token} if token else old)}

    def number(self) -> int:
        """A new id."""
        with self.lock:
            self._numbers += 1
            return self._numbers

    def gpu_hours_used(self) -> float:
        """This week's; a session is billed once, however many GPUs it has."""
        return self.gpu_hours + sum(session.seconds for session in self.sessions if session.gpus) / 3600

    def run(self, kernel: Kernel, plan: Plan, gpus: tuple[str, ...], *, secrets: bool) -> Session:
        """Start a session of the kernel's newest version, with its secrets or without."""
        given = gpus if plan.gpus is None else plan.gpus
        carried = dict(self.secrets.get(kernel.ref, {})) if secrets else {}
        session = Session(self, self.number(), kernel.ref, kernel.versions[-1], carried, plan, given)
        self.sessions.append(session)
        session.start()
        return session

    def run_in_editor(self, kernel: str) -> Session:
        """ "Save & Run All", or Kaggle's own scheduler: the newest version once more, with the attached secrets."""
        with self.lock:
            found = self.kernels[kernel]
            last = found.versions[-1]
            found.versions.append(Version(last.number + 1, last.source, last.fields))
            return self.run(found, Plan(), machine(last.fields), secrets=True)

    def attach_secret(self, kernel: str, label: str, value: str) -> None:
        """As its owner does in the editor; here, the kernel need not have been pushed yet."""
        with self.lock:
            self.secrets.setdefault(kernel, {})[label] = value

    def add_dataset(self, ref: str, files: dict[str, str | bytes], *, model: bool = False) -> Dataset:
        """A dataset as its owner/slug, or a version of a model as owner/model/framework/variation/version."""
        number = self.number()
        dataset = Dataset(ref, number, self.root / "datasets" / str(number), version=1)
        for name, content in files.items():
            path = dataset.content / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        (self.models if model else self.datasets)[ref] = dataset
        return dataset

    def source(self, owner: str, kind: str, ref: str) -> Path | None:
        """The folder of what `owner`'s kernel attaches, or None where there is none, or it is another's and private."""
        if kind == "kernel":
            outputs = [one.output for one in self.sessions if one.kernel == ref and one.output and not one.live]
            return outputs[-1] if outputs and ref.startswith(f"{owner}/") else None
        found = (self.models if kind == "model" else self.datasets).get(ref)
        return found.content if found and (not found.private or ref.startswith(f"{owner}/")) else None

    def mount(self, owner: str, version: Version, folder: Path) -> None:
        """Put what a version of `owner`'s kernel attaches into its session's `input`."""
        for kind in ("dataset", "kernel", "model"):
            for ref in version.sources(kind):
                maker, _, slug = ref.partition("/")
                if content := self.source(owner, kind, ref):
                    named = slug if kind == "model" else self.mount_as.format(owner=maker, slug=slug)
                    shutil.copytree(content, folder / named)

    def exchange(self, request: Request) -> Reply:
        """Answer one request: of another process that drives this server, or of a client."""
        if request.path in ("/_faults", "/_state", "/_do") and not request.headers.get("Authorization"):
            return self._drive(request)
        return exchange(self, request)

    def _drive(self, request: Request) -> Reply:
        try:
            if request.path == "/_do":
                self._do(request.json())
            elif request.path == "/_faults" and request.method == "DELETE":
                self.faults.clear()
            elif request.path == "/_faults" and request.method == "POST":
                self.faults.load(request.json())
        except (KeyError, TypeError, ValueError) as error:
            return Reply.json({"error": repr(error)}, 400)
        return Reply.json(self.faults.told() if request.path == "/_faults" else self.state())

    def _do(self, order: dict[str, Any]) -> None:
        """One of: {"set": {NAME: VALUE}} of SETTINGS; {"attach_secret": [KERNEL, LABEL, VALUE]}; {"run_in_editor":
        KERNEL}; {"add_dataset": [REF, {FILE: TEXT}]}; {"cancel": SESSION ID}. Raises KeyError, TypeError, ValueError.
        """
        ((name, given),) = order.items()
        if name == "set":
            for key, value in given.items():
                self.set(key, value)
        elif name == "cancel":
            next(one for one in self.sessions if one.id == given).cancel()
        elif name == "run_in_editor":
            self.run_in_editor(given)
        elif name in ("attach_secret", "add_dataset"):
            getattr(self, name)(*given)
        else:
            raise ValueError(f"no order {name}")

    def set(self, name: str, value: Any) -> None:
        """Change one of SETTINGS. Raises KeyError."""
        if name not in SETTINGS:
            raise KeyError(name)
        setattr(self, name, type(getattr(self, name))(value))

    def state(self) -> dict[str, Any]:
        """What this Kaggle holds, for processes that cannot look into it."""
        kernels = {
            ref: {"id": one.id, "title": one.title, "versions": len(one.versions)} for ref, one in self.kernels.items()
        }
        return {
            "endpoint": self.endpoint,
            "contained": bool(self.enter),
            "settings": {name: getattr(self, name) for name in SETTINGS},
            "kernels": kernels,
            "datasets": {ref: {"private": one.private, "version": one.version} for ref, one in self.datasets.items()},
            "sessions": [session.told() for session in self.sessions],
            "calls": [vars(call) for call in list(self.calls)],
            "faults": self.faults.told(),
        }


def main(words: list[str] | None = None) -> None:
    """Serve until SIGTERM or Ctrl-C. Printed first: the environment for clients, as lines for a shell."""
    parser = argparse.ArgumentParser(prog="python -m support.loopback_kaggle", description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help=", ".join(SETTINGS))
    parser.add_argument("--session", action="append", default=[], metavar="NAME=VALUE", help="a session's environment")
    given = parser.parse_args(words)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    environment = dict(word.split("=", 1) for word in given.session)
    with LoopbackKaggle(given.root, port=given.port, session_environment=environment) as kaggle:
        for name, _, value in (word.partition("=") for word in given.set):
            kaggle.set(name, json.loads(value))
        print(f"# {kaggle.endpoint}; process {os.getpid()}")
        for name, value in kaggle.environment().items():
            print(f"export {name}={shlex.quote(value)}")
        print(flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
