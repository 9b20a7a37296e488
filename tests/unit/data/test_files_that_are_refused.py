"""What cannot be read for certain is refused, in one message that says what it is and what to do."""

import codecs
import gzip
import io
import zipfile

import pytest

from kaggle_lib.errors import DataError

HEAD = "Questions,Answers\n"
CHOOSE = "Set question_column=NAME and answer_column=NAME, or give the file a header line."


def zipped():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.csv", HEAD + "ক,খ\n")
    return out.getvalue()


def rows(count):
    return "".join(f"প্রশ্ন {n},উত্তর {n}\n" for n in range(count))


REFUSED = {
    "nothing": ("a.csv", b"", "a.csv: is empty."),
    "white space": ("a.jsonl", "\n \r\n\t", "a.jsonl: is empty."),
    "header alone": ("a.csv", HEAD, "a.csv: has a header and no rows."),
    "a mark alone": ("a.csv", codecs.BOM_UTF8, "a.csv: is empty."),
    "ZIP": ("a.csv", zipped(), "a.csv: is a ZIP or Excel file, not .csv. Unpack or export it first."),
    "gzip": ("a.jsonl", gzip.compress(b"{}"), "a.jsonl: is gzip, not .jsonl. Unpack or export it first."),
    "Parquet by content": ("a.csv", b"PAR1\x15\x00PAR1", "a.csv: is Parquet, not .csv. Unpack or export it first."),
    "image": (
        "a.csv",
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        "a.csv: is no text (binary, or UTF-16 without its mark). Save it as UTF-8.",
    ),
    "UTF-16 without its mark": (
        "a.csv",
        ("Questions,Answers\n" + "what?,that\n" * 3).encode("utf-16-le"),
        "a.csv: is no text (binary, or UTF-16 without its mark). Save it as UTF-8.",
    ),
    "UTF-16 cut in half": (
        "a.csv",
        codecs.BOM_UTF16_LE + HEAD.encode("utf-16-le") + b"a",
        "a.csv: begins as UTF-16 and is not. Save it as UTF-8.",
    ),
    "another encoding": (
        "a.csv",
        (HEAD + "où?,là\nça?,là\nici?,là\n").encode("latin-1"),
        "a.csv: is not UTF-8 but another encoding (seen first in line 2). Save it as UTF-8.",
    ),
    "no header": (
        "a.csv",
        "ভালো?,হ্যাঁ\nকেন?,জানি না\n",
        "a.csv: there is no column 'Questions' and no column 'Answers'; its first line gives 'ভালো?', 'হ্যাঁ'. " + CHOOSE,
    ),
    "empty header": (
        "a.csv",
        ",,\nক,খ,গ\n",
        f"a.csv: there is no column 'Questions' and no column 'Answers'; its first line gives none. {CHOOSE}",
    ),
    "prose": (
        "a.csv",
        "আজ সারাদিন বৃষ্টি।\nঘরে বসে আছি।\n",
        "a.csv: there is no column 'Questions' and no column 'Answers'; its first line gives 'আজ সারাদিন বৃষ্টি।'. "
        + CHOOSE,
    ),
    "web page": (
        "a.csv",
        "<!DOCTYPE html>\n<html></html>\n",
        "a.csv: there is no column 'Questions' and no column 'Answers'; its first line gives '<!DOCTYPE html>'. "
        + CHOOSE,
    ),
    "nearest name": (
        "a.csv",
        "questions,Answers\nক,খ\n",
        "a.csv: there is no column 'Questions'; its first line gives 'questions', 'Answers'. "
        "Did you mean 'questions'? Set question_column=NAME, or give the file a header line.",
    ),
    "doubled column": (
        "a.csv",
        codecs.BOM_UTF8 + "Questions,Answers, Questions \nক,খ,গ\n".encode(),
        "a.csv: the column 'Questions' stands there 2 times. "
        "Rename or remove one, so that it is certain which is meant.",
    ),
    "open quote": (
        "a.csv",
        HEAD + 'ক,খ\n"গ,ঘ\n' + rows(5),
        "a.csv: the quote that opens in line 3 is never closed. Close or remove it.",
    ),
    "more than 5 % malformed": (
        "a.csv",
        HEAD + rows(95) + "ক,খ,গ\n" * 6,
        "a.csv: 6 of 101 rows are malformed, more than 5% (line 97: it has 3 fields and the header 2; "
        "line 98: it has 3 fields and the header 2; line 99: it has 3 fields and the header 2; …). "
        "Correct or remove them. A CSV cell with a comma, a quote or a line end stands in quotes.",
    ),
    "nothing usable": (
        "a.csv",
        HEAD + "একা\n" * 3,
        "a.csv: none of its 3 rows can be used (line 2: it has 1 fields and the header 2).",
    ),
    "JSON array": (
        "a.json",
        ' [{"Questions": "ক", "Answers": "খ"}]',
        "a.json: is one JSON array. Write JSON Lines: one object a line.",
    ),
    "JSON over several lines": (
        "a.json",
        '{\n  "Questions": "ক"\n}\n',
        "a.json: is no JSON Lines file (line 1: it is no JSON).",
    ),
    "CSV by another name": ("a.jsonl", HEAD + "ক,খ\n", "a.jsonl: is no JSON Lines file (line 1: it is no JSON)."),
    "objects without keys": ("a.jsonl", "{}\n{}\n", "a.jsonl: is no JSON Lines file (line 1: it has no keys)."),
    "numbers": ("a.jsonl", "1\n2\n", "a.jsonl: is no JSON Lines file (line 1: it is no JSON object)."),
    "deep JSON": ("a.jsonl", "[" * 1, "a.jsonl: is one JSON array. Write JSON Lines: one object a line."),
    "brackets without end": (
        "a.jsonl",
        '{"a":' * 100_000 + "\n",
        "a.jsonl: is no JSON Lines file (line 1: it is no JSON).",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_file_is_refused_in_one_message(corpus_of, kind):
    name, content, says = REFUSED[kind]
    with pytest.raises(DataError) as told:
        corpus_of(content, name)
    assert str(told.value) == says


def test_parquet_that_is_none_or_has_a_column_twice(tmp_path, corpus_of):
    import pyarrow
    import pyarrow.parquet

    with pytest.raises(DataError) as told:
        corpus_of(HEAD + rows(3), "a.parquet")
    assert str(told.value).startswith("a.parquet: is no Parquet file that can be read (")
    text = pyarrow.array(["ক"])
    table = pyarrow.Table.from_arrays([text] * 3, names=["Questions", "Answers", "Answers"])
    pyarrow.parquet.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(DataError) as told:
        corpus_of((tmp_path / "b.parquet").read_bytes(), "b.parquet")
    assert str(told.value).startswith("b.parquet: the column 'Answers' stands there 2 times.")


def test_parquet_without_rows(tmp_path, corpus_of):
    import pyarrow
    import pyarrow.parquet

    empty = pyarrow.array([], pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"Questions": empty, "Answers": empty}), tmp_path / "a.parquet")
    with pytest.raises(DataError) as told:
        corpus_of((tmp_path / "a.parquet").read_bytes(), "a.parquet")
    assert str(told.value) == "a.parquet: has a header and no rows."


