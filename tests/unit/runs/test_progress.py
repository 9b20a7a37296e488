"""What a session shows, from events made by hand; every number is worked out here."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kaggle_lib.config import RunConfig
from kaggle_lib.runs import events
from kaggle_lib.runs.live import Live, curve, html
from kaggle_lib.runs.progress import Progress, duration, times


class Session:
    """A session's events file, and what is shown of it."""

    def __init__(self, folder: Path, *, live: bool = False, **values: object) -> None:
        keys = {"run": "r", "base_model": "sample", "data": "sample", "save_steps": 10, "eval_steps": 20, **values}
        self.path = folder / "s.jsonl"
        self.said: list[str] = []
        self.shown: list[dict[str, str]] = []
        self.left: float | None = None
        self.stored: int | None = None
        self.time = 100.0
        view = Live(self.shown.append, lambda: self.time) if live else None
        self.warned: list[tuple[str, int]] = []
        self.progress = Progress(
            self.path, RunConfig.create(keys), self.said.append, lambda: self.left, lambda: self.stored, view,
            lambda *warning: self.warned.append(warning),
        )  # fmt: skip
        self.clock = datetime(2026, 11, 25, 10, tzinfo=UTC)

    def write(self, event: str, **fields: object) -> None:
        line = {"event": event, "time": self.clock.isoformat(), "session": "s", "attempt": 0, **fields}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def step(self, step: int, seconds: float = 2.0, total: int = 50, **fields: object) -> None:
        self.write(
            "step", **{"step": step, "total_steps": total, "samples": [], "loss": 2.5, "tokens": 300, **fields},
            seconds=seconds,
        )  # fmt: skip


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(tmp_path)


@pytest.fixture
def live(tmp_path: Path) -> Session:
    return Session(tmp_path, live=True)


def test_a_line_per_logging_interval_and_at_the_last_step_has_every_fact(session: Session) -> None:
    session.write("session", resumed_from=None)
    for step in range(1, 24):
        session.step(step, total=23, memory=3 * 2**29 if step > 10 else None)
    session.left, session.stored = 3 * 3600 + 5 * 60, None
    session.progress.show()
    assert session.said == [
        "step 10 of 23  loss 2.5000  tokens/s 150  time left 26 s  checkpoint none yet  deadline in 3 h 05 min",
        "step 20 of 23  loss 2.5000  tokens/s 150  memory 1.5 GiB  time left 6 s  checkpoint none yet  "
        "deadline in 3 h 05 min",
        "step 23 of 23  loss 2.5000  tokens/s 150  memory 1.5 GiB  time left 0 s  checkpoint none yet  "
        "deadline in 3 h 05 min",
    ]
    session.progress.show()
    assert len(session.said) == 3


def test_a_save_is_in_the_next_line_and_a_validation_has_its_own(session: Session) -> None:
    session.step(10)
    session.write("save", step=10, seconds=4.0, bytes=1)
    session.write("evaluation", step=20, seconds=30.0, bits_per_byte=1.23456)
    session.progress.show()
    session.step(20)
    session.progress.show()
    session.stored = 10
    session.step(30)
    session.progress.show()
    session.write("save", step=30, seconds=4.0, bytes=1)
    session.step(40)
    session.progress.show()
    assert not any("bits" in line for line in session.said[2:])
    assert [line.partition("checkpoint ")[2] or line for line in session.said] == [
        "none yet",
        "step 20  validation 1.2346 bits per byte",
        "10 here, none on the store",
        "10 on the store",
        "30 here, 10 on the store",
    ]


def test_twelve_hours_of_quick_steps_are_a_short_log_with_its_first_and_its_last_line(session: Session) -> None:
    for step in range(1, 20_001):
        session.clock += timedelta(seconds=2.16)
        session.step(step, 2.16, total=20_000)
        if step % 20 == 0:
            session.write("evaluation", step=step, seconds=0.1, bits_per_byte=1.0)
    session.progress.show()
    lines = [line for line in session.said if " of 20000" in line]
    assert [line.split()[1] for line in lines[:22]] == [*(str(10 * k) for k in range(1, 21)), "260", "320"]
    assert lines[-1].startswith("step 20000 of 20000")
    assert len(lines) == 20 + 330
    validations = [line for line in session.said if "validation" in line]
    assert [line.split()[1] for line in validations[18:22]] == ["380", "400", "460", "520"]
    assert len(validations) == 20 + 326


