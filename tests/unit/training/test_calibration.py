"""Calibration finds the memory model, the budget and each micro-batch's layers, and leaves no trace in the training."""

import hashlib

import pytest
import torch

from kaggle_lib.data.budget import Memory
from kaggle_lib.errors import WorkerError
from kaggle_lib.runs import events
from kaggle_lib.training import calibration

pytestmark = pytest.mark.slow
LENGTHS = [9, 30, 14, 22, 51, 8, 17, 40]


def saved_bytes(run):
    """What autograd keeps for the backward pass: this machine's stand-in for a GPU's peak, and as linear."""
    kept, seen = 0, set()

    def pack(tensor):
        nonlocal kept
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            kept += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return kept


def everything(trainer):
    """A hash of weights, gradients, random state, mode and flags."""
    found = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
    for name, parameter in trainer.model.named_parameters():
        found.update(name.encode() + parameter.detach().numpy().tobytes() + str(parameter.grad).encode())
    layers = trainer.model.get_base_model().model.layers
    found.update(str([trainer.model.training, *(layer.gradient_checkpointing for layer in layers)]).encode())
    return found.hexdigest()


def trained(trainer):
    trainer.train()
    final = trainer.folder.checkpoint(trainer.state.global_step)
    files = [(final / name).read_bytes() for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt")]
    return files, [(step["samples"], step["loss"]) for step in events.curve(events.read_all(trainer.folder.events))]


def test_real_passes_grow_with_tokens_and_shrink_with_recomputation_and_leave_no_trace(make_trainer):
    plain = make_trainer(LENGTHS, name="plain", max_steps=4, save_steps=4)
    other = make_trainer(LENGTHS, name="calibrated", max_steps=4, save_steps=4)
    other.recomputation.apply()
    before = everything(other)
    found = calibration.measured(other, saved_bytes)
    assert everything(other) == before
    assert other.optimizer is None
    assert (other.folder.heartbeat).read_text() == "calibration"
    assert found.layers == 2
    # A layer keeps at least its q, k, v, o inputs and the MLP's two, in fp32: 64 and 128 wide.
    assert found.layer > 4 * (64 + 2 * 128)
    assert trained(other) == trained(plain)


def test_the_budget_goes_into_the_cut_and_the_manifest_and_long_rows_recompute(make_trainer, monkeypatch):
    trainer = make_trainer([100, 90, 80, 70, 60, 50, 40, 30], max_steps=2, save_steps=2, lora_dropout=0)
    memory = Memory(1000.0, 10.0, 5.0, 2)
    shapes = []

    def peak(run):
        run()
        layers = trainer.model.get_base_model().model.layers
        return memory.peak(shapes[-1], sum(layer.gradient_checkpointing for layer in layers))

    trainer.model.register_forward_pre_hook(
        lambda _, __, named: shapes.append(named["input_ids"].numel()), with_kwargs=True
    )
    found = calibration.settle(trainer, room=1000.0 + 20 * 150, fresh=True, peak=peak)
    assert found == memory
    assert shapes == [512, 512, 1024, 1024]
    assert trainer.steps.cut.token_budget == 128  # 150, rounded down to 64
    assert trainer.manifest["cut"]["token_budget"] == 128
    assert [trainer.recomputation.of(tokens) for tokens in (128, 150, 151, 200, 240, 400)] == [0, 0, 1, 1, 2, 2]

    used = []
    layers = trainer.model.get_base_model().model.layers
    layers[0].register_forward_pre_hook(
        lambda _, inputs: used.append((inputs[0].shape[1], sum(layer.gradient_checkpointing for layer in layers)))
        if torch.is_grad_enabled()
        else None
    )
    trainer.recomputation.calibrated(Memory(1000.0, 10.0, 5.0, 2), 1000.0 + 20 * 75)
    trainer.train()
    assert {layers for tokens, layers in used if tokens <= 75} <= {0}
    assert {layers for tokens, layers in used if tokens > 100} == {2}
    assert len({layers for _, layers in used}) > 1


def test_a_resumed_run_keeps_its_cut(make_trainer):
    trainer = make_trainer(LENGTHS, max_steps=2)
    before = trainer.steps.cut
    calibration.settle(trainer, room=1e12, fresh=False, peak=saved_bytes)
    assert trainer.steps.cut == before
    assert trainer.recomputation.of(10_000) == 0


def test_peaks_without_sense_leave_the_cut_and_say_so(make_trainer):
    trainer = make_trainer(LENGTHS, max_steps=2)
    before = trainer.steps.cut

    def peak(run):
        run()
        return 7.0

    assert calibration.settle(trainer, room=1e12, fresh=True, peak=peak) is None
    assert trainer.steps.cut == before
    (said,) = [event["message"] for event in events.read_all(trainer.folder.events) if event["event"] == "warning"]
    assert said.startswith("The memory that training needs cannot be foreseen (peaks 7, 7, 7 bytes at (512, 0)")


def test_out_of_memory_while_measuring_halves_the_lengths_and_ends_in_one_error(make_trainer):
    trainer = make_trainer(LENGTHS, max_steps=2)
    seen = []

    def peak(run, most):
        run()
        seen.append(trainer.recomputation._applied)
        if len(seen) < most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return saved_bytes(run)

    before = everything(trainer)
    assert calibration.measured(trainer, lambda run: peak(run, 3)).layers == 2
    assert everything(trainer) == before
    with pytest.raises(WorkerError, match="Out of memory with a micro-batch of 128 tokens, before the first step"):
        calibration.measured(trainer, lambda run: peak(run, 10**6))
    assert everything(trainer) == before
