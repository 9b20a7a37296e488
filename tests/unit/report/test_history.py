"""How a run went: the steps that count, where it stands, what was warned of, when."""

import pytest

from kaggle_lib.report import history, hours
from kaggle_lib.runs.ledger import close_killed, record


def step(number, loss=1.0, session="a"):
    return {"event": "step", "step": number, "loss": loss, "session": session}


def begin(session, from_step, job="train"):
    return {"event": "session", "session": session, "job": job, "from_step": from_step}


def losses(happened):
    return [(event["step"], event["loss"]) for event in history.course(happened)]


def test_a_step_done_again_is_there_once_as_it_was_done_last():
    happened = [begin("a", 0), step(1, 0.1), step(2, 0.2), step(3, 0.3), begin("b", 1), step(2, 0.22), step(3, 0.33)]
    assert losses(happened) == [(1, 0.1), (2, 0.22), (3, 0.33)]


def test_what_came_after_the_step_that_a_session_went_back_to_is_lost():
    happened = [begin("a", 0), step(1), step(2), step(3)]
    assert [number for number, _ in losses([*happened, begin("b", 1)])] == [1]
    assert [number for number, _ in losses([*happened, begin("b", 1), step(2, 0.5)])] == [1, 2]
    # a launch inside a session, which writes no `session`
    assert losses([*happened, step(2, 0.5)]) == [(1, 1.0), (2, 0.5)]
    assert [number for number, _ in losses([*happened, begin("e", 1, "evaluate")])] == [1, 2, 3]


def test_the_validation_of_a_lost_step_is_lost_too():
    def bits(number):
        return {"event": "evaluation", "step": number, "bits_per_byte": number / 10}

    happened = [begin("a", 0), step(1), step(2), bits(2), step(3), step(4), bits(4), begin("b", 2), step(3)]
    assert [event["step"] for event in history.course(happened, "evaluation")] == [2]


@pytest.mark.parametrize(
    ("because", "expected"),
    [
        (None, ("running", "")),
        ("killed", ("killed", "")),
        ("paused: the deadline: 11:30", ("paused", "the deadline: 11:30")),
        ("failed: CUDA error", ("failed", "CUDA error")),
    ],
)
def test_a_run_stands_where_its_last_training_session_left_it(because, expected):
    ledger = [
        {"job": "train", "ended_because": "paused: x"},
        {"job": "train", "ended_because": because},
        {"job": "evaluate", "ended_because": "finished: evaluated"},
    ]
    found = history.outlook(ledger, [])
    assert (found["word"], found["reason"]) == expected


def test_a_run_without_a_ledger_is_running_once_it_took_a_step():
    assert history.outlook([], [])["word"] == "not started"
    assert history.outlook([], [step(1)])["word"] == "running"


def test_a_warning_has_its_own_step_or_the_one_before_it():
    def warn(message, session, **more):
        return {"event": "warning", "message": message, "session": session, **more}

    happened = [
        begin("a", 0), step(1), step(2), warn("high loss", "a", step=2), step(3), warn("slow store", "a"),
        begin("b", 2), warn("passed over", "b"), warn("nobody's", "x"),
    ]  # fmt: skip
    ledger = [
        {"id": "a", "warnings": ["high loss", "slow store"]},
        {"id": "b", "warnings": ["passed over", "only here"]},
    ]
    found = [(one["session"], one["step"], one["at"], one["message"]) for one in history.warnings(happened, ledger)]
    assert found == [
        (None, None, False, "nobody's"),
        (1, 2, True, "high loss"),
        (1, 3, False, "slow store"),
        (2, 2, False, "passed over"),
        (2, None, False, "only here"),
    ]


def test_a_killed_sessions_own_events_tell_what_it_did_after_its_last_save():
    def at(second, **fields):
        return {"time": f"2026-11-25T10:00:{second:02d}.000Z", "session": "a", "attempt": 0, **fields}

    took = {"event": "step", "samples": [], "loss": 1.0, "tokens": 9}
    happened = [
        at(0, event="session", from_step=0), at(5, event="phase", phase="load"), at(8, event="phase", phase="train"),
        at(18, **took, step=1, seconds=10.0), at(19, event="save", step=1, seconds=1.0),
        at(31, **took, step=2, seconds=12.0),
    ]  # fmt: skip
    sent = record(happened[:5])  # with its last save
    (one,) = history.fuller([close_killed(sent, sent["last_event"])], happened)
    assert (one["seconds"]["wall"], one["ended_because"], one["to_step"]) == (31.0, "killed", 1)
    assert hours.parts([one]) == [
        {"kept": 10.0, "lost": 12.0, "loading": 3.0, "saving": 1.0, "evaluation": 0.0, "idle": 5.0}
    ]
    # One that said its end, or of which there is no more here, is as the ledger has it.
    ended = {**sent, "ended_because": "paused: x"}
    assert history.fuller([ended, {**sent, "id": "b", "ended_because": "killed"}], happened)[0] is ended
    closed = close_killed(sent, sent["last_event"])
    assert history.fuller([closed], happened[:5]) == [closed]
