"""The curated rows as token ids, cached on disk.

The cache's key is our own: the kept rows' fingerprint, the configuration that shapes them, the template, the tokenizer
and our code. (`datasets` fingerprints a function imported from a module by its name alone, so after an edit it would
hand out what the old code made.)
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaggle_lib.config import RunConfig, code_hash
from kaggle_lib.data import chat, curate, read
from kaggle_lib.data.curate import Curated
from kaggle_lib.data.read import Row
from kaggle_lib.files import read_json, write_json

SPLITS = ("train", "validation", "test")
# What a row's ids depend on beside the row itself.
SHAPING = ("system_prompt", "max_length", "conversations")


@dataclass(frozen=True)
class Splits:
    """Three `datasets.Dataset`s of `id`, `input_ids`, `labels`, `answer_bytes`; `counts` has what was cut and why."""

    train: Any
    validation: Any
    test: Any
    counts: dict[str, int]
    fingerprint: str


def tokenised(config: RunConfig, tokenizer: chat.Tokenizer, cache: Path) -> Splits:
    """The rows of `config`'s corpus as ids, from the cache in `cache` or made now.

    Made aside and renamed, so that a kill leaves nothing half and two processes may do it at once; what cannot be read
    is made anew. Raises DataError for a corpus that cannot be used, ConfigError where `max_length` leaves no room.
    """
    curated = curate.curate(read.read(config), config)
    target = cache / f"tokens-{_key(config, tokenizer, curated)}"
    found = _load(target)
    if found is not None:
        return found
    aside = cache / f".{target.name}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    counts = dict(curated.counts)
    for split in SPLITS:
        _encode(getattr(curated, split), tokenizer, config, counts).save_to_disk(aside / split)
    write_json(aside / "counts.json", {"counts": counts, "fingerprint": curated.fingerprint})
    shutil.rmtree(target, ignore_errors=True)  # a damaged one
    try:
        aside.rename(target)
    except OSError:  # another process was first
        shutil.rmtree(aside)
    made = _load(target)
    assert made is not None
    return made


def _key(config: RunConfig, tokenizer: chat.Tokenizer, curated: Curated) -> str:
    values = config.frozen()
    parts = [
        curated.fingerprint,
        [row.id for split in SPLITS for row in getattr(curated, split)],
        {name: values[name] for name in SHAPING},
        chat.template_hash(),
        hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode("utf-8")).hexdigest(),
        code_hash(),
    ]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8")).hexdigest()[:32]


def _load(target: Path) -> Splits | None:
    if not (target / "counts.json").exists():
        return None
    from datasets import load_from_disk

    try:
        about = read_json(target / "counts.json")
        rows = {split: load_from_disk(target / split) for split in SPLITS}
        for split in SPLITS:  # reads every page once: a truncated file shows here and not in the middle of a step
            rows[split].data.validate(full=True)
    except Exception:  # whatever Arrow raises for a file that is not whole
        return None
    return Splits(**rows, counts=about["counts"], fingerprint=about["fingerprint"])


def _encode(rows: Sequence[Row], tokenizer: chat.Tokenizer, config: RunConfig, counts: dict[str, int]) -> Any:
    from datasets import Dataset, Features, List, Value

    encoded = []
    for row in rows:
        one = chat.encode(row.messages, tokenizer, config)
        if one.cut:
            counts[f"cut: {one.cut}"] = counts.get(f"cut: {one.cut}", 0) + 1
        encoded.append(
            {"id": row.id, "input_ids": one.input_ids, "labels": one.labels, "answer_bytes": one.answer_bytes}
        )
    ids = List(Value("int32"))
    features = {"id": Value("int64"), "input_ids": ids, "labels": ids, "answer_bytes": Value("int64")}
    return Dataset.from_list(encoded, features=Features(features))
