"""payload=bucket: where the files are, what is given back and by whom, and what happens where a bucket fails."""

import re
import sys
import time

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from support.checkpoint_folders import BYTES, FILES, LINEAGE, make_checkpoint, make_events, tree
from support.loopback_http import User
from support.loopback_hub import OWNER, LoopbackHub

from kaggle_lib.checkpoints import hub_repo
from kaggle_lib.checkpoints.hub import HubStore
from kaggle_lib.checkpoints.hub_bucket import garbage
from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.manifest import folder_name
from kaggle_lib.errors import CheckpointError, LeaseLost, StoreError

REPO, BRANCH = "loopback/runs", "run/r"
CONFIG = {"config": {"seed": 42}, "code": "c0de"}
PLACE = f"The store hf://{REPO}@{BRANCH}"
COMMIT, BATCH, LISTING = "/commit/", "^/api/buckets/.*/batch$", "^/api/buckets/.*/tree"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    users = {"hf_writes": User(OWNER), "hf_repos": User(OWNER, buckets=False)}
    with LoopbackHub(tmp_path / "hub", xet=False, users=users) as hub:  # which a bucket's files do not care about
        hub.lead_client(monkeypatch)
        yield hub


@pytest.fixture
def events(tmp_path):
    return make_events(tmp_path / "events", "A", [1, 2])


def store(hub, run="r", bucket=True, **more):
    return HubStore(REPO, run, more.pop("token", hub.token), bucket=bucket, **more)


def claim(hub, session="A", take_over=None, **more):
    return store(hub, **more).claim(CONFIG, Lease.mine(session), LINEAGE, take_over)


def checkpoint(tmp_path, step, **more):
    folder = tmp_path / "local" / folder_name(step)
    return folder if folder.exists() else make_checkpoint(tmp_path / "local", step, **more)[0]


def fetched(hub, tmp_path, run="r"):
    """{step: files} of every checkpoint on the store; each is verified by that."""
    back = store(hub, run)
    found = {}
    for stored in back.peek().checkpoints:
        back.fetch(stored, tmp_path / "fetched" / f"{time.monotonic_ns()}" / folder_name(stored.step))
        [folder] = (tmp_path / "fetched").glob(f"*/{folder_name(stored.step)}")
        found[stored.step] = tree(folder)
        folder.rename(tmp_path / "fetched" / f"done-{time.monotonic_ns()}")
    return found


def local(tmp_path, *steps):
    return {step: tree(checkpoint(tmp_path, step)) for step in steps}


def batches(hub):
    """The requests so far that changed a bucket."""
    return [record for record in hub.requests if re.search(BATCH, record.path)]


def test_the_files_lie_in_a_private_bucket_and_the_branch_names_them(hub, tmp_path, events):
    mine = claim(hub)
    mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    assert mine.notice is None
    bucket, branch = hub.bucket(REPO), hub.repo(REPO).files(BRANCH)
    assert bucket.private
    assert [path for path in branch if path.startswith("checkpoints/")] == [
        "checkpoints/step-00000010/manifest.json",
        "checkpoints/step-00000010/payload.json",
    ]
    assert hub.repo(REPO).stored_bytes() == 0 and bucket.stored_bytes() == BYTES
    assert store(hub).peek().bytes == BYTES + sum(file["size"] for file in branch.values())
    [prefix] = {
        re.fullmatch(rf"r/{LINEAGE}/(\d{{10}}-[0-9a-f]{{32}}/[0-9a-f]{{16}})/.*", key)[1] for key in bucket.files
    }
    assert set(bucket.files) == {f"r/{LINEAGE}/{prefix}/{name}" for name in FILES}
    assert fetched(hub, tmp_path) == local(tmp_path, 10)


