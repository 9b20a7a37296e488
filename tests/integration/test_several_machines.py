"""Two machines, by the real command lines, over the loopback interface: nothing of one lies where the other looks."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support.sessions import ROOT, Place, gone

from kaggle_lib.data.find import SAMPLE
from kaggle_lib.files import sha256_of
from kaggle_lib.runs import events, ledger
from kaggle_lib.runs.launch import descendants

pytestmark = pytest.mark.slow


def join(address, folder, **values):
    """Another machine: started where it knows no relative path of the first."""
    folder.mkdir()
    words = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    return subprocess.Popen(
        [sys.executable, "-m", "kaggle_lib", "join", address, *words, "--json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_TOKEN": "none of the store's"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def worker(process):
    """The one worker below a session or a `join`; the others of its tree are torchrun's."""
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(process.pid)}
    [found] = [
        pid for pid, words in commands.items() if b"training.worker" in words and b"torch.distributed" not in words
    ]
    return found


def test_two_machines_one_of_which_loses_its_worker_end_with_the_bytes_of_two_processes(tmp_path):
    whole = Place(tmp_path / "whole", values={"processes": 2})
    assert whole.call()["outcome"] == "finished"

    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for name in ("corpus.csv", "elsewhere.csv"):
        shutil.copy(SAMPLE, tmp_path / name)
    first = Place(tmp_path / "first", values={"nodes": 2, "rendezvous": address, "data": tmp_path / "corpus.csv"})
    process = first.start()
    second = join(address, tmp_path / "second", data=tmp_path / "elsewhere.csv")
    first.wait_for_step(process, 6)
    os.kill(worker(second), signal.SIGKILL)
    first.wait_for_step(process, 14)
    tree = [*descendants(process.pid), *descendants(second.pid)]
    out, err = process.communicate()
    assert process.returncode == 0, err
    joined, said = second.communicate()
    assert second.returncode == 0, said
    assert gone(tree)

    assert first.final_bytes() == whole.final_bytes()
    assert first.curve() == whole.curve()
    session = ledger.record(events.read_all(first.folder.events))
    assert (session["processes"], session["attempts"], len(session["warnings"])) == (2, 2, 1)
    assert session["warnings"][0].startswith("Machine ")
    assert session["warnings"][0].endswith(": the workers ended with 1. Starting again from the last checkpoint.")
    assert json.loads(joined)["adapter_sha256"] == json.loads(out)["adapter_sha256"]
    assert said.count("Run 'run', machine 2 of 2: training from step ") == 2
    # The second machine has what it was given, and nothing of the run but that.
    node = tmp_path / "second" / "work" / "run+node"
    assert [path.name for path in (node / "checkpoints").iterdir()] != []
    assert not (node / "adapter").exists()
    assert events.read_all(node / "events") == []
    assert json.loads((node / "run.json").read_text())["config"]["data"] == str(tmp_path / "elsewhere.csv")
    assert sha256_of(first.folder.adapter / "adapter_model.safetensors") == json.loads(out)["adapter_sha256"]
