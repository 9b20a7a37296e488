"""Do one write of a store again and again, killed by SIGKILL before each file operation in turn.

`python -m support.kill_points SCENARIO FOLDER` prints one JSON line a kill: what the store holds after it, and after
the next session's claim; the last line is of the write that was left alone. A child of a fork does the write, so that
the kill is a real one and costs no new interpreter. `taken` and `faults` do other things at those points: another
session's take-over, and an input/output error.
"""

import errno
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path

from support.checkpoint_folders import LINEAGE, make_checkpoint, make_events

from kaggle_lib.checkpoints.folder_store import FolderStore
from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.manifest import verify
from kaggle_lib.errors import CheckpointError, UserError

OPERATIONS = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.copyfile"}
EMPTY = {"config": {"seed": 1}, "code": "c0de"}


def on_operation(root, number, act, *, within=""):
    """Call `act` once, before the `number`-th file operation under `root` whose path contains `within`."""
    left = number

    def hook(event, arguments):
        nonlocal left
        if event in OPERATIONS and arguments and isinstance(arguments[0], (str, Path)):
            path = str(arguments[0])
            if path.startswith(str(root)) and within in path:
                left -= 1
                if left == 0:
                    act()

    sys.addaudithook(hook)


def child(body):
    """Run `body` in a forked process; returns its raw wait status."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def prepare(scenario, folder):
    """A store to begin with, and `write(claim)`: what is done to it."""
    local, events = folder / "local", make_events(folder / "events", "A", [1, 2, 3])
    if scenario == "claim":
        return None
    claim = FolderStore(folder / "base", "r").claim(EMPTY, Lease.mine("first"), LINEAGE)
    for step in {"free": (10, 20, 30, 40)}.get(scenario, (10,)):
        claim.commit(make_checkpoint(local, step)[0], {"id": "first"}, events)
    if scenario == "put":
        (folder / "old").mkdir()
        (folder / "old" / "result.json").write_text("old")
        (folder / "old" / "more.json").write_text("old")
        claim.put("evaluation", folder / "old")
        (folder / "new").mkdir()
        (folder / "new" / "result.json").write_text("new")
    if scenario == "replace":
        claim.commit(make_checkpoint(local, 20)[0], {"id": "first"}, events)
        (folder / "base/r/checkpoints/step-00000020/optimizer.pt").write_bytes(b"")
    claim.release("prepared", {"id": "first"}, events)
    if scenario == "free":
        return lambda claim: claim.free(2)
    if scenario == "put":
        return lambda claim: claim.put("evaluation", folder / "new")
    if scenario == "release":
        return lambda claim: claim.release("paused", {"id": "A", "ended": "now"}, events)
    source = make_checkpoint(local, 20)[0] if scenario != "replace" else local / "step-00000020"
    return lambda claim: claim.commit(source, {"id": "A"}, events)


def holds(store, root):
    state = store.peek()
    good = []
    for stored in state.checkpoints:
        try:
            verify(root / "checkpoints" / f"step-{stored.step:08d}")
            good.append(stored.step)
        except CheckpointError:
            pass
    evaluation = root / "evaluation"
    return {
        "lineage": state.lineage,
        "listed": [stored.step for stored in state.checkpoints],
        "good": good,
        "ledger": [record["id"] for record in state.ledger],
        "lease": state.lease.session if state.lease else None,
        "evaluation": {path.name: path.read_text() for path in evaluation.iterdir()} if evaluation.exists() else None,
    }


def kills(scenario, folder):
    write = prepare(scenario, folder)
    number = 0
    while True:
        number += 1
        shutil.rmtree(folder / "store", ignore_errors=True)
        if write:
            shutil.copytree(folder / "base", folder / "store")
        store, root = FolderStore(folder / "store", "r"), folder / "store" / "r"

        def body(store=store, root=root, number=number):
            claim = store.claim(EMPTY, Lease.mine("A"), LINEAGE) if write else None
            on_operation(root, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
            if claim:
                write(claim)
            else:
                store.claim(EMPTY, Lease.mine("A"), "b" * 32)

        sys.stdout.flush()  # what is buffered at a fork is written twice
        status = child(body)
        after = holds(store, root)
        store.claim(EMPTY, Lease.mine("B"), LINEAGE)
        left = sorted(path.name for path in root.rglob(".*"))
        print(json.dumps({"status": status, "after": after, "claimed": holds(store, root), "left": left}))
        if status != signal.SIGKILL:
            return


def taken(folder):
    """Another session takes the run over while a checkpoint is being copied, before each operation of the copy."""

    def take():
        assert child(lambda: FolderStore(folder / "store", "r").claim(EMPTY, Lease.mine("B"), LINEAGE, "A")) == 0

    # Before the copy's last rename, which is under the lock: from there on B would have to wait.
    for number in range(1, 13):
        disturbed(folder, number, take, within="/.incoming-")


def faults(folder):
    """One input/output error at each operation in turn; then the same session tries the same commit again."""

    def fail():
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    for number in range(1, 61):
        disturbed(folder, number, fail, again=True)


def disturbed(folder, number, act, *, within="", again=False):
    if number == 1:
        disturbed.write = prepare("commit", folder)
    shutil.rmtree(folder / "store", ignore_errors=True)
    shutil.copytree(folder / "base", folder / "store")
    store, root = FolderStore(folder / "store", "r"), folder / "store" / "r"

    def body():
        claim = store.claim(EMPTY, Lease.mine("A"), LINEAGE)
        on_operation(root, number, act, within=within)
        said = {"error": None, "message": ""}
        try:
            disturbed.write(claim)
        except UserError as error:
            said = {"error": type(error).__name__, "message": str(error)}
        if again:
            disturbed.write(claim)
        print(json.dumps({**said, "after": holds(store, root)}), flush=True)

    assert child(body) == 0


if __name__ == "__main__":
    scenario, folder = sys.argv[1], Path(sys.argv[2])
    {"taken": taken, "faults": faults}.get(scenario, lambda folder: kills(scenario, folder))(folder)
