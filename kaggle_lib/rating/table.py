"""Tables that Excel opens right, runs no formula of, and may write back in any of its ways."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence

# The order of the page's export, and of the sheet to fill in; the criteria stand behind.
ITEM_COLUMNS = (
    *("sheet", "rater", "item", "kind", "message", "answer_a", "answer_b"),
    *("better", "seconds", "at", "comment"),
)
# What a spreadsheet runs (OWASP's list for CSV injection); a quote before it makes it text. A text that begins with
# quotes and such a character gets one more, so that taking one away gives every text back.
FORMULA = re.compile(r"'*[=+\-@\t\r]")
DELIMITERS = (",", ";", "\t")


def write_table(rows: Sequence[Mapping[str, object]], columns: Sequence[str]) -> bytes:
    """CSV in UTF-8 with a byte order mark, without which Excel shows Bengali as garbage."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([guarded(str(row.get(column, ""))) for column in columns] for row in rows)
    return b"\xef\xbb\xbf" + text.getvalue().encode("utf-8")


def guarded(text: str) -> str:
    return "'" + text if FORMULA.match(text) else text


def unguarded(text: str) -> str:
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def read_table(content: bytes, needed: Sequence[str]) -> list[tuple[int, dict[str, str]]]:
    """[(line where the row begins, header = 1; cells by column)] of a table as Excel or the page wrote it: UTF-8 with
    or without its mark, or UTF-16; commas, semicolons or tabs; empty rows are passed over.

    Raises ValueError with the reason where it is no such table, or lacks one of the `needed` columns.
    """
    text = _decoded(content)
    first = text.split("\n", 1)[0]
    delimiter = max(DELIMITERS, key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[tuple[int, list[str]]] = []
    line = 1
    try:
        for row in reader:
            rows.append((line, row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {line}: {error}") from None
    if not rows:
        raise ValueError("it is empty")
    header = [cell.strip() for cell in rows[0][1]]
    if missing := [name for name in needed if name not in header]:
        raise ValueError(f"it has no column {', '.join(missing)}")
    if doubled := sorted({name for name in header if name and header.count(name) > 1}):
        raise ValueError(f"it has the column {', '.join(doubled)} twice")
    found = []
    for line, row in rows[1:]:
        if not any(cell.strip() for cell in row):
            continue
        if len(row) > len(header) and any(cell.strip() for cell in row[len(header) :]):
            raise ValueError(f"line {line} has {len(row)} cells, the header {len(header)}")
        found.append((line, {name: unguarded(cell) for name, cell in zip(header, row, strict=False) if name}))
    return found


def _decoded(content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    else:
        # "Unicode text" without its mark: every other byte of the header is zero.
        encoding = "utf-16-le" if content[1:2] == b"\0" else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in {encoding.upper()} (byte {error.start})") from None
