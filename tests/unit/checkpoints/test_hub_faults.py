"""A Hub that fails: what was saved is known, nobody is accused, and every wait has an end."""

import time

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from support.checkpoint_folders import LINEAGE, make_checkpoint, make_events, tree
from support.loopback_hub import LoopbackHub

from kaggle_lib.checkpoints.hub import HubStore
from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.manifest import folder_name
from kaggle_lib.errors import CheckpointError, LeaseLost, StoreError

REPO, BRANCH = "loopback/runs", "run/r"
CONFIG = {"config": {"seed": 42}, "code": "c0de"}
KEPT = "Everything committed before is kept."
COMMIT = "/commit/"


@pytest.fixture(params=["lfs", "xet"])
def hub(request, tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub", xet=request.param == "xet") as hub:
        hub.lead_client(monkeypatch)
        yield hub


@pytest.fixture
def lfs(tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub", xet=False) as hub:
        hub.lead_client(monkeypatch)
        yield hub


@pytest.fixture
def xet(tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub") as hub:
        hub.lead_client(monkeypatch)
        yield hub


@pytest.fixture
def events(tmp_path):
    return make_events(tmp_path / "events", "A", [1, 2])


def store(hub, **more):
    return HubStore(REPO, "r", more.pop("token", hub.token), **more)


def claim(hub, session="A", take_over=None, **more):
    return store(hub, **more).claim(CONFIG, Lease.mine(session), LINEAGE, take_over)


def checkpoint(tmp_path, step, **more):
    folder = tmp_path / "local" / folder_name(step)
    return folder if folder.exists() else make_checkpoint(tmp_path / "local", step, **more)[0]


def titles(hub):
    """Of the commits on the branch since it was made, oldest first."""
    return [commit.title for commit in reversed(hub.repo(REPO).commits(BRANCH))][1:]


def fetched(hub, tmp_path):
    """The files of the newest stored checkpoint."""
    back = store(hub)
    back.fetch(back.peek().checkpoints[0], tmp_path / "fetched")
    return tree(tmp_path / "fetched")


def writes(hub):
    return [record for record in hub.requests if record.method in ("POST", "PUT", "DELETE")]


ENDS = ["drop_reply", "drop_before", "lose_commit_500", "503", "409", "412", "429(1)"]


@pytest.mark.parametrize("end", ENDS)
def test_a_commit_of_unknown_end_is_made_once_and_nobody_is_accused(lfs, tmp_path, events, end):
    hub, work = lfs, [tmp_path / "evaluation"]
    make_events(work[0], "x", [1])

    def unknown():
        hub.faults.add(end, method="POST", path=COMMIT)

    unknown()
    mine = claim(hub)
    unknown()
    mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    unknown()
    mine.renew({"id": "A"}, events)
    mine.commit(checkpoint(tmp_path, 20), {"id": "A"}, events)
    unknown()
    assert mine.free(1) == [10]
    unknown()
    mine.put("evaluation", work[0])
    assert [stored.step for stored in store(hub).peek().checkpoints] == [20]
    assert store(hub).peek().head == mine.head
    unknown()
    mine.release("paused", {"id": "A"}, events)
    assert store(hub).peek().lease is None
    names = ["claim by session A", "step 10", "renewal", "step 20", "free", "evaluation", "release: paused"]
    assert titles(hub) == names


@pytest.mark.parametrize("action", ["drop_reply", "503"])
@pytest.mark.parametrize(
    "path", ["/preupload/", "/(_lfs|_cas)/", "/info/lfs/objects/batch|write-token", "^/api/models/"]
)
def test_a_request_that_fails_once_is_made_again(hub, tmp_path, events, path, action):
    mine = claim(hub)
    hub.faults.add(action, path=path)
    mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    assert titles(hub) == ["claim by session A", "step 10"]
    back = store(hub)
    back.fetch(back.peek().checkpoints[0], tmp_path / "back" / "step-00000010")
    assert tree(tmp_path / "back" / "step-00000010") == tree(checkpoint(tmp_path, 10))


def test_heads_that_lag_behind_accuse_nobody_and_lose_nothing(lfs, tmp_path, events):
    mine = claim(lfs)
    lfs.faults.add("lag_heads(1.2)")
    lfs.faults.add("drop_reply", method="POST", path=COMMIT)
    mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    mine.commit(checkpoint(tmp_path, 20), {"id": "A"}, events)
    mine.renew({"id": "A"}, events)
    assert titles(lfs) == ["claim by session A", "step 10", "step 20", "renewal"]
    # Another machine sees an old head, but cannot build on it: what it claims is the newest.
    other = store(lfs)
    other.claim(CONFIG, Lease.mine("B"), LINEAGE, "A")
    assert [stored.step for stored in other.peek().checkpoints] == [20, 10]
    with pytest.raises(LeaseLost, match=r"^Run 'r' was taken over by session B on "):
        mine.renew({"id": "A"}, events)


def test_412_for_ever_is_a_store_that_fails_within_its_time(lfs, tmp_path, events):
    mine = claim(lfs, seconds=4.0)
    lfs.faults.add("412", times=None)
    began = time.monotonic()
    with pytest.raises(StoreError) as caught:
        mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    assert time.monotonic() - began < 10
    place = f"The store hf://{REPO}@{BRANCH} cannot be given step 10: the Hub "
    assert str(caught.value) == f"{place}answers 412. {KEPT} Try again."
    lfs.faults.clear()
    mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    assert titles(lfs) == ["claim by session A", "step 10"]


def test_a_commit_that_landed_unheard_is_found_by_the_next_one(lfs, tmp_path, events):
    mine = claim(lfs, seconds=3.0)
    lfs.faults.add("drop_reply", method="POST", path=COMMIT)
    lfs.faults.add("503", method="GET", path="/revision/run/r", times=None, after=1)
    with pytest.raises(StoreError, match=r"the Hub answers 503|did not answer in time"):
        mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    lfs.faults.clear()
    mine.commit(checkpoint(tmp_path, 20), {"id": "A"}, events)
    assert titles(lfs) == ["claim by session A", "step 10", "step 20"]


def test_a_claim_that_landed_unheard_is_no_other_sessions(lfs, tmp_path, events):
    mine = store(lfs, seconds=2.0)
    lfs.faults.add("drop_reply", method="POST", path=COMMIT)
    lfs.faults.add("503", method="GET", path="/revision/run/r", times=None, after=2)
    with pytest.raises(StoreError):
        mine.claim(CONFIG, Lease.mine("A"), LINEAGE)
    lfs.faults.clear()
    mine.claim(CONFIG, Lease.mine("A"), LINEAGE).commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    assert titles(lfs) == ["claim by session A", "claim by session A", "step 10"]


@pytest.mark.parametrize("file", ["README.md", "notes.txt"])
def test_a_person_may_edit_the_branch_meanwhile_and_the_edit_stays(lfs, tmp_path, events, file):
    mine = claim(lfs)
    lfs.faults.add("move_head", file=file, times=2)
    mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    mine.renew({"id": "A"}, events)
    assert titles(lfs) == ["claim by session A", *["by someone else"] * 2, "step 10", "renewal"]
    assert lfs.repo(REPO).files(BRANCH)[file]["size"] == 16


def test_a_session_that_was_taken_over_sends_nothing_more(hub, tmp_path, events):
    old = claim(hub, "A")
    old.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    claim(hub, "B", take_over="A").commit(checkpoint(tmp_path, 20), {"id": "B"}, events)
    newer, before = checkpoint(tmp_path, 30), len(writes(hub))
    for _ in range(2):
        for write in (lambda: old.commit(newer, {}, events), lambda: old.free(1), lambda: old.put("report", events)):
            with pytest.raises(LeaseLost):
                write()
    assert len(writes(hub)) == before


def test_it_notices_within_the_save_that_is_under_way(hub, tmp_path, events):
    old = claim(hub, "A")
    lease, path = Lease.mine("B"), "/preupload/"
    hub.faults.add("call", path=path, function=lambda: store(hub).claim(CONFIG, lease, LINEAGE, "A"))
    with pytest.raises(LeaseLost, match=r"^Run 'r' was taken over by session B on .*it writes nothing more\."):
        old.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    assert titles(hub) == ["claim by session A", "claim by session B"]
    assert store(hub).peek().checkpoints == []


def test_what_the_hub_would_leave_out_is_not_committed(hub, tmp_path, events):
    mine = claim(hub)
    hub.faults.add("should_ignore(optimizer)")
    with pytest.raises(StoreError) as caught:
        mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    assert str(caught.value) == (
        f"The Hub leaves checkpoints/step-00000010/optimizer.pt out of {REPO}: a .gitignore there? Remove it from the "
        f"branch {BRANCH} and main."
    )
    assert titles(hub) == ["claim by session A"]
    hub.faults.clear()
    hub.faults.add("should_ignore(ledger)")
    with pytest.raises(StoreError, match=r" has not kept ledger\.json as it was sent\."):
        mine.renew({"id": "A", "steps": 3}, events)


def test_a_download_that_comes_damaged_once_is_made_again(hub, tmp_path, events):
    claim(hub).commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    back = store(hub)
    state = back.peek()
    damage = hub.faults.add("corrupt_download", path=r"^/_lfs/.*optimizer\.pt$")
    back.fetch(state.checkpoints[0], tmp_path / "back" / "step-00000010")
    assert damage.hits == 1
    assert tree(tmp_path / "back" / "step-00000010") == tree(checkpoint(tmp_path, 10))


@pytest.mark.parametrize("name", ["optimizer.pt", "adapter_config.json", "events/s1.jsonl"])
def test_a_file_that_always_comes_damaged_is_named_and_leaves_nothing(hub, tmp_path, events, name):
    claim(hub).commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    back = store(hub)
    state = back.peek()
    hub.faults.add("corrupt_download", path=f"{name}$", times=None)
    with pytest.raises(CheckpointError) as caught:
        back.fetch(state.checkpoints[0], tmp_path / "back" / "step-00000010")
    assert (caught.value.file, caught.value.reason) == (name, "has another hash than the Hub says")
    assert list((tmp_path / "back").iterdir()) == []


def test_content_that_the_hub_has_lost_is_a_damaged_checkpoint(hub, tmp_path, events):
    claim(hub).commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    repo = hub.repo(REPO)
    sha = repo.files(BRANCH)["checkpoints/step-00000010/optimizer.pt"]["sha256"]
    repo.delete_objects([sha], rewrite_history=False)
    back = store(hub)
    [stored] = back.peek().checkpoints
    with pytest.raises(CheckpointError) as caught:
        back.fetch(stored, tmp_path / "back" / "step-00000010")
    assert str(caught.value) == "step-00000010: optimizer.pt is missing."
    # Trained once more to the same bytes, it goes there again, though the branch says that it has it.
    mine = claim(hub, "B", "A")
    assert mine.commit(checkpoint(tmp_path, 10), {"id": "B"}, events) is None
    back.fetch(stored, tmp_path / "back" / "step-00000010")
    repo.delete_objects([sha], rewrite_history=False)
    other = make_checkpoint(tmp_path / "other", 10, salt="other")[0]
    notice = mine.commit(other, {"id": "B"}, events)
    assert notice.endswith("it is kept as checkpoints/step-00000010.different-1.")
    assert tree(other) == fetched(hub, tmp_path)


def test_a_hub_that_fails_is_never_an_empty_store(lfs, tmp_path, events):
    claim(lfs).commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    for action, seconds, why in (
        ("503", 3.0, "the Hub answers 503"),
        ("drop_before", 3.0, "the Hub cannot be reached (RemoteProtocolError)"),
        ("stall_headers(60)", 1.0, "the Hub cannot be reached (ReadTimeout)"),
    ):
        lfs.faults.add(action, method="GET", times=None)
        with pytest.raises(StoreError) as caught:
            store(lfs, seconds=seconds).peek()
        assert caught.value.what == f"The store hf://{REPO}@{BRANCH} cannot be read: {why}."
        lfs.faults.clear()


def test_each_refusal_says_what_to_do(lfs, tmp_path, events):
    mine = claim(lfs)
    start = f"The store hf://{REPO}@{BRANCH} cannot be "

    def said(call):
        with pytest.raises(StoreError) as caught:
            call()
        assert lfs.token not in str(caught.value) and lfs.read_token not in str(caught.value)
        return str(caught.value)

    lfs.faults.add("storage_limit")
    assert said(lambda: mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)) == (
        f"{start}given step 10: the account's private storage is full (403). {KEPT} Free space on "
        "https://huggingface.co/settings/billing, or lower keep, and run again."
    )
    assert said(lambda: claim(lfs, "B", "A", token=lfs.read_token)) == (
        f"{start}claimed: the token may not do that (403). {KEPT} "
        "Set HF_TOKEN to a token with the right to write to that repo."
    )
    todo = "Check the repo's name, and set HF_TOKEN to a token that may write to it."
    assert said(lambda: store(lfs, token=None).peek()) == (
        f"{start}read: it is private, and there is no token (401). {KEPT} {todo}"
    )
    assert said(lambda: store(lfs, token="hf_wrong").peek()) == (
        f"{start}read: the token is not valid, or may not see that repo (401). {KEPT} {todo}"
    )
    lfs.faults.add("400", path=COMMIT, text=f"rejected: ledger.json contains a live token {lfs.token}")
    assert "rejected: ledger.json contains a live token (the token)" in said(lambda: mine.renew({}, events))
    assert titles(lfs) == ["claim by session A"]


@pytest.mark.parametrize(
    ("action", "where"),
    [
        ("429(3600)", {"path": "/preupload/"}),
        ("503(3600)", {"path": "/info/lfs/objects/batch"}),
        ("stall_headers(600)", {"method": "POST", "path": COMMIT}),
        ("stall_headers(600)", {"method": "PUT"}),
        ("stall_body(600)", {"method": "GET", "path": "^/api/models/"}),
        ("slow_upload(200)", {"method": "PUT"}),
    ],
)
def test_a_save_that_cannot_succeed_ends_with_its_time(lfs, tmp_path, events, action, where):
    slow = claim(lfs, "B", seconds=3.0)
    lfs.faults.add(action, times=None, **where)
    began = time.monotonic()
    with pytest.raises(StoreError):
        slow.commit(checkpoint(tmp_path, 10), {"id": "B"}, events)
    assert time.monotonic() - began < 9
    lfs.faults.clear()
    slow.renew({"id": "B"}, events)
    landed = action == "stall_headers(600)" and where.get("path") == COMMIT
    assert [stored.step for stored in store(lfs).peek().checkpoints] == [10] * landed


def test_a_stalled_transfer_by_xet_is_cancelled_and_the_next_one_works(xet, tmp_path, events):
    mine = claim(xet, seconds=3.0)
    xet.faults.add("stall_cas(600)")
    began = time.monotonic()
    with pytest.raises(StoreError) as caught:
        mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    assert time.monotonic() - began < 10
    assert caught.value.what.endswith("cannot be given step 10: the Hub did not answer in time.")
    xet.faults.clear()
    mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    assert titles(xet) == ["claim by session A", "step 10"]


@pytest.mark.parametrize("name", ["head.json", "config.json", "lease.json"])
def test_a_file_that_is_damaged_by_hand_is_an_error_not_an_empty_run(lfs, tmp_path, events, name):
    claim(lfs)
    api = HfApi(token=lfs.token)
    api.create_commit(REPO, [CommitOperationAdd(name, b"{")], commit_message="by hand", revision=BRANCH)
    with pytest.raises(StoreError) as caught:
        store(lfs).peek()
    assert str(caught.value) == (
        f"The store hf://{REPO}@{BRANCH} cannot be read: its file {name} is damaged. {KEPT} "
        "Restore it from the branch's history, or start another run (run=NAME)."
    )
