"""The evaluation's worker: base and tuned model on the same held-out answers, from `run.json` to `result.json`.

A process of its own, so that GPU memory is given back and a crash takes nothing with it. Knows nothing of stores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from kaggle_lib import hooks
from kaggle_lib.config import RunConfig
from kaggle_lib.errors import UserError
from kaggle_lib.files import sha256_of, write_json
from kaggle_lib.runs.events import EventLog
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.training import startup

RESULT = "result.json"
SAMPLES = 5
NOTE = (
    "Held-out answers of the test split, the same rows for both models; base is the model without the adapter. "
    "nll: nats, summed over the answers' tokens. <|eot_id|> is in neither nll, tokens nor bytes; eot_nll is its mean. "
    "bits_per_byte = nll / ln 2 / bytes (UTF-8, NFC); perplexity (per token) = exp(nll / tokens)."
)


def main(run_folder: Path | str) -> dict[str, Any]:
    """Evaluate; returns what `outcome` says: `outcome` (finished) and `reason`.

    Raises UserError where there is no adapter, no test row, or a model whose numbers are not finite.
    """
    folder = RunFolder(Path(run_folder))
    folder.beat("load")
    try:
        _evaluate(folder)
    except Exception as error:
        folder.write_outcome(startup.failure(error))
        raise
    outcome = {"outcome": "finished", "reason": ""}
    folder.write_outcome(outcome)
    return outcome


def _evaluate(folder: RunFolder) -> None:
    run = folder.read_run()
    config = hooks.settled(RunConfig.from_json(run["config"]), folder.hooks)
    weights = folder.adapter / "adapter_model.safetensors"
    if not weights.is_file():
        raise UserError(
            f"Run {config.run!r} has no adapter in {folder.adapter}.", todo="Train it first; `train` puts it there."
        )

    from kaggle_lib import strategies
    from kaggle_lib.data import curate, read

    strategies.get(config)  # before `versions`, which imports torch, and the user's hooks, which import what they like
    chosen = choose(curate.curate(read.read(config), config).test, config.seed)
    if not chosen:
        raise UserError(
            f"Run {config.run!r} has no test rows, so there is nothing to evaluate on.",
            kept="The adapter is as it was.",
            todo="Start another run with test_fraction above 0, or with more rows.",
        )

    from kaggle_lib.data import tokenise

    log = EventLog(folder.events, run["session"], run["attempt"])
    log.write("phase", phase="load", versions=startup.versions())
    model, tokenizer = strategies.tuned(config, folder.adapter, folder.cache)
    rows = tokenise.tokenised(config, tokenizer, folder.cache).test
    log.write("phase", phase="evaluate")
    folder.beat("evaluate")
    beat = _beat(folder)
    sides: dict[str, Callable[[], AbstractContextManager[Any]]] = {"base": model.disable_adapter, "tuned": nullcontext}
    measured = {}
    for side, applied in sides.items():
        with applied():
            measured[side] = _measure(model, tokenizer, config, rows, chosen, beat)
    _write_result(folder, run, config, measured, chosen, tokenizer, sha256_of(weights))


def choose(test: Sequence[Any], seed: int) -> list[Any]:
    """`SAMPLES` rows of the test split, drawn by the seed, in the file's order; all where there are fewer."""
    from kaggle_lib.data.steps import mix

    return sorted(sorted(test, key=lambda row: mix(seed, "samples", row.id))[:SAMPLES], key=lambda row: row.id)


def _beat(folder: RunFolder) -> Callable[[], None]:
    return lambda: folder.beat("evaluate")


def _measure(
    model: Any, tokenizer: Any, config: RunConfig, rows: Any, chosen: Sequence[Any], beat: Callable[[], None]
) -> tuple[dict[str, Any], list[Any]]:
    """The numbers over `rows` and the answers to `chosen` of the model as it is now."""
    from kaggle_lib.data import chat
    from kaggle_lib.data.steps import cut_of
    from kaggle_lib.evaluation import generation, likelihood

    scores = likelihood.score_rows(
        model,
        rows,
        pad_id=chat.pad_id(tokenizer),
        eot_id=chat.eot_id(tokenizer),
        max_tokens=cut_of(config).token_budget,
        beat=beat,
    )
    summary = likelihood.summarise(scores)
    if not all(math.isfinite(value) for value in summary.values()):
        raise UserError(
            "The model's likelihood of the test rows is not a finite number, so its weights are ruined.",
            todo="Evaluate an earlier checkpoint, or train again with a lower learning_rate.",
        )
    answers = []
    for row in chosen:
        room = generation.new_token_budget(row.answer, config)
        prompt = chat.prompt_ids(row.messages[:-1], tokenizer, config, room=room)
        answers.append(generation.answer(model, tokenizer, prompt, room, beat))
    return summary, answers


def _write_result(
    folder: RunFolder,
    run: dict[str, Any],
    config: RunConfig,
    measured: dict[str, tuple[dict[str, Any], list[Any]]],
    chosen: Sequence[Any],
    tokenizer: Any,
    adapter_sha256: str,
) -> None:
    from kaggle_lib.evaluation import generation

    (base, base_answers), (tuned, tuned_answers) = measured["base"], measured["tuned"]
    both = {"base": base_answers, "tuned": tuned_answers}
    folder.evaluation.mkdir(exist_ok=True)
    write_json(
        folder.evaluation / RESULT,
        {
            "run": config.run,
            "step": run["checkpoint"],
            "base": base,
            "tuned": tuned,
            "decoding": {
                **generation.describe(config, tokenizer),
                "ended_by_budget": {side: sum(not one.ended for one in answers) for side, answers in both.items()},
                "letters_trimmed": {side: sum(one.letter_cut for one in answers) for side, answers in both.items()},
            },
            "samples": [
                {
                    "id": row.id,
                    "question": row.question,
                    "reference": row.answer,
                    "base": without.text,
                    "tuned": with_adapter.text,
                }
                for row, without, with_adapter in zip(chosen, base_answers, tuned_answers, strict=True)
            ],
            "adapter_sha256": adapter_sha256,
            "note": NOTE,
        },
    )


if __name__ == "__main__":
    startup.run(main)
