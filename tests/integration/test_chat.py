"""A chat with a run in a terminal and in a notebook's cell: both sides, history, system prompt, interrupt."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.sessions import Place

from kaggle_lib import api
from kaggle_lib.errors import WorkerError
from kaggle_lib.runs.launch import descendants

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    made = Place(tmp_path_factory.mktemp("run"), values={"max_steps": 6, "save_steps": 3, "max_length": 256})
    assert made.call()["outcome"] == "finished"
    return made


def values(place):
    return {"run": place.run, "store": str(place.root / "store"), "work_dir": str(place.work)}


def by_hand(question, place):
    """The answer of the model in a process of its own, generated as `evaluate` does."""
    code = (
        "import json; import kaggle_lib as kl; from kaggle_lib.evaluation import generation\n"
        "from kaggle_lib.data import chat; from kaggle_lib.data.read import Message\n"
        "from kaggle_lib.runs.opening import open_run\n"
        f"values = {values(place)!r}\n"
        "model, tokenizer = kl.load(**values)\n"
        f"messages = [Message('user', {question!r})]\n"
        "prompt = chat.prompt_ids(messages, tokenizer, open_run(values, begun=True).config, room=24)\n"
        "print(json.dumps(generation.answer(model, tokenizer, prompt, 24).text))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_a_cell_gets_the_answers_of_both_and_each_remembers_its_own(place, capsys):
    with api.chat(**values(place), tokens=24) as chat:
        first = chat("আজ মন খারাপ।")
        assert "\n".join(capsys.readouterr().out.splitlines()[1:]).strip() == first.strip()
        assert chat.history["tuned"] == [("user", "আজ মন খারাপ।"), ("assistant", first)]
        both = chat.both("কী করি?")
        assert set(both) == {"base", "tuned"}
        assert [role for role, _ in chat.history["base"]] == ["user", "assistant"]
        assert len(chat.history["tuned"]) == 4
        chat.new()
        assert chat("আজ মন খারাপ।") == first  # greedy, and nothing is remembered
        assert first == by_hand("আজ মন খারাপ।", place)
        chat.new()
        chat.system = "ছোট উত্তর দাও।"
        other = chat("আজ মন খারাপ।")
        chat.new()
        chat.system = ""
        assert chat("আজ মন খারাপ।") == first
        assert isinstance(other, str)
        os.kill(chat._process.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"^The chat's worker has ended \(exit -9\)\. "):
            chat("আছ?")


def test_a_terminal_streams_stops_and_ends(place):
    """A real terminal: Ctrl-C ends the answer, Ctrl-D the chat, and no process is left."""
    words = [f"--set={name}={value}" for name, value in values(place).items()]
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "kaggle_lib", "chat", *words, "--tokens", "180"])
    seen = b""

    def until(pattern):
        nonlocal seen
        while not re.search(pattern, seen.decode("utf-8", "replace"), re.DOTALL):
            seen += os.read(terminal, 65536)

    until(r"Ctrl-C ends an answer\.\r\n> $")
    os.write(terminal, "আজ মন খারাপ।\n".encode())
    until(r"মন খারাপ।\r\n.{3,}")
    os.write(terminal, b"\x03")
    until(r"\r\n> $")
    os.write(terminal, b"/both\n")
    until(r"/both\r\n> $")
    os.write(terminal, "আবার\n".encode())
    until(r"\[base\] .*\[tuned\] .*\r\n> $")
    tree = descendants(pid)
    os.write(terminal, b"\x04")
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    while any(Path(f"/proc/{one}/cmdline").exists() and Path(f"/proc/{one}/cmdline").read_bytes() for one in tree):
        time.sleep(0.05)
