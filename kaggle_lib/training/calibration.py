"""What this card, this model and this way of training need: three peaks of memory, and the token budget from them.

Before the first step, in the process that trains. It changes nothing of the training: no gradient, no optimizer state,
no weight, and no random number is left behind.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from kaggle_lib.data import budget
from kaggle_lib.errors import WorkerError
from kaggle_lib.training import memory

if TYPE_CHECKING:
    from kaggle_lib.training.trainer import RunTrainer

LENGTHS = (512, 1024)  # tokens of the measured micro-batches: far enough apart, and 5 GiB beside an 8B model
Peak = Callable[[Callable[[], None]], float]


def peak_on_gpu(run: Callable[[], None]) -> float:
    """The most bytes that PyTorch had allocated at a time while `run` ran."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def room_on_gpu(fraction: float) -> float:
    """Bytes that the plan may use: a fraction of the card, or of what this process may allocate of it.

    The rest is for the CUDA context, the optimizer's state and what the allocator cannot use because it is in pieces.
    """
    total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    return total * torch.cuda.get_per_process_memory_fraction() * fraction


def settle(trainer: RunTrainer, room: float, fresh: bool, peak: Peak = peak_on_gpu) -> budget.Memory | None:
    """Calibrate; from then on each micro-batch recomputes as few layers as fit into `room` bytes.

    `fresh`: the run has no cut yet, and gets the largest token budget that fits without recomputation, the least of all
    ranks. Returns None, with a warning among the events, where the peaks make no sense: then every layer recomputes.
    """
    found: budget.Memory | None = None
    try:
        found = measured(trainer, peak)
    except ValueError as error:
        trainer.warn(f"The memory that training needs cannot be foreseen ({error}): every layer recomputes.")
    if fresh:
        # A rank that has found nothing asks for no change of the budget, which is one sample of max_length.
        tokens = trainer.steps.cut.token_budget if found is None else found.budget(room)
        if trainer.processes > 1:
            least = torch.tensor(tokens, device=trainer.args.device)
            dist.all_reduce(least, op=dist.ReduceOp.MIN)
            tokens = int(least)
        trainer.cut_by(replace(trainer.steps.cut, token_budget=tokens))
    if found:
        trainer.recomputation.calibrated(found, room)
    return found


def measured(trainer: RunTrainer, peak: Peak) -> budget.Memory:
    """The memory model of this process. Raises ValueError where the peaks do not fit one, WorkerError where memory does
    not suffice for the smallest micro-batch."""
    model, recomputation = trainer.model, trainer.recomputation
    training, devices = model.training, [trainer.args.device] if trainer.args.device.type == "cuda" else []
    short, long = LENGTHS
    model.train()
    try:
        with torch.random.fork_rng(devices=devices):
            while True:
                try:
                    _pass(trainer, short, recomputation.total)()  # what is made at the first call is not counted
                    points = [
                        (tokens, layers, peak(_pass(trainer, tokens, layers)))
                        for tokens, layers in ((short, 0), (long, 0), (long, recomputation.total // 2))
                    ]
                    return budget.fit(points, recomputation.total)
                except RuntimeError as error:
                    if not memory.is_out_of_memory(error):
                        raise
                    if short <= budget.STEP:
                        raise WorkerError(
                            f"Out of memory with a micro-batch of {long} tokens, before the first step.",
                            todo="Use a card with more memory, or start another run (run=NAME) with a smaller model.",
                        ) from error
                model.zero_grad()
                gc.collect()
                if devices:
                    torch.cuda.empty_cache()
                short, long = short // 2, long // 2
    finally:
        model.zero_grad()
        model.train(training)
        recomputation.apply()


def _pass(trainer: RunTrainer, tokens: int, layers: int) -> Callable[[], None]:
    """Forward and backward of one micro-batch of so many made-up tokens, all of them learned: the dearest there is."""

    def run() -> None:
        trainer.beat("calibration")
        trainer.recomputation.set(layers)
        ids = (torch.arange(tokens) % trainer.model.config.vocab_size)[None]
        inputs: dict[str, Any] = {"input_ids": ids, "labels": ids.clone()}
        if trainer.steps.cut.padding_free:
            inputs |= {"position_ids": torch.arange(tokens)[None], "segments": [tokens]}
        else:
            inputs["attention_mask"] = torch.ones_like(ids)
        inputs = trainer._prepare_inputs(inputs)
        with trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, inputs, num_items_in_batch=tokens)
        loss.backward()
        trainer.model.zero_grad()

    return run
