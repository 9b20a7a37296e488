"""The first process of a session of the loopback Kaggle, run by path with the image's Python.

    python -I -S loopback_kaggle_container.py PLAN.json

It imports nothing of ours. It dies with the server, and all that it started dies with it. Where the system allows it,
it is process 1 of a container: its own process numbers, so that the session's age can be read off it as on Kaggle; its
own host name; no network at all when Internet is off; and the repository's folders hidden behind empty ones.
"""

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
MS_BIND = 4096
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
LIBC = ctypes.CDLL(None, use_errno=True)


def descendants(pid):
    """Every descendant of `pid`, those in other sessions, too."""
    children = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            parent = int((entry / "stat").read_text(errors="replace").rpartition(") ")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
    found, todo = [], [pid]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found


def end_all(pids):
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def hide(folder, empty):
    if LIBC.mount(os.fsencode(empty), os.fsencode(folder), None, MS_BIND, None):
        raise OSError(ctypes.get_errno(), f"cannot hide {folder}")


def raise_loopback():
    """A new network has only `lo`, and that is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        name = b"lo".ljust(16, b"\0")
        flags = struct.unpack("16sh", fcntl.ioctl(any_socket, SIOCGIFFLAGS, name + bytes(16))[:18])[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", name, flags | IFF_UP) + bytes(14))


def inside(plan):
    """Run the plan's command to its end, and leave nothing behind; its exit code."""
    if plan["enter"]:
        socket.sethostname(plan["host"])
        for folder in plan["hidden"]:
            hide(folder, plan["empty"])
        if not plan["internet"]:
            raise_loopback()
    else:
        LIBC.prctl(PR_SET_CHILD_SUBREAPER, 1)
        signal.signal(signal.SIGTERM, lambda *_: (end_all(descendants(os.getpid())), os._exit(137)))
    child = subprocess.Popen(plan["command"])
    while True:
        pid, status = os.wait()  # orphans are this process's children, too
        if pid == child.pid:
            break
    code = os.waitstatus_to_exitcode(status)
    end_all(descendants(os.getpid()))
    return code if code >= 0 else 128 - code


def main():
    plan = json.loads(Path(sys.argv[-1]).read_text())
    if "--inside" in sys.argv or not plan["enter"]:
        if not plan["enter"]:
            LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        sys.exit(inside(plan))
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # kept by exec
    words = [*plan["enter"], sys.executable, "-I", "-S", __file__, "--inside", sys.argv[-1]]
    os.execv(words[0], words)


if __name__ == "__main__":
    main()
