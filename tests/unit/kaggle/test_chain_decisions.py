"""What a chain does in every state that a look can show, and how a look is made of what store and Kaggle say."""

from datetime import UTC, datetime, timedelta

import pytest

from kaggle_lib.kaggle import chain as chaining
from kaggle_lib.kaggle.chain import Action, Chained, Limits, View, decide, in_vain, look, session_hours
from kaggle_lib.kaggle.client import Pulled, Quota, Status

LIMITS = Limits(max_sessions=5, no_progress=2, settle=120.0, hang_minutes=30.0, start_minutes=60.0, least_hours=0.5)
ENDED = ("none", "new", "complete", "error", "cancelled")
RECORD = {"id": "s2", "job": "train", "kernel": "asha/my-run", "kaggle_session": 77, "to_step": 40, "ended": None}
NO_MACHINE = "Unable to allocate the requested accelerator: no capacity is available. Please try again later."


def of(state, message="", **fields):
    return View(**{"finished": False, "status": Status(state, message), **fields})


def said(state):
    return "no session has run yet" if state in ("none", "new") else f"the last session ended ({state})"


@pytest.mark.parametrize("state", [*ENDED, "queued", "running", "cancelling", "unknown"])
def test_a_finished_run_is_never_pushed_whatever_kaggle_says(state):
    view = of(state, finished=True, in_vain=9, sessions=9)
    assert decide(view, LIMITS) == Action("done", "the run is finished, and on the store")


@pytest.mark.parametrize("state", ENDED)
def test_where_no_session_is_live_one_is_pushed(state):
    assert decide(of(state), LIMITS) == Action("push", said(state))


@pytest.mark.parametrize("state", ["complete", "error", "cancelled"])
def test_a_lease_that_an_ended_session_of_this_kernel_left_is_taken_over_at_once(state):
    view = of(state, holder="s2", own=True, until="10:00:00 UTC", session=RECORD)
    assert decide(view, LIMITS) == Action("push", said(state), take_over="s2")


@pytest.mark.parametrize("state", ENDED)
def test_a_lease_of_another_session_is_waited_for(state):
    view = of(state, holder="s1", until="10:00:00 UTC")
    why = "session s1 holds the run until 10:00:00 UTC, and is none of this kernel's"
    assert decide(view, LIMITS) == Action("wait", why)


@pytest.mark.parametrize(
    ("view", "action"),
    [
        (of("unknown", "timed out"), Action("wait", "Kaggle does not say how its session is (timed out)")),
        (of("queued"), Action("wait", "the session is queued")),
        (of("cancelling", session=RECORD, overdue=1e6), Action("wait", "the session is cancelling")),
        (of("running", age=3500.0), Action("wait", "the session has not begun to train")),
        (
            of("running", age=3700.0),
            Action("wait", "the session has not begun to train; it may hang in its first cells"),
        ),
        (of("running", session=RECORD, holder="s2", own=True), Action("wait", "session s2 trains, step 40")),
        (of("running", session=RECORD, overdue=1799.0), Action("wait", "session s2 trains, step 40")),
        (
            of("running", session=RECORD, overdue=1800.0),
            Action("cancel", "session s2 gave no sign for 30 minutes", session=77),
        ),
        (
            of("running", session=RECORD, holder="s3", ousted=True),
            Action("cancel", "session s2 lost the run to another session", session=77),
        ),
        (
            of("running", session=RECORD | {"kaggle_session": None}, overdue=1800.0),
            Action(
                "wait",
                "session s2 gave no sign for 30 minutes, and its number is not known: it cannot be cancelled here",
            ),
        ),
        (of("complete", age=119.0), Action("wait", "a session was pushed a moment ago")),
        (of("complete", age=121.0), Action("push", said("complete"))),
        (of("error", NO_MACHINE, age=599.0), Action("wait", f"Kaggle had no machine ({NO_MACHINE})")),
        (of("error", NO_MACHINE, age=601.0), Action("push", said("error"))),
        (of("error", in_vain=1), Action("push", said("error"))),
        (
            of("error", "Your notebook failed.", in_vain=2),
            Action("stop", "2 sessions in a row came to no new step; Kaggle says: Your notebook failed."),
        ),
        (of("complete", in_vain=2), Action("stop", "2 sessions in a row came to no new step")),
        (of("complete", sessions=4), Action("push", said("complete"))),
        (of("complete", sessions=5), Action("stop", "5 sessions have trained, and the run is not finished")),
        (of("complete", quota=Quota(0.5, 30.0, None)), Action("push", said("complete"))),
        (
            of("complete", quota=Quota(0.4, 30.0, "2026-11-28T00:00:00+00:00")),
            Action("wait", "0.4 of 30 GPU hours of the week are left, refilled 2026-11-28T00:00:00+00:00"),
        ),
        # A live session goes on, however the account stands.
        (of("running", session=RECORD, in_vain=9, sessions=9), Action("wait", "session s2 trains, step 40")),
    ],
)
def test_every_other_state(view, action):
    assert decide(view, LIMITS) == action


def train(to_step, **more):
    return {"job": "train", "to_step": to_step, **more}


@pytest.mark.parametrize(
    ("records", "number"),
    [
        ([], 0),
        ([train(0)], 1),
        ([train(10), train(20)], 0),
        ([train(10), train(10)], 1),
        ([train(10), train(8), {"job": "evaluate", "to_step": 10}, train(10)], 2),
        ([train(0), train(0), train(4)], 0),
    ],
)
def test_a_session_in_vain_added_no_step_to_the_best_before_it(records, number):
    assert in_vain(records) == number


