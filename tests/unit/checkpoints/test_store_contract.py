"""What every store must hold, whatever it is made of."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.checkpoint_folders import BYTES, LINEAGE, dead_lease, make_checkpoint, make_events, tree
from support.loopback_hub import LoopbackHub

from kaggle_lib.checkpoints.folder_store import FolderStore
from kaggle_lib.checkpoints.hub import HubStore
from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.store import StoreState
from kaggle_lib.errors import CheckpointError, LeaseHeld, LeaseLost

CONFIG = {"config": {"seed": 42, "system_prompt": "বাংলা"}, "code": "c0de"}


class Clock:
    def __init__(self):
        self.now = 1_764_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["folder", "hub-lfs", "hub-xet", "bucket"])
def make_store(request, tmp_path, clock, monkeypatch):
    """`make_store(run)` opens the run anew, as another session would."""
    if request.param == "folder":
        yield lambda run="r": FolderStore(tmp_path / "store", run, clock)
        return
    with LoopbackHub(tmp_path / "hub", xet=request.param == "hub-xet") as hub:
        hub.lead_client(monkeypatch)
        bucket = request.param == "bucket"
        yield lambda run="r": HubStore("loopback/runs", run, hub.token, bucket=bucket, clock=clock)
        assert not [record for record in hub.requests if record.status >= 500]


@pytest.fixture
def store(make_store):
    return make_store()


@pytest.fixture
def events(tmp_path):
    return make_events(tmp_path / "events", "A", [1, 2])


def claim(store, session="A", **more):
    return store.claim(CONFIG, Lease.mine(session), LINEAGE, **more)


def checkpoint(tmp_path, step, **more):
    return make_checkpoint(tmp_path / "local", step, **more)[0]


def steps(store):
    return [stored.step for stored in store.peek().checkpoints]


def test_a_look_at_an_empty_store_creates_nothing(store, tmp_path):
    assert store.peek() == StoreState(None, None, [], None, None, [])
    assert not (tmp_path / "store").exists()
    assert not list(tmp_path.glob("hub/repos/*"))


def test_a_look_counts_what_is_there_names_the_runs_and_tells_the_stores_time(make_store, tmp_path, clock, events):
    assert make_store().runs() == []
    for run in ("r", "a.b"):
        mine = claim(make_store(run))
        for step in (10, 20):
            mine.commit(checkpoint(tmp_path / run, step), {"id": "A"}, events)
    clock.now += 7
    state = make_store().peek()
    assert state.now == clock.now
    assert 2 * BYTES < state.bytes < 3 * BYTES
    mine.free(1)
    assert BYTES < make_store("a.b").peek().bytes < 2 * BYTES
    assert make_store("misspelt").runs() == ["a.b", "r"]
    assert make_store("misspelt").peek() == StoreState()


def test_a_claim_freezes_configuration_and_lineage_before_the_first_checkpoint(store, make_store, clock):
    mine = claim(store)
    state = make_store().peek()
    assert state.config == {**CONFIG, "lineage": LINEAGE}
    assert state.lineage == LINEAGE
    assert state.lease == Lease.mine("A").model_copy(update={"expires": clock.now + 1800.0})
    assert state.head == mine.head != ""
    assert state.checkpoints == [] and state.ledger == []


def test_a_later_claim_keeps_the_stored_configuration_and_lineage(store, events):
    claim(store).release("paused", {"id": "A"}, events)
    store.claim({"config": {"seed": 1}, "code": "other"}, Lease.mine("B"), "b" * 32)
    assert store.peek().config == {**CONFIG, "lineage": LINEAGE}


def test_two_runs_of_one_store_know_nothing_of_each_other(make_store, tmp_path, events):
    claim(make_store("one")).commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    assert make_store("two").peek() == StoreState()
    assert claim(make_store("two"), "B").lease.session == "B"


def test_a_living_session_is_not_replaced_and_the_refusal_says_who_where_and_until_when(store, clock):
    before = claim(store).head
    clock.now += 60.0
    with pytest.raises(LeaseHeld) as caught:
        claim(store, "B")
    host = os.uname().nodename
    assert str(caught.value) == (
        f"Run 'r' is held by session A on {host} until 2025-11-24 16:30:00 UTC (29.0 min). "
        "Wait, or give take_over=A if you know that it no longer runs."
    )
    assert (caught.value.session, caught.value.host, caught.value.seconds_left) == ("A", host, 1740.0)
    assert store.peek().head == before


def test_a_session_on_another_machine_is_waited_for_until_its_promise_ends(store, clock):
    store.claim(CONFIG, dead_lease("A").model_copy(update={"host": "elsewhere"}), LINEAGE)
    clock.now += 1799.5
    with pytest.raises(LeaseHeld):
        claim(store, "B")
    clock.now += 0.5
    assert claim(store, "B").lease.session == "B"


def test_a_session_that_is_provably_dead_is_replaced_at_once(store):
    store.claim(CONFIG, dead_lease("A"), LINEAGE)
    assert claim(store, "B").lease.session == "B"


def test_take_over_takes_from_the_session_it_names_and_from_no_other(store):
    claim(store, "A")
    with pytest.raises(LeaseHeld, match=r"held by session A on .*; take_over names another session, X\. Wait, or"):
        claim(store, "B", take_over="X")
    assert store.peek().lease.session == "A"
    assert claim(store, "B", take_over="A").lease.session == "B"
    with pytest.raises(LeaseHeld, match=r"held by session B on .*; take_over names another session, A"):
        claim(store, "C", take_over="A")


def test_a_session_that_was_taken_over_can_write_nothing_and_is_told_by_whom(store, tmp_path, events):
    old = claim(store, "A")
    old.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    claim(store, "B", take_over="A")
    state = store.peek()
    message = (
        f"Run 'r' was taken over by session B on {os.uname().nodename}. What this session committed before is kept; "
        "it writes nothing more. Let that session go on."
    )
    newer = checkpoint(tmp_path, 20)
    for write in (
        lambda: old.commit(newer, {"id": "A"}, events),
        lambda: old.renew({"id": "A", "late": True}, events),
        lambda: old.put("report", events),
        lambda: old.free(1),
        lambda: old.release("late", {"id": "A", "late": True}, events),
    ):
        with pytest.raises(LeaseLost) as caught:
            write()
        assert str(caught.value) == message
    assert store.peek() == state


def test_it_is_told_even_when_the_other_session_has_come_and_gone(store, events):
    old = claim(store, "A")
    claim(store, "B", take_over="A").release("paused", {"id": "B"}, events)
    with pytest.raises(LeaseLost, match="taken over by session B on"):
        old.renew({"id": "A"}, events)


def test_a_released_claim_writes_no_more(store, events):
    mine = claim(store)
    mine.release("paused", {"id": "A"}, events)
    with pytest.raises(LeaseLost, match=r"^Session A no longer holds run 'r': it was released or claimed anew\."):
        mine.renew({"id": "A"}, events)
    assert store.peek().lease is None
    assert claim(store, "B").lease.session == "B"


def test_of_two_claims_of_one_session_id_only_the_later_one_writes(store, events):
    old = claim(store, "A")
    claim(store, "B", take_over="A")
    new = claim(store, "A", take_over="B")
    with pytest.raises(LeaseLost, match=r"^Session A no longer holds run 'r': it was released or claimed anew\."):
        old.renew({"id": "A"}, events)
    new.renew({"id": "A"}, events)


def test_a_commit_is_seen_with_its_record_its_events_and_a_new_head(store, make_store, tmp_path, events):
    mine = claim(store)
    heads = [mine.head]
    folder, manifest = make_checkpoint(tmp_path / "local", 10)
    assert mine.commit(folder, {"id": "A", "steps": 10}, events) is None
    heads.append(mine.head)
    state = make_store().peek()
    assert len(set(heads)) == 2 and state.head == heads[1]
    assert state.ledger == [{"id": "A", "steps": 10}]
    [stored] = state.checkpoints
    assert (stored.step, stored.id, stored.bytes, stored.manifest, stored.problem) == (
        10,
        manifest.nonce,
        BYTES,
        manifest,
        None,
    )
    store.fetch_events(tmp_path / "back")
    assert tree(tmp_path / "back") == tree(events)


def test_only_listed_files_are_stored(store, tmp_path, events):
    folder = checkpoint(tmp_path, 10)
    (folder / "stray.bin").write_bytes(b"x")
    claim(store).commit(folder, {"id": "A"}, events)
    store.fetch(store.peek().checkpoints[0], tmp_path / "back")
    (folder / "stray.bin").unlink()
    assert tree(tmp_path / "back") == tree(folder)


def test_the_lease_follows_the_measured_interval_and_is_due_when_a_third_is_left(store, tmp_path, events, clock):
    mine = claim(store)
    clock.now += 100.0
    mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    assert mine.lease.expires == clock.now + 1800.0
    clock.now += 400.0
    mine.commit(checkpoint(tmp_path, 20), {"id": "A"}, events)
    assert mine.lease.save_interval == 400.0
    assert mine.lease.expires == clock.now + 1200.0
    assert not mine.due()
    clock.now += 800.0
    assert mine.due()
    mine.renew({"id": "A", "steps": 21}, events)
    assert not mine.due()
    assert store.peek().lease.expires == clock.now + 1200.0
    assert store.peek().ledger == [{"id": "A", "steps": 21}]


def test_ledger_is_in_the_order_of_the_sessions_and_checkpoints_newest_first(store, tmp_path, events):
    for session, step in (("20260101T1-a", 10), ("20260102T1-a", 30), ("20260102T2-a", 20)):
        mine = claim(store, session)
        mine.commit(checkpoint(tmp_path, step), {"id": session}, events)
        mine.release("paused", {"id": session}, events)
    assert [record["id"] for record in store.peek().ledger] == ["20260101T1-a", "20260102T1-a", "20260102T2-a"]
    assert steps(store) == [30, 20, 10]


def test_an_equal_checkpoint_is_not_stored_twice(store, tmp_path, events):
    mine = claim(store)
    mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    before = store.peek().checkpoints
    again, manifest = make_checkpoint(tmp_path / "again", 10)
    assert manifest.nonce != before[0].id
    assert mine.commit(again, {"id": "A"}, events) is None
    assert store.peek().checkpoints == before


def test_another_checkpoint_of_the_same_step_is_kept_under_another_name_and_said(store, tmp_path, events):
    mine = claim(store)
    mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    other, manifest = make_checkpoint(tmp_path / "other", 10, salt="other")
    notice = mine.commit(other, {"id": "A"}, events)
    assert notice.startswith("The store's checkpoint of step 10 was different; it is kept as ")
    assert [stored.manifest for stored in store.peek().checkpoints] == [manifest]


def test_a_damaged_local_checkpoint_is_never_stored(store, tmp_path, events):
    mine = claim(store)
    folder = checkpoint(tmp_path, 10)
    data = (folder / "optimizer.pt").read_bytes()
    (folder / "optimizer.pt").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    head = mine.head
    with pytest.raises(CheckpointError) as caught:
        mine.commit(folder, {"id": "A"}, events)
    assert str(caught.value) == "step-00000010: optimizer.pt has another sha256 than its manifest says."
    assert (caught.value.file, caught.value.reason) == ("optimizer.pt", "has another sha256 than its manifest says")
    assert store.peek().checkpoints == [] and store.peek().head == head


def test_what_is_fetched_equals_what_was_committed_in_every_byte(store, tmp_path, events):
    folder, manifest = make_checkpoint(tmp_path / "local", 10)
    claim(store).commit(folder, {"id": "A"}, events)
    assert store.fetch(store.peek().checkpoints[0], tmp_path / "new" / "step-00000010") == manifest
    assert tree(tmp_path / "new" / "step-00000010") == tree(folder)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["step-00000010"]


def test_events_are_joined_and_a_shorter_segment_never_replaces_a_longer_one(store, tmp_path):
    claim(store, "A").release("paused", {"id": "A"}, make_events(tmp_path / "a", "A", [1, 2, 3]))
    second = make_events(tmp_path / "b", "A", [1])  # this machine saw less of session A
    make_events(second, "B", [4, 5])
    mine = claim(store, "B")
    mine.renew({"id": "B"}, second)
    make_events(second, "B", [4])  # its own segment is as it is here
    mine.renew({"id": "B"}, second)
    store.fetch_events(tmp_path / "back")
    assert tree(tmp_path / "back") == {
        **tree(make_events(tmp_path / "c", "A", [1, 2, 3])),
        **tree(make_events(tmp_path / "d", "B", [4])),
    }
    make_events(tmp_path / "back", "A", [1, 2, 3, 4])
    store.fetch_events(tmp_path / "back")
    assert tree(tmp_path / "back")["A.jsonl"].count(b"\n") == 4


def test_evaluation_and_report_are_replaced_as_a_whole(store, tmp_path):
    assert store.fetch_kind("evaluation", tmp_path / "back") is False
    assert not (tmp_path / "back").exists()
    mine = claim(store)
    for name in ("old", "new"):
        folder = tmp_path / name
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / f"{name}.json").write_text(name)
        head = mine.head
        mine.put("evaluation", folder)
        assert store.peek().head == mine.head != head
    assert store.fetch_kind("evaluation", tmp_path / "back") is True
    assert tree(tmp_path / "back") == {"deep/new.json": b"new"}
    assert store.fetch_kind("report", tmp_path / "none") is False


def test_free_keeps_the_newest_good_ones_and_says_what_it_removed(store, tmp_path, events):
    mine = claim(store)
    for step in (10, 20, 30, 40):
        mine.commit(checkpoint(tmp_path, step), {"id": "A"}, events)
    assert mine.free(3) == [10]
    assert mine.free(3) == []
    assert steps(store) == [40, 30, 20]
    assert mine.free(1) == [30, 20]
    assert steps(store) == [40]
    assert mine.free(1) == []


def test_free_never_removes_a_final_checkpoint_or_another_runs(store, tmp_path, events):
    mine = claim(store)
    mine.commit(checkpoint(tmp_path, 10, total_steps=10), {"id": "A"}, events)
    mine.commit(checkpoint(tmp_path, 20, lineage="b" * 32), {"id": "A"}, events)
    for step in (30, 40):  # the run was extended
        mine.commit(checkpoint(tmp_path, step), {"id": "A"}, events)
    assert mine.free(1) == [30]
    assert steps(store) == [40, 20, 10]


def test_free_keeps_the_best_one_until_no_kept_one_names_it_any_more(store, make_store, tmp_path, events):
    first = claim(store)
    for step in (10, 20, 30, 40):
        first.commit(checkpoint(tmp_path, step, best=10), {"id": "A"}, events)
        first.free(2)
    assert steps(store) == [40, 30, 10]
    first.release("paused", {"id": "A"}, events)
    second = claim(make_store(), "B")  # a bare machine: what is the best stands in the manifests
    second.commit(checkpoint(tmp_path, 50, best=50), {"id": "B"}, events)
    assert (second.free(2), steps(store)) == ([30], [50, 40, 10])  # 40 may have to be gone on from
    second.commit(checkpoint(tmp_path, 60, best=50), {"id": "B"}, events)
    assert (second.free(2), steps(store)) == ([40, 10], [60, 50])
    assert second.free(1) == []
    best = make_store().peek().checkpoints[1]
    assert store.fetch(best, tmp_path / "back" / "step-00000050").best["step"] == 50
    assert (second.free(1, best=False), steps(store)) == ([50], [60])


def test_an_end_before_the_last_step_always_stays(store, tmp_path, events):
    mine = claim(store)
    mine.commit(checkpoint(tmp_path, 30, best=10, stopped_early="no improvement"), {"id": "A"}, events)
    mine.commit(checkpoint(tmp_path, 40, best=10), {"id": "A"}, events)
    assert mine.free(1) == []


def test_a_checkpoint_that_is_gone_is_an_error_and_leaves_nothing(store, tmp_path, events):
    mine = claim(store)
    for step in (10, 20):
        mine.commit(checkpoint(tmp_path, step), {"id": "A"}, events)
    old = store.peek().checkpoints[1]
    mine.free(1)
    with pytest.raises(CheckpointError):
        store.fetch(old, tmp_path / "back" / "step-00000010")
    assert list((tmp_path / "back").iterdir()) == []


def test_a_missing_local_checkpoint_is_one_clear_error(store, tmp_path, events):
    with pytest.raises(CheckpointError) as caught:
        claim(store).commit(tmp_path / "step-00000010", {"id": "A"}, events)
    assert str(caught.value) == "step-00000010: manifest.json is missing, so the save was never finished."


def test_threads_of_one_session_never_take_the_run_from_each_other(store, tmp_path, events):
    mine = claim(store)
    folders = [checkpoint(tmp_path, step) for step in (10, 20, 30)]
    with ThreadPoolExecutor(4) as pool:
        work = [pool.submit(mine.commit, folder, {"id": "A"}, events) for folder in folders]
        work += [pool.submit(mine.renew, {"id": "A"}, events) for _ in range(9)]
        assert [job.result() for job in work] == [None] * 12
    assert steps(store) == [30, 20, 10]
    assert store.peek().head == mine.head
