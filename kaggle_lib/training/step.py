"""The gradients of one step: its micro-batches one after another, summed over all ranks, whatever memory says.

How many layers recompute their activations changes no bit of the gradients, so a step that ran out of memory is done
again with more of them, and the run stays exact.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from kaggle_lib.data.steps import mix
from kaggle_lib.errors import WorkerError
from kaggle_lib.training import memory

if TYPE_CHECKING:
    from kaggle_lib.training.trainer import RunTrainer


def gradients(trainer: RunTrainer, model: Any, item: dict[str, Any], answer_tokens: Any) -> torch.Tensor:
    """Put the step's gradients into the trainable parameters; returns `(3,)`: its loss, save asked, stop asked.

    What one rank knows, a request or that memory ran out, reaches every rank with the gradients. Raises WorkerError
    where memory does not suffice with every layer recomputed.
    """
    while True:
        total = torch.zeros(4, device=trainer.args.device)
        if not _backward(trainer, model, item, answer_tokens, total):
            total[3] = 1
        if trainer.rank == 0:
            total[1] = float(trainer.folder.save_request.exists())
            total[2] = float(trainer.folder.stop_request.exists())
        if trainer.processes > 1:
            total = _all_reduce([p for p in model.parameters() if p.requires_grad], total)
        if not total[3]:
            return total[:3]
        _make_room(trainer, model, item["step"] + 1)


def _backward(trainer: RunTrainer, model: Any, item: dict[str, Any], answer_tokens: Any, total: torch.Tensor) -> bool:
    """Add this rank's loss to `total[0]` and its gradients to the parameters'; False where memory ran out."""
    try:
        for number, tensors in item["micro_batches"]:
            torch.manual_seed(mix(trainer.config.seed, "dropout", item["step"], number))
            inputs = trainer._prepare_inputs(tensors)
            trainer.recomputation.apply_for(inputs["input_ids"].numel())
            with trainer.compute_loss_context_manager():
                loss = trainer.compute_loss(model, inputs, num_items_in_batch=answer_tokens)
            trainer.accelerator.backward(loss)
            total[0] += loss.detach()
            trainer.beat("train")
    except RuntimeError as error:
        if not memory.is_out_of_memory(error):
            raise
        model.zero_grad()
        return False
    return True


def _all_reduce(parameters: list[torch.nn.Parameter], total: torch.Tensor) -> torch.Tensor:
    """Sum gradients and `total` over all ranks by one flat tensor; a rank without a micro-batch adds zeros."""
    pieces = [p.grad.reshape(-1) if p.grad is not None else p.new_zeros(p.numel()) for p in parameters]
    flat = torch.cat([*pieces, total])
    dist.all_reduce(flat)
    offset = 0
    for parameter in parameters:
        parameter.grad = flat[offset : offset + parameter.numel()].view_as(parameter).clone()
        offset += parameter.numel()
    return flat[offset:]


def _make_room(trainer: RunTrainer, model: Any, step: int) -> None:
    """Drop the step's gradients and recompute more layers. Raises WorkerError where all are already."""
    model.zero_grad()
    if not trainer.recomputation.more():
        raise WorkerError(
            f"Out of memory in step {step}, with the activations of every layer recomputed.",
            todo="Use a card with more memory, or start another run (run=NAME) with a smaller max_length.",
        )
    # The failed forward hangs in reference cycles, and what the allocator holds of it is in pieces of other sizes.
    gc.collect()
    if trainer.args.device.type == "cuda":
        torch.cuda.empty_cache()
    if trainer.rank == 0:
        now = f"{trainer.recomputation.said()} from here on"
        message = f"Out of memory in step {step}: done again with the same random numbers; {now}."
        trainer.event_log.write("warning", step=step, message=message)
