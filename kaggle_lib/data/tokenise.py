"""The curated rows, and these as token ids, cached on disk.

The keys are our own. Of the ids: the kept rows' fingerprint, the configuration that shapes them, the template, the
tokenizer, our code and a hooks file's. (`datasets` fingerprints a function imported from a module by its name alone, so
after an edit it would hand out what the old code made.) Of the curated rows: the file's bytes, what chooses among them,
and our code; where `format_row` has a say they are made anew, for it may read whatever it likes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from kaggle_lib import hooks
from kaggle_lib.config import RunConfig, code_hash
from kaggle_lib.data import chat, curate, read, sheet
from kaggle_lib.data.curate import SPLITS, Curated
from kaggle_lib.data.find import find
from kaggle_lib.data.read import Message, Row
from kaggle_lib.files import read_json, sha256_of, write_json, write_text

ABOUT, HASHES = "counts.json", "sha256.json"  # the hashes of every other file, written last
# What decides, beside the file, which rows are used for what.
CHOOSING = (
    *("data", "question_column", "answer_column", "conversations", "rows", "validation_fraction", "test_fraction"),
    "seed",
)
# What a row's ids depend on beside the row itself.
SHAPING = ("system_prompt", "max_length", "conversations")


@dataclass(frozen=True)
class Splits:
    """Three `datasets.Dataset`s of `id`, `input_ids`, `labels`, `answer_bytes`; `counts` has what was cut and why.

    `sheet`: the curated rows' data sheet, with the tokens of each split.
    """

    train: Any
    validation: Any
    test: Any
    counts: dict[str, int]
    fingerprint: str
    sheet: dict[str, Any]


def curated(config: RunConfig, cache: Path | None) -> Curated:
    """The curated rows of `config`'s corpus, from `cache` or made now, and kept there unless it is None.

    Raises DataError for a corpus that cannot be used, ConfigError for a hooks file that cannot.
    """
    if cache is None or config.hooks:
        return curate.curate(read.read(config), config)
    path = find(config.data)
    chosen = {name: getattr(config, name) for name in CHOOSING}
    parts = [path.name, sha256_of(path), chosen, code_hash()]
    target = cache / f"rows-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}.json"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{target.name}.lock"):
        if (kept := _kept(target)) is None:
            kept = curate.curate(read.read(config), config)
            text = json.dumps(asdict(kept), ensure_ascii=False)
            write_text(target, f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}")
        return kept


def _kept(target: Path) -> Curated | None:
    """The curated rows that lie there; None where there are none, or not as they were written."""
    try:
        sha256, _, text = target.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    if hashlib.sha256(text).hexdigest().encode() != sha256:
        return None
    values = json.loads(text)
    for split in SPLITS:
        values[split] = [
            Row(**{**row, "messages": tuple(Message(**said) for said in row["messages"])}) for row in values[split]
        ]
    return Curated(**values)


def tokenised(config: RunConfig, tokenizer: chat.Tokenizer, cache: Path, rows: Curated | None = None) -> Splits:
    """The rows of `config`'s corpus as ids, from the cache in `cache` or made now; `rows`: curated already.

    Made aside and renamed, so that a kill leaves nothing half; of several processes one makes it and the others wait;
    one with a file that is missing or damaged is made anew. Raises DataError for a corpus that cannot be used,
    ConfigError where `max_length` leaves no room.
    """
    rows = rows or curated(config, cache)
    target = cache / f"tokens-{_key(config, tokenizer, rows)}"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(cache / f".{target.name}.lock"):
        if not _whole(target):
            aside = cache / f".{target.name}.making"
            for gone in (aside, target):
                if gone.exists():
                    shutil.rmtree(gone)
            _make(rows, tokenizer, config, aside)
            aside.rename(target)
        return _load(target)


def _make(rows: Curated, tokenizer: chat.Tokenizer, config: RunConfig, into: Path) -> None:
    into.mkdir()
    counts = dict(rows.counts)
    tokens = {}
    for split in SPLITS:
        encoded = _Encoded(every=split == "train" and config.conversations == "dialogues")
        for row in getattr(rows, split):
            encoded.add(row, tokenizer, config, counts)
        tokens[split] = sheet.spread(encoded.lengths)
        if encoded.lengths:  # `datasets` cannot load what it saves of a split without rows
            encoded.dataset().save_to_disk(into / split)
    about = {"counts": counts, "fingerprint": rows.fingerprint}
    write_json(into / ABOUT, {**about, "sheet": {**rows.sheet, "counts": counts, "tokens": tokens}})
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
    rows = {
        split: load_from_disk(target / split) if (target / split).exists() else _Encoded().dataset() for split in SPLITS
    }
    return Splits(**rows, **about)


def _key(config: RunConfig, tokenizer: chat.Tokenizer, rows: Curated) -> str:
    values = config.frozen()
    parts = [
        rows.fingerprint,
        {split: [row.id for row in getattr(rows, split)] for split in SPLITS},
        rows.counts,
        {name: values[name] for name in SHAPING},
        chat.template(tokenizer),
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


class _Encoded:
    """The rows of a split as flat arrays of numbers, a tenth of what lists of Python's numbers would take."""

    def __init__(self, every: bool = False) -> None:
        self.every = every
        self.ids, self.answer_bytes, self.ends = array("q"), array("q"), array("i", [0])
        self.input_ids, self.labels = array("i"), array("i")
        self.lengths: list[int] = []

    def add(self, row: Row, tokenizer: chat.Tokenizer, config: RunConfig, counts: dict[str, int]) -> None:
        one = chat.encode(row.messages, tokenizer, config, every=self.every)
        for what, number in ((f"cut: {one.cut}", bool(one.cut)), ("cut: answers not learned", one.unlearned)):
            if number:
                counts[what] = counts.get(what, 0) + number
        self.ids.append(row.id)
        self.answer_bytes.append(one.answer_bytes)
        self.input_ids.extend(one.input_ids)
        self.labels.extend(one.labels)
        self.ends.append(len(self.input_ids))
        self.lengths.append(len(one.input_ids))

    def dataset(self) -> Any:
        import pyarrow
        from datasets import Dataset, DatasetInfo, Features, List, Value

        ids = List(Value("int32"))
        features = Features({"id": Value("int64"), "input_ids": ids, "labels": ids, "answer_bytes": Value("int64")})

        def column(numbers: array[int], kind: Any) -> Any:
            return pyarrow.Array.from_buffers(kind, len(numbers), [None, pyarrow.py_buffer(numbers)])

        def lists(numbers: array[int]) -> Any:
            values = column(numbers, pyarrow.int32())
            return pyarrow.ListArray.from_arrays(column(self.ends, pyarrow.int32()), values)

        table = {
            "id": column(self.ids, pyarrow.int64()),
            "input_ids": lists(self.input_ids),
            "labels": lists(self.labels),
            "answer_bytes": column(self.answer_bytes, pyarrow.int64()),
        }
        return Dataset(pyarrow.table(table).cast(features.arrow_schema), info=DatasetInfo(features=features))
