"""Which plots a page has, and what stands in them: warnings where they happened, a GPU's memory and its limit."""

import math

from kaggle_lib.report import figures


def step(number, loss=2.0, memory=None, seconds=2.0):
    return {"event": "step", "step": number, "loss": loss, "tokens": 100 * number, "seconds": seconds, "memory": memory}


def record(from_step=0, job="train", gpu="none"):
    return {"job": job, "from_step": from_step, "versions": {"gpu": gpu}}


def named(**more):
    given = {"ledger": [record()], "steps": [step(1), step(2)], "validation": [], "warnings": [], "each": []}
    made = figures.panels(**{**given, **more})
    return {name: panel for name, panel in made.items() if panel}


def test_there_is_a_plot_only_of_what_was_measured():
    assert list(named()) == ["loss", "speed"]
    assert named(steps=[]) == {}
    bits = {"step": 2, "bits_per_byte": 0.5}
    assert list(named(validation=[bits])) == ["loss", "validation", "speed"]
    seconds = {"kept": 1.0, "lost": 0.0, "loading": 0.0, "saving": 0.0, "evaluation": 0.0, "idle": 1.0}
    assert "hours" in named(ledger=[record(), record(2, "evaluate")], each=[seconds, seconds])


def test_speed_is_tokens_over_seconds_of_each_step():
    assert named()["speed"].about == (
        "First 50 at step 1, lowest 50 at step 1, highest 100 at step 2, last 100 at step 2."
    )
    assert "speed" not in named(steps=[step(1, seconds=0)])


def test_a_warning_of_a_step_is_marked_there_and_no_other_is():
    told = [
        {"session": 1, "step": 1, "at": True, "message": "খারাপ"},
        {"session": 1, "step": 2, "at": False, "message": "slow"},
    ]
    assert named(warnings=told)["loss"].marks == [(50, "a warning of step 1")]


def test_a_loss_that_is_not_finite_is_left_out():
    losses = named(steps=[step(1, 3.0), step(2, math.nan), step(3, math.inf), step(4, 1.0)])["loss"]
    assert (
        losses.about == "First 3.000 at step 1, lowest 1.000 at step 4, highest 3.000 at step 1, last 1.000 at step 4."
    )
    assert "loss" not in named(steps=[step(1, math.nan)])


def test_borders_are_where_later_sessions_trained():
    ledger = [record(), record(1, "evaluate"), record(1)]
    seconds = [dict.fromkeys(("kept", "lost", "loading", "saving", "evaluation", "idle"), 1.0)] * 3
    assert named(ledger=ledger, each=seconds)["loss"].borders == [(75.0, "session 3", True)]


def test_memory_is_in_gib_with_the_cards_own_where_it_is_known():
    steps = [step(1, memory=2**31), step(2, memory=3 * 2**30)]
    panel = named(steps=steps, ledger=[record(gpu="Tesla T4")])["memory"]
    assert panel.about.endswith("highest 3.00 at step 2, last 3.00 at step 2.")
    assert panel.level[1] == "all that a Tesla T4 has, 14.56 GiB"
    assert named(steps=steps, ledger=[record(gpu="Another")])["memory"].level is None
