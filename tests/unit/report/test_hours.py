"""Where the hours went adds up to what was paid, and the plan is compared with what was, number by number."""

import pytest

from kaggle_lib.config import RunConfig
from kaggle_lib.presets import read_preset
from kaggle_lib.report import hours, speed
from kaggle_lib.runs.ledger import goodput

T4 = {"gpu": "Tesla T4"}


def record(wall, training, kept, job="train", steps=(0, 100), **more):
    seconds = {"wall": wall, "training": training, "kept": kept, "loading": 60.0, "saving": 5.0, "evaluation": 20.0}
    about = {"job": job, "from_step": steps[0], "to_step": steps[1], "versions": T4, "processes": 2, "tokens": 0}
    return {"id": f"s{steps[0]}", **about, "ended_because": "killed", "warnings": [], "seconds": seconds, **more}


def test_the_parts_of_every_session_add_up_to_its_wall_time():
    ledger = [
        record(1000.0, 700.0, 600.0),
        record(500.0, 300.0, 300.0, steps=(50, 100)),
        record(90.0, 0.0, 0.0, job="evaluate", steps=(100, 100)),
    ]
    each = hours.parts(ledger)
    # The second began at 50: of the first's kept seconds half are of steps that were done again.
    assert each[0] == {"kept": 300.0, "lost": 400.0, "loading": 60.0, "saving": 5.0, "evaluation": 20.0, "idle": 215.0}
    assert each[1] == {"kept": 300.0, "lost": 0.0, "loading": 60.0, "saving": 5.0, "evaluation": 20.0, "idle": 115.0}
    assert each[2] == {"kept": 0.0, "lost": 0.0, "loading": 60.0, "saving": 5.0, "evaluation": 20.0, "idle": 5.0}
    assert [sum(one.values()) for one in each] == [1000.0, 500.0, 90.0]
    assert list(each[0]) == list(hours.PARTS)
    assert sum(one["kept"] for one in each) / 1500.0 == goodput(ledger)


def test_a_clock_that_was_set_back_gives_no_idle_time_below_none():
    (one,) = hours.parts([record(100.0, 80.0, 80.0)])
    assert one["idle"] == 0.0


def step(number, tokens=2000, memory=None, total=1000):
    return {"event": "step", "step": number, "tokens": tokens, "memory": memory, "total_steps": total, "session": "s0"}


def config(**more):
    return RunConfig.create({**read_preset("bengali-8b-t4"), "run": "r", "data": "sample", **more})


def rows(config, ledger, happened, steps):
    return {
        row["name"]: (row["planned"], row["was"], row["note"])
        for row in hours.against_plan(config, ledger, happened, steps)
    }


def test_plan_against_fact_by_hand():
    run = config()
    steps = [step(number, memory=9 * 2**30 + number) for number in range(1, 501)]
    ledger = [record(4000.0, 2000.0, 2000.0, tokens=1_000_000, steps=(0, 500))]
    times = {"session": 0, "phase": 300}
    happened = [
        {"event": "session", "session": "s0", "time": "2026-11-25T10:00:00.000Z"},
        {"event": "phase", "phase": "train", "session": "s0", "time": f"2026-11-25T10:0{times['phase'] // 60}:00.000Z"},
        {"event": "save", "session": "s0", "time": "2026-11-25T10:30:00.000Z", "seconds": 2.0, "bytes": 107_000_000},
        {"event": "save", "session": "s0", "time": "2026-11-25T10:40:00.000Z", "seconds": 3.0, "bytes": 108_000_000},
    ]
    found = rows(run, ledger, happened, steps)
    expected = speed.expected(speed.shape_of(run), run, 2000.0, 2, "Tesla T4")
    planned, was, note = found["Tokens a second, 2 × Tesla T4"]
    assert (planned, was) == (f"{expected['tokens_per_second']:,.0f}", "500")  # 1,000,000 tokens in 2,000 s
    assert note.startswith("projection: ")
    hours_planned = 1000 * 2000 / expected["tokens_per_second"] / 3600
    assert found["Hours of training"] == (f"{hours_planned:.2f}", "0.56", "until step 500 of 1,000")
    assert found["Sessions that train"] == ("1", "1", "until step 500 of 1,000")
    assert found["Minutes to the first step"] == ("12.0", "5.0", "planned: assumed; was: the median")
    assert found["Checkpoint, MB"][1] == "108.0" and found["Seconds a save"][1] == "2.50"
    assert found["Memory of a GPU, GiB"][1] == "9.0"
    assert hours.peak(steps) == 9 * 2**30 + 500


def test_sessions_planned_are_of_the_length_that_was_asked_for():
    run = config(session_hours=1.2)  # an hour of training each
    steps = [step(number, total=20_000) for number in range(1, 20_001)]
    ledger = [record(9e4, 8e4, 8e4, tokens=40_000_000, steps=(0, 20_000))]
    planned, was, note = rows(run, ledger, [], steps)["Sessions that train"]
    expected = speed.expected(speed.shape_of(run), run, 2000.0, 2, "Tesla T4")["tokens_per_second"]
    assert int(planned) == -(-(40_000_000 / expected / 3600) // 1.0)
    assert (was, note) == ("1", "planned: of 1.0 h of training each")


def test_what_no_plan_knows_is_said_and_not_made_up():
    run = RunConfig.create({**read_preset("tiny-cpu"), "run": "r"})
    ledger = [record(400.0, 200.0, 200.0, tokens=1000, versions={"gpu": "none"}, processes=1, steps=(0, 10))]
    found = rows(run, ledger, [], [step(number, tokens=100, total=10) for number in range(1, 11)])
    assert found["Tokens a second, 1 × CPU process"] == ("–", "5", "unknown: nothing is known of a CPU")
    assert found["Minutes of training"] == ("–", "3.33", "steps done again, too")
    assert "Memory of a GPU, GiB" not in found
    assert hours.against_plan(run, [], [], []) == []


def test_a_run_that_changed_machines_has_a_row_for_each():
    other = record(400.0, 100.0, 100.0, tokens=5000, versions={"gpu": "none"}, processes=1, steps=(100, 110))
    ledger = [
        record(400.0, 200.0, 200.0, tokens=1000),
        other,
        record(400.0, 200.0, 200.0, tokens=3000, steps=(110, 200)),
    ]
    found = rows(config(), ledger, [], [step(number) for number in range(1, 201)])
    assert found["Tokens a second, 2 × Tesla T4"][1] == "10"  # 4,000 in 400 s
    assert found["Tokens a second, 1 × CPU process"][1] == "50"


@pytest.mark.parametrize("missing", [{"tokens": 0}, {"seconds": {"training": 0.0}}])
def test_a_session_that_took_no_step_is_in_no_rate(missing):
    empty = (
        record(400.0, 0.0, 0.0, steps=(100, 100), **missing)
        if "tokens" in missing
        else record(400.0, 0.0, 0.0, tokens=9)
    )
    ledger = [record(400.0, 200.0, 200.0, tokens=1000), empty]
    assert rows(config(), ledger, [], [step(1)])["Tokens a second, 2 × Tesla T4"][1] == "5"