def test_the_next_session_is_no_longer_than_the_weeks_quota_allows():
    assert session_hours(None, None) is None
    assert session_hours(9.0, Quota(9.25, 30.0, None)) == 9.0
    assert session_hours(9.0, Quota(9.2, 30.0, None)) == 8.95
    assert session_hours(None, Quota(30.0, 30.0, None)) is None
    assert session_hours(None, Quota(3.0, 30.0, None)) == 2.75


def test_exit_codes():
    assert [Chained(word, "r", "k", "push", "", 0).exit_code for word in ("finished", "paused")] == [0, 75]


class Lease:
    session, expires = "s2", 1000.0


class Opened:
    """What a look needs of an opened run."""

    def __init__(self, *, ledger=(), holder=None, lease=None, now=0.0):
        self.config = type("Config", (), {"run": "r", "store": "hf://asha/runs", "extend_epochs": 0.0})
        state = {"ledger": list(ledger), "lease": lease, "now": now, "checkpoints": [], "holder": lambda self: holder}
        self.state = type("State", (), state)()


class Kaggle:
    def __init__(self, state, mark=None, message=""):
        self._status, self._mark = Status(state, message), mark

    def status(self, kernel):
        return self._status

    def pull(self, kernel):
        return Pulled({}, self._mark) if self._mark else None

    def quota(self):
        return Quota(20.0, 30.0, None)


def mark(after="", unrecorded=0, seconds=1000, **more):
    pushed = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()
    told = {"run": "r", "store": "hf://asha/runs", "notebook": "train", "push": "n", "time": pushed}
    return {**told, "after": after, "unrecorded": unrecorded, **more}


def see(monkeypatch, kaggle, last=None, **opened):
    monkeypatch.setattr(chaining, "open_for_kaggle", lambda values: Opened(**opened))
    return look({}, "asha/my-run", "train", kaggle, last or {})[0]


DONE = {**RECORD, "id": "s1", "to_step": 20, "ended": "2026-11-20T10:00:00Z"}


def test_a_pushed_session_that_left_no_record_counts_as_one_in_vain(monkeypatch):
    view = see(monkeypatch, Kaggle("error", mark(after="s1", unrecorded=1)), ledger=[DONE])
    assert (view.in_vain, view.unrecorded, view.sessions) == (2, 2, 1)
    assert see(monkeypatch, Kaggle("error", mark(after="", unrecorded=1)), ledger=[DONE]).in_vain == 0
    assert see(monkeypatch, Kaggle("running", mark(after="s1")), ledger=[DONE]).in_vain == 0
    # A machine that never came is nobody's failure, and takes back no count.
    view = see(monkeypatch, Kaggle("error", mark(after="s1", unrecorded=1), NO_MACHINE), ledger=[DONE])
    assert (view.in_vain, view.unrecorded) == (1, 1)
    # Where Kaggle does not show what was pushed, this chain remembers its own last push.
    view = see(monkeypatch, Kaggle("error"), last=mark(after="s1"), ledger=[DONE])
    assert view.in_vain == 1


def test_the_marks_of_another_run_notebook_or_store_say_nothing_of_this_one(monkeypatch):
    for other in ({"run": "x"}, {"notebook": "evaluate"}, {"store": "hf://asha/other"}):
        view = see(monkeypatch, Kaggle("error", mark(after="s1", **other)), ledger=[DONE])
        assert (view.in_vain, view.age) == (0, None), other


def test_whose_lease_it_is(monkeypatch):
    held = {"holder": "s2", "lease": Lease, "now": 900.0}
    ours = see(monkeypatch, Kaggle("error", mark(after="s1")), ledger=[DONE, RECORD], **held)
    assert (ours.holder, ours.own, ours.session, ours.ousted) == ("s2", True, RECORD, False)
    # A session that began before the last push may still run in an older version of the kernel.
    assert not see(monkeypatch, Kaggle("error", mark(after="s2")), ledger=[DONE, RECORD], **held).own
    assert not see(monkeypatch, Kaggle("error", mark()), ledger=[DONE, RECORD | {"kernel": "asha/x"}], **held).own
    assert not see(monkeypatch, Kaggle("error", mark()), ledger=[DONE, RECORD | {"kernel": None}], **held).own
    assert not see(monkeypatch, Kaggle("error", mark()), ledger=[DONE], **held).own
    late = see(monkeypatch, Kaggle("running", mark()), ledger=[RECORD], lease=Lease, now=2801.0)
    assert (late.overdue, late.ousted) == (1801.0, False)
    out = see(monkeypatch, Kaggle("running", mark()), ledger=[RECORD], lease=Lease, holder="s3", now=900.0)
    assert out.ousted


def test_kaggle_is_asked_before_the_store_so_that_no_last_commit_is_missed(monkeypatch):
    order = []
    kaggle = Kaggle("complete", mark())
    kaggle.status = lambda kernel: order.append("kaggle") or Status("complete")
    monkeypatch.setattr(chaining, "open_for_kaggle", lambda values: order.append("store") or Opened())
    look({}, "asha/my-run", "train", kaggle, {})
    assert order == ["kaggle", "store"]
