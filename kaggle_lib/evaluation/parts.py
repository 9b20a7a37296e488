"""What an evaluation has measured so far, a line each in `evaluation/parts/`, so that a killed one goes on from there.

Each process appends to a file of its own, one write a batch, and reads all of them. The files' names begin with a key
of everything that decides a line; those of another key count for nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kaggle_lib.files import append_line

Record = dict[str, Any]
Name = tuple[str, str, int | str]  # kind (likelihood, answer, retention), side (base, tuned), id


def key_of(decides: Any) -> str:
    return hashlib.sha256(json.dumps(decides, sort_keys=True, ensure_ascii=False).encode("utf-8")).hexdigest()[:16]


class Parts:
    """`done`: every record by its name; a process knows its own as they come, others' as of the last `read`."""

    def __init__(self, evaluation: Path, key: str, rank: int) -> None:
        self.folder, self.key = evaluation / "parts", key
        self.path = self.folder / f"{key}-{rank}.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.done: dict[Name, Record] = {}
        self.read()

    def read(self) -> None:
        """Look at all processes' files; a line torn by a kill is left out, and measured again."""
        for path in sorted(self.folder.glob(f"{self.key}-*.jsonl")):
            for line in path.read_bytes().split(b"\n"):
                try:
                    record = json.loads(line)
                except ValueError:
                    continue
                self.done[_name(record)] = record

    def missing(self, kind: str, side: str, ids: Sequence[int | str]) -> list[int | str]:
        return [one for one in ids if (kind, side, one) not in self.done]

    def add(self, records: Sequence[Record]) -> None:
        """Keep a batch's records, all by one write."""
        lines = (json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records)
        append_line(self.path, "\n".join(lines))
        self.done |= {_name(record): record for record in records}

    def of(self, kind: str, side: str, ids: Sequence[int | str]) -> list[Record]:
        """The records of these ids, in their order. Raises KeyError where one is missing."""
        return [self.done[kind, side, one] for one in ids]

    def clear_others(self) -> None:
        """Remove what was measured under other keys."""
        for path in self.folder.glob("*.jsonl"):
            if not path.name.startswith(f"{self.key}-"):
                path.unlink()


def _name(record: Record) -> Name:
    return record["kind"], record["side"], record["id"]
