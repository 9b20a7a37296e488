"""Our trainer: TRL's SFTTrainer with one loader item = one optimizer step, and checkpoints that resume bit for bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState
from trl import SFTTrainer

from kaggle_lib.config import RunConfig
from kaggle_lib.data.steps import Cut, Steps
from kaggle_lib.errors import CheckpointError, WorkerError
from kaggle_lib.evaluation import likelihood
from kaggle_lib.runs.events import EventLog
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.training import memory, snapshot, step, verdict
from kaggle_lib.training.feed import StepDataset, sft_config, shape

# fp16's scaler halves its scale, 65,536 at first, at each skip: after so many it is below 1, and not what overflows.
SKIPS_IN_A_ROW = 20


class Decide(TrainerCallback):
    """Says after each step whether to validate, to save and to stop; the same on every rank."""

    def __init__(self, trainer: RunTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.trainer.recomputation.apply()

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        step, config = state.global_step, self.trainer.config
        last = step == state.max_steps
        control.should_evaluate = self.trainer.validation is not None and (step % config.eval_steps == 0 or last)
        control.should_save = (
            step % config.save_steps == 0 or last or self.trainer.asked_save or self.trainer.asked_stop
        )
        control.should_training_stop = self.trainer.asked_stop or last
        state.epoch = step * config.train_batch_size / len(self.trainer.steps.lengths)


class RunTrainer(SFTTrainer):
    """Trains `steps` of `rows` and writes checkpoints and events into the run folder.

    `validation`: rows scored every `eval_steps`, or None. `manifest`: the fields of a manifest that the run knows.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        config: RunConfig,
        folder: RunFolder,
        log: EventLog,
        steps: Steps,
        rows: Any,
        validation: Any | None,
        score: Callable[[Any, Any], list[likelihood.RowScore]],
        recomputation: memory.Recomputation,
        manifest: dict[str, Any],
        on_cpu: bool,
    ) -> None:
        self.config, self.folder, self.event_log, self.steps = config, folder, log, steps
        self.rows, self.validation, self.score, self.manifest = rows, validation, score, manifest
        self.recomputation = recomputation
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.processes = dist.get_world_size() if dist.is_initialized() else 1
        self.asked_save = self.asked_stop = False
        self.ended: dict[str, str] = {}
        self.item: dict[str, Any] = {}
        self.step_loss, self.step_began, self.skipped_in_a_row = 0.0, 0.0, 0
        args = sft_config(config, folder, steps, on_cpu)
        # TRL casts a quantised model's adapter to bf16: fp16's scaler refuses that, and a resumed one would be rounded.
        exact = {name: p.data.float() for name, p in model.named_parameters() if p.requires_grad}
        super().__init__(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        assert (self.args.fp16, self.args.bf16) == (config.precision == "fp16", config.precision == "bf16")
        self.remove_callback(PrinterCallback)
        self.add_callback(Decide(self))
        for name, parameter in self.model.named_parameters():
            if name in exact:
                parameter.data = exact[name]
        # No DDP: one flat all-reduce per step instead, so the model is never wrapped.
        prepare = self.accelerator.prepare_model
        self.accelerator.prepare_model = lambda model, **_: prepare(model, device_placement=False, evaluation_mode=True)

    @property
    def trainable(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def get_train_dataloader(self) -> DataLoader[dict[str, Any]]:
        data = StepDataset(self.rows, self.steps, self.processing_class.pad_token_id, self.rank, self.processes)
        return DataLoader(data, batch_size=1, sampler=SequentialSampler(data), collate_fn=lambda items: items[0])

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: Any) -> tuple[list[Any], int]:
        self.step_began = time.monotonic()
        self.item = next(epoch_iterator)
        return [self.item], self.item["answer_tokens"]

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        pieces = self.steps.pieces
        scheduler = super().create_scheduler(pieces[0].steps, optimizer)
        if len(pieces) > 1:
            scheduler.lr_lambdas = [shape(self.config, pieces)] * len(scheduler.lr_lambdas)
        return scheduler

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        # transformers' own: TRL's gathers metrics across ranks in every call, and ranks have unequal numbers of calls.
        inputs = {**inputs, "use_cache": False}
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch=num_items_in_batch)

    def training_step(self, model: Any, item: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of this rank's micro-batches; returns the whole step's loss (scalar).

        The loss is the step's summed negative log-likelihood ÷ its answer tokens, over all ranks.
        """
        model.train()
        total = step.gradients(self, model, item, num_items_in_batch)
        self.step_loss, save, stop = total.tolist()
        self.asked_save, self.asked_stop = save > 0, stop > 0
        if not math.isfinite(self.step_loss):
            raise self._diverged(f"The loss of step {item['step'] + 1} is {self.step_loss}.")
        return total[0]

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clip; returns the norm before. Without fp16's scaler, which would skip the step, it has to be finite."""
        norm = super()._clip_grad_norm(model)
        if self.accelerator.scaler is None and not math.isfinite(norm):
            raise self._diverged(f"The gradients of step {self.item['step'] + 1} are not finite.")
        return norm

    def _diverged(self, what: str) -> WorkerError:
        return WorkerError(
            what,
            kept="The step was not taken, and no ruined adapter was saved.",
            todo="Look at its samples in the events, or start another run (run=NAME) with a lower learning_rate.",
        )

    def cut_by(self, cut: Cut) -> None:
        """Cut the steps so; before training begins, for another cut rounds differently."""
        self.steps = replace(self.steps, cut=cut)
        self.manifest = {**self.manifest, "cut": cut.to_json()}

    def warn(self, message: str) -> None:
        if self.rank == 0:
            self.event_log.write("warning", message=message)

    def beat(self, phase: str) -> None:
        if self.rank == 0:
            self.folder.beat(phase)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """One event a step instead of Trainer's history, which would grow in every checkpoint.

        Raises WorkerError where fp16's scaler has skipped too many steps in a row.
        """
        if "grad_norm" not in logs:
            return
        skipped = self.accelerator.optimizer_step_was_skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if skipped else 0
        if self.rank == 0:
            self.event_log.write(
                "step",
                step=self.state.global_step,
                total_steps=self.state.max_steps,
                samples=self.item["samples"],
                loss=self.step_loss,
                lr=logs["learning_rate"],
                grad_norm=None if skipped else logs["grad_norm"],
                tokens=self.item["tokens"],
                seconds=round(time.monotonic() - self.step_began, 4),
                memory=torch.cuda.max_memory_allocated() if self.args.device.type == "cuda" else None,
                **({"skipped": True} if skipped else {}),
            )
        self.control: TrainerControl = self.callback_handler.on_log(self.args, self.state, self.control, logs)
        if self.skipped_in_a_row >= SKIPS_IN_A_ROW:
            raise self._diverged(f"The gradients of {self.skipped_in_a_row} steps in a row were not finite in fp16.")

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Bits per byte of the fixed validation rows; the best step is kept by its number."""
        self.control.should_evaluate = False
        if self.rank == 0:
            self.beat("evaluate")
            began = time.monotonic()
            summary = likelihood.summarise(self.score(self.model, self.validation))
            verdict.note(self, summary["bits_per_byte"])
            self.event_log.write(
                "evaluation",
                step=self.state.global_step,
                **summary,
                best_step=self.state.best_global_step,
                **verdict.ended(self),
                seconds=round(time.monotonic() - began, 4),
            )
            self.beat("train")
        verdict.follow(self)
        return {}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.rank == 0:
            self.beat("save")
            began = time.monotonic()
            best = None
            if self.state.best_metric is not None:
                best = {"step": self.state.best_global_step, "bits_per_byte": self.state.best_metric}
            saved = snapshot.write(self.folder, self, self.config, {**self.manifest, "best": best, **self.ended})
            self.folder.save_request.unlink(missing_ok=True)
            self.event_log.write("save", step=saved.step, seconds=round(time.monotonic() - began, 4), bytes=saved.bytes)
            self.beat("train")
        if self.processes > 1:
            dist.barrier()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The adapter has been read already, strictly; without its state file Trainer would begin at step 0."""
        if not (state := Path(resume_from_checkpoint) / snapshot.STATE).is_file():
            raise CheckpointError(f"{state.parent.name}: {state.name} is missing, so the run cannot go on exactly.")

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Random numbers are seeded for each micro-batch, so there is no state to load."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            folder = self.folder.checkpoint(self.state.global_step)
            self.optimizer.load_state_dict(snapshot.load(folder / snapshot.OPTIMIZER))
            self.lr_scheduler.load_state_dict(snapshot.load(folder / snapshot.SCHEDULER))
            if len(self.steps.pieces) > 1:  # the last step of a piece left the rate at which that piece ended
                for group, rate in zip(self.optimizer.param_groups, self.lr_scheduler.get_lr(), strict=True):
                    group["lr"] = rate

    def _load_scaler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and self.accelerator.scaler is not None:
            folder = self.folder.checkpoint(self.state.global_step)
            self.accelerator.scaler.load_state_dict(snapshot.load(folder / snapshot.SCALER))
