"""Uploads beside the training: nobody waits for the store, the newest checkpoint wins, and what is where is told."""

import shutil
import threading
import time

import pytest
from filelock import FileLock
from support.checkpoint_folders import BYTES, LINEAGE, make_checkpoint, tree

from kaggle_lib.checkpoints.folder_store import FolderStore
from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.manifest import verify
from kaggle_lib.errors import LeaseLost, StoreError
from kaggle_lib.runs import custody as custodies
from kaggle_lib.runs import events, upload
from kaggle_lib.runs.custody import Custody
from kaggle_lib.runs.folder import RunFolder

ENOUGH = 30  # seconds for what takes a moment


class Session:
    """A session's custody over a store in a folder, which `hang` makes slow and `broken` makes fail."""

    def __init__(self, tmp_path, keep=2):
        self.folder = RunFolder(tmp_path / "work" / "r")
        self.folder.create()
        self.root = tmp_path / "store" / "r"
        self.store = FolderStore(tmp_path / "store", "r")
        self.said = []
        self.log = events.EventLog(self.folder.events, "A")
        self.custody = Custody(self.store, self.folder, self.log, self.said.append, keep)
        self.custody.take({"code": "c"}, LINEAGE, None, 0)
        self.log.write("session", job="train", from_step=0)
        self.hang = FileLock(self.root / ".lock", thread_local=False)

    @property
    def uploads(self):
        return self.custody.uploads

    def begin(self, *steps):
        for step in steps:
            self.save(step)
        self.custody.begin(None)

    def save(self, step, **more):
        return make_checkpoint(self.folder.checkpoints, step, **more)[0]

    def until(self, true):
        end = time.monotonic() + ENOUGH
        while not true():
            self.custody.check()
            assert time.monotonic() < end
            time.sleep(0.01)

    def settle(self):
        self.custody.settle(ENOUGH + custodies.SHORTEST_WRITE)
        self.custody.check()

    def stored(self):
        return sorted(int(path.name[5:]) for path in (self.root / "checkpoints").glob("step-*"))

    def local(self):
        return sorted(self.folder.checkpoint_steps())

    def uploaded(self):
        return [event["step"] for event in events.read(self.log.path) if event["event"] == "upload"]

    def break_store(self):
        (self.root / "checkpoints").rename(self.root / "away")
        (self.root / "checkpoints").write_text("no folder")

    def repair_store(self):
        (self.root / "checkpoints").unlink()
        (self.root / "away").rename(self.root / "checkpoints")


@pytest.fixture
def session(tmp_path):
    session = Session(tmp_path)
    yield session
    session.custody.close()


def test_the_newest_wins_and_the_one_on_its_way_is_not_removed(session):
    with session.hang:
        session.begin(10)
        session.until(lambda: session.uploads._sending == 10)
        for step in (20, 30, 40):
            session.save(step)
            session.custody.check()  # which returns, though the store does not answer
        assert session.local() == [10, 30, 40]
    session.settle()
    assert (session.uploaded(), session.stored(), session.local()) == ([10, 40], [10, 40], [30, 40])
    assert session.custody.kept() == "The checkpoint of step 40 is on the store."
    for step in (10, 40):
        verify(session.root / "checkpoints" / f"step-{step:08d}")
    assert session.said == []


def test_the_best_one_goes_before_the_newest_that_names_it_and_stays_here_and_there(session):
    with session.hang:
        session.begin(10)
        session.until(lambda: session.uploads._sending == 10)
        for step, best in ((20, 20), (30, 20), (40, 20), (50, 20)):
            session.save(step, best=best)
            session.custody.check()
        assert session.local() == [10, 20, 40, 50]
    session.settle()
    assert (session.uploaded(), session.stored(), session.local()) == ([10, 20, 50], [20, 50], [20, 40, 50])
    assert session.custody.kept() == "The checkpoint of step 50 is on the store."
    session.save(60, best=60)
    session.save(70, best=60)
    session.settle()
    # 50 may have to be gone on from, and names 20.
    assert (session.uploaded()[3:], session.stored(), session.local()) == ([60, 70], [60, 70], [60, 70])
    assert session.said == []