def test_five_in_a_hundred_malformed_rows_are_set_aside_and_counted(corpus_of):
    corpus = corpus_of(HEAD + rows(96) + "ক,খ,গ\n" * 5)
    assert (len(corpus.rows), [noted.line for noted in corpus.set_aside]) == (96, [98, 99, 100, 101, 102])
    corpus = corpus_of(HEAD + rows(10) + "ক,খ,গ\n" * 9, "small.csv")  # of a small file each row may be looked at
    assert (len(corpus.rows), len(corpus.set_aside)) == (10, 9)


@pytest.mark.parametrize(("good", "malformed"), [(114, 6), (133, 7), (94, 6)], ids=["of 120", "of 140", "of 100"])
def test_just_the_share_that_is_allowed(corpus_of, good, malformed):
    corpus = corpus_of(HEAD + rows(good) + "ক,খ,গ\n" * malformed)
    assert (len(corpus.rows), len(corpus.set_aside)) == (good, malformed)


def test_blank_lines_do_not_thin_the_share(corpus_of):
    with pytest.raises(DataError, match=r"a\.csv: 6 of 101 rows are malformed"):
        corpus_of(HEAD + rows(95) + "\n" * 100 + "ক,খ,গ\n" * 6)


def test_blank_lines_are_no_rows(corpus_of):
    corpus = corpus_of(HEAD + "\n" + rows(100).replace("\n", "\n  \n\n"))
    assert [(row.id, row.line) for row in corpus.rows] == [(n, 3 + 3 * n) for n in range(100)]
    assert corpus.set_aside == []


def test_lines_lost_to_broken_quotes_count_each(corpus_of):
    swallowed = '"ক,খ\n' + rows(8) + '"গ",ঘ\n'
    with pytest.raises(DataError) as told:
        corpus_of(HEAD + swallowed + rows(110))
    assert str(told.value).startswith("a.csv: 10 of 120 rows are malformed, more than 5% (line 2: its quotes")
