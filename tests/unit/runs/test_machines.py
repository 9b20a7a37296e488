"""What passes between the machines of one session: who takes part, what each is given, how the other end is heard."""

import json
import socket
import threading

import pytest

from kaggle_lib.config import RunConfig, code_hash
from kaggle_lib.errors import ConfigError, UserError
from kaggle_lib.files import write_json
from kaggle_lib.runs import machines
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.launch import Meeting, command
from kaggle_lib.runs.machines import Others

LEAST = {"run": "r", "base_model": "sample", "data": "sample", "quantization": "none", "precision": "fp32"}
LEAST |= {"optim": "adamw_torch"}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Machine:
    """Another machine, by hand: it speaks line by line."""

    def __init__(self, address, host):
        place, _, port = address.rpartition(":")
        self.connection = socket.create_connection((place, int(port)), timeout=30)
        self.file = self.connection.makefile("rwb")
        self.say(join=host)

    def say(self, **message):
        self.file.write(json.dumps(message).encode() + b"\n")
        self.file.flush()

    def hear(self):
        return json.loads(self.file.readline())

    def begin(self):
        """What it is given: (run.json and its kin, {path: content})."""
        given = self.hear()
        return given, {name: self.file.read(size) for name, size in given["files"]}

    def leave(self):
        self.file.close()
        self.connection.close()


class Gathering:
    """`Others.gather` in a thread of its own, as the supervisor calls it; `said` is what it printed."""

    def __init__(self, tmp_path, nodes, **run):
        self.folder = RunFolder(tmp_path / "r")
        self.folder.create()
        self.said, self.asked = [], False
        address = f"127.0.0.1:{free_port()}"
        self.config = RunConfig.create({**LEAST, "nodes": nodes, "rendezvous": address})
        run = {"checkpoint": None, "base_commit": None, "attempt": 0, **run}
        write_json(self.folder.run_json, {"config": self.config.model_dump(mode="json"), **run})
        self.others = Others(self.config, self.folder, self._say)
        self.listening = threading.Event()

    def _say(self, line):
        self.said.append(line)
        self.listening.set()

    def start(self):
        self.met = []
        self.thread = threading.Thread(target=lambda: self.met.append(self.others.gather(2, lambda: self.asked)))
        self.thread.start()

    def machine(self, host):
        while True:
            try:
                return Machine(self.config.rendezvous, host)
            except ConnectionRefusedError:
                continue

    def done(self):
        self.thread.join(30)
        assert self.met, self.said
        return self.met[0]


@pytest.fixture
def two(tmp_path):
    gathering = Gathering(tmp_path, 2)
    yield gathering
    gathering.asked = True
    gathering.thread.join(30)
    gathering.others.close()


def test_a_machine_gets_all_that_its_workers_need_in_every_attempt(tmp_path):
    gathering = Gathering(tmp_path, 3, checkpoint=4)
    checkpoint = gathering.folder.checkpoint(4)
    (checkpoint / "events").mkdir(parents=True)
    (checkpoint / "optimizer.pt").write_bytes(bytes(range(256)) * 9000)
    (checkpoint / "events" / "one.jsonl").write_text("{}\n")
    others = []
    for _ in range(2):
        gathering.start()
        waiting, others = others, [gathering.machine("a"), gathering.machine("b")]
        assert [machine.hear() for machine in waiting] == [{"again": True}] * len(waiting)
        for machine in others:
            given, files = machine.begin()
            assert (given["processes"], given["code"]) == (2, code_hash())
            assert given["run"] == gathering.folder.read_run()
            assert files == {
                "checkpoints/step-00000004/events/one.jsonl": b"{}\n",
                "checkpoints/step-00000004/optimizer.pt": bytes(range(256)) * 9000,
            }
            machine.say(ready=True)
        meeting = gathering.done()
        assert (meeting.host, meeting.node, meeting.nodes) == ("127.0.0.1", 0, 3)
        assert [machine.hear() for machine in others] == [
            {"node": number, "nodes": 3, "port": meeting.port} for number in (1, 2)
        ]
    gathering.others.end(outcome={"outcome": "paused"})
    assert others[0].hear() == {"outcome": {"outcome": "paused"}}
    gathering.others.close()