def test_after_each_save_the_bucket_holds_what_is_kept_and_not_a_byte_more(hub, tmp_path, events):
    mine = claim(hub)
    sizes, keys = [], set()
    for step in range(1, 9):
        mine.commit(checkpoint(tmp_path, step), {"id": "A"}, events)
        keys |= set(hub.bucket(REPO).files)
        mine.free(2)
        sizes.append(hub.bucket(REPO).stored_bytes())
    assert sizes == [BYTES] + 7 * [2 * BYTES]
    assert len(keys) == 8 * len(FILES)  # none was used twice
    assert fetched(hub, tmp_path) == local(tmp_path, 8, 7)


def test_two_runs_share_a_bucket_and_never_touch_each_other(hub, tmp_path, events):
    one, two = claim(hub), claim(hub, "B", run="two")
    one.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    two.commit(checkpoint(tmp_path, 20), {"id": "B"}, events)
    for step in (30, 40):
        one.commit(checkpoint(tmp_path, step), {"id": "A"}, events)
    assert one.free(1) == [30, 10]
    assert hub.bucket(REPO).stored_bytes() == 2 * BYTES
    assert fetched(hub, tmp_path) == local(tmp_path, 40)
    assert fetched(hub, tmp_path, "two") == local(tmp_path, 20)


def test_sessions_may_store_here_or_there_and_all_of_it_is_found_and_freed(hub, tmp_path, events):
    for number, (session, bucket) in enumerate([("A", True), ("B", False), ("C", True), ("D", False)], start=1):
        mine = claim(hub, session, bucket=bucket)
        mine.commit(checkpoint(tmp_path, 10 * number), {"id": session}, events)
        if session != "D":
            mine.release("paused", {"id": session}, events)
    assert fetched(hub, tmp_path) == local(tmp_path, 40, 30, 20, 10)
    assert hub.bucket(REPO).stored_bytes() == 2 * BYTES
    assert mine.free(1) == [30, 20, 10]
    assert hub.bucket(REPO).files == {}
    assert fetched(hub, tmp_path) == local(tmp_path, 40)
    # The same step once more, from another place: what was in the repo leaves the folder.
    other = make_checkpoint(tmp_path / "other", 40, salt="other")[0]
    notice = claim(hub, "E", "D").commit(other, {"id": "E"}, events)
    assert (
        notice
        == "The store's checkpoint of step 40 was different; it is kept as checkpoints/step-00000040.different-1."
    )
    names = {path for path in hub.repo(REPO).files(BRANCH) if path.startswith("checkpoints/step-00000040/")}
    assert names == {f"checkpoints/step-00000040/{name}" for name in ("manifest.json", "payload.json")}
    assert fetched(hub, tmp_path) == {40: tree(other)}


def test_what_was_set_aside_is_kept(hub, tmp_path, events):
    mine = claim(hub)
    mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    mine.commit(make_checkpoint(tmp_path / "other", 10, salt="other")[0], {"id": "A"}, events)
    mine.free(1)
    assert hub.bucket(REPO).stored_bytes() == 2 * BYTES


def test_a_tag_keeps_a_checkpoint_that_the_branch_has_let_go_of(hub, tmp_path, events):
    mine, api = claim(hub), HfApi(token=hub.token)
    mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    api.create_tag(REPO, tag="good", revision=BRANCH)
    mine.commit(checkpoint(tmp_path, 20), {"id": "A"}, events)
    assert mine.free(1) == [10]
    assert hub.bucket(REPO).stored_bytes() == 2 * BYTES
    api.delete_tag(REPO, tag="good")
    assert mine.free(1) == []
    assert hub.bucket(REPO).stored_bytes() == BYTES


