"""Find and read a corpus: CSV, JSON Lines or Parquet, each row kept, repaired or set aside with reason and line.

What cannot be read for certain is refused by name; no row ever ends up with an answer in its question column.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kaggle_lib.config import RunConfig
from kaggle_lib.data.find import find
from kaggle_lib.errors import DataError

ROLES = ("system", "user", "assistant")
MESSAGES = "messages"
TOPIC, TITLE = "Topics", "Question-Title"
# Of a file of over 100 rows, this share may be set aside as malformed before the whole file is refused.
MALFORMED_SHARE, SMALL_FILE = 0.05, 100
LONGEST_CELL = 10_000_000  # characters; the csv module's own limit is 131,072


@dataclass(frozen=True)
class Message:
    """`role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One example. `id`: its index in the file, kept through curation; `line`: the physical line where it begins.

    The last message is the assistant's, the one before it the user's.
    """

    id: int
    line: int
    messages: tuple[Message, ...]
    topic: str = ""
    title: str = ""

    @property
    def question(self) -> str:
        return self.messages[-2].content

    @property
    def answer(self) -> str:
        return self.messages[-1].content


@dataclass(frozen=True)
class Noted:
    """A row that was repaired or set aside: the line where it begins (header = 1), and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Corpus:
    path: Path
    rows: list[Row]
    set_aside: list[Noted] = field(default_factory=list)
    repaired: list[Noted] = field(default_factory=list)


@dataclass(frozen=True)
class _Record:
    """One record as the file has it: its cells by column, or why it has none."""

    line: int
    cells: dict[str, Any]
    malformed: str = ""
    blank: bool = False


def read(config: RunConfig) -> Corpus:
    """The corpus that `config.data` names. Raises DataError where it is not found or cannot be read for certain."""
    path = find(config.data)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    if not content.strip():
        raise DataError(f"{path.name}: is empty.")
    match path.suffix.lower():
        case ".parquet":
            columns, records = _parquet(path)
        case ".jsonl" | ".ndjson" | ".json":
            columns, records = _json_lines(path, _text(path, content))
        case _:
            columns, records = _csv(path, _text(path, content), config)
    pair = _columns(path, columns, config)
    return _corpus(path, list(records), pair)


def _columns(path: Path, columns: Sequence[str], config: RunConfig) -> tuple[str, str] | None:
    """The question's and the answer's column, or None: the rows hold `messages`. Raises DataError naming the fault."""
    doubled = [name for name, count in Counter(columns).items() if count > 1 and name]
    if doubled:
        raise DataError(
            f"{path.name}: the column {doubled[0]!r} stands there {Counter(columns)[doubled[0]]} times.",
            todo="Rename or remove one, so that it is certain which is meant.",
        )
    wanted = (("question_column", config.question_column), ("answer_column", config.answer_column))
    missing = [(key, name) for key, name in wanted if name not in columns]
    if missing and MESSAGES in columns:
        return None
    if config.question_column == config.answer_column:
        raise DataError(f"question_column and answer_column are both {config.answer_column!r}.")
    if missing:
        told = ", ".join(repr(name) for name in columns if name) or "none"
        close = [difflib.get_close_matches(name, columns, n=1, cutoff=0.6) for _, name in missing]
        hint = "".join(f" Did you mean {found[0]!r}?" for found in close if found)
        raise DataError(
            f"{path.name}: there is no column {' and no column '.join(repr(name) for _, name in missing)}; "
            f"its first line gives {told[:300]}.{hint}",
            todo=f"Set {' and '.join(f'{key}=NAME' for key, _ in missing)}, or give the file a header line.",
        )
    return config.question_column, config.answer_column


def _corpus(path: Path, records: Sequence[_Record], pair: tuple[str, str] | None) -> Corpus:
    corpus = Corpus(path, [])
    malformed = []
    for number, record in enumerate(records):
        reason = record.malformed
        row = None
        if not reason and not record.blank:
            row, reason = _row(number, record, pair)
        if row is not None:
            if cleaned := _clean(row):
                row = cleaned
                corpus.repaired.append(Noted(record.line, "NUL or broken bytes removed"))
            corpus.rows.append(row)
        elif record.blank:
            corpus.set_aside.append(Noted(record.line, "a blank line"))
        else:
            malformed.append(Noted(record.line, reason))
            corpus.set_aside.append(malformed[-1])
    if not records:
        raise DataError(f"{path.name}: has a header and no rows.")
    if len(records) > SMALL_FILE and len(malformed) > MALFORMED_SHARE * len(records):
        first = "; ".join(f"line {noted.line}: {noted.reason}" for noted in malformed[:3])
        raise DataError(
            f"{path.name}: {len(malformed)} of {len(records)} rows are malformed, more than {MALFORMED_SHARE:.0%} "
            f"({first}; …).",
            todo="Write the file anew with proper quoting.",
        )
    if len(malformed) == len(records):
        raise DataError(
            f"{path.name}: none of its {len(records)} rows can be used (line {malformed[0].line}: "
            f"{malformed[0].reason})."
        )
    broken = len(corpus.repaired)
    if broken > max(1, len(corpus.rows) / 2):
        raise DataError(
            f"{path.name}: {broken} of {len(corpus.rows)} rows hold bytes that are no UTF-8: another encoding.",
            todo="Save it as UTF-8.",
        )
    return corpus


def _row(number: int, record: _Record, pair: tuple[str, str] | None) -> tuple[Row | None, str]:
    """The record as a row, or why it is none."""
    cells = record.cells
    if pair is None:
        messages, reason = _messages(cells.get(MESSAGES))
        if reason:
            return None, reason
    else:
        for name in pair:
            if name not in cells:
                return None, f"it has no {name!r}"
            if cells[name] is not None and not isinstance(cells[name], str):
                return None, f"its {name!r} is no text"
        question, answer = (cells[name] or "" for name in pair)
        messages = (Message("user", question), Message("assistant", answer))
    topic, title = (cells.get(name) if isinstance(cells.get(name), str) else "" for name in (TOPIC, TITLE))
    return Row(number, record.line, messages, topic or "", title or ""), ""


def _messages(value: Any) -> tuple[tuple[Message, ...], str]:
    """A `messages` cell (a list, or its JSON as text), or why it cannot be used."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return (), "its 'messages' is no JSON"
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return (), "its 'messages' is no list of messages"
    messages = []
    for item in value:
        role, content = item.get("role"), item.get("content")
        if role not in ROLES:
            return (), f"a message has the role {role!r}, which is not one of {', '.join(ROLES)}"
        if not isinstance(content, str):
            return (), "a message's 'content' is no text"
        messages.append(Message(role, content))
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    expected = ["user", "assistant"] * (len(turns) // 2)
    if not turns or turns != expected:
        return (), "its messages are no turns of user and assistant that end with the assistant"
    return tuple(messages), ""


BROKEN = re.compile("[\x00\ud800-\udfff]")


def _clean(row: Row) -> Row | None:
    """The row without NUL and what was no UTF-8 (lone surrogates included); None where there was nothing."""
    texts = [*(message.content for message in row.messages), row.topic, row.title]
    if not any(BROKEN.search(text) for text in texts):
        return None
    messages = tuple(Message(message.role, BROKEN.sub("", message.content)) for message in row.messages)
    return Row(row.id, row.line, messages, BROKEN.sub("", row.topic), BROKEN.sub("", row.title))


def _text(path: Path, content: bytes) -> str:
    """The file's text without its byte order mark. Bytes that are no UTF-8 stay visible as surrogates.

    Raises DataError for what is no text.
    """
    for magic, what in ((b"PK\x03\x04", "a ZIP or Excel file"), (b"\x1f\x8b", "gzip"), (b"PAR1", "Parquet")):
        if content.startswith(magic):
            raise DataError(f"{path.name}: is {what}, not {path.suffix or 'text'}.", todo="Unpack or export it first.")
    for mark, encoding in ((b"\xff\xfe", "utf-16-le"), (b"\xfe\xff", "utf-16-be")):
        if content.startswith(mark):
            try:
                return content[2:].decode(encoding)
            except UnicodeDecodeError:
                raise DataError(f"{path.name}: begins as UTF-16 and is not.", todo="Save it as UTF-8.") from None
    if content.count(0) > len(content) / 20:
        raise DataError(f"{path.name}: is no text (binary, or UTF-16 without its mark).", todo="Save it as UTF-8.")
    return content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="surrogateescape")


def _csv(path: Path, text: str, config: RunConfig) -> tuple[list[str], Iterator[_Record]]:
    """Columns and records of a CSV file with a header; comma, semicolon or tab, whichever makes the header fit."""
    csv.field_size_limit(LONGEST_CELL)
    header: list[str] = []
    for delimiter in (",", ";", "\t"):
        lines = _Lines(text)
        try:
            found = next(csv.reader(lines, delimiter=delimiter, strict=True))
        except (csv.Error, StopIteration):
            continue
        names = [BROKEN.sub("", name).strip() for name in found]
        if not header or {config.question_column, config.answer_column} <= set(names):
            header, chosen, rest = names, delimiter, lines
        if {config.question_column, config.answer_column} <= set(names):
            break
    if not header:
        raise DataError(f"{path.name}: its first line is no CSV header.")
    return header, _csv_records(path, header, rest, chosen)


class _Lines:
    """Physical lines with their numbers; the csv module reads one record from as many as it needs."""

    def __init__(self, text: str) -> None:
        self.lines = io.StringIO(text, newline="")
        self.number = 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        self.number += 1
        return line


def _csv_records(path: Path, header: Sequence[str], lines: _Lines, delimiter: str) -> Iterator[_Record]:
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    while True:
        line = lines.number + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise DataError(
                    f"{path.name}: the quote that opens in line {line} is never closed.", todo="Close or remove it."
                ) from None
            yield _Record(line, {}, malformed="its quotes are not closed as they should be")
            # The reader may have stopped inside the record: it begins anew with the next line.
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            continue
        if not cells:
            yield _Record(line, {}, blank=True)
            continue
        while len(cells) > len(header) and not cells[-1].strip():  # commas that a spreadsheet leaves at the end
            cells.pop()
        if len(cells) != len(header):
            yield _Record(line, {}, malformed=f"it has {len(cells)} fields and the header {len(header)}")
        else:
            yield _Record(line, dict(zip(header, cells, strict=True)))


def _json_lines(path: Path, text: str) -> tuple[list[str], Iterable[_Record]]:
    if text.lstrip().startswith("["):
        raise DataError(f"{path.name}: is one JSON array.", todo="Write JSON Lines: one object a line.")
    records, columns = [], dict[str, None]()
    for number, line in enumerate(io.StringIO(text, newline=""), start=1):
        if not line.strip():
            records.append(_Record(number, {}, blank=True))
            continue
        try:
            value = json.loads(line, object_pairs_hook=_once)
        except _DoubledKeyError as error:
            records.append(_Record(number, {}, malformed=f"the key {error.args[0]!r} stands there twice"))
            continue
        except (ValueError, RecursionError):
            records.append(_Record(number, {}, malformed="it is no JSON"))
            continue
        if not isinstance(value, dict):
            records.append(_Record(number, {}, malformed="it is no JSON object"))
            continue
        columns |= dict.fromkeys(value)
        records.append(_Record(number, value))
    if not columns:
        first = next(record for record in records if record.malformed)
        raise DataError(f"{path.name}: is no JSON Lines file (line {first.line}: {first.malformed}).")
    return list(columns), records


class _DoubledKeyError(Exception):
    pass


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different: which of two is meant cannot be known."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise _DoubledKeyError(key)
        made[key] = value
    return made


def _parquet(path: Path) -> tuple[list[str], Iterable[_Record]]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(path).read()
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path.name}: is no Parquet file that can be read ({error}).") from error
    names = list(table.column_names)
    if len(set(names)) < len(names):
        return names, []  # refused by the caller, by name
    return names, [_Record(number, cells) for number, cells in enumerate(table.to_pylist(), start=1)]
