"""A child is started whatever the supervisor's other threads hold, and ends with its parent."""

import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.launch import Workers, tied

ROOT = Path(__file__).parents[3]


def test_workers_start_while_an_upload_holds_the_lock_of_the_hubs_connections(tmp_path):
    from huggingface_hub.utils._http import get_session

    pool = get_session()._transport._pool
    held, done = threading.Event(), threading.Event()

    def upload():
        with pool._optional_thread_lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=upload)
    thread.start()
    held.wait()
    try:
        folder = RunFolder(tmp_path / "r")
        folder.create()
        # In a thread, so that a start that hangs fails this test and does not hang it.
        started = []
        starting = threading.Thread(target=lambda: started.append(Workers("this", folder, 1)), daemon=True)
        starting.start()
        starting.join(60)
        assert started, "the child waits for a lock that nobody in it will ever give back"
        assert started[0].process.wait() == 0
        assert "Beautiful is better than ugly." in started[0].log_path.read_text()
    finally:
        done.set()
        thread.join()


PARENT = """
import subprocess, sys, time
from kaggle_lib.runs.launch import tied
child = subprocess.Popen(tied([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]))
print(child.pid, flush=True)
time.sleep(600)
"""


def test_it_is_killed_with_its_parent_and_is_the_command_itself():
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert parent.stdout is not None
    said = sorted(parent.stdout.readline().strip() for _ in range(2))
    assert said[1] == "up"
    pid = int(said[0])
    assert b"time.sleep(600)" in Path(f"/proc/{pid}/cmdline").read_bytes()
    child = os.pidfd_open(pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    assert select.select([child], [], [], 60)[0], "it outlived its parent"
    os.close(child)


def test_what_it_ends_with_and_says_is_the_commands_own():
    ran = subprocess.run(
        tied([sys.executable, "-c", "import sys; print(sys.argv[1:]); sys.exit(7)", "ক", "a b"]),
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (7, "['ক', 'a b']\n")
