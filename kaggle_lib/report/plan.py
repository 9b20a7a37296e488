"""What a run will take, before anything is spent: tokens, hours, sessions, quota, checkpoints, bytes on the store.

Every number says whether it was counted, measured, projected by a formula, or assumed. Imports no training stack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kaggle_lib.config import RunConfig
from kaggle_lib.data import chat, curate, read
from kaggle_lib.data.check import check
from kaggle_lib.errors import DataError
from kaggle_lib.report import speed
from kaggle_lib.report.speed import Shape
from kaggle_lib.session.clock import KAGGLE_HOURS

QUOTA_HOURS = 30.0  # a week, billed once a session whatever GPUs it has; Kaggle says "sometimes higher"
LENGTHS = (200, 300, 461, 700, 1000, 2000)  # mean tokens of a row, for the table of hours
COUNTED_ROWS = 2000
# Of Bengali text, by Llama 3.1's tokenizer: letters a token, measured; and the template's tokens beside the text.
LETTERS_A_TOKEN, TEMPLATE_TOKENS = 0.81, 40
# Assumed until `t4-check` or a session has measured it.
START_MINUTES = 12.0  # of each session: install, fetch the base model, load it, tokenise
SAVE_BYTES_PER_SECOND = 100e6  # write a checkpoint and hash it
OTHER_BYTES = 25e6  # of a checkpoint: the tokenizer, the events
UNPLANNED_HOURS = 12.0  # between two ends that nobody asked for


def plan(values: Mapping[str, object]) -> dict[str, Any]:
    """What `plan --json` prints, for two T4s unless `processes` says otherwise; null is what cannot be known here.

    Raises ConfigError where a value is wrong.
    """
    config = RunConfig.create({"run": "plan", **values})
    shape = speed.shape_of(config)
    data = count(config)
    asked = 2 if config.processes == "auto" else config.processes
    gpus = min(asked, config.train_batch_size)
    rows, mean = data["rows"], data["mean_tokens"]
    steps = config.max_steps or (math.ceil(rows * config.epochs / config.train_batch_size) if rows else None)
    found: dict[str, Any] = {
        "run": config.run,
        "data": data,
        "model": {"base_model": config.base_model, "parameters": shape.parameters if shape else None},
        "hardware": {"gpu": speed.T4, "gpus": gpus},
        "steps": steps,
        "tokens": round(steps * config.train_batch_size * mean) if steps and mean else None,
        "speed": {"tokens_per_second": None, "how": "unknown", "source": "the base model's config.json is not here"},
        "hours": None,
        "sessions": None,
        "weeks": None,
        "by_mean_tokens": [],
    }
    if shape:
        per_step = (mean or LENGTHS[2]) * config.train_batch_size
        found["speed"] = speed.expected(shape, config, per_step, gpus)
        if steps:
            found["by_mean_tokens"] = [_hours(shape, config, steps, length, gpus) for length in LENGTHS]
            found |= _hours(shape, config, steps, mean, gpus) if mean else {}
            found.pop("mean_tokens", None)
    checkpoint = checkpoint_bytes(shape, config) if shape else None
    seconds = steps and found["hours"] and 3600 * found["hours"] / steps
    found["checkpoint"] = {
        "bytes": checkpoint,
        "on_the_store": checkpoint and checkpoint * (config.keep + 1 + (config.keep_best and config.eval_steps > 0)),
        "save_steps": config.save_steps,
        "best_save_steps": max(1, round(interval(_save_seconds(checkpoint)) / seconds))
        if checkpoint and seconds
        else None,
    }
    found["memory_gib"] = memory(shape, config)
    return found


def count(config: RunConfig) -> dict[str, Any]:
    """`rows` to train on, `mean_tokens` of one, and `how` each is known; null where it is not."""
    known = speed.known()["corpora"].get(config.data)
    try:
        if config.hooks:  # a user's code runs in a process of its own, which counts rows
            return {"rows": check(config).train, "mean_tokens": None, "how": "rows counted, their tokens not"}
        train = curate.curate(read.read(config), config).train
    except DataError as error:
        if known is None:
            return {"rows": None, "mean_tokens": None, "how": f"unknown: {error.what}"}
        rows = round(known["rows"] * (1 - config.validation_fraction - config.test_fraction))
        rows = min(rows, config.rows or rows)
        return {"rows": rows, "mean_tokens": known["mean_tokens"], "how": f"the file is not here: {known['source']}"}
    looked = train[:: max(1, len(train) // COUNTED_ROWS)]
    tokenizer = _tokenizer(config)
    if tokenizer is None:
        letters = [sum(len(message.content) for message in row.messages) for row in looked]
        tokens = [min(config.max_length, n / LETTERS_A_TOKEN + TEMPLATE_TOKENS) for n in letters]
        how = f"rows counted, tokens estimated: {LETTERS_A_TOKEN} letters each, as Bengali has with Llama 3.1"
    else:
        tokens = [len(chat.encode(row.messages, tokenizer, config).input_ids) for row in looked]
        how = f"counted with the base model's tokenizer, in {len(looked)} of {len(train)} rows"
    return {"rows": len(train), "mean_tokens": round(sum(tokens) / len(tokens), 1), "how": how}


class _Tokenizer:
    """As much of a transformers tokenizer as `chat` asks for, without transformers."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer

        self._inner = Tokenizer.from_file(str(path))
        self._inner.encode_special_tokens = True

    def __call__(self, text: str, **_: bool) -> dict[str, list[int]]:
        return {"input_ids": self._inner.encode(text, add_special_tokens=False).ids}

    def convert_tokens_to_ids(self, name: str) -> int | None:
        found: int | None = self._inner.token_to_id(name)
        return found

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        return self._inner.id_to_token(ids) if isinstance(ids, int) else [self._inner.id_to_token(one) for one in ids]


