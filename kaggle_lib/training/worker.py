"""The worker: one process per GPU that trains from `run.json` to the run's end, a request to stop, or an error.

It knows nothing of stores, Kaggle or notebooks. `main(run_folder)` also runs in-process, for a debugger.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

from kaggle_lib.config import RunConfig
from kaggle_lib.errors import CheckpointError, ConfigError, UserError
from kaggle_lib.files import write_json
from kaggle_lib.runs.events import EventLog
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.training import startup


def main(run_folder: Path | str) -> dict[str, Any]:
    """Train; returns what `outcome` says: `outcome` (finished, paused, failed), `step`, `total_steps`, `reason`."""
    folder = RunFolder(Path(run_folder))
    rank = int(os.environ.get("RANK", "0"))
    if rank == 0:
        folder.beat("load")
    try:
        outcome = _train(folder)
    except Exception as error:
        # A rank that dies of its peer's death is not the cause, so the first word stays.
        if isinstance(error, UserError) or rank == 0 or folder.read_outcome() is None:
            folder.write_outcome(startup.failure(error))
        raise
    if rank == 0:
        folder.write_outcome(outcome)
    return outcome


def _train(folder: RunFolder) -> dict[str, Any]:
    run = folder.read_run() if startup.supervised() else startup.by_hand(folder)
    if run.get("finished"):  # by hand, in a finished run's folder
        return _said(run["checkpoint"], run["checkpoint"], run["stopped_early"])

    from kaggle_lib import hooks, strategies
    from kaggle_lib.training import exact

    config = hooks.settled(RunConfig.from_json(run["config"]), folder.hooks)
    if config.deterministic:
        exact.prepare()
    strategy = strategies.get(config)  # first of all: it may have to patch what is imported next

    import torch
    import torch.distributed as dist

    from kaggle_lib.data import chat, tokenise
    from kaggle_lib.data.steps import Cut, Steps, cut_of, mix
    from kaggle_lib.evaluation import likelihood
    from kaggle_lib.strategies import adapter
    from kaggle_lib.training import calibration
    from kaggle_lib.training.memory import Recomputation
    from kaggle_lib.training.trainer import RunTrainer

    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    on_cpu = not torch.cuda.is_available()
    device = torch.device("cpu") if on_cpu else torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if config.deterministic:
        exact.settle()
    strategy.check(config, device)
    if not on_cpu:
        torch.cuda.set_device(device)  # NCCL's barriers and Unsloth's kernels use the current one
    callbacks = hooks.callbacks(config)
    if processes > 1 and not dist.is_initialized():
        dist.init_process_group("gloo" if on_cpu else "nccl", timeout=timedelta(hours=2))
    log = EventLog(folder.events, run["session"], run["attempt"]) if rank == 0 else None
    found = startup.versions()
    if log:
        log.write("phase", phase="load", versions=found)

    model, tokenizer = strategy.load(config, device, folder.cache)
    model = hooks.adapt(strategy.adapt, model, config)
    recomputation = Recomputation(strategy, model, config, on_cpu)
    rows = tokenise.tokenised(config, tokenizer, folder.cache)
    if rank == 0:
        write_json(folder.data_sheet, rows.sheet)
    resume = None if run["checkpoint"] is None else folder.checkpoint(run["checkpoint"])
    if resume is not None:
        adapter.read(model, resume)
    elif run["fork"]:
        adapter.read(model, folder.fork)

    cut = Cut(**run["cut"]) if run["cut"] else cut_of(config)
    lengths = [len(ids) for ids in rows.train["input_ids"]]
    if processes > 1:
        for note in _compare_ranks(model, [rows.fingerprint, *lengths], found):
            if log:
                log.write("warning", message=note)
    steps = Steps(
        config.seed, config.train_batch_size, lengths, cut, config.epochs, config.max_steps, tuple(run["extended"])
    )
    order = sorted(range(len(rows.validation)), key=lambda index: mix(config.seed, "validation", index))
    validation = [rows.validation[index] for index in sorted(order[: config.eval_rows])]
    if config.early_stopping_patience and not validation:
        raise ConfigError(["early_stopping_patience: it counts validations, and this data leaves no row for them"])

    def score(model: Any, rows: Any) -> list[likelihood.RowScore]:
        return likelihood.score_rows(
            model,
            rows,
            pad_id=chat.pad_id(tokenizer),
            eot_id=chat.eot_id(tokenizer),
            max_tokens=cut.token_budget,
            beat=lambda: folder.beat("evaluate"),
        )

    trainer = RunTrainer(
        model,
        tokenizer,
        config=config,
        folder=folder,
        log=log or EventLog(folder.events, run["session"], run["attempt"]),
        steps=steps,
        rows=rows.train,
        validation=validation if config.eval_steps and validation else None,
        score=score,
        recomputation=recomputation,
        manifest={
            "total_steps": steps.total,
            "fingerprint": run["fingerprint"],
            "lineage": run["lineage"],
            "session": run["session"],
            "versions": found,
            "cut": cut.to_json(),
            **{name: run[name] for name in ("fork", "extended") if run[name]},
        },
        on_cpu=on_cpu,
    )
    if recomputation.calibrates:
        if log:
            log.write("phase", phase="calibration")
        room = calibration.room_on_gpu(config.memory_fraction)
        memory = calibration.settle(trainer, room, fresh=run["cut"] is None and config.token_budget == "auto")
        if log and memory:
            log.write("calibration", room=room, token_budget=trainer.steps.cut.token_budget, **asdict(memory))
    for callback in callbacks:
        trainer.add_callback(callback)
    if log:
        log.write("phase", phase="train")
    if rank == 0:
        folder.beat("first step")
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    if processes > 1:
        dist.barrier()
        dist.destroy_process_group()
    return _said(trainer.state.global_step, steps.total, trainer.ended.get("stopped_early"))


def _said(step: int, total: int, stopped_early: str | None) -> dict[str, Any]:
    reason = stopped_early or ("all steps are done" if step == total else "asked to stop")
    outcome = "finished" if stopped_early or step == total else "paused"
    return {"outcome": outcome, "step": step, "total_steps": total, "reason": reason}


def _compare_ranks(model: Any, rows: list[Any], versions: dict[str, str]) -> list[str]:
    """Nothing is broadcast, so all ranks must have drawn or read the same; sentences on what may differ.

    The base weights are compared where the ranks are of several machines. Raises CheckpointError.
    """
    import torch
    import torch.distributed as dist

    from kaggle_lib.strategies import adapter

    digest = hashlib.sha256()
    for tensor in adapter.state(model).values():
        digest.update(tensor.numpy().tobytes())
    own = {"adapters": digest.hexdigest(), "rows": hashlib.sha256(repr(rows).encode()).hexdigest()}
    if dist.get_world_size() > int(os.environ["LOCAL_WORLD_SIZE"]):
        frozen = (p.data.reshape(-1).view(torch.uint8) for p in model.parameters() if not p.requires_grad)
        own["base models"] = repr([int(values.sum(dtype=torch.int64)) for values in frozen])
    ranks: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(ranks, (own, versions))
    for what in own:
        if len({theirs[what] for theirs, _ in ranks}) != 1:
            raise CheckpointError(
                f"The processes of this run begin with different {what}.",
                todo="Machines that train together need the same data and the same base model.",
            )
    return [
        f"Rank {rank} has {name} {theirs.get(name)}, rank 0 has {versions[name]}: bit for bit ends here."
        for rank, (_, theirs) in enumerate(ranks)
        for name in versions
        if theirs.get(name) != versions[name]
    ]


if __name__ == "__main__":
    startup.run(main)