def test_a_spike_is_warned_of_once_and_not_again_after_a_resume(session: Session, tmp_path: Path) -> None:
    for step in range(1, 31):
        session.step(step)
    session.step(31, loss=9.0)
    session.step(32, loss=9.0)
    session.progress.show()
    text = "The loss of step 31 is 9.0000, far above 2.5000, the median of those before it."
    assert session.warned == [(text, 31)]
    (tmp_path / "next").mkdir()
    resumed = Session(tmp_path / "next")
    resumed.progress.recall(events.curve(events.read(session.path)))
    for step in range(31, 40):  # from the checkpoint of step 30
        resumed.step(step, loss=9.0)
    resumed.progress.show()
    assert resumed.warned == []
    forgetful = Session(tmp_path / "next")
    forgetful.progress.recall(event for event in events.read(session.path) if event["step"] <= 30)
    forgetful.progress.show()
    assert len(forgetful.warned) == 1  # on another machine, which the store gave no more than the checkpoint has


def test_time_left_is_steps_saves_and_validations_each_by_its_median(session: Session) -> None:
    assert session.progress.time_left() is None
    session.write("session", resumed_from=None)
    for step, seconds in enumerate([60.0, 2.0, 2.0, 2.0, 3.0], start=1):  # the first one is slow, as it is
        session.step(step, seconds)
    session.progress.show()
    assert session.progress.time_left() == 45 * 2.0
    for step in range(6, 21):
        session.step(step)
    for step, seconds in ((10, 5.0), (20, 7.0)):
        session.write("save", step=step, seconds=seconds, bytes=1)
    session.write("evaluation", step=20, seconds=11.0, bits_per_byte=1.0)
    session.progress.show()
    # 30 steps; saves at 30, 40, 50; validations at 40 and, the last step, 50.
    assert session.progress.time_left() == 30 * 2.0 + 3 * 6.0 + 2 * 11.0
    for step in range(21, 31):
        session.step(step)
    session.progress.show()
    # The save of the step that is done is still to come.
    assert session.progress.time_left() == 20 * 2.0 + 3 * 6.0 + 2 * 11.0


def test_only_the_last_fifty_steps_are_measured(session: Session) -> None:
    for step in range(1, 51):
        session.step(step, 9.0, total=200)
    for step in range(51, 101):
        session.step(step, 1.0, total=200)
    session.progress.show()
    assert session.progress.time_left() == 100 * 1.0
    assert session.progress.facts()["tokens/s"] == "300"


def test_a_resumed_session_counts_from_its_checkpoint(session: Session) -> None:
    session.write("session", resumed_from=48)
    session.stored = 48
    session.step(49, total=60)
    session.write("save", step=49, seconds=4.0, bytes=1)
    session.progress.show()
    # 11 steps; saves at 50 and 60.
    assert session.progress.time_left() == 11 * 2.0 + 2 * 4.0
    session.stored = 49
    assert session.progress.facts()["checkpoint"] == "49 on the store"


def test_the_slowest_of_each_kind_is_kept_for_the_deadline(session: Session) -> None:
    session.step(1, 5.0)
    session.step(2, 3.0)
    session.write("save", step=2, seconds=1.5, bytes=1)
    session.write("upload", step=2, seconds=0.5, bytes=1)
    session.progress.show()
    assert session.progress.slowest == {"step": 5.0, "save": 1.5, "upload": 0.5}


def test_half_a_line_waits_for_its_end(session: Session) -> None:
    session.step(10)
    text = session.path.read_bytes()
    session.path.write_bytes(text[:-9])
    session.progress.show()
    assert session.said == []
    session.path.write_bytes(text)
    session.progress.show()
    assert len(session.said) == 1


