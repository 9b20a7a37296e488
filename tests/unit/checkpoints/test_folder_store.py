"""The store in a folder: real races, real kills, real disks that fail, files damaged by hand."""

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.checkpoint_folders import LINEAGE, dead_lease, make_checkpoint, make_events, tree

from kaggle_lib.checkpoints.folder_store import FolderStore
from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.manifest import verify
from kaggle_lib.checkpoints.store import StoreState
from kaggle_lib.errors import CheckpointError, LeaseHeld, StoreError

ROOT = Path(__file__).parents[3]
CONFIG = {"config": {"seed": 42}, "code": "c0de"}


@pytest.fixture
def store(tmp_path):
    return FolderStore(tmp_path / "store", "r")


@pytest.fixture
def root(tmp_path):
    return tmp_path / "store" / "r"


@pytest.fixture
def events(tmp_path):
    return make_events(tmp_path / "events", "A", [1, 2])


def claim(store, session="A", **more):
    return store.claim(CONFIG, Lease.mine(session), LINEAGE, **more)


def filled(store, tmp_path, events, *steps):
    mine = claim(store)
    for step in steps:
        mine.commit(make_checkpoint(tmp_path / "local", step)[0], {"id": "A"}, events)
    return mine


# Races and kills

CLAIMER = """
import sys
from kaggle_lib.checkpoints.folder_store import FolderStore
from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.errors import LeaseHeld
path, session, take_over = sys.argv[1:]
print("ready", flush=True)
sys.stdin.readline()
try:
    claim = FolderStore(path, "r").claim({"code": session}, Lease.mine(session), session * 32, take_over or None)
    print("claimed", claim.lease.session, flush=True)
except LeaseHeld as held:
    print("held", held.session, flush=True)
sys.stdin.readline()
"""


class Claimer:
    def __init__(self, path, session, take_over=""):
        command = [sys.executable, "-c", CLAIMER, str(path), session, take_over]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True)

    def line(self):
        return self.process.stdout.readline().strip()

    def go(self):
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def kill(self):
        self.process.kill()
        self.process.communicate()


def race(path, take_over=""):
    claimers = {session: Claimer(path, session, take_over) for session in "abcd"}
    try:
        assert [claimer.line() for claimer in claimers.values()] == ["ready"] * 4
        for claimer in claimers.values():
            claimer.go()
        return {session: claimer.line() for session, claimer in claimers.items()}
    finally:
        for claimer in claimers.values():
            claimer.kill()


def test_of_four_processes_that_claim_at_once_one_wins_and_the_others_name_it(store, tmp_path):
    said = race(tmp_path / "store")
    [winner] = [session for session, line in said.items() if line.startswith("claimed")]
    assert said == {session: f"{'claimed' if session == winner else 'held'} {winner}" for session in "abcd"}
    state = store.peek()
    assert (state.lease.session, state.config["code"], state.lineage) == (winner, winner, winner * 32)


def test_of_four_that_take_over_the_same_session_at_once_one_wins(store, tmp_path):
    claim(store, "old")
    said = race(tmp_path / "store", take_over="old")
    [winner] = [session for session, line in said.items() if line.startswith("claimed")]
    assert said == {session: f"{'claimed' if session == winner else 'held'} {winner}" for session in "abcd"}
    assert store.peek().lease.session == winner


def test_a_holder_killed_by_sigkill_is_replaced_at_once_and_a_living_one_is_not(store, tmp_path):
    holder = Claimer(tmp_path / "store", "x")
    try:
        assert holder.line() == "ready"
        holder.go()
        assert holder.line() == "claimed x"
        with pytest.raises(LeaseHeld, match="held by session x on"):
            claim(store, "B")
    finally:
        holder.kill()
    assert claim(store, "B").lease.session == "B"