def refused(patch, hub, case):
    """Make a bucket fail in one way; what is said of it."""
    if case == "no right":
        return "cannot be given a bucket: the token may not do that (403)."
    if case == "public":
        hub.create_bucket(REPO, private=False)
        return f"The bucket {REPO} is public; make it private in its settings on the Hub."
    if case == "no hf_xet":
        patch.setitem(sys.modules, "hf_xet", None)
        return " Storage Buckets need the package hf_xet, which is not installed."
    faults = {
        "no listing": ({"action": "400", "path": LISTING, "text": "no such thing"}, "BadRequestError: no such thing."),
        "not stored": (
            {"action": "fail_operations", "times": None},
            "BucketBatchError: Failed to apply 1 out of 1 operation(s) on bucket",
        ),
        "corrupt": (
            {"action": "corrupt_download", "path": "^/_cas/", "times": None},
            f"its file probe came back from the bucket {REPO} with other bytes.",
        ),
        "not deleted": (
            {"action": "fail_operations", "after": 1, "times": None},
            "BucketBatchError: Failed to apply 1 out of 1 operation(s) on bucket",
        ),
    }
    fault, said = faults[case]
    patch.setattr(hub_repo, "PAUSES", (0.1,))
    hub.faults.add(**fault)
    return said


@pytest.mark.parametrize(
    "case", ["no right", "public", "no hf_xet", "no listing", "not stored", "corrupt", "not deleted"]
)
def test_a_bucket_that_cannot_be_used_means_the_repo_and_that_is_said(hub, tmp_path, events, monkeypatch, case):
    with monkeypatch.context() as patch:
        said = refused(patch, hub, case)
        mine = claim(hub, token="hf_repos" if case == "no right" else hub.token)
    hub.faults.clear()
    assert mine.notice.startswith("This session's checkpoints go to the repo, not to a bucket. ")
    assert said in mine.notice and hub.token not in mine.notice
    assert mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events) is None
    assert not any(path.endswith("payload.json") for path in hub.repo(REPO).files(BRANCH))
    assert hub.repo(REPO).stored_bytes() > 0
    assert fetched(hub, tmp_path) == local(tmp_path, 10)


def test_a_bucket_that_stops_working_means_the_repo_from_the_next_try_on(hub, tmp_path, events):
    mine = claim(hub)
    mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    hub.faults.add("403", path="/xet-write-token$", times=None)
    with pytest.raises(StoreError) as caught:
        mine.commit(checkpoint(tmp_path, 20), {"id": "A"}, events)
    assert str(caught.value).startswith(f"{PLACE} cannot be given step 20: ConnectionError: ")
    notice = mine.commit(checkpoint(tmp_path, 20), {"id": "A"}, events)
    assert notice.startswith(
        f"This session's checkpoints go to the repo, not to a bucket. {PLACE} cannot be given a bucket"
    )
    assert mine.notice == notice
    assert mine.commit(checkpoint(tmp_path, 30), {"id": "A"}, events) is None
    assert fetched(hub, tmp_path) == local(tmp_path, 30, 20, 10)
    hub.faults.clear()
    assert mine.free(1) == [20, 10]
    assert hub.bucket(REPO).files == {}


def test_a_batch_that_is_done_in_part_is_done_again(hub, tmp_path, events):
    mine = claim(hub)
    fault = hub.faults.add("fail_operations(optimizer)")
    mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    assert fault.hits == 1
    assert fetched(hub, tmp_path) == local(tmp_path, 10)


def test_a_file_that_the_bucket_holds_otherwise_is_not_called_saved(hub, tmp_path, events):
    mine = claim(hub, seconds=6.0)

    def spoil():
        for key, entry in hub.bucket(REPO).files.items():
            if key.endswith("optimizer.pt"):
                hub.bucket(REPO).files[key] = type(entry)("f" * 64, entry.size, entry.mtime, entry.uploaded)

    hub.faults.add("call", path="^/api/buckets/.*/paths-info", times=None, function=spoil)
    with pytest.raises(StoreError) as caught:
        mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    assert caught.value.what == (
        f"{PLACE} cannot be given step 10: its file optimizer.pt has another hash than was sent in the bucket {REPO}."
    )
    assert store(hub).peek().checkpoints == []


# Fenced


