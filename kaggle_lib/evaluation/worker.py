"""The evaluation's worker: base and tuned model on the same held-out rows, from `run.json` to `result.json`.

A process of its own for each GPU, so that GPU memory is given back and a crash takes nothing with it; they share the
rows, and the first one puts the result together. Knows nothing of stores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

from kaggle_lib import __version__, hooks
from kaggle_lib.config import RunConfig
from kaggle_lib.data.read import Message, Row
from kaggle_lib.errors import UserError
from kaggle_lib.files import sha256_of, write_json
from kaggle_lib.runs.events import EventLog
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.training import startup

BELEBELE = "belebele-ben_Beng.jsonl"  # in the cache, where the supervisor puts it
SETS = ("safety", "native")


class Stopped(Exception):
    """The supervisor asked for an end; what is done stays done."""


def main(run_folder: Path | str) -> dict[str, Any]:
    """Evaluate; returns what `outcome` says: `outcome` (finished, paused) and `reason`.

    Raises UserError where there is no adapter, no test row, or a model whose numbers are not finite.
    """
    folder = RunFolder(Path(run_folder))
    rank = int(os.environ.get("RANK", "0"))
    folder.beat("load")
    try:
        complete = _evaluate(folder, rank, int(os.environ.get("WORLD_SIZE", "1")))
    except Exception as error:
        # A rank that dies of its peer's death is not the cause, so the first word stays.
        if isinstance(error, UserError) or folder.read_outcome() is None:
            folder.write_outcome(startup.failure(error))
        raise
    outcome = {"outcome": "finished", "reason": ""} if complete else {"outcome": "paused", "reason": "asked to stop"}
    if rank == 0:
        folder.write_outcome(outcome)
    return outcome


def _evaluate(folder: RunFolder, rank: int, processes: int) -> bool:
    """Whether all is measured and the result is written; else the supervisor asked for an end."""
    run = folder.read_run()
    config = hooks.settled(RunConfig.from_json(run["config"]), folder.hooks)
    tuned = folder.root / run.get("adapter", folder.adapter.name)
    weights = tuned / "adapter_model.safetensors"
    if not weights.is_file():
        raise UserError(f"Run {config.run!r} has no adapter in {tuned}.", todo="Train it first; `train` puts it there.")
    if processes > 1:  # before torch is imported: each process sees its own GPU as the first
        visible, own = os.environ.get("CUDA_VISIBLE_DEVICES"), int(os.environ.get("LOCAL_RANK", "0"))
        os.environ["CUDA_VISIBLE_DEVICES"] = visible.split(",")[own] if visible else str(own)

    from kaggle_lib import strategies
    from kaggle_lib.data import tokenise

    strategies.get(config)  # before `versions`, which imports torch, and the user's hooks, which import what they like
    curated = tokenise.curated(config, folder.cache)
    if not curated.test:
        raise UserError(
            f"Run {config.run!r} has no test rows, so there is nothing to evaluate on.",
            kept="The adapter is as it was.",
            todo="Start another run with test_fraction above 0, or with more rows.",
        )

    from kaggle_lib.evaluation import generation, retention, similarity
    from kaggle_lib.evaluation.measuring import Measuring
    from kaggle_lib.evaluation.parts import Parts, key_of

    if config.similarity_model:
        similarity.check(config.similarity_model)
    asked_back, why_not = _retention_rows(folder, config, retention)
    log = EventLog(folder.events, run["session"], run["attempt"]) if rank == 0 else None
    if log:
        log.write("phase", phase="load", versions=startup.versions())
    model, tokenizer = strategies.tuned(config, tuned, folder.cache)
    splits = tokenise.tokenised(config, tokenizer, folder.cache, curated)
    if rank == 0:
        write_json(folder.data_sheet, splits.sheet)
    adapter = sha256_of(weights)
    decides = [__version__, adapter, run.get("base_commit"), run["fingerprint"], splits.fingerprint, config.language]
    parts = Parts(folder.evaluation, key_of([*decides, generation.describe(config, tokenizer)]), rank)
    chosen = choose(curated.test, config.seed, config.answer_rows)
    asked = _asked(chosen, tokenizer, config)

    def beat() -> None:
        folder.beat("evaluate")
        if folder.stop_request.exists():
            raise Stopped

    if log:
        log.write("phase", phase="evaluate")
    folder.beat("evaluate")
    measuring = Measuring(model, tokenizer, config, parts, rank, processes, beat)
    sides: dict[str, Callable[[], AbstractContextManager[Any]]] = {"base": model.disable_adapter, "tuned": nullcontext}
    # Both sides' likelihood first: weights that are ruined show before anything is generated.
    work: tuple[tuple[Callable[[str, Any], None], Any], ...] = (
        (measuring.likelihood, splits.test),
        (measuring.answers, asked),
        (measuring.retention, asked_back),
    )
    complete = True
    try:
        for measure, items in work:
            for side, applied in sides.items():
                with applied():
                    measure(side, items)
    except Stopped:
        complete = False
    if not _all(complete, processes):
        return False
    if rank == 0:
        from kaggle_lib.evaluation import assemble

        parts.read()
        about = {"run": config.run, "step": run["checkpoint"], "adapter_sha256": adapter}
        told = asked_back or why_not
        assemble.assemble(folder.evaluation, config, about, curated, chosen, told, parts, tokenizer, folder.beat)
        parts.clear_others()
    _all(True, processes)  # nobody leaves before the result is there: torchrun would end the rest
    return True


def choose(test: Sequence[Row], seed: int, count: int) -> list[Row]:
    """`count` rows of the test split, drawn by the seed, in the file's order; all where there are fewer. More rows
    hold those of fewer."""
    from kaggle_lib.data.steps import mix

    return sorted(sorted(test, key=lambda row: mix(seed, "samples", row.id))[:count], key=lambda row: row.id)


def _asked(chosen: Sequence[Row], tokenizer: Any, config: RunConfig) -> list[Any]:
    """What both models answer: the chosen rows, and the package's prompts."""
    from kaggle_lib.data import chat
    from kaggle_lib.evaluation import generation, safety
    from kaggle_lib.evaluation.measuring import Asked

    def ask(one: int | str, messages: Sequence[Message], room: int) -> Asked:
        return Asked(one, chat.prompt_ids(messages, tokenizer, config, room=room), room)

    asked = [ask(row.id, row.messages[:-1], generation.new_token_budget(row.answer, config)) for row in chosen]
    # A prompt has no reference to take a length from: room for a paragraph.
    room = generation.new_token_budget("- " * 40, config)
    names = () if safety.left_out(config) else SETS
    return asked + [
        ask(one["id"], [Message("user", one["text"])], room) for name in names for one in safety.prompts(name)
    ]


def _retention_rows(folder: RunFolder, config: RunConfig, retention: Any) -> tuple[list[Mapping[str, str]], str]:
    """The rows, or why there are none. Raises DataError for a file that cannot be used."""
    if config.retention == "off":
        return [], "Not measured: retention=off"
    path = folder.cache / BELEBELE if config.retention == "belebele" else Path(config.retention)
    if config.retention == "belebele" and not path.exists():
        return [], "Not measured: Belebele could not be fetched from the Hub; evaluate again with the Internet on"
    return retention.load(path), ""


def _all(complete: bool, processes: int) -> bool:
    """Whether it is so in every process; each waits for the others."""
    if processes == 1:
        return complete
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(hours=12))
    told = torch.tensor([int(complete)])
    dist.all_reduce(told, dist.ReduceOp.MIN)
    return bool(told.item())


if __name__ == "__main__":
    startup.run(main)
