"""A file as columns and records: CSV, JSON Lines or Parquet. What is no table at all is refused; a record that cannot
be read for certain says why. Which cells a row needs is decided in `read`."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kaggle_lib.errors import DataError

LONGEST_CELL = 10_000_000  # characters; the csv module's own limit is 131,072
QUOTES = "its quotes are not closed as they should be"

# Bytes that are no UTF-8, as Python's `surrogateescape` shows them; of these nobody knows which letter was meant. Not
# so the halves of a surrogate pair that some programs encode one by one: two make an emoji, a lone one is dropped.
INVALID = re.compile("[\udc80-\udcff]")
ENCODED_PAIR = re.compile("\udced[\udca0-\udcaf][\udc80-\udcbf]\udced[\udcb0-\udcbf][\udc80-\udcbf]")
ENCODED_HALF = re.compile("\udced[\udca0-\udcbf][\udc80-\udcbf]")
HALF = "\ud800"  # stands for any half
SURROGATE = re.compile("[\ud800-\udfff]")
NO_UTF8 = "it holds bytes that are no UTF-8"

FOREIGN = (
    (b"PK\x03\x04", "a ZIP or Excel file"),
    (b"\xd0\xcf\x11\xe0", "an old Excel file"),
    (b"\x1f\x8b", "gzip"),
    (b"PAR1", "Parquet"),
)
MARKS = (
    (b"\xff\xfe\0\0", "utf-32-le"),
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)


class Malformed(Exception):
    """Why a record cannot be used."""


@dataclass(frozen=True)
class Record:
    """One record: the line where it begins (header = 1; Parquet: its number), its cells by column, or what is wrong."""

    line: int
    cells: dict[str, Any] = field(default_factory=dict)
    malformed: str = ""


def load(path: Path, pair: Sequence[str], others: Sequence[str], every: bool = False) -> tuple[list[str], list[Record]]:
    """Columns and records of the file. `pair` and `others` are the columns that are looked for: both of the pair, or
    some of the others; `every`: all of them are read. Raises DataError for what is no table.

    Text cells may hold NUL and halves of surrogate pairs; blank lines are no records.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from error
    if not content.strip():
        raise DataError(f"{path.name}: is empty.")
    if path.suffix.lower() == ".parquet":
        return _parquet(path, content, None if every else {*pair, *others})
    text = _text(path, content)
    if not text.strip():
        raise DataError(f"{path.name}: is empty.")
    if path.suffix.lower() in (".jsonl", ".ndjson", ".json"):
        return _json_lines(path, text)
    return _csv(path, text, pair, others)