def _tokenizer(config: RunConfig) -> _Tokenizer | None:
    if config.base_model == "sample":
        path: Path | None = Path(read.__file__).parent / "sample" / "tokenizer.json"
    else:
        path = Path(config.base_model) / "tokenizer.json"
        path = path if path.is_file() else speed.cached(config, "tokenizer.json")
    return _Tokenizer(path) if path else None


def _hours(shape: Shape, config: RunConfig, steps: int, mean: float, gpus: int) -> dict[str, Any]:
    """Hours of training at that mean length, the sessions for it and the weeks of quota; null: the speed is unknown."""
    rate = speed.expected(shape, config, mean * config.train_batch_size, gpus)["tokens_per_second"]
    if rate is None:
        return {"mean_tokens": mean, "hours": None, "sessions": None, "weeks": None}
    hours = steps * config.train_batch_size * mean / rate / 3600
    sessions = math.ceil(hours / ((config.session_hours or KAGGLE_HOURS) - START_MINUTES / 60))
    weeks = (hours + sessions * START_MINUTES / 60) / QUOTA_HOURS
    return {"mean_tokens": mean, "hours": round(hours, 1), "sessions": sessions, "weeks": round(weeks, 1)}


def checkpoint_bytes(shape: Shape, config: RunConfig) -> int:
    """The adapter in fp32, the optimizer's two moments (fp32, or 8 bit with one fp32 scale per 256), and the rest."""
    adapter = 4 * shape.lora_parameters(config)
    moments = 2 * adapter if config.optim == "adamw_torch" else 2 * shape.lora_parameters(config) * (1 + 4 / 256)
    return round(adapter + moments + OTHER_BYTES)


def _save_seconds(checkpoint: float) -> float:
    return checkpoint / SAVE_BYTES_PER_SECOND


def interval(save: float, between: float = 3600 * UNPLANNED_HOURS) -> float:
    """Seconds of training between two saves of `save` seconds that cost least, where a session dies every `between`.

    Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", 2006, eq. 37; its first term
    is Young's, 1974: sqrt(2 · save · between).
    """
    if save >= 2 * between:
        return between
    ratio = save / (2 * between)
    return math.sqrt(2 * save * between) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save


def memory(shape: Shape | None, config: RunConfig) -> float | None:
    """GiB that PyTorch has allocated at most, by the linear model of `data/budget.py`; null where it is not known."""
    if shape is None or (model := speed.memory_of(shape, config)) is None:
        return None
    cut, recomputed = speed.planned(shape, config)
    tokens = max(cut.token_budget, config.max_length)
    peaks = [model.peak(many, round(recomputed(many) * model.layers)) for many in (cut.token_budget, tokens)]
    return round(max(peaks) / speed.GIB, 1)


def as_text(found: dict[str, Any]) -> str:
    """The same for a person, lines without an end of line at the end."""
    data, rate, checkpoint = found["data"], found["speed"], found["checkpoint"]
    hardware = f"{found['hardware']['gpus']} × {found['hardware']['gpu']}"
    per_second = "unknown" if rate["tokens_per_second"] is None else f"{rate['tokens_per_second']:,.0f}"
    lines = [
        f"Data: {_n(data['rows'])} rows to train on, {_n(data['mean_tokens'])} tokens each ({data['how']})",
        f"Steps: {_n(found['steps'])}, {_n(found['tokens'])} tokens",
        f"Tokens/s on {hardware}: {per_second} ({rate['how']}: {rate['source']})",
        f"Time: {_time(found)}",
    ]
    if any(row["hours"] for row in found["by_mean_tokens"]):
        lines.append("  mean tokens of a row   hours  sessions  weeks of quota")
        for row in found["by_mean_tokens"]:
            lines.append(f"  {row['mean_tokens']:>20}  {row['hours']:>6}  {row['sessions']:>8}  {row['weeks']:>14}")
    if checkpoint["bytes"]:
        lines.append(
            f"Checkpoint: {checkpoint['bytes'] / 1e6:.0f} MB, at most {checkpoint['on_the_store'] / 1e6:.0f} MB on the "
            "store at a time"
        )
    if best := checkpoint["best_save_steps"]:
        lines.append(
            f"save_steps={checkpoint['save_steps']}; least is lost with about {best} (Daly 2006; assumed: a save of "
            f"{_save_seconds(checkpoint['bytes']):.1f} s, a session dies every {UNPLANNED_HOURS:g} h)"
        )
    if found["memory_gib"]:
        has = speed.known()["hardware"][speed.T4]["memory"]
        lines.append(f"Memory: about {found['memory_gib']} GiB of {has} a GPU (a linear model measured at this shape)")
    return "\n".join(lines)


def _n(value: float | None) -> str:
    return "an unknown number of" if value is None else f"{value:,.0f}"


def _time(found: dict[str, Any]) -> str:
    if found["hours"] is None:
        return "unknown"
    word = "session" if found["sessions"] == 1 else "sessions"
    return (
        f"{found['hours']} h of training, {found['sessions']} {word}, {found['weeks']} weeks of a quota of "
        f"{QUOTA_HOURS:g} h (assumed: {START_MINUTES:g} minutes to start each session)"
    )
