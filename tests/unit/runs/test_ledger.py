"""The ledger's arithmetic, by hand."""

from __future__ import annotations

import json

import pytest

from kaggle_lib.runs.events import EventLog, parse, read
from kaggle_lib.runs.ledger import close_killed, goodput, record

ID = "20261125T100000-aaaa1111"


def at(second: float) -> str:
    minutes, rest = divmod(second, 60)
    return f"2026-11-25T10:{int(minutes):02d}:{rest:06.3f}Z"


def event(kind, second, attempt=0, **fields):
    if kind == "step":
        fields = {"tokens": 100, **fields}
    return {"event": kind, "time": at(second), "session": ID, "attempt": attempt, **fields}


# A session that resumes at 10, dies of a crash after 13, goes on from 12 and pauses at 15 with 14 saved.
EVENTS = [
    event("session", 0, from_step=10, resumed_from=10, host="box", processes=2),
    event("phase", 3, phase="load", versions={"torch": "2.13.0"}),
    event("phase", 10.5, phase="train"),
    event("step", 12.5, step=11, seconds=2.0),
    event("step", 15, step=12, seconds=2.5, skipped=True),
    event("save", 16, step=12, seconds=0.75, bytes=1000),
    event("upload", 17, step=12, seconds=0.5, bytes=1000),
    event("step", 19, step=13, seconds=3.0),
    event("warning", 30, message="the worker was killed (SIGKILL); starting again from the last checkpoint."),
    event("phase", 33, 1, phase="load", versions={"torch": "2.13.0"}),
    event("phase", 40, 1, phase="train"),
    event("step", 44, 1, step=13, seconds=4.0),
    event("step", 48, 1, step=14, seconds=3.5),
    event("evaluation", 50, 1, step=14, bits_per_byte=1.5, seconds=1.25),
    event("save", 51, 1, step=14, seconds=0.5, bytes=1000),
    event("step", 54, 1, step=15, seconds=3.0),
    event("end", 60, 1, outcome="paused", reason="session_hours=0.01 are over", step=14, on_store=14),
]


def test_record_by_hand():
    assert record(EVENTS) == {
        "id": ID,
        "job": "train",
        "started": "2026-11-25T10:00:00.000Z",
        "ended": "2026-11-25T10:01:00.000Z",
        "last_event": "2026-11-25T10:01:00.000Z",
        "host": "box",
        "kernel": None,
        "kaggle_session": None,
        "from_step": 10,
        "forked_from": None,
        "extended": [],
        "to_step": 14,
        "ended_because": "paused: session_hours=0.01 are over",
        "attempts": 2,
        "skipped": 1,
        "versions": {"torch": "2.13.0"},
        "processes": 2,
        "seconds": {
            "wall": 60.0,
            "training": 18.0,  # 2 + 2.5 + 3 + 4 + 3.5 + 3
            "kept": 12.0,  # 11: 2, 12: 2.5, 13 the second time: 4, 14: 3.5
            "loading": 14.5,  # 3 to 10.5 and 33 to 40
            "saving": 1.25,
            "evaluation": 1.25,
        },
        "tokens": 600,  # six times 100
        "warnings": ["the worker was killed (SIGKILL); starting again from the last checkpoint."],
    }


def test_a_session_without_an_end_lives_until_the_next_one_closes_it_as_killed():
    alive = record(EVENTS[:8])
    assert (alive["ended"], alive["ended_because"], alive["last_event"]) == (None, None, at(19))
    assert (alive["to_step"], alive["seconds"]["wall"], alive["seconds"]["kept"]) == (12, 19.0, 4.5)
    killed = close_killed(alive, at(24.5))
    assert killed == {
        **alive,
        "ended": at(24.5),
        "last_event": at(24.5),
        "ended_because": "killed",
        "seconds": {**alive["seconds"], "wall": 24.5},
    }
    assert alive["ended"] is None  # the record that was given stays as it was


def test_nothing_saved_keeps_nothing():
    one = record([e for e in EVENTS if e["event"] != "save"])
    assert (one["from_step"], one["to_step"], one["seconds"]["kept"], one["seconds"]["training"]) == (10, 10, 0.0, 18.0)
    assert goodput([one]) == 0.0


def test_a_worker_that_died_while_loading_has_loaded_until_its_last_sign():
    events = [*EVENTS[:2], event("warning", 9, message="killed"), event("end", 11, outcome="failed", reason="")]
    one = record(events)
    assert one["seconds"]["loading"] == 6.0
    assert one["ended_because"] == "failed"


def test_goodput_is_kept_over_wall_of_all_sessions_together():
    one, other = record(EVENTS), close_killed(record(EVENTS[:8]), at(20))
    other = {**other, "from_step": 14, "to_step": 16}
    assert goodput([one]) == 0.2
    assert goodput([other]) == 0.225
    assert goodput([one, other]) == 0.2062  # 16.5 of 80, not the mean of the two


def test_steps_that_a_later_session_had_to_do_again_do_not_count_twice():
    # Saved up to 14 (12 s kept over 4 steps), but the machine was lost with all after step 12.
    lost, after = record(EVENTS), {**record(EVENTS), "from_step": 12, "to_step": 14}
    assert goodput([lost, after]) == round((12.0 * 2 / 4 + 12.0) / 120, 4)


def test_a_session_that_only_evaluates_is_recorded_and_left_out_of_the_goodput():
    one = record(
        [
            event("session", 0, job="evaluate", from_step=14, resumed_from=14, host="box", processes=1),
            event("phase", 2, phase="load", versions={}),
            event("phase", 9, phase="evaluate"),
            event("end", 40, outcome="finished", reason="evaluated", step=14, on_store=14),
        ]
    )
    assert (one["job"], one["to_step"], one["ended_because"]) == ("evaluate", 14, "finished: evaluated")
    assert one["seconds"] == {
        "wall": 40.0,
        "training": 0,
        "kept": 0,
        "loading": 7.0,
        "saving": 0,
        "evaluation": 31.0,
    }
    assert goodput([one]) is None
    assert goodput([record(EVENTS), one]) == 0.2


def test_no_time_no_goodput():
    assert goodput([]) is None
    assert goodput([record(EVENTS[:1])]) is None


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "1",
        "{}",
        '{"event": "step"}',
        '{"event": "step", "time": "t", "session": "s", "attempt": 0}',
        '{"event": "s',
    ],
)
def test_a_line_that_is_no_whole_event_is_left_out(line):
    text = "\n".join([json.dumps(EVENTS[0]), line, json.dumps(EVENTS[1])])
    assert list(parse(text.encode())) == EVENTS[:2]


def test_no_events_no_record():
    with pytest.raises(ValueError, match="a session without events has no record"):
        record([])


def test_half_a_line_of_a_writer_that_died_spoils_no_later_one(tmp_path):
    log = EventLog(tmp_path, ID)
    first = log.write("warning", message="আগে")
    with log.path.open("ab") as file:
        file.write(json.dumps(EVENTS[3]).encode()[:20])
    after = [log.write("warning", message="পরে"), log.write("end", outcome="paused")]
    assert list(read(log.path)) == [first, *after]


def test_a_line_that_the_disk_does_not_take_whole_is_an_error(tmp_path):
    (tmp_path / f"{ID}.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        EventLog(tmp_path, ID).write("warning", message="x")