def json_value(text: str) -> Any:
    """What the JSON text says. Raises Malformed where it is none, or where an object has a key twice."""
    try:
        return json.loads(text, strict=False, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        raise Malformed("it is no JSON") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys are all different: which of two is meant cannot be known."""
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise Malformed(f"the key {key!r} stands there twice")
        made[key] = value
    return made


def _text(path: Path, content: bytes) -> str:
    """The file's text without its byte order mark; INVALID matches what is left of bytes that are no UTF-8."""
    for magic, what in FOREIGN:
        if content.startswith(magic):
            raise DataError(f"{path.name}: is {what}, not {path.suffix}.", todo="Unpack or export it first.")
    for mark, encoding in MARKS:
        if content.startswith(mark):
            try:
                return SURROGATE.sub(HALF, content[len(mark) :].decode(encoding, "surrogatepass"))
            except UnicodeDecodeError:
                name = encoding[:6].upper()
                raise DataError(f"{path.name}: begins as {name} and is not.", todo="Save it as UTF-8.") from None
    if content.count(0) > len(content) / 20:
        raise DataError(f"{path.name}: is no text (binary, or UTF-16 without its mark).", todo="Save it as UTF-8.")
    text = _decoded(content).lstrip("\ufeff")
    invalid = INVALID.findall(text)
    # A file in Latin-1 or a Windows code page has hardly a byte above 127 that is UTF-8 by chance.
    if invalid and len(invalid) > sum(letter >= "\x80" and not SURROGATE.match(letter) for letter in text):
        line = text.count("\n", 0, text.index(invalid[0])) + 1
        raise DataError(
            f"{path.name}: is not UTF-8 but another encoding (seen first in line {line}).", todo="Save it as UTF-8."
        )
    return text


def _decoded(content: bytes) -> str:
    """The text, with INVALID for each byte that is no UTF-8 and HALF for each lone half of a surrogate pair."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("utf-8", "surrogateescape")
    return ENCODED_HALF.sub(HALF, ENCODED_PAIR.sub(_joined, text))


def _joined(pair: re.Match[str]) -> str:
    halves = pair[0].encode("utf-8", "surrogateescape").decode("utf-8", "surrogatepass")
    return halves.encode("utf-16-le", "surrogatepass").decode("utf-16-le")


def _csv(path: Path, text: str, pair: Sequence[str], others: Sequence[str]) -> tuple[list[str], list[Record]]:
    """Comma, semicolon or tab: the one by which the header has the columns that are looked for."""
    csv.field_size_limit(LONGEST_CELL)
    lines = list(io.StringIO(text, newline=""))  # ended by \n, \r\n or \r
    headers = []
    for delimiter in (",", ";", "\t"):
        reader = csv.reader(iter(lines), delimiter=delimiter, strict=True)
        try:
            names = [re.sub(f"\0|{SURROGATE.pattern}", "", name).strip() for name in next(reader)]
        except csv.Error:
            continue
        known = set(pair) <= set(names) or any(name in names for name in others)
        headers.append((known, len(names), delimiter, names, reader.line_num))
    if not any(count for _, count, *_ in headers):
        raise DataError(f"{path.name}: its first line is no CSV header.")
    _, width, delimiter, names, first = max(headers, key=lambda header: header[:2])
    named = max((at for at, name in enumerate(names, start=1) if name), default=0)

    found = list(_csv_records(path, lines, first, delimiter))
    # A spreadsheet ends every line with the same surplus of delimiters. In one line alone they are a broken row.
    padded = all(cells[width:] and not "".join(cells[width:]).strip() for _, cells, reason in found if not reason)
    records = []
    for line, cells, reason in found:
        if padded:
            cells = cells[:width]
        if not reason and len(cells) != width:
            reason = f"it has {len(cells)} fields and the header {width}"
        elif not reason and "".join(cells[named:]).strip():
            reason = "it has text in a column without a name"
        elif not reason and any(map(INVALID.search, cells)):
            reason = NO_UTF8
        records.append(Record(line, {}, reason) if reason else Record(line, dict(zip(names, cells, strict=True))))
    return names, records


def _csv_records(path: Path, lines: Sequence[str], at: int, delimiter: str) -> Iterator[tuple[int, list[str], str]]:
    """(line, cells, what is wrong) of each record from the line with index `at` on.

    Where quotes break, every line that may belong to the broken record counts as one that cannot be used.
    """
    while at < len(lines):
        start = at
        reader = csv.reader(iter(lines[start:]), delimiter=delimiter, strict=True)
        try:
            for cells in reader:
                if len(cells) > 1 or "".join(cells).strip():
                    yield at + 1, cells, ""
                at = start + reader.line_num
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise DataError(
                    f"{path.name}: the quote that opens in line {at + 1} is never closed.", todo="Close or remove it."
                ) from None
            begins, at = at, _after_broken_quotes(lines, start + reader.line_num, delimiter)
            yield from ((index + 1, [], QUOTES) for index in range(begins, at) if lines[index].strip())


def _after_broken_quotes(lines: Sequence[str], at: int, delimiter: str) -> int:
    """The line with which to go on. `at`: the one after the line that could not be read.

    That line may have left a cell open. The next quote tells: one that opens a cell stands in a new record; any other
    closes the cell that was left open, so that all lines up to it are text of that cell, whatever they look like.
    """
    opening = re.compile(rf'(?:[^"]*{delimiter})?"(?![{delimiter}\r\n]|$)')
    for index in range(at, len(lines)):
        if '"' in lines[index]:
            if opening.match(lines[index]):
                break
            at = index + 1
    return at


def _json_lines(path: Path, text: str) -> tuple[list[str], list[Record]]:
    if text.lstrip().startswith("["):
        raise DataError(f"{path.name}: is one JSON array.", todo="Write JSON Lines: one object a line.")
    records, columns = [], dict[str, None]()
    for number, line in enumerate(io.StringIO(text, newline=""), start=1):
        if not line.strip():
            continue
        try:
            if INVALID.search(line):
                raise Malformed(NO_UTF8)
            value = json_value(line)
            if not isinstance(value, dict):
                raise Malformed("it is no JSON object")
        except Malformed as fault:
            records.append(Record(number, {}, str(fault)))
            continue
        columns |= dict.fromkeys(value)
        records.append(Record(number, value))
    if not columns:
        first = f"line {records[0].line}: {records[0].malformed or 'it has no keys'}"
        raise DataError(f"{path.name}: is no JSON Lines file ({first}).")
    return list(columns), records


def _parquet(path: Path, content: bytes, wanted: Collection[str] | None) -> tuple[list[str], list[Record]]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        names = list(file.schema_arrow.names)
        used = [name for name in names if wanted is None or name in wanted]
        if len(set(names)) < len(names):
            return names, []  # refused by the caller, by name
        table = file.read(columns=used)
        columns = [_cells(column) for column in table.columns]
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path.name}: is no Parquet file that can be read ({error}).") from error
    records = []
    for number in range(1, table.num_rows + 1):
        cells = {name: column[number - 1] for name, column in zip(used, columns, strict=True)}
        broken = any(isinstance(cell, str) and INVALID.search(cell) for cell in cells.values())
        records.append(Record(number, {}, NO_UTF8) if broken else Record(number, cells))
    return names, records


def _cells(column: Any) -> list[Any]:
    """A Parquet column's values; text that is no UTF-8 as `_text` has it."""
    import pyarrow

    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [None if text is None else _decoded(text) for text in column.cast(pyarrow.binary()).to_pylist()]
