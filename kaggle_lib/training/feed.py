"""What the trainer is fed: one item a step, and every argument that Trainer and TRL would else choose themselves."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import get_scheduler
from trl import SFTConfig

from kaggle_lib.config import RunConfig
from kaggle_lib.data.steps import Piece, Steps
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.training import batch


class StepDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """Item k is this rank's share of step k: its micro-batches as tensors, and what the whole step holds."""

    def __init__(self, rows: Any, steps: Steps, pad_id: int, rank: int, processes: int) -> None:
        self.rows, self.steps, self.pad_id, self.rank, self.processes = rows, steps, pad_id, rank, processes

    def __len__(self) -> int:
        return self.steps.total

    def __getitem__(self, step: int) -> dict[str, Any]:
        rows = {position: self.rows[position] for position in self.steps.samples(step)}
        batches = self.steps.micro_batches(step)
        collate = (
            batch.padding_free if self.steps.cut.padding_free else functools.partial(batch.padded, pad_id=self.pad_id)
        )
        return {
            "step": step,
            "samples": [rows[position]["id"] for position in self.steps.samples(step)],
            "tokens": sum(self.steps.lengths[position] for position in rows),
            "answer_tokens": sum(batch.answer_tokens(row) for row in rows.values()),
            "micro_batches": [
                (number, collate([rows[position] for position in batches[number]]))
                for number in self.steps.share(step, self.processes)[self.rank]
            ],
        }


def warmup(config: RunConfig, piece: Piece) -> int:
    """Steps in which the learning rate rises at a piece's beginning."""
    return math.ceil(config.warmup_ratio * piece.steps)


def shape(config: RunConfig, pieces: Sequence[Piece]) -> Callable[[int], float]:
    """The learning rate ÷ its peak after so many steps: each piece has its own warm-up and decay."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    shapes = [
        get_scheduler(config.lr_scheduler_type, optimizer, warmup(config, piece), piece.steps).lr_lambdas[0]
        for piece in pieces
    ]

    def at(step: int) -> float:
        number = max(number for number, piece in enumerate(pieces) if piece.first_step <= step)
        return float(shapes[number](step - pieces[number].first_step))

    return at


def sft_config(config: RunConfig, folder: RunFolder, steps: Steps, on_cpu: bool) -> SFTConfig:
    """Every field that matters is set: strategies change the defaults. Saving, logging, evaluation are our own."""
    return SFTConfig(
        output_dir=str(folder.checkpoints),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        max_steps=steps.total,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=warmup(config, steps.pieces[0]),
        optim=config.optim,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        fp16=config.precision == "fp16",
        bf16=config.precision == "bf16",
        use_cpu=on_cpu,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        max_length=None,
        packing=False,
        padding_free=False,
        loss_type="chunked_nll",
        dataset_kwargs={"skip_prepare_dataset": True},
        remove_unused_columns=False,
        average_tokens_across_devices=False,
        gradient_checkpointing=False,  # the strategy sets it, layer by layer
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )
