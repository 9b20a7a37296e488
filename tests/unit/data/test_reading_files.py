"""Each row of a file is kept, repaired or set aside, with line and reason; marks and line ends change nothing."""

import codecs
import csv
import dataclasses
import io
import json

import pytest

from kaggle_lib.config import RunConfig
from kaggle_lib.data import curate, read
from kaggle_lib.data.read import Message, Noted
from kaggle_lib.errors import DataError

HEADER = "Topics,Question-Title,Questions,Answers"
ROWS = [
    ["দোষী", "কেক", 'আমি কেক খেয়েছি, "সত্যি"।', "ওহ না.  কার কেক?"],
    ["দোষী", "কেক", "বন্ধুর।\nসে জানে না।", "তাকে বলুন।"],
    ["একাকী", "পার্ক", "None", "NA"],
    ["", "", "null", "একা ছিলেন?"],
]
HEAD = "Questions,Answers\n"


def table(rows, header=HEADER, end="\n"):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return f"{header}\n{out.getvalue()}".replace("\n", end).encode("utf-8")


def pairs(corpus):
    return [(row.id, row.line, row.question, row.answer) for row in corpus.rows]


PLAIN = table(ROWS)
SAME = {
    "plain": PLAIN,
    "mark": codecs.BOM_UTF8 + PLAIN,
    "mark and quoted header": codecs.BOM_UTF8 + table(ROWS, ",".join(f'"{name}"' for name in HEADER.split(","))),
    "header padded": table(ROWS, " Topics , Question-Title ,\tQuestions , Answers  "),
    "two marks": codecs.BOM_UTF8 * 2 + PLAIN,
    "CRLF": table(ROWS, end="\r\n"),
    "CR": table(ROWS, end="\r"),
    "UTF-16": codecs.BOM_UTF16_LE + PLAIN.decode().encode("utf-16-le"),
    "UTF-16, big end first": codecs.BOM_UTF16_BE + PLAIN.decode().encode("utf-16-be"),
    "no last line end": PLAIN.rstrip(b"\n"),
    "commas at line ends": b"".join(line + b",,\n" for line in table([ROWS[0], *ROWS[2:]]).splitlines()),
}


@pytest.mark.parametrize("kind", SAME)
def test_marks_and_line_ends_change_no_row_and_no_fingerprint(corpus_of, fingerprint_of, kind):
    rows = [ROWS[0], *ROWS[2:]] if kind == "commas at line ends" else ROWS
    plain = corpus_of(table(rows), "plain.csv")
    lines = [2, 3, 5, 6] if len(rows) == 4 else [2, 3, 4]
    assert pairs(plain) == [(n, lines[n], row[2], row[3]) for n, row in enumerate(rows)]
    found = corpus_of(SAME[kind])
    config = RunConfig.create({"run": "r", "base_model": "sample", "data": "sample", "test_fraction": 0})
    assert [dataclasses.replace(row, line=0) for row in curate.curate(found, config).train] == [
        dataclasses.replace(row, line=0) for row in curate.curate(plain, config).train
    ]
    assert [row.line for row in found.rows] == lines
    assert fingerprint_of(found) == fingerprint_of(plain)
    assert found.repaired == found.set_aside == []


def test_semicolons_and_tabs_are_known_by_the_header(corpus_of):
    for delimiter in ";\t":
        content = HEAD.replace(",", delimiter) + f"কে, তুমি?{delimiter}আমি, তোমার বন্ধু।\n"
        assert pairs(corpus_of(content)) == [(0, 2, "কে, তুমি?", "আমি, তোমার বন্ধু।")]


def test_delimiter_is_the_one_that_gives_the_columns_looked_for(corpus_of):
    assert pairs(corpus_of("Questions;Answers;a,b,c,d\nক;খ;,,,\n")) == [(0, 2, "ক", "খ")]
    talk = json.dumps([{"role": "user", "content": "ক"}, {"role": "assistant", "content": "খ"}])
    (row,) = corpus_of("id;messages;a,b,c,d,e\n1;'{}';\n".replace("'{}'", '"' + talk.replace('"', '""') + '"')).rows
    assert (row.question, row.answer) == ("ক", "খ")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_each_byte_order_mark_is_known(corpus_of, encoding):
    corpus = corpus_of("\ufeff".encode(encoding) + (HEAD + "😀,খ\n").encode(encoding))
    assert pairs(corpus) == [(0, 2, "😀", "খ")]
    assert corpus.repaired == []


def test_commas_at_the_end_of_one_line_are_a_broken_row_and_of_all_lines_a_spreadsheets(corpus_of):
    """In one line, an empty last field may as well be an empty answer behind a question with a comma."""
    corpus = corpus_of(HEAD + "ক,খ\nগ, ঘ,\n")
    assert corpus.set_aside == [Noted(3, "it has 3 fields and the header 2")]
    assert pairs(corpus_of(HEAD + "ক,খ,,\nগ,ঘ, ,\n")) == [(0, 2, "ক", "খ"), (1, 3, "গ", "ঘ")]


def test_text_in_a_column_without_a_name_is_no_row(corpus_of):
    corpus = corpus_of("Questions,Answers,,\nক,খ,,\nগ, আরও,ঘ,\n")
    assert corpus.set_aside == [Noted(3, "it has text in a column without a name")]
    assert pairs(corpus_of(",Questions,Answers\n0,ক,খ\n")) == [(0, 2, "ক", "খ")]  # an index, as pandas writes it


def test_long_cell(corpus_of):
    long = "ক" * 200_000
    assert pairs(corpus_of(f'{HEAD}"{long}",খ\n')) == [(0, 2, long, "খ")]


def test_cells_that_say_none_are_text(corpus_of):
    words = ["None", "NA", "null", "nan", "NULL", "N/A"]
    corpus = corpus_of(HEAD + "".join(f"{word},{word}\n" for word in words))
    assert [(row.question, row.answer) for row in corpus.rows] == [(word, word) for word in words]


@pytest.mark.parametrize("at", [1, 57])
def test_row_with_a_field_too_many_is_set_aside_by_line_and_shifts_no_other(corpus_of, at):
    rows = [f"প্রশ্ন {n},উত্তর {n}\n" for n in range(1, 61)]
    rows[at - 1] = f"প্রশ্ন {at}, আরও,উত্তর {at}\n"
    corpus = corpus_of(HEAD + "".join(rows))
    assert corpus.set_aside == [Noted(at + 1, "it has 3 fields and the header 2")]
    assert pairs(corpus) == [(n - 1, n + 1, f"প্রশ্ন {n}", f"উত্তর {n}") for n in range(1, 61) if n != at]


def test_row_with_a_field_too_few_is_set_aside_and_keeps_its_id(corpus_of):
    corpus = corpus_of(HEAD + "ক,খ\nএকা\n\nগ,ঘ\n")
    assert corpus.set_aside == [Noted(3, "it has 1 fields and the header 2")]
    assert pairs(corpus) == [(0, 2, "ক", "খ"), (2, 5, "গ", "ঘ")]


QUOTES = "its quotes are not closed as they should be"
BROKEN_QUOTES = {
    "in one line": ('ক,"খ" গ\n', 1),
    "text after the quote, more lines follow": ('ক,"খ "x" ম\nআরও, শেষ"\n', 2),
    "its rest reads like rows until a quote closes it": ('ক,"খ "x ম\nআরও,উত্তর\nকথা, শেষ"\n', 3),
    "it swallows lines up to another's quote": ('"ক,খ\nআরও,উত্তর\n"গ",ঘ\n', 3),
}


@pytest.mark.parametrize("kind", BROKEN_QUOTES)
def test_no_text_of_a_row_with_broken_quotes_becomes_a_row(corpus_of, kind):
    broken, lines = BROKEN_QUOTES[kind]
    corpus = corpus_of(HEAD + "আগে,ভালো\n" + broken + 'পরে,ভালো\n"শেষে",ভালো\n' + "ঠিক,ভালো\n" * 3)
    assert corpus.set_aside == [Noted(3 + n, QUOTES) for n in range(lines)]
    assert [(row.line, row.question) for row in corpus.rows] == [
        (2, "আগে"),
        *((3 + lines + n, word) for n, word in enumerate(("পরে", "শেষে", "ঠিক", "ঠিক", "ঠিক"))),
    ]
    assert {row.answer for row in corpus.rows} == {"ভালো"}


def test_rows_after_broken_quotes_are_kept_where_no_quote_follows(corpus_of):
    corpus = corpus_of(HEAD + 'ক,"খ" গ\nপরে,ভালো\nশেষে,ভালো\n')
    assert [row.question for row in corpus.rows] == ["পরে", "শেষে"]


def test_halves_of_characters_and_nul_are_repaired_and_foreign_bytes_set_aside_by_line(corpus_of, fingerprint_of):
    good = "ক,খ\n".encode() * 3
    content = (
        HEAD.encode()
        + b"a\xed\xa0\xbdb,\xed\xb8\x80c\n"  # a lone half in each cell
        + b"d\x00e,f\x00\n"
        + b"g \xed\xa0\xbd\xed\xb8\x80,h\n"  # both halves, as some programs encode an emoji
        + b"\x00j\xed\xb2\x80,k\n"
        + "বাক্য".encode()[:-1]  # cut in the middle of a letter
        + b",l\n"
        + good
    )
    corpus = corpus_of(content)
    assert corpus.repaired == [
        Noted(2, "half a character (a lone surrogate) removed"),
        Noted(3, "NUL removed"),
        Noted(5, "NUL and half a character (a lone surrogate) removed"),
    ]
    assert corpus.set_aside == [Noted(6, "it holds bytes that are no UTF-8")]
    said = [(row.question, row.answer) for row in corpus.rows[:5]]
    assert said == [("ab", "c"), ("de", "f"), ("g 😀", "h"), ("j", "k"), ("ক", "খ")]
    assert len(fingerprint_of(corpus)) == 64  # encodes every kept row


def test_rows_with_nul_or_half_characters_are_not_taken_for_another_encoding(corpus_of):
    corpus = corpus_of(HEAD.encode() + b"a\xed\xa0\xbd,b\nc\x00,d\n")
    assert [(row.question, row.answer) for row in corpus.rows] == [("a", "b"), ("c", "d")]


def test_json_lines(corpus_of):
    lines = [
        {"Questions": "ক\ud83d", "Answers": "খ\x00", "Topics": "ত"},
        {"Questions": None, "Answers": "খ"},
        {"Questions": "গ", "Answers": "ঘ", "Question-Title": "শ"},
    ]
    text = "\n".join(json.dumps(line) for line in lines)
    corpus = corpus_of(
        text + '\n\n{"Questions": "a", "Questions": "b", "Answers": "c"}\n[1]\n{"Answers": "x"}\n', "a.jsonl"
    )
    assert pairs(corpus) == [(0, 1, "ক", "খ"), (1, 2, "", "খ"), (2, 3, "গ", "ঘ")]
    assert [(row.topic, row.title) for row in corpus.rows] == [("ত", ""), ("", ""), ("", "শ")]
    assert corpus.repaired == [Noted(1, "NUL and half a character (a lone surrogate) removed")]
    assert corpus.set_aside == [
        Noted(5, "the key 'Questions' stands there twice"),
        Noted(6, "it is no JSON object"),
        Noted(7, "it has no 'Questions'"),
    ]


def test_json_strings_may_hold_what_should_be_escaped(corpus_of):
    corpus = corpus_of(b'{"Questions": "a\tb", "Answers": "c\x00"}\n', "a.jsonl")
    assert pairs(corpus) == [(0, 1, "a\tb", "c")]
    assert corpus.repaired == [Noted(1, "NUL removed")]


def test_json_line_with_bytes_that_are_no_utf8_is_set_aside(corpus_of):
    good = '{"Questions": "প্রশ্ন", "Answers": "উত্তর"}\n'.encode()
    corpus = corpus_of(good + b'{"Questions": "caf\xe9", "Answers": "b"}\n' + good, "a.jsonl")
    assert [row.line for row in corpus.rows] == [1, 3]
    assert corpus.set_aside == [Noted(2, "it holds bytes that are no UTF-8")]


def test_values_that_are_no_text_are_set_aside(corpus_of):
    lines = ['{"Questions": NaN, "Answers": "b"}', '{"Questions": "a", "Answers": ["b"]}', '{"Questions": "a"}']
    corpus = corpus_of('{"Questions": "a", "Answers": "b", "score": NaN, "Topics": 5}\n' + "\n".join(lines), "a.jsonl")
    assert [(row.question, row.topic) for row in corpus.rows] == [("a", "")]
    assert corpus.set_aside == [
        Noted(2, "its 'Questions' is no text"),
        Noted(3, "its 'Answers' is no text"),
        Noted(4, "it has no 'Answers'"),
    ]


def test_json_lines_split_at_line_feeds_alone(corpus_of):
    line = json.dumps({"Questions": "ক\u2028খ\x85", "Answers": "গ"}, ensure_ascii=False)
    assert pairs(corpus_of(f"{line}\r\n{line}", "a.jsonl")) == [(n, n + 1, "ক\u2028খ\x85", "গ") for n in (0, 1)]


GOOD = [{"role": "system", "content": "s"}, {"role": "user", "content": "ক"}, {"role": "assistant", "content": "খ"}]
TURNS = "its messages are no turns of user and assistant that end with the assistant"
MESSAGES = {
    "unknown role": (
        [{**GOOD[1], "role": "human"}, GOOD[2]],
        "a message has the role 'human', which is not one of system, user, assistant",
    ),
    "no role": (
        [{"content": "ক"}, GOOD[2]],
        "a message has the role None, which is not one of system, user, assistant",
    ),
    "no text": ([{**GOOD[1], "content": 5}, GOOD[2]], "a message's 'content' is no text"),
    "ends with the user": (GOOD[:2], TURNS),
    "assistant first": (GOOD[2:], TURNS),
    "two of the user": ([GOOD[1], GOOD[1], GOOD[2]], TURNS),
    "system in the middle": ([*GOOD[1:], GOOD[0], *GOOD[1:]], TURNS),
    "empty": ([], TURNS),
    "no list": ("ক", "its 'messages': it is no JSON"),
    "a list of texts": (["ক"], "its 'messages' is no list of messages"),
    "missing": (None, "its 'messages' is no list of messages"),
}


@pytest.mark.parametrize("kind", MESSAGES)
def test_messages_that_are_no_conversation_are_set_aside(corpus_of, kind):
    value, reason = MESSAGES[kind]
    text = json.dumps({"messages": GOOD}) + "\n" + json.dumps({"messages": value}) + "\n"
    corpus = corpus_of(text, "a.jsonl")
    assert corpus.set_aside == [Noted(2, reason)]
    assert [row.messages for row in corpus.rows] == [
        (Message("system", "s"), Message("user", "ক"), Message("assistant", "খ"))
    ]


def test_key_twice_within_messages_is_set_aside(corpus_of):
    doubled = '[{"role": "user", "role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
    text = f'{{"messages": {json.dumps(GOOD)}}}\n{{"messages": {json.dumps(doubled)}}}\n'
    assert corpus_of(text, "a.jsonl").set_aside == [Noted(2, "its 'messages': the key 'role' stands there twice")]


def test_messages_stand_in_for_no_column_that_was_set_or_is_there(corpus_of):
    text = json.dumps({"messages": GOOD, "Answers": "খ"}) + "\n"
    with pytest.raises(DataError, match="there is no column 'Questions'; its first line gives 'messages', 'Answers'"):
        corpus_of(text, "a.jsonl")
    text = json.dumps({"messages": GOOD}) + "\n"
    with pytest.raises(DataError, match="there is no column 'question' and no column 'Answers'"):
        corpus_of(text, "a.jsonl", question_column="question")
    text = json.dumps({"messages": GOOD, "Questions": "এই", "Answers": "ওই"}) + "\n"
    assert pairs(corpus_of(text, "a.jsonl")) == [(0, 1, "এই", "ওই")]


def test_messages_in_a_cell_of_a_csv_are_json(corpus_of):
    out = io.StringIO()
    csv.writer(out).writerows([["id", "messages"], [1, json.dumps([*GOOD, *GOOD[1:]])]])
    (row,) = corpus_of(out.getvalue()).rows
    assert [message.role for message in row.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert (row.question, row.answer) == ("ক", "খ")


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    def read_table(columns, name):
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / name)
        return read.read(RunConfig.create({"run": "r", "base_model": "b", "data": str(tmp_path / name)}))

    columns = {"Topics": ["ত", None], "Questions": ["ক", "গ\x00"], "Answers": ["খ", None]}
    corpus = read_table(columns, "pairs.parquet")
    assert pairs(corpus) == [(0, 1, "ক", "খ"), (1, 2, "গ", "")]
    assert corpus.repaired == [Noted(2, "NUL removed")]
    corpus = read_table({"messages": [GOOD, GOOD[:1]]}, "messages.parquet")
    assert pairs(corpus) == [(0, 1, "ক", "খ")]
    assert corpus.set_aside == [Noted(2, TURNS)]
    with pytest.raises(DataError, match="none of its 2 rows can be used \\(line 1: its 'Questions' is no text\\)"):
        read_table({"Questions": [1, 2], "Answers": ["ক", "খ"]}, "numbers.parquet")


def test_other_column_names(corpus_of):
    corpus = corpus_of("প্রশ্ন,উত্তর\nক,খ\n", question_column="প্রশ্ন", answer_column="উত্তর")
    assert pairs(corpus) == [(0, 2, "ক", "খ")]
