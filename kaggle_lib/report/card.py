"""The model card, generated from the run: metadata that the Hub reads, and a text that people do.

What a person writes into a card stays: only the part between the two marks is ever replaced, and of the metadata only
the keys that are generated.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kaggle_lib import __version__
from kaggle_lib.checkpoints.manifest import Manifest
from kaggle_lib.config import RunConfig
from kaggle_lib.report.page import claim
from kaggle_lib.runs.export import Export
from kaggle_lib.runs.ledger import Record, goodput

BEGIN = "<!-- written by kaggle_lib from the run; what stands outside of these marks is kept -->"
END = "<!-- end of what kaggle_lib wrote -->"
CORPUS = "BengaliEmpatheticConversationsCorpus"
CORPUS_ID = "rasel-harun/BengaliEmpatheticConversationsCorpus"
QUESTION = "গতকাল আমার সবচেয়ে কাছের বন্ধু শহর ছেড়ে চলে গেল।"
IN_CARD = ("bits_per_byte", "perplexity", "chrf++", "bleu", "rougeL", "length", "distinct2", "mixed_register")
LIBRARIES: dict[str, str | None] = {"adapter": "peft", "merged": "transformers", "gguf": None}
RECIPE = (
    *("strategy", "quantization", "precision", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules"),
    *("train_batch_size", "max_length", "epochs", "max_steps", "learning_rate", "lr_scheduler_type", "warmup_ratio"),
    *("optim", "weight_decay", "max_grad_norm", "seed", "rows", "conversations", "system_prompt"),
)


def write(
    config: RunConfig,
    *,
    repo: str,
    base: str | None,
    commit: str | None,
    manifest: Manifest,
    which: str,
    ledger: Sequence[Record],
    result: Mapping[str, Any] | None,
    existing: str | None = None,
    form: str = "adapter",
    made: Export | None = None,
) -> ModelCard:
    """The card of the run's result for `repo`. `base`: the base model's Hub id, or None where it has none; `commit`:
    the one it was trained on. `manifest`: of its checkpoint, the last one or the best one (`which`). `result`: the
    evaluation's, if there is one. `existing`: the card that is there. `form`: what is published; `made`: its files and
    how it compares, where it is not the adapter.
    """
    llama = "llama" in (base or "").lower()
    bengali = CORPUS in config.data.replace(" ", "") or "bengali-empathetic" in config.data.lower()
    known = ModelCard(existing, ignore_metadata_errors=True) if existing else None
    data = ModelCardData(
        language=config.language,
        license=_license((base or "").lower()),
        library_name=LIBRARIES[form],
        pipeline_tag="text-generation",
        base_model=base,
        # The Hub's words. Its `merge` is of several models, its `quantized` of the very model that is named.
        base_model_relation=("adapter" if form == "adapter" else "finetune") if base else None,
        datasets=[CORPUS_ID] if bengali else None,
        tags=["lora", "kaggle_lib", *(["llama"] if llama else []), *([form] if form == "gguf" else [])],
    )
    if result and result.get("model_index"):
        data["model-index"] = result["model_index"]
    if known is not None:
        # What a person has added or changed stays, but for what is measured or is this run's.
        own = {"base_model", "base_model_relation", "library_name", "model-index"}
        for name, value in known.data.to_dict().items():  # type: ignore[no-untyped-call]
            if name not in own:
                data[name] = value
    text = (
        _environment()
        .get_template("card.md")
        .render(
            repo=repo,
            form=form,
            compared=made.compared if made else None,
            gguf=next((path.name for path in made.folder.glob("*.gguf")), "") if made else "",
            quantized=config.quantization != "none",
            system=json.dumps(config.system_prompt, ensure_ascii=False) if config.system_prompt else "",
            run=config.run,
            version=__version__,
            base=f"[{base}](https://huggingface.co/{base})" if base else "a base model that is not on the Hub",
            base_json=json.dumps(base or "the-base-model"),
            commit=commit,
            step=manifest.step,
            total_steps=manifest.total_steps,
            early=manifest.stopped_early,
            best=manifest.best if which == "best" else None,
            llama=llama,
            # transformers' default attention leaves Gemma 2's caps out.
            eager="gemma-2-" in (base or "").lower(),
            bengali=bengali,
            data=f"[{CORPUS_ID}](https://huggingface.co/datasets/{CORPUS_ID})" if bengali else Path(config.data).name,
            columns=(config.question_column, config.answer_column),
            question=QUESTION if config.language == "bn" else "…",
            language=config.language,
            recipe=[(name, _shown(getattr(config, name))) for name in RECIPE if getattr(config, name) is not None]
            + _versions(ledger),
            measures=[_measure(one) for one in (result or {}).get("measures", []) if one["name"] in IN_CARD],
            sessions=sum(record["job"] == "train" for record in ledger),
            gpu_hours=_gpu_hours(ledger),
            goodput=goodput(ledger),
            exact=claim(ledger),
        )
    )
    generated = f"{BEGIN}\n{text.strip()}\n{END}"
    body = _merged(known.text if known else "", generated, config.run)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body.strip()}\n")


def _license(base: str) -> str | None:
    """The Hub's name of the licence that the base model's name tells; None: it does not."""
    llama = re.search(r"llama-?([2-4](?:\.\d)?)", base)
    return f"llama{llama[1]}" if llama else "gemma" if "gemma" in base else None


def _merged(before: str, generated: str, run: str) -> str:
    if BEGIN in before and END in before:
        return before[: before.index(BEGIN)] + generated + before[before.index(END) + len(END) :]
    if before.strip():
        return f"{before.rstrip()}\n\n{generated}"
    return f"# {run}\n\n{generated}"


def _versions(ledger: Sequence[Record]) -> list[tuple[str, str]]:
    """Each version that any training session ran with."""
    found: dict[str, list[str]] = {}
    for record in ledger:
        for name, value in record["versions"].items() if record["job"] == "train" else ():
            if str(value) not in found.setdefault(name, []):
                found[name].append(str(value))
    return [(name, ", then ".join(values)) for name, values in found.items()]


def _gpu_hours(ledger: Sequence[Record]) -> str:
    seconds = sum(
        record["seconds"]["wall"] * (record["processes"] or 1)
        for record in ledger
        if record["job"] == "train" and record["versions"].get("gpu", "none") != "none"
    )
    return f"{seconds / 3600:.1f}"


def _measure(one: Mapping[str, Any]) -> dict[str, str]:
    def number(value: float | None) -> str:
        return "–" if value is None else f"{value:.3f}"

    interval, floor = one["interval"], one["floor"]
    return {
        "title": one["title"],
        **{name: number(one[name]) for name in ("base", "tuned", "difference")},
        "interval": f"{number(interval[0])} to {number(interval[1])}" if interval else "–",
        "floor": number(floor["tuned"]) if floor else "–",
    }


def _shown(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
