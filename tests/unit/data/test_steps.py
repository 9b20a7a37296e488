"""Steps are a pure function of seed and number; epochs are whole; processes share whole micro-batches."""

import statistics
import subprocess
import sys

import pytest

from kaggle_lib.config import RunConfig
from kaggle_lib.data.mixture import mixture
from kaggle_lib.data.steps import Cut, Piece, Steps, arranged, cut_of, mix

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
    assert [steps().samples(step) for step in (0, 5)] == [[2, 8, 7, 0], [2, 8, 10, 1]]


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


def efficiency(run, processes):
    """Tokens ÷ (processes · tokens of the fullest share), summed over all steps: what is not waiting."""
    total = longest = 0
    for step in range(run.total):
        batches = run.micro_batches(step)
        loads = [sum(run.cost(batches[number]) for number in share) for share in run.share(step, processes)]
        total, longest = total + sum(loads), longest + max(loads)
    return total / processes / longest


def step_tokens(run):
    return [sum(run.lengths[row] for row in run.samples(step)) for step in range(run.total)]


class Shuffled(Steps):
    """The same steps in the plainly shuffled order, for comparison."""

    def _epoch(self, epoch):
        if epoch not in self._epochs:
            rows = range(len(self.lengths))
            self._epochs[epoch] = sorted(rows, key=lambda row: mix(self.seed, "order", epoch, row))
        return self._epochs[epoch]


@pytest.mark.parametrize(
    # samples a step, processes, least efficiency, most times the shuffled order's spread of a step's tokens
    ("batch_size", "processes", "least", "spread"),
    [
        (4, 2, 0.96, 1.3),
        (8, 2, 0.97, 1.2),
        (16, 2, 0.98, 1.1),
        (8, 4, 0.92, 1.9),
        (16, 4, 0.95, 1.8),
        (5, 2, 0.92, 1.3),
    ],
)
@pytest.mark.parametrize("budget", [1600, 4096])
def test_shares_are_equal_on_the_mixture(batch_size, processes, least, spread, budget):
    values = {"batch_size": batch_size, "lengths": mixture(703), "cut": Cut(budget, processes, True), "epochs": 1.5}
    ours, plain = steps(**values), Shuffled(7, *[values[name] for name in ("batch_size", "lengths", "cut", "epochs")])
    share, shuffled = efficiency(ours, processes), efficiency(plain, processes)
    assert share > max(least, shuffled + 0.01)
    # No step of one length: sums over a step spread hardly more than at random, and their mean is the rows' mean.
    ratio = statistics.pstdev(step_tokens(ours)) / statistics.pstdev(step_tokens(plain))
    print(f"{batch_size} samples, {processes} processes: {shuffled:.3f} → {share:.3f}, spread × {ratio:.2f}")
    assert ratio < spread
    samples = [[ours.lengths[row] for row in ours.samples(step)] for step in range(ours.total - 1)]
    assert statistics.mean(max(lengths) / min(lengths) for lengths in samples) > 1.7


def test_arranging_moves_rows_within_their_block_only():
    lengths = mixture(300)
    order = sorted(range(300), key=lambda row: mix("any", row))
    made = arranged(order, lengths, 4, 2, head=3)
    assert made != order
    assert made[:3] == order[:3]
    for begin in range(3, 300, 64):
        assert sorted(made[begin : begin + 64]) == sorted(order[begin : begin + 64])
    assert made[-1:] == order[-1:]  # 297 rows after the head: 74 steps and one row
    neighbours = set()
    for begin in range(3, 299, 64):
        block = sorted((lengths[row] for row in order[begin : min(begin + 64, 299)]), reverse=True)
        neighbours |= {frozenset(pair) for pair in zip(block[::2], block[1::2], strict=True)}
    for begin in range(3, 299, 4):
        first, second, third, fourth = sorted((lengths[row] for row in made[begin : begin + 4]), reverse=True)
        pairs = {frozenset((first, second)), frozenset((third, fourth))}
        assert pairs <= neighbours
    for batch_size, group in ((4, 1), (3, 2), (1, 2)):
        assert arranged(order, lengths, batch_size, group) == order


def test_groups_are_where_the_steps_are_in_every_epoch_and_extension():
    """An epoch that begins inside a step completes that step first; an extension's steps begin with it."""
    lengths = mixture(201)
    run = steps(lengths=lengths, epochs=3, extended=(1, 0.5, 1))
    order = [row for step in range(run.total) for row in run.samples(step)]
    for epoch in range(5):
        assert sorted(order[epoch * 201 : (epoch + 1) * 201]) == list(range(201))
    assert efficiency(run, 2) > 0.95
    assert efficiency(run, 2) > 0.07 + efficiency(Shuffled(7, 4, lengths, run.cut, 3, None, (1, 0.5, 1)), 2)


def test_the_mixture():
    lengths = mixture(1000)
    assert lengths == mixture(1000) != mixture(1000, seed=8)
    assert sorted(lengths) == sorted(mixture(1000, seed=8))
    assert statistics.mean(lengths) == pytest.approx(466, rel=0.005)
    assert statistics.median(lengths[:]) == pytest.approx(322, rel=0.02)
    assert (min(lengths), max(lengths)) == (69, 4096)
    for mean in (200, 461, 1000, 2000):
        assert statistics.mean(mixture(1000, mean=mean)) == pytest.approx(mean, rel=0.006)
    assert max(mixture(100, max_length=512)) == 512
    assert mixture(3, max_length=16) == [16, 16, 16]
    assert mixture(5, mean=9000) == [4096] * 5