def test_a_session_that_was_taken_over_deletes_nothing_even_if_it_does_not_know_yet(hub, tmp_path, events):
    old = claim(hub)
    for step in (10, 20):
        old.commit(checkpoint(tmp_path, step), {"id": "A"}, events)

    def take_over():
        new = claim(hub, "B", "A")
        new.commit(checkpoint(tmp_path, 30), {"id": "B"}, events)
        hub.new, hub.there = new, set(hub.bucket(REPO).files)

    # Its own commit, which lets go of step 10, has landed by then.
    hub.faults.add("call", path=LISTING, function=take_over)
    with pytest.raises(LeaseLost, match=r"^Run 'r' was taken over by session B on "):
        old.free(1)
    assert set(hub.bucket(REPO).files) == hub.there
    assert hub.bucket(REPO).stored_bytes() == 3 * BYTES
    assert fetched(hub, tmp_path) == local(tmp_path, 30, 20)
    before = len(batches(hub))
    for _ in range(2):
        with pytest.raises(LeaseLost):
            old.free(1)
    assert len(batches(hub)) == before
    # The one that holds the run gives back what the other left behind.
    assert hub.new.free(1) == [20]
    assert hub.bucket(REPO).stored_bytes() == BYTES
    assert fetched(hub, tmp_path) == local(tmp_path, 30)


def test_what_it_was_sending_when_it_was_taken_over_is_deleted_by_the_next(hub, tmp_path, events):
    old = claim(hub)
    taken = []
    hub.faults.add("call", path=BATCH, function=lambda: taken.append(claim(hub, "B", "A")))
    with pytest.raises(LeaseLost, match="taken over by session B on"):
        old.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    assert hub.bucket(REPO).stored_bytes() == BYTES and store(hub).peek().checkpoints == []
    taken[0].commit(checkpoint(tmp_path, 20), {"id": "B"}, events)
    taken[0].free(2)
    assert hub.bucket(REPO).stored_bytes() == BYTES
    assert fetched(hub, tmp_path) == local(tmp_path, 20)


def test_files_of_a_commit_whose_end_is_not_known_are_not_deleted(hub, tmp_path, events):
    mine = claim(hub, seconds=3.0)
    hub.faults.add("drop_reply", method="POST", path=COMMIT)
    hub.faults.add("503", method="GET", path="/revision/run/r", times=None, after=1)
    with pytest.raises(StoreError):
        mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    hub.faults.clear()
    hub.faults.add("lag_heads(60)")  # so that the head still seems to be the claim's
    assert mine.free(1) == []
    hub.faults.clear()
    assert fetched(hub, tmp_path) == local(tmp_path, 10)
    mine.commit(checkpoint(tmp_path, 20), {"id": "A"}, events)
    assert mine.free(1) == [10]
    assert hub.bucket(REPO).stored_bytes() == BYTES


def test_garbage_is_of_this_claim_or_of_one_before_and_named_nowhere():
    own = f"0000000007-{'a' * 32}"
    makers = [f"0000000006-{'b' * 32}", own, f"0000000007-{'c' * 32}", f"0000000008-{'b' * 32}", "notes"]
    keys = [f"r/l/{maker}/{part}/f" for maker in makers for part in ("0", "1")]
    assert garbage(keys, "r/l", own, [f"r/l/{maker}/1" for maker in makers]) == [
        f"r/l/{makers[0]}/0/f",
        f"r/l/{own}/0/f",
    ]


# Damaged, gone, stalled


def test_a_file_that_is_gone_from_the_bucket_is_named_and_the_checkpoint_before_is_good(hub, tmp_path, events):
    mine = claim(hub)
    for step in (10, 20):
        mine.commit(checkpoint(tmp_path, step), {"id": "A"}, events)
    [newest, _] = store(hub).peek().checkpoints
    key = next(key for key in reversed(hub.bucket(REPO).files) if key.endswith("optimizer.pt"))
    del hub.bucket(REPO).files[key]
    found = store(hub).peek().checkpoints
    assert [stored.problem for stored in found] == [("optimizer.pt", "is missing"), None]
    with pytest.raises(CheckpointError) as caught:
        store(hub).fetch(newest, tmp_path / "back" / folder_name(20))
    assert str(caught.value) == "step-00000020: optimizer.pt is missing."
    # Trained once more to the same bytes, it goes there again.
    assert mine.commit(checkpoint(tmp_path, 20), {"id": "A"}, events).startswith(
        "The store's checkpoint of step 20 was"
    )
    assert fetched(hub, tmp_path) == local(tmp_path, 20, 10)