@pytest.mark.parametrize(
    ("every", "after", "total", "count"),
    [(10, 0, 50, 5), (10, 0, 55, 6), (10, 50, 55, 1), (10, 55, 55, 0), (10, 49, 50, 1), (0, 0, 50, 0), (60, 0, 50, 1)],
)
def test_times_counts_every_so_many_steps_and_the_last(every: int, after: int, total: int, count: int) -> None:
    assert times(every, after, total) == count
    assert count == sum(every > 0 and (step % every == 0 or step == total) for step in range(after + 1, total + 1))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "0 s"),
        (0.4, "0 s"),
        (99.4, "99 s"),
        (100, "2 min"),
        (5969, "99 min"),
        (5970, "1 h 40 min"),
        (11100, "3 h 05 min"),
    ],
)
def test_a_duration_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_the_view_is_drawn_anew_at_most_every_second_and_only_when_something_changed(live: Session) -> None:
    live.write("phase", phase="load")
    live.progress.show()
    live.write("phase", phase="train")
    live.time += 0.9
    live.progress.show()
    assert [bundle["text/plain"] for bundle in live.shown] == ["Run r: loading  checkpoint none yet"]
    live.time += 0.1
    live.progress.show()
    assert [bundle["text/plain"] for bundle in live.shown][1:] == ["Run r: training  checkpoint none yet"]
    live.time += 100
    live.progress.show()
    assert len(live.shown) == 2
    live.left = 50.0
    live.progress.show()
    assert len(live.shown) == 3
    assert live.said == []


def test_the_last_view_says_how_it_ended_and_has_no_time_left(live: Session) -> None:
    live.left = 50.0
    live.step(10)
    live.progress.show()
    live.write("save", step=10, seconds=1.0, bytes=1)
    live.stored = 10
    live.write("end", outcome="paused", reason="interrupted")
    live.progress.close()  # within the second in which nothing is drawn
    assert [bundle["text/plain"] for bundle in live.shown] == [
        "Run r: starting  step 10 of 50  loss 2.5000  tokens/s 150  time left 80 s  checkpoint none yet  "
        "deadline in 50 s",
        "Run r: paused, interrupted  step 10 of 50  loss 2.5000  tokens/s 150  checkpoint 10 on the store",
    ]
    assert "width:20.0%" in live.shown[-1]["text/html"]


def test_a_session_that_was_torn_off_does_not_stay_in_training(live: Session) -> None:
    live.write("phase", phase="train")
    live.progress.close()
    assert [bundle["text/plain"] for bundle in live.shown] == ["Run r: ended  checkpoint none yet"]


def test_the_view_holds_text_as_text() -> None:
    page = html("Run <b>", {"a&b": "<i>"}, 0.5, [])
    assert "Run &lt;b&gt;" in page
    assert "a&amp;b" in page
    assert "&lt;i&gt;" in page
    assert "<svg" not in page
    assert 'width="100%"' in html("", {}, 0.5, [2.0, 1.0])  # a narrow page has no second half of a curve


def points(losses: list[float]) -> list[tuple[float, float]]:
    drawn = curve(losses).partition('points="')[2].partition('"')[0]
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in drawn.split())]


def test_the_curve_is_from_the_highest_loss_to_the_lowest() -> None:
    assert points([4.0, 2.0, 3.0]) == [(0.0, 0.0), (318.0, 70.0), (636.0, 35.0)]
    assert points([2.0, 2.0]) == [(0.0, 0.0), (636.0, 0.0)]
    assert curve([2.0]) == ""
    # Two steps a point: their mean.
    many = [float(2 * (k // 2) + k % 2) for k in range(300)]
    assert len(points(many)) == 150
    assert "loss in this session, 298.50 to 0.50" in curve(many)


def test_outside_a_notebook_there_is_no_view() -> None:
    assert Live.here() is None
