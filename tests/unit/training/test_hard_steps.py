"""Memory that runs out, gradients that are not finite, a disk that is full: the step again, or an end that keeps."""

import pytest
import torch

from kaggle_lib.errors import CheckpointError, WorkerError
from kaggle_lib.runs import events
from kaggle_lib.training import memory

pytestmark = pytest.mark.slow
LENGTHS = [9, 30, 14, 22, 51, 8, 17, 40]


def exhaust(*_):
    """What a too large tensor does: the CPU allocator's own error."""
    torch.empty(2**46, dtype=torch.uint8)


def in_backward_of(trainer, calls, act=exhaust):
    """Call `act` in the backward pass of the last layer, at the given calls of its forward (from 1)."""
    count = 0

    def watch(_, __, output):
        nonlocal count
        if output.requires_grad:
            count += 1
            if count in calls:
                output.register_hook(act)

    layer = trainer.model.get_base_model().model.layers[-1]
    layer.register_forward_hook(watch)


def state(trainer):
    names = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt")
    steps = events.curve(events.read_all(trainer.folder.events))
    final = trainer.folder.checkpoint(trainer.state.global_step)
    return [(final / name).read_bytes() for name in names], [(s["samples"], s["loss"], s["grad_norm"]) for s in steps]


def warnings(trainer):
    return [event["message"] for event in events.read_all(trainer.folder.events) if event["event"] == "warning"]


def test_a_step_that_ran_out_of_memory_is_done_again_to_the_same_bits(make_trainer):
    plain = make_trainer(LENGTHS, name="plain", max_steps=5)
    plain.train()
    short = make_trainer(LENGTHS, name="short", max_steps=5)
    assert short.recomputation.layers == 0
    in_backward_of(short, {4})  # two micro-batches a step: in the second of the second step
    short.train()
    assert state(short) == state(plain)
    assert short.recomputation.layers == 1
    assert warnings(short) == [
        "Out of memory in step 2: done again with the same random numbers; 1 of 2 layers are recomputed from here on."
    ]
    assert warnings(plain) == []


def test_out_of_memory_with_everything_recomputed_is_an_error(make_trainer):
    trainer = make_trainer(LENGTHS, max_steps=5, save_steps=1)
    in_backward_of(trainer, range(3, 100))
    with pytest.raises(WorkerError) as raised:
        trainer.train()
    assert raised.value.what == "Out of memory in step 2, with the activations of every layer recomputed."
    assert "smaller max_length" in raised.value.todo
    assert [message[:24] for message in warnings(trainer)] == ["Out of memory in step 2:"] * 2
    assert trainer.folder.checkpoint_steps() == [1]


def test_layers_recompute_whatever_set_their_flags_before_training(make_trainer):
    """Unsloth's trainer turns recomputation off in every layer: when it is made, and when training begins."""
    trainer = make_trainer(LENGTHS, max_steps=1, recomputation="full")
    layers, seen = trainer.model.get_base_model().model.layers, []
    layers[0].register_forward_hook(lambda *_: seen.append([layer.gradient_checkpointing for layer in layers]))
    for layer in layers:
        layer.gradient_checkpointing = False
    trainer.train()
    assert seen[0] == [True, True]


def test_another_runtime_error_is_not_taken_for_it(make_trainer):
    trainer = make_trainer(LENGTHS, max_steps=2)

    def fail(*_):
        raise RuntimeError("shapes do not match")

    in_backward_of(trainer, {1}, fail)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trainer.train()


@pytest.mark.parametrize(
    ("error", "is_one"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (MemoryError(), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, is_one):
    assert memory.is_out_of_memory(error) is is_one


def test_the_cpu_allocators_error_is_one():
    with pytest.raises(RuntimeError) as raised:
        exhaust()
    assert memory.is_out_of_memory(raised.value)


def test_gradients_that_are_not_finite_stop_before_the_step(make_trainer):
    trainer = make_trainer(LENGTHS, max_steps=5, save_steps=1)
    in_backward_of(trainer, {5}, lambda gradient: gradient * float("inf"))
    with pytest.raises(WorkerError) as raised:
        trainer.train()
    assert raised.value.what == "The gradients of step 3 are not finite."
    assert raised.value.kept == "The step was not taken, and no ruined adapter was saved."
    assert trainer.folder.checkpoint_steps() == [2, 1]
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


def test_a_disk_without_room_is_seen_before_the_save(make_trainer, monkeypatch):
    from kaggle_lib.training import snapshot

    trainer = make_trainer(LENGTHS, max_steps=4, save_steps=2)
    real, asked = snapshot.shutil.disk_usage, []

    def nearly_full(path):
        asked.append(path)
        return real(path)._replace(free=10_000_000) if len(asked) > 1 else real(path)

    monkeypatch.setattr(snapshot.shutil, "disk_usage", nearly_full)
    with pytest.raises(CheckpointError) as raised:
        trainer.train()
    where = trainer.folder.checkpoints
    # The tiny adapter and its optimizer's two states are 0.1 MB each.
    assert raised.value.what == (
        f"There is no room for the checkpoint of step 4: it needs 25 MB, and {where} has 10 MB."
    )
    assert trainer.folder.checkpoint_steps() == [2]
    assert [path.name for path in where.iterdir()] == ["step-00000002"]


def test_a_write_that_fails_leaves_nothing_and_the_last_one(make_trainer, monkeypatch):
    """/dev/full is a real full disk for whoever opens it: torch's writer meets ENOSPC there."""
    from kaggle_lib.training import snapshot

    trainer = make_trainer(LENGTHS, max_steps=4, save_steps=2)
    real = snapshot.adapter.write

    def then_fill(model, config, folder):
        real(model, config, folder)
        if folder.name.endswith("4"):
            (folder / snapshot.OPTIMIZER).symlink_to("/dev/full")

    monkeypatch.setattr(snapshot.adapter, "write", then_fill)
    with pytest.raises(CheckpointError) as raised:
        trainer.train()
    where = trainer.folder.checkpoints
    assert raised.value.what.startswith(f"The checkpoint of step 4 could not be written to {where}: ")
    assert raised.value.todo == "Make room there, or set work_dir to another disk, and run again."
    assert [path.name for path in where.iterdir()] == ["step-00000002"]
