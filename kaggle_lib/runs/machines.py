"""Several machines in one session: the first has supervisor, store and lease, the others `join` it and run workers.

A machine that joins says who it is, and is given `run.json`, the checkpoint and the hooks file: so it needs no store,
and no path of the first one. It says when it is ready, is told where the workers of all machines meet, and says when
its own have failed. Its connection is the sign of life of both ends, and lasts for one attempt: a machine that is gone
ends the attempt of all. A message is one line of JSON; the files come behind the one that lists them.
"""

from __future__ import annotations

import errno
import json
import select
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from kaggle_lib.checkpoints.manifest import verify
from kaggle_lib.config import RunConfig, code_hash
from kaggle_lib.data.check import check
from kaggle_lib.errors import ConfigError, UserError
from kaggle_lib.files import write_json
from kaggle_lib.runs import base_model
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.launch import Meeting, Workers
from kaggle_lib.runs.opening import only_session
from kaggle_lib.runs.outcome import Outcome
from kaggle_lib.session.where import where

Say = Callable[[str], None]
Message = dict[str, Any]
WORKER = "kaggle_lib.training.worker"
OWN = ("work_dir", "data", "base_model")  # what may lie elsewhere on each machine
SILENCE, HELLO, POLL = 60.0, 10.0, 0.2  # seconds: inside of a message, until the first one, between two looks
# A machine that vanished is noticed when the kernel's probes have had no answer for half a minute.
PROBES = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, f"TCP_KEEP{name}"), n)
        for name, n in (("IDLE", 15), ("INTVL", 5), ("CNT", 3))
    ),
)
CLOSED = "the connection was closed"
UNREACHED = (errno.EHOSTUNREACH, errno.ENETUNREACH)


class Link:
    """A connection, and the name of whom it leads to. Raises OSError where it has ended."""

    def __init__(self, connection: socket.socket, name: str) -> None:
        self.connection, self.name = connection, name
        connection.settimeout(SILENCE)
        for level, option, value in PROBES:
            connection.setsockopt(level, option, value)
        self.file = connection.makefile("rwb")

    def send(self, paths: Sequence[Path] = (), **message: Any) -> None:
        self.file.write(json.dumps(message).encode() + b"\n")
        for path in paths:
            self.file.write(path.read_bytes())
        self.file.flush()

    def hear(self, seconds: float | None) -> Message | None:
        """The next message; None: none began within so long."""
        if not select.select([self.connection], [], [], seconds)[0]:
            return None
        line = self.file.readline(2**20)
        if not line.endswith(b"\n"):
            raise ConnectionError(CLOSED)
        return dict(json.loads(line))

    def take(self, path: Path, size: int) -> None:
        """Write the next `size` bytes to `path`."""
        content = self.file.read(size)
        if len(content) < size:
            raise ConnectionError(CLOSED)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def close(self) -> None:
        with suppress(OSError):
            self.file.close()
        self.connection.close()


class Others:
    """The machines that train with this one, `config.nodes` in all; nothing happens where there are none."""

    def __init__(self, config: RunConfig, folder: RunFolder, say: Say) -> None:
        if config.nodes > 1 and where() != "local":
            raise ConfigError(["nodes: no other machine reaches a session on Kaggle. Leave it out there"])
        self.nodes, self.address, self.folder, self.say = config.nodes, config.rendezvous or "", folder, say
        self._links: list[Link] = []
        self._lost: str | None = None
        self._listening: socket.socket | None = None

    def gather(self, processes: int, asked_to_end: Callable[[], bool]) -> Meeting | None:
        """Wait until every other machine has what its workers need, and say where all meet; None: there are none, or
        the session is to end. More machines than are wanted wait for a place. Raises UserError where this one cannot
        listen at its address."""
        if self.nodes == 1:
            return None
        self.end(again=True)
        host, _, port = self.address.rpartition(":")
        try:
            self._listening = self._listening or socket.create_server((host, int(port)))
        except OSError as error:
            what = f"rendezvous: this machine cannot listen at {self.address}: {error.strerror}."
            raise UserError(what, todo="Give an address of its own that the others reach, and a free port.") from error
        self.say(f"Waiting for {self.nodes - 1} more: run `python -m kaggle_lib join {self.address}` there.")
        while not asked_to_end():
            if len(self._links) < self.nodes - 1:
                if select.select([self._listening], [], [], POLL)[0]:
                    self._meet(*self._listening.accept(), processes, asked_to_end)
                continue
            with socket.create_server((host, 0)) as free:
                meeting = Meeting(host, free.getsockname()[1], 0, self.nodes)
            for number, link in enumerate(self._links, start=1):
                with suppress(OSError):  # seen at the next look for who is lost
                    link.send(node=number, nodes=self.nodes, port=meeting.port)
            return meeting
        return None

    def _meet(self, connection: socket.socket, at: Any, processes: int, asked_to_end: Callable[[], bool]) -> None:
        """Give the machine that has come what it needs, and wait until it is ready."""
        link = Link(connection, at[0])
        try:
            link.name = f"{(link.hear(HELLO) or {})['join']} ({at[0]})"
            run = self.folder.read_run()
            start = self.folder.fork if run["checkpoint"] is None else self.folder.checkpoint(run["checkpoint"])
            paths = [path for path in sorted(start.rglob("*")) if path.is_file()]
            paths += [self.folder.hooks] if run["config"]["hooks"] else []
            files = [(path.relative_to(self.folder.root).as_posix(), path.stat().st_size) for path in paths]
            link.send(paths, run=run, code=code_hash(), processes=processes, files=files)
            while (answer := link.hear(POLL)) is None and not asked_to_end():
                pass
            if answer and "problem" in answer:
                raise ConnectionError(answer["problem"])
        except (OSError, ValueError, KeyError) as error:  # the last two: it speaks another language
            self.say(f"warning: {link.name} does not take part: {error}")
            link.close()
        else:
            self._links.append(link)
            self.say(f"{link.name} is ready.")

    def lost(self, seconds: float = 0.0) -> str | None:
        """Which machine no longer takes part in the attempt, and why; looked for so long."""
        for link in self._links if self._lost is None else []:
            try:
                if message := link.hear(seconds):
                    self._lost = f"machine {link.name}: {message['problem']}"
            except OSError as error:
                self._lost = f"machine {link.name} is gone ({error})"
        return self._lost

    def end(self, **word: Any) -> None:
        """Tell every machine that the attempt has ended: `again`, or how the session did (`outcome`); or nothing."""
        for link in self._links:
            with suppress(OSError):
                link.send(**word)
            link.close()
        self._links, self._lost = [], None

    def close(self) -> None:
        self.end()
        if self._listening:
            self._listening.close()