def test_a_file_that_goes_between_the_look_and_the_download_is_a_damaged_checkpoint(hub, tmp_path, events):
    claim(hub).commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    back = store(hub)
    [stored] = back.peek().checkpoints
    hub.faults.add("call", path="/paths-info$", after=1, function=hub.bucket(REPO).files.clear)
    with pytest.raises(CheckpointError) as caught:
        back.fetch(stored, tmp_path / "back" / folder_name(10))
    assert str(caught.value) == f"step-00000010: payload.json names a file that the bucket {REPO} has not."
    assert list((tmp_path / "back").iterdir()) == []


def test_a_pointer_that_is_damaged_by_hand_is_a_damaged_checkpoint_and_nothing_is_deleted_then(hub, tmp_path, events):
    mine = claim(hub)
    for step in (10, 20):
        mine.commit(checkpoint(tmp_path, step), {"id": "A"}, events)
    path = "checkpoints/step-00000020/payload.json"
    operation, message = CommitOperationAdd(path, b"{}"), "by hand"
    HfApi(token=hub.token).create_commit(REPO, [operation], commit_message=message, revision=BRANCH)
    found = store(hub).peek().checkpoints
    assert [stored.problem for stored in found] == [("payload.json", "is damaged"), None]
    mine = claim(hub, "B", "A")
    mine.commit(checkpoint(tmp_path, 30), {"id": "B"}, events)
    with pytest.raises(StoreError, match=f"cannot be freed of old checkpoints: its file {path} is damaged"):
        mine.free(1)
    assert hub.bucket(REPO).stored_bytes() == 3 * BYTES
    assert [stored.step for stored in store(hub).peek().checkpoints] == [30, 20]


@pytest.mark.parametrize("times", [1, None])
def test_a_download_that_comes_damaged_is_made_once_more(hub, tmp_path, events, times):
    claim(hub).commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    hub.faults.add("corrupt_download", path="/v1/reconstructions/", times=times)
    back = store(hub)
    [stored] = back.peek().checkpoints
    if times:
        back.fetch(stored, tmp_path / "back" / folder_name(10))
        assert tree(tmp_path / "back" / folder_name(10)) == tree(checkpoint(tmp_path, 10))
        return
    with pytest.raises(CheckpointError, match=r"^step-00000010: .* has another sha256 than its manifest says\.$"):
        back.fetch(stored, tmp_path / "back" / folder_name(10))
    assert list((tmp_path / "back").iterdir()) == []


def test_a_bucket_that_is_not_to_be_seen_is_an_error_not_an_empty_store(hub, tmp_path, events):
    claim(hub).commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    hub.delete_bucket(REPO)
    with pytest.raises(StoreError) as caught:
        store(hub).peek()
    assert str(caught.value) == (
        f"{PLACE} cannot be read: the bucket of its files is gone, or the token may not see it (404). Everything "
        "committed before is kept. Set HF_TOKEN to a token that may read it; if it is gone, remove the checkpoints "
        "that name it."
    )


def test_a_stalled_transfer_ends_with_its_time_and_the_next_one_works(hub, tmp_path, events):
    mine = claim(hub, seconds=4.0)
    hub.faults.add("stall_cas(600)")
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"cannot be given step 10: the Hub did not answer in time\."):
        mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    assert time.monotonic() - began < 12
    hub.faults.clear()
    assert mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events) is None
    assert mine.notice is None
    mine.free(1)
    assert hub.bucket(REPO).stored_bytes() == BYTES