def points(scenario, tmp_path):
    """What kill_points says, a kill a line; the last write was left alone."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, "-m", "support.kill_points", scenario, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def killed(scenario, tmp_path, at_least):
    lines = points(scenario, tmp_path)
    assert [line["status"] for line in lines] == [signal.SIGKILL] * (len(lines) - 1) + [0]
    assert len(lines) > at_least
    for line in lines:
        assert line["claimed"]["lease"] == "B"
        assert line["left"] == []  # the next claim cleans up
    return lines


def in_order(values):
    """Each value once, in the order of its first appearance; asserts that none comes back."""
    seen = []
    for value in values:
        if not seen or value != seen[-1]:
            assert value not in seen
            seen.append(value)
    return seen


def test_a_kill_at_any_point_of_a_commit_loses_nothing_that_was_committed(tmp_path):
    lines = killed("commit", tmp_path, at_least=40)
    assert all(line["after"]["listed"] == line["after"]["good"] for line in lines)
    assert in_order(line["after"]["good"] for line in lines) == [[10], [20, 10]]
    assert all(line["claimed"]["good"] == line["after"]["good"] for line in lines)
    assert in_order(line["after"]["ledger"] for line in lines) == [["first"], ["A", "first"]]


def test_a_kill_while_a_damaged_checkpoint_is_replaced_leaves_the_ones_before_it(tmp_path):
    lines = killed("replace", tmp_path, at_least=40)
    assert in_order(line["after"]["good"] for line in lines) == [[10], [20, 10]]
    shown = [line["after"]["listed"] for line in lines]
    assert shown[0] == shown[-1] == [20, 10]  # first the damaged one, last the new one
    gone = shown.index([10])  # between them neither, for as long as two renames take
    assert in_order(shown[gone:]) == [[10], [20, 10]]


def test_a_kill_at_any_point_of_free_leaves_whole_checkpoints_only(tmp_path):
    lines = killed("free", tmp_path, at_least=10)
    assert all(line["after"]["listed"] == line["after"]["good"] for line in lines)
    assert in_order(line["after"]["good"] for line in lines) == [[40, 30, 20, 10], [40, 30, 10], [40, 30]]


def test_a_kill_at_any_point_of_put_leaves_the_old_evaluation_or_the_new_one(tmp_path):
    lines = killed("put", tmp_path, at_least=10)
    old, new = {"result.json": "old", "more.json": "old"}, {"result.json": "new"}
    assert in_order(line["claimed"]["evaluation"] for line in lines) == [old, new]


def test_a_kill_at_any_point_of_the_first_claim_leaves_nothing_or_a_whole_configuration(tmp_path):
    lines = killed("claim", tmp_path, at_least=10)
    assert in_order(line["after"]["lineage"] for line in lines) == [None, "b" * 32]
    assert in_order(line["claimed"]["lineage"] for line in lines) == [LINEAGE, "b" * 32]


def test_a_kill_at_any_point_of_release_lets_the_next_session_in(tmp_path):
    lines = killed("release", tmp_path, at_least=10)
    assert in_order(line["after"]["lease"] for line in lines) == ["A", None]


def test_a_session_taken_over_while_it_copies_stops_and_changes_nothing(tmp_path):
    lines = points("taken", tmp_path)
    assert len(lines) == 12
    for line in lines:
        assert line["error"] == "LeaseLost"
        assert line["message"].startswith("Run 'r' was taken over by session B on ")
        assert (line["after"]["good"], line["after"]["ledger"], line["after"]["lease"]) == ([10], ["first"], "B")


# A file system that fails


def test_an_error_at_any_point_of_a_commit_accuses_nobody_and_the_same_commit_can_be_tried_again(tmp_path):
    lines = points("faults", tmp_path)
    errors = [line["error"] for line in lines]
    assert len(lines) == 60 and set(errors) == {"StoreError", None} and errors.count("StoreError") > 30
    for line in lines:
        if line["error"]:
            assert "Input/output error" in line["message"]
        assert (line["after"]["good"], line["after"]["lease"]) == ([20, 10], "A")


def test_a_full_disk_is_one_clear_error_and_the_next_commit_succeeds(store, root, tmp_path, events):
    mine = filled(store, tmp_path, events, 10)
    folder = make_checkpoint(tmp_path / "local", 20)[0]
    before, limits = tree(root), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))  # optimizer.pt has 5000 bytes
    try:
        with pytest.raises(StoreError) as caught:
            mine.commit(folder, {"id": "A", "late": True}, events)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    message = str(caught.value)
    assert message.startswith(f"The store {root} cannot be given step 20: File too large (")
    assert message.endswith("). Everything committed before is kept. Free space there and run again.")
    assert tree(root) == before
    assert mine.commit(folder, {"id": "A"}, events) is None
    assert [stored.step for stored in store.peek().checkpoints] == [20, 10]


def test_a_store_that_goes_away_is_an_error_and_is_not_made_anew(store, root, tmp_path, events):
    mine = filled(store, tmp_path, events, 10)
    root.rename(tmp_path / "elsewhere")
    for write in (
        lambda: mine.commit(make_checkpoint(tmp_path / "local", 20)[0], {"id": "A"}, events),
        lambda: mine.renew({"id": "A"}, events),
        lambda: mine.release("paused", {"id": "A"}, events),
    ):
        with pytest.raises(StoreError, match=r"^The store .*/r cannot be .*: No such file or directory \("):
            write()
    assert not root.exists()
    (tmp_path / "elsewhere").rename(root)
    mine.renew({"id": "A"}, events)


def test_a_failed_last_step_of_a_write_does_not_accuse_another_session(store, root, tmp_path, events):
    mine = filled(store, tmp_path, events, 10)
    (root / "head.json").rename(root / "kept")
    (root / "head.json").mkdir()
    with pytest.raises(StoreError, match="Is a directory"):
        mine.renew({"id": "A"}, events)
    (root / "head.json").rmdir()
    (root / "kept").rename(root / "head.json")
    mine.renew({"id": "A"}, events)
    assert store.peek().head == mine.head


def test_a_path_that_is_a_file_is_an_error_and_no_empty_store(tmp_path):
    (tmp_path / "file").write_text("x")
    for path, run in ((tmp_path / "file", "r"), (tmp_path, "file")):
        store = FolderStore(path, run)
        for look in (store.peek, lambda store=store: claim(store)):
            with pytest.raises(StoreError) as caught:
                look()
            assert "Not a directory" in str(caught.value) or "File exists" in str(caught.value)
            assert str(caught.value).startswith(f"The store {path / run} cannot be ")
    assert (tmp_path / "file").read_text() == "x"


def test_a_store_that_may_not_be_read_is_an_error_and_no_empty_store(store, root, tmp_path, events):
    filled(store, tmp_path, events, 10)
    root.chmod(0)
    # Root may read everything, so the look is done as nobody.
    code = (
        "import os, sys\n"
        "from kaggle_lib.checkpoints.folder_store import FolderStore\n"
        "from kaggle_lib.errors import StoreError\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: print(FolderStore(sys.argv[1], 'r').peek())\n"
        "except StoreError as error: print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "store")]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    finally:
        root.chmod(0o755)
    assert done.stdout.startswith(f"The store {root} cannot be read: Permission denied (")
    assert done.stdout.endswith("Everything committed before is kept. Put that right and run again.\n")


@pytest.mark.parametrize("name", ["config.json", "lease.json", "head.json", "ledger/A.json"])
@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"lineage": 1}', "\udcff"], ids=["empty", "torn", "list", "type", "bytes"]
)
def test_a_damaged_file_of_the_store_is_an_error_that_names_it(store, root, tmp_path, events, name, text):
    filled(store, tmp_path, events, 10)
    (root / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    if name == "ledger/A.json" and text == '{"lineage": 1}':
        assert store.peek().ledger == [{"lineage": 1}]  # any object is a record
        return
    with pytest.raises(StoreError) as caught:
        store.peek()
    assert str(caught.value) == (
        f"The store's file {root / name} is damaged. Nothing was changed. "
        "Restore it from a copy of the store, or start another run (run=NAME)."
    )


def test_checkpoints_without_their_configuration_are_an_error_and_no_empty_store(store, root, tmp_path, events):
    filled(store, tmp_path, events, 10)
    (root / "config.json").unlink()
    (root / "lease.json").unlink()
    for look in (store.peek, lambda: claim(store, "B")):
        with pytest.raises(StoreError) as caught:
            look()
        assert str(caught.value).startswith(f"The store {root} holds a run, but its config.json is missing.")
    assert not (root / "config.json").exists()


# Damage


def test_the_store_may_be_moved(store, root, tmp_path, events):
    filled(store, tmp_path, events, 10, 20).release("paused", {"id": "A"}, events)
    before = store.peek()
    (tmp_path / "store").rename(tmp_path / "moved")
    moved = FolderStore(tmp_path / "moved", "r")
    assert moved.peek() == before
    moved.fetch(before.checkpoints[0], tmp_path / "back" / "step-00000020")
    verify(tmp_path / "back" / "step-00000020")
    assert str(tmp_path).encode() not in b"".join(tree(tmp_path / "moved").values())
    assert store.peek() == StoreState()


def test_damaged_ones_are_seen_do_not_count_and_are_never_removed(store, root, tmp_path, events):
    mine = filled(store, tmp_path, events, 10, 20, 30, 40, 50)
    (root / "checkpoints/step-00000050/manifest.json").write_bytes(b"")
    with (root / "checkpoints/step-00000040/adapter_model.safetensors").open("r+b") as file:
        file.truncate(1500)
    (root / "checkpoints/step-00000020/optimizer.pt").unlink()
    seen = [(stored.step, stored.problem) for stored in store.peek().checkpoints]
    assert seen == [
        (50, ("manifest.json", "is empty")),
        (40, ("adapter_model.safetensors", "has 1500 bytes, not 3000")),
        (30, None),
        (20, ("optimizer.pt", "is missing")),
        (10, None),
    ]
    assert mine.free(1) == [10]
    assert [stored.step for stored in store.peek().checkpoints] == [50, 40, 30, 20]


def test_a_damaged_one_is_set_aside_by_a_commit_of_its_step_and_that_is_said(store, root, tmp_path, events):
    mine = filled(store, tmp_path, events, 10)
    there = root / "checkpoints/step-00000010"
    data = (there / "optimizer.pt").read_bytes()
    for number in (1, 2):  # same size, other content
        (there / "optimizer.pt").write_bytes(bytes([data[0] ^ number]) + data[1:])
        damaged = tree(there)
        notice = mine.commit(tmp_path / "local/step-00000010", {"id": "A"}, events)
        kept = root / f"checkpoints/step-00000010.damaged-{number}"
        assert notice == f"The store's checkpoint of step 10 was damaged; it is kept as {kept}."
        assert tree(kept) == damaged
        verify(there)
    assert [stored.step for stored in store.peek().checkpoints] == [10]


def test_a_fetch_of_a_damaged_one_names_the_file_and_leaves_nothing(store, root, tmp_path, events):
    filled(store, tmp_path, events, 10)
    path = root / "checkpoints/step-00000010/optimizer.pt"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 255]))
    [stored] = store.peek().checkpoints
    assert stored.problem is None  # a look does not see it
    with pytest.raises(CheckpointError) as caught:
        store.fetch(stored, tmp_path / "back" / "step-00000010")
    assert (caught.value.file, caught.value.reason) == ("optimizer.pt", "has another sha256 than its manifest says")
    assert list((tmp_path / "back").iterdir()) == []


def test_a_dead_sessions_leftovers_go_with_the_next_claim_and_not_before(store, root, tmp_path, events):
    store.claim(CONFIG, dead_lease("A"), LINEAGE)
    left = [
        root / "checkpoints/.incoming-1/x",
        root / "checkpoints/.outgoing-step-00000010/x",
        root / ".head.json.1.tmp",
    ]
    for path in left:
        path.parent.mkdir(exist_ok=True)
        path.write_text("half")
    assert store.peek().checkpoints == []
    assert all(path.exists() for path in left)
    claim(store, "B")
    assert not any(path.exists() for path in left)
