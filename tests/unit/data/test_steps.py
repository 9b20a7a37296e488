"""Steps are a pure function of seed and number; epochs are whole; processes share whole micro-batches."""

import subprocess
import sys

import pytest

from kaggle_lib.config import RunConfig
from kaggle_lib.data.steps import Cut, Piece, Steps, cut_of, mix

LENGTHS = [5, 40, 90, 300, 17, 33, 250, 8, 61, 120, 44, 290]


def steps(**changes):
    values = {
        "seed": 7,
        "batch_size": 4,
        "lengths": LENGTHS,
        "cut": Cut(256, 2, True),
        "epochs": 2,
        "max_steps": None,
    }
    return Steps(**{**values, **changes})


def test_each_epoch_holds_every_row_exactly_once():
    run = steps()
    assert run.total == 6
    order = [row for step in range(6) for row in run.samples(step)]
    assert sorted(order[:12]) == sorted(order[12:]) == list(range(12))
    assert order[:12] != order[12:]


@pytest.mark.parametrize(("batch_size", "epochs", "total", "last"), [(5, 2, 5, 4), (5, 1.5, 4, 3), (7, 1, 2, 5)])
def test_the_last_step_holds_only_what_is_left(batch_size, epochs, total, last):
    run = steps(batch_size=batch_size, epochs=epochs)
    assert run.total == total
    assert [len(run.samples(step)) for step in range(total)] == [batch_size] * (total - 1) + [last]


def test_max_steps_ends_the_run_and_goes_on_over_epochs():
    run = steps(max_steps=9)
    assert run.total == 9
    assert len({row for step in range(3) for row in run.samples(step)}) == 12
    assert all(len(run.samples(step)) == 4 for step in range(9))


def test_an_extension_goes_on_with_the_next_row_and_changes_no_step_before_it():
    run, longer = steps(batch_size=5, epochs=1.5), steps(batch_size=5, epochs=1.5, extended=(0.5, 1))
    assert longer.pieces == [Piece(0, 4, 0, 18), Piece(4, 2, 18, 6), Piece(6, 3, 24, 12)]
    assert (run.total, longer.total) == (4, 9)
    assert [longer.samples(step) for step in range(4)] == [run.samples(step) for step in range(4)]
    assert [len(longer.samples(step)) for step in range(9)] == [5, 5, 5, 3, 5, 1, 5, 5, 2]
    order = [row for step in range(9) for row in longer.samples(step)]
    assert sorted(order[:12]) == sorted(order[12:24]) == sorted(order[24:]) == list(range(12))
    assert steps(max_steps=2, extended=(1,)).pieces == [Piece(0, 2, 0, 8), Piece(2, 3, 8, 12)]


def test_the_order_is_the_same_in_another_process_and_hash_seed():
    code = (
        "from kaggle_lib.data.steps import Steps, Cut;"
        f"s=Steps(7,4,{LENGTHS!r},Cut(256,2,True),2);print([s.micro_batches(k) for k in range(6)])"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "99"}
    ).stdout
    assert printed.strip() == str([steps().micro_batches(step) for step in range(6)])


def test_the_order_is_frozen_for_ever():
    """These numbers are what runs in the field have trained on; a change breaks every resume."""
    assert mix(7, "order", 0, 3) == 5576646346322427054
    assert [steps().samples(step) for step in (0, 5)] == [[0, 10, 8, 2], [2, 9, 8, 5]]


@pytest.mark.parametrize("padding_free", [True, False])
@pytest.mark.parametrize("budget", [64, 128, 256, 300, 1024])
def test_micro_batches_hold_the_steps_samples_under_the_budget(budget, padding_free):
    run = steps(cut=Cut(budget, 2, padding_free))
    for step in range(run.total):
        batches = run.micro_batches(step)
        assert sorted(row for batch in batches for row in batch) == sorted(run.samples(step))
        assert len(batches) >= 2
        for batch in batches:
            assert len(batch) == 1 or run.cost(batch) <= budget
        assert [run.cost(batch) for batch in batches] == sorted((run.cost(batch) for batch in batches), reverse=True)


def test_padding_counts_as_tokens():
    padded, free = steps(cut=Cut(256, 1, False)), steps(cut=Cut(256, 1, True))
    assert padded.cost([1, 2]) == 180
    assert free.cost([1, 2]) == 130


@pytest.mark.parametrize("least", [1, 2, 3, 4, 9])
def test_at_least_so_many_micro_batches_as_far_as_there_are_samples(least):
    run = steps(cut=Cut(10_000, least, True))
    assert all(len(run.micro_batches(step)) == min(least, 4) for step in range(run.total))


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_processes_share_all_micro_batches_once_and_evenly(processes):
    run = steps(cut=Cut(100, 2, True))
    for step in range(run.total):
        shares = run.share(step, processes)
        numbers = range(len(run.micro_batches(step)))
        assert sorted(number for share in shares for number in share) == list(numbers)
        loads = [sum(run.cost(run.micro_batches(step)[number]) for number in share) for share in shares]
        largest = max(run.cost(batch) for batch in run.micro_batches(step))
        assert max(loads) <= sum(loads) / processes + largest


@pytest.mark.parametrize(("value", "budget"), [("auto", 192), (77, 77)])
def test_the_budget_of_a_fresh_run(value, budget):
    config = RunConfig.create(
        {"run": "r", "base_model": "sample", "data": "sample", "max_length": 200, "token_budget": value}
    )
    assert cut_of(config) == Cut(budget, 2, True)
