"""NUL and halves of emoji, from the file to what a step is made of and what is written: none is left anywhere."""

import json
import re

import pytest

from kaggle_lib.config import RunConfig
from kaggle_lib.data import chat, curate, read, tokenise
from kaggle_lib.data.read import Noted
from kaggle_lib.files import dump_json

BROKEN = re.compile("[\x00\ud800-\udfff\ufffd]")
GOOD = "".join(f"বিষয় {n},ঘটনা {n},প্রশ্ন {n},উত্তর {n}\n" for n in range(20)).encode()
CSV = (
    b"Topics,Question-Title,Questions,Answers\n"
    + b"a\x00,b\xed\xa0\xbd,\xe0\xa6\x95\xed\xa0\xbd?,\xe0\xa6\x96\x00\xe0\xa6\x97\n"
    + b"c,d,\xed\xa0\xbd\x00,only what is broken\n"
    + GOOD
)
LINES = [{"Topics": "a\x00", "Question-Title": "b\ud83d", "Questions": "ক\ud83d?", "Answers": "খ\x00গ"}]
LINES += [{"Topics": "c", "Question-Title": "d", "Questions": "\ude00\x00", "Answers": "only what is broken"}]
LINES += [{"Questions": f"প্রশ্ন {n}", "Answers": f"উত্তর {n}"} for n in range(20)]
FILES = {
    "a.csv": (CSV, 2),
    "a.jsonl": ("".join(json.dumps(line) + "\n" for line in LINES).encode(), 1),
    "utf16.csv": (
        b"\xff\xfe" + CSV.decode("utf-8", "surrogatepass").encode("utf-16-le", "surrogatepass"),
        2,
    ),
}


def config_of(data, **values):
    return RunConfig.create({"run": "r", "base_model": "sample", "data": str(data), **values})


WORDS = "NUL and half a character (a lone surrogate) removed"


@pytest.mark.parametrize("name", FILES)
def test_no_nul_and_no_half_character_is_left(tmp_path, corpus_of, sample_tokenizer, name):
    content, line = FILES[name]
    corpus = corpus_of(content, name)
    assert corpus.repaired == [Noted(line, WORDS), Noted(line + 1, WORDS)]
    assert corpus.set_aside == []
    first = corpus.rows[0]
    assert (first.topic, first.title, first.question, first.answer) == ("a", "b", "ক?", "খগ")

    config = config_of(tmp_path / name, validation_fraction=0, test_fraction=0, system_prompt="শোনো")
    curated = curate.curate(corpus, config)
    assert curated.counts["dropped: empty"] == 1  # the row whose question was nothing else
    assert [row.id for row in curated.train] == [0, *range(2, 22)]
    splits = tokenise.tokenised(config, sample_tokenizer, tmp_path / "cache")
    texts = [
        text
        for row in splits.train
        for text in (
            sample_tokenizer.decode(row["input_ids"]),
            sample_tokenizer.decode([label for label in row["labels"] if label != chat.IGNORED]),
        )
    ]
    assert texts[1] == "খগ<|eot_id|>"
    written = dump_json([texts, splits.counts, [row.texts for row in curated.train]])
    assert not BROKEN.search(written)
    assert "\\u0000" not in written
    written.encode("utf-8")
    for path in (tmp_path / "cache").rglob("*.json"):
        assert not BROKEN.search(path.read_text(encoding="utf-8"))


def test_parquet_with_text_that_is_no_utf8(tmp_path):
    import pyarrow
    import pyarrow.parquet

    questions = [b"\xe0\xa6\x95\xed\xa0\xbd", b"caf\xe9", b"\xed\xa0\xbd\xed\xb8\x80\x00", b"\xe0\xa6\x97"]
    column = pyarrow.array(questions, pyarrow.binary()).cast(pyarrow.string(), safe=False)
    # A column that no row needs may hold anything.
    notes = pyarrow.array([b"\xff"] * 4, pyarrow.binary()).cast(pyarrow.string(), safe=False)
    table = pyarrow.table({"notes": notes, "Questions": column, "Answers": ["খ", "খ", "খ", None]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    corpus = read.read(config_of(tmp_path / "a.parquet"))
    assert [(row.line, row.question, row.answer) for row in corpus.rows] == [
        (1, "ক", "খ"),
        (3, "😀", "খ"),
        (4, "গ", ""),
    ]
    assert corpus.repaired == [Noted(1, "half a character (a lone surrogate) removed"), Noted(3, "NUL removed")]
    assert corpus.set_aside == [Noted(2, "it holds bytes that are no UTF-8")]