def test_a_best_one_that_the_store_has_is_not_sent_again_and_without_keep_best_it_goes(session, tmp_path):
    session.begin(10)
    for step in (20, 30, 40):
        session.save(step, best=20)
        session.settle()
    session.custody.end("paused", "test", 40, None)
    again = Custody(session.store, session.folder, events.EventLog(session.folder.events, "B"), session.said.append, 2)
    again.take({"code": "c"}, LINEAGE, None, 0)
    again.begin(verify(session.folder.checkpoint(40)), session.store.peek().checkpoints)
    assert again.uploads.waiting() is None
    again.close()
    assert (session.uploaded(), session.stored(), session.local()) == ([10, 20, 30, 40], [20, 30, 40], [20, 30, 40])
    off = Custody(session.store, session.folder, session.log, session.said.append, 2, best=False)
    off.take({"code": "c"}, LINEAGE, "B", 0)
    off.begin(None)
    off.check()
    assert session.local() == [30, 40]
    off.settle(ENOUGH + custodies.SHORTEST_WRITE)
    off.close()
    assert session.stored() == [30, 40]


def test_a_best_one_that_is_damaged_here_holds_nothing_up(session):
    torn = session.save(10, best=10) / "optimizer.pt"
    torn.write_bytes(b"!" + torn.read_bytes()[1:])
    session.save(20, best=10)
    session.begin()
    session.settle()
    assert (session.uploaded(), session.stored()) == ([20], [20])
    why = "step-00000010: optimizer.pt has another sha256 than its manifest says. It is not brought to the store."
    assert session.said == [f"warning: {why}"]


def test_without_a_store_the_newest_stay_here_and_the_rest_goes(session):
    session.break_store()
    session.begin()
    for step in (10, 20, 30):
        session.save(step)
        session.until(lambda: session.uploads.problem)
    session.custody.check()
    assert session.local() == [20, 30]
    warning = f"The store {session.root} cannot be given step 10: Not a directory"
    assert session.said[0].startswith(f"warning: {warning}"), session.said
    assert session.said[0].endswith("Training goes on; the store is tried again.")
    assert session.custody.kept() == (
        f"The checkpoint of step 30 is in {session.folder.checkpoints} only; the store has none "
        f"({session.uploads.problem.what.rstrip('.')}). Put that right and run again. On another machine it would be "
        "missing."
    )


def test_a_store_that_comes_back_gets_the_newest_before_the_session_ends(session):
    session.break_store()
    session.begin(10)
    session.until(lambda: session.said)
    session.save(20)
    threading.Timer(1, session.repair_store).start()
    session.settle()  # without waiting for the long pause to be over
    assert (session.uploaded(), session.stored(), session.uploads.problem) == ([20], [20], None)
    assert [line.split()[0] for line in session.said] == ["warning:", "Waiting"]


def test_a_store_that_stays_away_is_given_up_after_three_tries(session, monkeypatch):
    monkeypatch.setattr(upload, "FIRST_PAUSE", 0.2)
    session.break_store()
    session.begin(10)
    session.until(lambda: session.said)
    session.settle()
    assert session.stored() == []
    assert "the store has none (The store " in session.custody.kept()
    assert len(session.said) == 1  # the same thing is said once


def test_the_last_wait_ends_with_the_deadline_and_says_so(session, monkeypatch):
    monkeypatch.setattr(custodies, "SHORTEST_WAIT", 3.0)
    with session.hang:
        session.begin(10)
        session.until(lambda: session.uploads._sending == 10)
        began = time.monotonic()
        session.custody.settle(5.0)
        assert 3 <= time.monotonic() - began < 5
        assert session.said == ["Waiting for the upload of step 10, 3 s at most."]
        assert (
            "the store has none (its upload was not done within the last 3 s). Run `train` on" in session.custody.kept()
        )
        # The last words are bounded, too.
        monkeypatch.setattr(custodies, "SHORTEST_WRITE", 1.0)
        session.custody.end("paused", "session_hours=1 are over", 10, 0.5)
    assert session.said[-1] == "warning: The store did not answer within 1 seconds. Its lease ends by itself."