def join(address: str, values: Mapping[str, object], wait_minutes: float, say: Say) -> Outcome:
    """Train with the session that waits at `address` (host:port), attempt after attempt, and return how it ended.

    `values` may say where OWN are on this machine. Raises ConfigError for a wrong address; UserError where this machine
    lacks something, or nobody was at `address` for `wait_minutes`.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError([f"{address!r} is no address. Write host:port, as `rendezvous` of the first machine has it"])
    here = RunConfig.create({"run": "-", "base_model": "-", "data": "-", **values})
    lost: float | None = None
    while True:
        try:
            with closing(Link(socket.create_connection((host, int(port)), timeout=HELLO), address)) as link:
                link.send(join=socket.gethostname())
                given = link.hear(None) or {}  # when the session begins an attempt
                lost = None
                folder = RunFolder(Path(here.work_dir).absolute() / f"{given['run']['config']['run']}+node")
                with only_session(folder):
                    word = _attempt(
                        link, given, folder, {name: getattr(here, name) for name in OWN if name in values}, say
                    )
            if "outcome" in word:
                outcome = Outcome(**word["outcome"] | {"skipped_checkpoints": []})
                say(f"The session ended: {outcome.outcome}, {outcome.reason}.")
                return outcome
        except OSError as error:
            if not isinstance(error, (ConnectionError, TimeoutError, socket.gaierror)) and error.errno not in UNREACHED:
                raise RunFolder(Path(here.work_dir)).unusable(error) from error
            if lost is None:
                say(f"Nobody is at {address} ({error}); trying for {wait_minutes:g} minutes.")
            lost = lost or time.monotonic()
            if time.monotonic() - lost > 60 * wait_minutes:
                what = f"Nobody was at {address} for {wait_minutes:g} minutes ({error})."
                raise UserError(
                    what, todo="Run `train` with nodes and rendezvous there, and see that it is reached."
                ) from None
            time.sleep(1.0)


def _attempt(link: Link, given: Message, folder: RunFolder, own: dict[str, Any], say: Say) -> Message:
    """Take what is given, run the workers, and return the first machine's last word."""
    run = given["run"]
    try:
        for old in (folder.checkpoints, folder.fork):
            shutil.rmtree(old, ignore_errors=True)
        for name, size in given["files"]:
            link.take(folder.root / name, size)
        _prepare(folder, given, own, say)
    except UserError as error:
        link.send(problem=str(error))
        raise
    link.send(ready=True)
    word = link.hear(None) or {}
    if "port" not in word:
        return word
    name, step = run["config"]["run"], run["checkpoint"] or 0
    say(f"Run {name!r}, machine {word['node'] + 1} of {word['nodes']}: training from step {step} on.")
    meeting = Meeting(link.name.rpartition(":")[0], word["port"], word["node"], word["nodes"])
    workers = Workers(WORKER, folder, given["processes"], meeting)
    told = False
    try:
        while (last := link.hear(POLL)) is None:
            if not told and workers.wait(0) and workers.process.returncode:
                link.send(problem=(folder.read_outcome() or {}).get("reason") or workers.how_ended())
                told = True
        return last
    finally:
        workers.end()


def _prepare(folder: RunFolder, given: Message, own: dict[str, Any], say: Say) -> None:
    """Put `run.json` there, and see that the worker will find all that it needs. Raises UserError where it will not."""
    run = given["run"]
    if given["code"] != code_hash():
        what = "This machine has another version of kaggle_lib than the first: data/, strategies/ or training/ differ."
        raise UserError(what, todo="Install the same one here.")
    hooks = {"hooks": str(folder.hooks)} if run["config"]["hooks"] else {}
    config = RunConfig.from_json({**run["config"], **hooks, **own})
    write_json(folder.run_json, {**run, "config": config.model_dump(mode="json")})
    if run["checkpoint"] is not None:
        verify(folder.checkpoint(run["checkpoint"]))
    if run["base_commit"] and config.hub_base:
        base_model.fetch(config, run["base_commit"], say)
    check(config, folder.cache)
