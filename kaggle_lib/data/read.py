"""Read a corpus: each row is kept, repaired or set aside with reason and line.

What cannot be read for certain is refused by name; no row ever ends up with an answer in its question column.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kaggle_lib import hooks
from kaggle_lib.config import RunConfig
from kaggle_lib.data.find import find
from kaggle_lib.data.tables import SURROGATE, Malformed, Record, json_value, load
from kaggle_lib.errors import DataError

ROLES = ("system", "user", "assistant")
MESSAGES = "messages"
TOPIC, TITLE = "Topics", "Question-Title"
# Of a file of over 100 rows, this share may be set aside before the whole file is refused.
MALFORMED_PERCENT, SMALL_FILE = 5, 100
# What may stand in a cell and is taken out, since no file or tokenizer that comes later can hold it.
BROKEN = {"NUL": re.compile("\0"), "half a character (a lone surrogate)": SURROGATE}


@dataclass(frozen=True)
class Message:
    """`role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True)
class Row:
    """One example. `id`: its index in the file, kept through curation; `line`: the physical line where it begins
    (header = 1; of a Parquet file, the row's number).

    The last message is the assistant's, the one before it the user's. `source`: forum, dialogue or other, known once
    the corpus is curated.
    """

    id: int
    line: int
    messages: tuple[Message, ...]
    topic: str = ""
    title: str = ""
    source: str = ""

    @property
    def question(self) -> str:
        return self.messages[-2].content

    @property
    def answer(self) -> str:
        return self.messages[-1].content

    @property
    def length(self) -> str:
        """The answer's: short below 100 characters, long from 400 on, else medium."""
        size = len(self.answer)
        return "short" if size < 100 else "medium" if size < 400 else "long"

    @property
    def texts(self) -> list[str]:
        return [*(message.content for message in self.messages), self.topic, self.title]

    def changed(self, change: Callable[[str], str]) -> Row:
        """The row with `change` made to each of its texts."""
        messages = tuple(Message(message.role, change(message.content)) for message in self.messages)
        return dataclasses.replace(self, messages=messages, topic=change(self.topic), title=change(self.title))


@dataclass(frozen=True)
class Noted:
    """A row that was repaired or set aside: the line where it begins, and why."""

    line: int
    reason: str


@dataclass(frozen=True)
class Corpus:
    """The rows of a file. `left_out`: those for which the hook `format_row` returned None."""

    path: Path
    rows: list[Row]
    set_aside: list[Noted] = field(default_factory=list)
    repaired: list[Noted] = field(default_factory=list)
    left_out: list[Noted] = field(default_factory=list)


def read(config: RunConfig) -> Corpus:
    """The corpus that `config.data` names. Raises DataError where it is not found or cannot be read for certain."""
    path = find(config.data)
    own = hooks.of(config)
    format_row = own if own and "format_row" in own.functions else None
    wanted = (config.question_column, config.answer_column)
    columns, records = load(path, wanted, (MESSAGES, TOPIC, TITLE), every=format_row is not None)
    _check_doubled(path, columns)
    pair = None if format_row else _columns(path, columns, config)
    if not records:
        raise DataError(f"{path.name}: has a header and no rows.")
    corpus = Corpus(path, [])
    for number, record in enumerate(records):
        try:
            if format_row:
                formatted = _formatted(format_row, record, wanted, path)
                if formatted is None:
                    corpus.left_out.append(Noted(record.line, "format_row returned None"))
                    continue
                record, pair = formatted
            row = _row(number, record, pair)
        except Malformed as fault:
            corpus.set_aside.append(Noted(record.line, str(fault)))
            continue
        repaired = []
        for what, broken in BROKEN.items():
            if any(map(broken.search, row.texts)):
                row = row.changed(partial(broken.sub, ""))
                repaired.append(what)
        if repaired:
            corpus.repaired.append(Noted(record.line, f"{' and '.join(repaired)} removed"))
        corpus.rows.append(row)
    _check_share(path, corpus.set_aside, len(records))
    if len(corpus.left_out) == len(records):
        raise DataError(f"{path.name}: format_row returned None for each of its {len(records)} rows.")
    return corpus


def _formatted(
    own: hooks.Hooks, record: Record, wanted: tuple[str, str], path: Path
) -> tuple[Record, tuple[str, str] | None] | None:
    """What `format_row` makes of the record, and the columns in which it holds question and answer (None: it holds
    `messages`); None where it leaves it out. Raises ConfigError where it raises or returns anything else, Malformed
    where the record could not be read."""
    if record.malformed:
        raise Malformed(record.malformed)
    cells = {name: _whole(cell) if isinstance(cell, str) else cell for name, cell in record.cells.items()}
    about = f" for the row in line {record.line} of {path.name}"
    made = own.call("format_row", dict(cells), about=about)
    if made is None:
        return None
    made = {MESSAGES: made} if isinstance(made, list) else made
    shown = type(made).__name__
    if isinstance(made, Mapping):
        has_pair, has_messages = all(name in made for name in wanted), MESSAGES in made
        if has_pair != has_messages:
            row = {**{name: cells.get(name) for name in (TOPIC, TITLE)}, **made}
            return Record(record.line, row), wanted if has_pair else None
        shown = f"a dict with {', '.join(map(repr, made)) or 'nothing in it'}"
    either = f"a dict with either {wanted[0]!r} and {wanted[1]!r} or {MESSAGES!r}, a list of messages, or None"
    raise own.wrong("format_row", shown, either, about)


def _whole(text: str) -> str:
    for broken in BROKEN.values():
        text = broken.sub("", text)
    return text


def _check_doubled(path: Path, columns: Sequence[str]) -> None:
    count = Counter(name for name in columns if name)
    doubled = [name for name in count if count[name] > 1]
    if doubled:
        raise DataError(
            f"{path.name}: the column {doubled[0]!r} stands there {count[doubled[0]]} times.",
            todo="Rename or remove one, so that it is certain which is meant.",
        )


def _columns(path: Path, columns: Sequence[str], config: RunConfig) -> tuple[str, str] | None:
    """The question's and the answer's column, or None: the rows hold `messages`. Raises DataError naming the fault."""
    wanted = {key: getattr(config, key) for key in ("question_column", "answer_column")}
    missing = {key: name for key, name in wanted.items() if name not in columns}
    # Names that someone has set are meant: then `messages` does not stand in for them.
    default = all(name == RunConfig.model_fields[key].default for key, name in wanted.items())
    if len(missing) == 2 and default and MESSAGES in columns:
        return None
    if config.question_column == config.answer_column:
        raise DataError(f"question_column and answer_column are both {config.answer_column!r}.")
    if missing:
        told = ", ".join(repr(name) for name in columns if name) or "none"
        close = [difflib.get_close_matches(name, columns, n=1, cutoff=0.6) for name in missing.values()]
        hint = "".join(f" Did you mean {found[0]!r}?" for found in close if found)
        raise DataError(
            f"{path.name}: there is no column {' and no column '.join(map(repr, missing.values()))}; "
            f"its first line gives {told[:300]}.{hint}",
            todo=f"Set {' and '.join(f'{key}=NAME' for key in missing)}, or give the file a header line.",
        )
    return config.question_column, config.answer_column


def _row(number: int, record: Record, pair: tuple[str, str] | None) -> Row:
    """The record as a row. Raises Malformed."""
    if record.malformed:
        raise Malformed(record.malformed)
    cells = record.cells
    if pair is None:
        messages = _messages(cells.get(MESSAGES))
    else:
        for name in pair:
            if name not in cells:
                raise Malformed(f"it has no {name!r}")
            if not isinstance(cells[name], str | None):
                raise Malformed(f"its {name!r} is no text")
        question, answer = (cells[name] or "" for name in pair)
        messages = (Message("user", question), Message("assistant", answer))
    topic, title = (text if isinstance(text := cells.get(name), str) else "" for name in (TOPIC, TITLE))
    return Row(number, record.line, messages, topic, title)


def _messages(value: Any) -> tuple[Message, ...]:
    """A `messages` cell: a list, or its JSON as text. Raises Malformed."""
    if isinstance(value, str):
        try:
            value = json_value(value)
        except Malformed as fault:
            raise Malformed(f"its 'messages': {fault}") from None
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Malformed("its 'messages' is no list of messages")
    messages = []
    for item in value:
        role, content = item.get("role"), item.get("content")
        if role not in ROLES:
            raise Malformed(f"a message has the role {role!r:.40}, which is not one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise Malformed("a message's 'content' is no text")
        messages.append(Message(role, content))
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        raise Malformed("its messages are no turns of user and assistant that end with the assistant")
    return tuple(messages)


def _check_share(path: Path, malformed: Sequence[Noted], rows: int) -> None:
    """Raises DataError where more is malformed than a good file has."""
    if rows > SMALL_FILE and 100 * len(malformed) > MALFORMED_PERCENT * rows:
        first = "; ".join(f"line {noted.line}: {noted.reason}" for noted in malformed[:3])
        raise DataError(
            f"{path.name}: {len(malformed)} of {rows} rows are malformed, more than {MALFORMED_PERCENT}% ({first}; …).",
            todo="Correct or remove them. A CSV cell with a comma, a quote or a line end stands in quotes.",
        )
    if len(malformed) == rows:
        raise DataError(
            f"{path.name}: none of its {rows} rows can be used (line {malformed[0].line}: {malformed[0].reason})."
        )