def test_the_second_interrupt_ends_the_wait(session):
    with session.hang:
        session.begin(10)
        session.custody.settle(None, give_up=lambda: True)
    assert session.said == []


def test_the_wait_is_for_the_old_ones_to_leave_the_store_too_and_what_failed_of_that_is_made_good(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(upload, "FIRST_PAUSE", 0.2)
    session = Session(tmp_path, keep=1)
    claim, failures = session.custody.claim, [StoreError("The store cannot be freed.")]
    free = claim.free

    def slow(keep, best):
        time.sleep(0.5)
        if failures:
            raise failures.pop()
        return free(keep, best)

    monkeypatch.setattr(claim, "free", slow)
    session.begin(10)
    session.until(lambda: session.uploads.stored and not session.uploads._unfreed)
    assert session.said == ["warning: The store cannot be freed. Training goes on; the store is tried again."]
    session.save(20)
    session.settle()
    assert session.stored() == [20]
    session.custody.close()


def test_a_session_that_was_taken_over_ends_and_writes_nothing_more(session):
    session.begin(10)
    session.settle()
    other = FolderStore(session.root.parent, "r").claim({}, Lease.mine("B"), LINEAGE, "A")
    before = tree(session.root)
    session.save(20)
    with pytest.raises(LeaseLost, match=r"^Run 'r' was taken over by session B on "):
        session.until(lambda: False)
    session.custody.close()
    assert tree(session.root) == before
    assert other.head in before["head.json"].decode()


def test_a_checkpoint_that_is_damaged_here_is_not_sent_and_the_next_one_is(session):
    torn = session.save(10) / "optimizer.pt"
    torn.write_bytes(b"!" + torn.read_bytes()[1:])
    session.begin()
    session.until(lambda: session.said)
    session.settle()
    why = "step-00000010: optimizer.pt has another sha256 than its manifest says. It is not brought to the store."
    assert session.said == [f"warning: {why}"]
    assert "step 10 is in" in session.custody.kept()
    session.save(20)
    session.settle()
    assert (session.uploaded(), session.stored(), len(session.said)) == ([20], [20], 1)


def test_a_step_that_was_saved_anew_is_sent_anew(session):
    session.begin(10)
    session.settle()
    shutil.rmtree(session.folder.checkpoint(10))
    session.save(10, salt="done again")
    session.settle()
    assert session.uploaded() == [10, 10]
    assert verify(session.root / "checkpoints/step-00000010") == verify(session.folder.checkpoint(10))
    assert "The store's checkpoint of step 10 was different; it is kept as" in session.said[0]


def test_the_next_upload_is_foreseen_by_the_slowest_rate(session):
    session.begin(10)
    session.settle()
    assert session.uploads.stored.bytes == BYTES
    session.uploads._seconds_a_byte.extend([2 / BYTES, 7 / BYTES, 3 / BYTES])
    assert session.uploads.seconds_for_the_next() == pytest.approx(7)
    session.uploads._seconds_a_byte.extend([2 / BYTES] * 4)  # five are looked at
    with session.hang:
        session.save(20)
        session.until(lambda: session.uploads._sending == 20)
        session.uploads._since -= 100
        assert session.uploads.seconds_for_the_next() == pytest.approx(100, abs=ENOUGH)


def test_a_new_session_is_in_the_ledger_at_once_and_its_lease_is_renewed_beside_an_upload(session):
    session.begin()
    session.until(lambda: [one["id"] for one in session.store.peek().ledger] == ["A"])
    head = session.custody.claim.head
    session.custody.claim._lease = session.custody.claim.lease.model_copy(update={"expires": time.time() + 1})
    session.until(lambda: session.custody.claim.head != head)
    assert session.store.peek().lease.expires > time.time() + 600


def test_what_takes_too_long_is_left_and_what_fails_is_raised():
    with pytest.raises(StoreError, match=r"^The store did not answer within 1 seconds"):
        upload.bounded(threading.Event().wait, 1)
    with pytest.raises(KeyError):
        upload.bounded(lambda: {}["x"], ENOUGH)
    upload.bounded(lambda: None, ENOUGH)
