"""The export's worker: a form made of the adapter, and both measured on the same held-out rows.

As a stranger would load them: the adapter by PEFT on the base model's own weights, a form by transformers alone, with
no strategy and no quantisation. Which form says `export.json` in the run folder (`Job`). Knows nothing of stores.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaggle_lib import hooks
from kaggle_lib.config import RunConfig
from kaggle_lib.data.read import Row
from kaggle_lib.errors import UserError
from kaggle_lib.files import read_json, write_json
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.training import startup

ROWS, ANSWERS, TOKENS = 32, 8, 24  # rows scored; rows answered, and most tokens of an answer


@dataclass(frozen=True)
class Job:
    """`adapter`: its folder, with the tokenizer. `form`: the folder that the form is in; `base`: the folder of the base
    model's weights, to be merged into `form` first and measured beside it, or None where `gguf` names a file in `form`
    that is loaded. The numbers go to `into`."""

    adapter: str
    form: str
    into: str
    base: str | None = None
    gguf: str | None = None


def main(run_folder: Path | str) -> None:
    """Measure; `outcome` says `finished`, or what failed. Raises UserError where there is no held-out row, where the
    adapter cannot be merged, or where the form's tokenizer is not the adapter's."""
    folder = RunFolder(Path(run_folder))
    folder.beat("load")
    try:
        config = hooks.settled(RunConfig.from_json(folder.read_run()["config"]), folder.hooks)
        job = Job(**read_json(folder.root / "export.json"))
        write_json(Path(job.into), _export(job, config, folder))
    except Exception as error:
        folder.write_outcome(startup.failure(error))
        raise
    folder.write_outcome({"outcome": "finished", "reason": ""})


def _export(job: Job, config: RunConfig, folder: RunFolder) -> dict[str, Any]:
    """What `base`, `adapter` (both only where there is a base to merge into) and `form` are measured at."""
    import torch
    from transformers import AutoTokenizer

    from kaggle_lib.evaluation import merging

    form = Path(job.form)
    rows = _rows(config, folder)
    trained = AutoTokenizer.from_pretrained(job.adapter)
    measured = {}
    if job.base:
        measured = _adapter(job, config, folder, rows, trained)
        dtype = torch.bfloat16 if config.precision == "bf16" else torch.float16
        merging.merge(Path(job.base), Path(job.adapter), form, dtype, lambda: folder.beat("save"))
    # A GGUF file holds the tokenizer as lists, which are compared; what reads them is llama.cpp's own.
    tokenizer = trained if job.gguf else AutoTokenizer.from_pretrained(form)
    if problem := _tokens_of(form / job.gguf, trained) if job.gguf else _differs(tokenizer, trained, rows):
        raise UserError(
            f"The tokenizer of {form} is not the adapter's: {problem}.",
            kept="Nothing was sent.",
            todo="Publish the adapter.",
        )
    folder.beat("load")
    model = _load(form, config, **({"gguf_file": job.gguf} if job.gguf else {}))
    return {**measured, "form": _measure(model, tokenizer, rows, config, folder)}


def _adapter(job: Job, config: RunConfig, folder: RunFolder, rows: Sequence[Row], tokenizer: Any) -> dict[str, Any]:
    from peft import PeftModel

    model = PeftModel.from_pretrained(_load(Path(str(job.base)), config), job.adapter)
    adapter = _measure(model, tokenizer, rows, config, folder)
    with model.disable_adapter():
        return {"base": _measure(model, tokenizer, rows, config, folder), "adapter": adapter}


def _load(source: Path, config: RunConfig, **more: Any) -> Any:
    """On all GPUs together, or the CPU, in the run's precision."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from kaggle_lib.strategies.common import DTYPES

    torch.cuda.empty_cache()  # what the model before held
    devices = "auto" if torch.cuda.is_available() else None
    if not more and getattr(AutoConfig.from_pretrained(source).get_text_config(), "attn_logit_softcapping", None):
        more = {"attn_implementation": "eager"}  # the default leaves Gemma 2's caps out
    return AutoModelForCausalLM.from_pretrained(source, dtype=DTYPES[config.precision], device_map=devices, **more)


def _rows(config: RunConfig, folder: RunFolder) -> list[Row]:
    from kaggle_lib.data import tokenise
    from kaggle_lib.evaluation.worker import choose

    curated = tokenise.curated(config, folder.cache)
    if rows := choose(curated.test or curated.validation, config.seed, ROWS):
        return rows
    raise UserError(
        f"Run {config.run!r} has no held-out rows, so no form can be compared with its adapter.",
        kept="Nothing was sent.",
        todo="Publish the adapter, which needs no comparison.",
    )


def _measure(model: Any, tokenizer: Any, rows: Sequence[Row], config: RunConfig, folder: RunFolder) -> dict[str, Any]:
    """`bits_per_byte` of the answers of the `rows` (their ids), and greedy `answers` to the first of them."""
    from kaggle_lib.data import chat
    from kaggle_lib.data.steps import cut_of
    from kaggle_lib.evaluation import generation, likelihood

    model.eval()
    beat: Callable[[], None] = lambda: folder.beat("evaluate")  # noqa: E731
    items = []
    for row in rows:
        one = chat.encode(row.messages, tokenizer, config)
        items.append({"id": row.id, "input_ids": one.input_ids, "labels": one.labels, "answer_bytes": one.answer_bytes})
    pad, eot = chat.pad_id(tokenizer), chat.eot_id(tokenizer)
    most = cut_of(config).token_budget
    scores = likelihood.score_rows(model, items, pad_id=pad, eot_id=eot, max_tokens=most, beat=beat)
    bits = likelihood.summarise(scores)["bits_per_byte"]
    prompts = [chat.prompt_ids(row.messages[:-1], tokenizer, config, room=TOKENS) for row in rows[:ANSWERS]]
    found = [generation.answer(model, tokenizer, prompt, TOKENS, beat) for prompt in prompts]
    return {
        "bits_per_byte": bits if math.isfinite(bits) else None,
        "rows": [row.id for row in rows],
        "answers": [one.text for one in found],
    }


def _differs(tokenizer: Any, trained: Any, rows: Sequence[Row]) -> str:
    """What a text or a dialogue would become another one by."""
    for row in rows:
        messages = [{"role": said.role, "content": said.content} for said in row.messages]
        if tokenizer.apply_chat_template(messages, tokenize=False) != trained.apply_chat_template(
            messages, tokenize=False
        ):
            return f"its template renders row {row.id} otherwise"
        text = row.messages[-1].content
        if tokenizer(text)["input_ids"] != trained(text)["input_ids"]:
            return f"it cuts the answer of row {row.id} into other tokens"
    return ""


def _tokens_of(file: Path, trained: Any) -> str:
    """The same of what a GGUF file says."""
    from gguf import GGUFReader

    def value(name: str) -> Any:
        return fields[name].contents() if name in fields else None

    fields = GGUFReader(file).fields
    vocabulary = trained.convert_ids_to_tokens(list(range(len(trained))))
    if (value("tokenizer.ggml.tokens") or [])[: len(trained)] != vocabulary:
        return "its list of tokens is another one"
    if value("tokenizer.chat_template") != trained.chat_template:
        return "its template is another one"
    return ""


if __name__ == "__main__":
    startup.run(main)
