"""The curated rows as token ids, cached on disk.

The cache's key is our own: the kept rows' fingerprint, the configuration that shapes them, the template, the tokenizer,
our code and a hooks file's. (`datasets` fingerprints a function imported from a module by its name alone, so after an
edit it would hand out what the old code made.)
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from kaggle_lib import hooks
from kaggle_lib.config import RunConfig, code_hash
from kaggle_lib.data import chat, curate, read
from kaggle_lib.data.curate import Curated
from kaggle_lib.data.read import Row
from kaggle_lib.files import read_json, sha256_of, write_json

SPLITS = ("train", "validation", "test")
ABOUT, HASHES = "counts.json", "sha256.json"  # the hashes of every other file, written last
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

    Made aside and renamed, so that a kill leaves nothing half; of several processes one makes it and the others wait;
    one with a file that is missing or damaged is made anew. Raises DataError for a corpus that cannot be used,
    ConfigError where `max_length` leaves no room.
    """
    curated = curate.curate(read.read(config), config)
    target = cache / f"tokens-{_key(config, tokenizer, curated)}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{target.name}.lock"):
        if not _whole(target):
            aside = cache / f".{target.name}.making"
            for gone in (aside, target):
                if gone.exists():
                    shutil.rmtree(gone)
            _make(curated, tokenizer, config, aside)
            aside.rename(target)
        return _load(target)


def _make(curated: Curated, tokenizer: chat.Tokenizer, config: RunConfig, into: Path) -> None:
    into.mkdir()
    counts = dict(curated.counts)
    for split in SPLITS:
        made = _encode(getattr(curated, split), tokenizer, config, counts)
        if len(made):  # `datasets` cannot load what it saves of a split without rows
            made.save_to_disk(into / split)
    write_json(into / ABOUT, {"counts": counts, "fingerprint": curated.fingerprint})
    files = {path.relative_to(into).as_posix(): sha256_of(path) for path in sorted(into.rglob("*")) if path.is_file()}
    write_json(into / HASHES, files)


def _whole(target: Path) -> bool:
    """Whether `target` holds all that was written there, byte for byte."""
    try:
        files = read_json(target / HASHES)
        return bool(files) and all(sha256_of(target / name) == sha256 for name, sha256 in files.items())
    except (OSError, ValueError, AttributeError):
        return False


def _load(target: Path) -> Splits:
    from datasets import load_from_disk

    about = read_json(target / ABOUT)
    rows = {split: load_from_disk(target / split) if (target / split).exists() else _dataset() for split in SPLITS}
    return Splits(**rows, counts=about["counts"], fingerprint=about["fingerprint"])


def _key(config: RunConfig, tokenizer: chat.Tokenizer, curated: Curated) -> str:
    values = config.frozen()
    parts = [
        curated.fingerprint,
        {split: [row.id for row in getattr(curated, split)] for split in SPLITS},
        curated.counts,
        {name: values[name] for name in SHAPING},
        chat.template_hash(),
        _tokenizer_hash(tokenizer),
        code_hash(),
        *([own.sha256] if (own := hooks.of(config)) else []),
    ]
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8")).hexdigest()[:32]


def _tokenizer_hash(tokenizer: chat.Tokenizer) -> str:
    """sha256 of the tokenizer's own content, without how it was last asked to cut and pad."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content.update(truncation=None, padding=None)
    return hashlib.sha256(json.dumps(content).encode("utf-8")).hexdigest()


def _encode(rows: Sequence[Row], tokenizer: chat.Tokenizer, config: RunConfig, counts: dict[str, int]) -> Any:
    encoded = []
    for row in rows:
        one = chat.encode(row.messages, tokenizer, config)
        if one.cut:
            counts[f"cut: {one.cut}"] = counts.get(f"cut: {one.cut}", 0) + 1
        encoded.append((row.id, one.input_ids, one.labels, one.answer_bytes))
    return _dataset(encoded)


def _dataset(encoded: Sequence[tuple[int, list[int], list[int], int]] = ()) -> Any:
    from datasets import Dataset, Features, List, Value

    ids = List(Value("int32"))
    features = {"id": Value("int64"), "input_ids": ids, "labels": ids, "answer_bytes": Value("int64")}
    columns = {name: [row[at] for row in encoded] for at, name in enumerate(features)}
    return Dataset.from_dict(columns, features=Features(features))