def test_one_that_cannot_take_part_or_is_lost_gives_its_place_to_the_next(two):
    two.start()
    first = two.machine("first")
    first.begin()
    second = two.machine("second")  # it waits until the place is free
    first.say(problem="There is no data here.")
    second.begin()
    second.leave()
    third = two.machine("third")
    third.begin()
    third.say(ready=True)
    assert two.done() is not None
    assert two.said == [
        f"Waiting for 1 more: run `python -m kaggle_lib join {two.config.rendezvous}` there.",
        "warning: first (127.0.0.1) does not take part: There is no data here.",
        "warning: second (127.0.0.1) does not take part: the connection was closed",
        "third (127.0.0.1) is ready.",
    ]
    assert two.others.lost() is None
    assert third.hear()["node"] == 1
    third.say(problem="the workers ended with 1")
    assert two.others.lost(30) == "machine third (127.0.0.1): the workers ended with 1"
    assert two.others.lost() == "machine third (127.0.0.1): the workers ended with 1"  # said once, and still so
    two.start()
    fourth = two.machine("fourth")
    fourth.begin()
    fourth.say(ready=True)
    two.done()
    assert two.others.lost() is None
    fourth.leave()
    assert two.others.lost(30).startswith("machine fourth (127.0.0.1) is gone (")


def test_a_session_that_is_asked_to_end_waits_for_nobody_and_strangers_are_let_go(two):
    two.start()
    stranger = two.machine("x")
    stranger.leave()
    with socket.create_connection(("127.0.0.1", int(two.config.rendezvous.rpartition(":")[2]))) as other:
        other.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert other.recv(100) == b""
    two.asked = True
    assert two.done() is None
    assert [line.partition(" part:")[0] for line in two.said[1:]] == [
        "warning: x (127.0.0.1) does not take",
        "warning: 127.0.0.1 does not take",
    ]


def test_what_cannot_be_is_said_before_anything_is_claimed(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="rendezvous: should be host:port where nodes is 2"):
        RunConfig.create({**LEAST, "nodes": 2})
    with pytest.raises(ConfigError, match="processes: 6 processes cannot share a step of 4 samples"):
        RunConfig.create({**LEAST, "nodes": 3, "processes": 2, "rendezvous": "a:1"})
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = RunConfig.create({**LEAST, "nodes": 2, "rendezvous": address})
        with pytest.raises(UserError, match=f"this machine cannot listen at {address}: Address already in use"):
            Others(config, RunFolder(tmp_path), print).gather(1, lambda: False)
    (tmp_path / "working").mkdir()
    monkeypatch.setenv("KAGGLE_LIB_ROOT", str(tmp_path))
    with pytest.raises(ConfigError, match="nodes: no other machine reaches a session on Kaggle"):
        Others(config, RunFolder(tmp_path), print)


def test_joining_ends_with_the_sessions_own_word_or_says_what_is_missing_here(two, tmp_path):
    joined, said = [], []

    def join(**values):
        def call():
            try:
                joined.append(machines.join(two.config.rendezvous, values, 1.0, said.append))
            except UserError as error:
                joined.append(error)

        thread = threading.Thread(target=call)
        thread.start()
        return thread

    two.start()
    lacking = join(work_dir=str(tmp_path / "second"), data=str(tmp_path / "nowhere.csv"))
    lacking.join(30)
    assert str(joined[0]).startswith(f"data: there is no file or folder '{tmp_path / 'nowhere.csv'}'")
    taking = join(work_dir=str(tmp_path / "second"))
    assert two.done().node == 0
    outcome = {"outcome": "paused", "run": "r", "reason": "asked to end by SIGTERM", "step": 8, "total_steps": 24}
    two.others.end(outcome=outcome)
    taking.join(60)
    assert (joined[1].outcome, joined[1].step, joined[1].exit_code) == ("paused", 8, 75)
    assert said[-1] == "The session ended: paused, asked to end by SIGTERM."
    folder = RunFolder(tmp_path / "second" / "r+node")
    given, here = two.folder.read_run(), folder.read_run()
    assert here == {**given, "config": {**given["config"], "work_dir": str(tmp_path / "second")}}
    assert f"warning: {socket.gethostname()} (127.0.0.1) does not take part: {joined[0]}" in two.said


def test_nobody_there_and_no_address(tmp_path):
    with pytest.raises(ConfigError, match="'gpu-1' is no address"):
        machines.join("gpu-1", {}, 1.0, print)
    said = []
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(UserError, match=f"Nobody was at {address} for 0 minutes \\(.*Connection refused"):
        machines.join(address, {"work_dir": str(tmp_path)}, 0.0, said.append)
    assert said == [f"Nobody is at {address} ([Errno 111] Connection refused); trying for 0 minutes."]


def test_the_launchers_words_for_one_machine_and_for_several(tmp_path):
    folder = RunFolder(tmp_path)
    assert command("worker", folder, 1)[1:] == ["-m", "worker", str(tmp_path)]
    assert "--standalone" in command("worker", folder, 2)
    meeting = Meeting("gpu-1", 4711, 1, 3)
    words = command("worker", folder, 1, meeting)
    assert words[3:7] == ["--rdzv-backend=static", "--rdzv-endpoint=gpu-1:4711", "--nnodes=3", "--node-rank=1"]
    assert words[7:9] == ["--nproc-per-node=1", "--max-restarts=0"]
