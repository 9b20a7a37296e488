"""A hooks file: what may stand in it, what it makes of the rows, and one message with file and line for a fault."""

import csv
import json
import subprocess
import sys

import pytest

from kaggle_lib import hooks
from kaggle_lib.config import RunConfig, fingerprint
from kaggle_lib.data import check, curate, read, tokenise
from kaggle_lib.data.find import SAMPLE
from kaggle_lib.data.read import Message, Noted
from kaggle_lib.errors import ConfigError, DataError

WANTED = "; it should return a dict with either 'Questions' and 'Answers' or 'messages', a list of messages, or None"


@pytest.fixture
def place(tmp_path):
    """`place(text, **values)`: a configuration whose hooks file holds `text`."""

    def make(text, **values):
        (tmp_path / "mine.py").write_text(text, encoding="utf-8")
        return RunConfig.create(
            {"run": "r", "base_model": "sample", "data": "sample", "hooks": tmp_path / "mine.py", **values}
        )

    return make


@pytest.fixture
def table(tmp_path):
    """A JSON Lines file with the rows given, its path."""

    def make(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return make


def told(config, tmp_path, call=hooks.of):
    """The one message that `call` raises, with the hooks file's path left out."""
    with pytest.raises(ConfigError) as caught:
        call(config)
    message = str(caught.value)
    assert message.count("\n") == 0
    assert message.startswith(f"hooks: {tmp_path / 'mine.py'}")
    return message.removeprefix(f"hooks: {tmp_path / 'mine.py'}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def format_rows(row): ...", ", line 1: nothing calls format_rows; did you mean format_row?"),
        ("\n\ndef callback(config): ...", ", line 3: nothing calls callback; did you mean callbacks?"),
        ("def adapter(model, config): ...", ", line 1: nothing calls adapter; did you mean adapt?"),
        ("def formatRow(row): ...", ", line 1: nothing calls formatRow; did you mean format_row?"),
        ("async def Adapt(model, config): ...", ", line 1: nothing calls Adapt; did you mean adapt?"),
    ],
)
def test_a_name_that_is_nearly_one_of_ours_is_refused(place, tmp_path, text, message):
    name = message.split()[5].rstrip(";")
    assert told(place(text), tmp_path) == f"{message} (If it is a helper, name it _{name})"


def test_all_near_names_are_told_at_once(place):
    with pytest.raises(ConfigError) as caught:
        hooks.of(place("def format_rows(row): ...\ndef adapter(model): ..."))
    assert [problem.split("; ")[1].split("?")[0] for problem in caught.value.problems] == [
        "did you mean format_row",
        "did you mean adapt",
    ]


def test_helpers_may_have_any_other_name(place):
    text = (
        "def _format_rows(row): ...\ndef format_rows(row): ...\ndef clean(text): ...\ndef format_row(row): return row"
    )
    assert set(hooks.of(place(text)).functions) == {"format_row"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef format_row(row)\n", ", line 2: is no Python (expected ':')"),
        ("x = 1\n\nraise RuntimeError('no\\nway')", ", line 3: it raised RuntimeError: no way"),
        (
            "import nowhere_to_be_found",
            ", line 1: it raised ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        ),
        ("def clean(text): ...", ": it defines none of format_row, adapt, callbacks"),
        ("format_row = 1", ", line 1: format_row should be a function that takes (row)"),
        ("\ndef adapt(model): ...", ", line 2: adapt should be a function that takes (model, config)"),
        ("def callbacks(): ...", ", line 1: callbacks should be a function that takes (config)"),
    ],
)
def test_a_file_that_cannot_be_used(place, tmp_path, text, message):
    assert told(place(text), tmp_path) == message


def test_a_file_that_is_not_there(tmp_path):
    config = RunConfig.create({"run": "r", "base_model": "sample", "data": "sample", "hooks": tmp_path / "mine.py"})
    assert told(config, tmp_path) == ": cannot be read (No such file or directory)"
    (tmp_path / "mine.py").write_bytes(b"x = '\0'")
    assert told(config, tmp_path).startswith((": is no Python", ", line 1: is no Python"))


def test_without_a_hooks_file_there_is_none():
    assert hooks.of(RunConfig.create({"run": "r", "base_model": "sample", "data": "sample", "hooks": ""})) is None


def test_a_file_is_run_once_in_a_process_until_it_changes(place, tmp_path):
    text = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')\ndef format_row(row): return row"
    config = place(text)
    first = hooks.of(config)
    assert hooks.of(config) is first
    assert (tmp_path / "runs").read_text() == "x"
    hooks.of(place(text + "\n# changed"))
    assert (tmp_path / "runs").read_text() == "xx"


# format_row


def test_rows_are_what_format_row_returns(place, table):
    path = table(
        {"prompt": "How are you?", "reply": "Fine.", "stars": 5},
        {"prompt": "And now?", "reply": "So so.", "stars": 1},
        {"prompt": "Well?", "reply": "Well.", "stars": 4, "Topics": "t", "Question-Title": "a"},
    )
    text = (
        "def format_row(row):\n"
        "    if row['stars'] < 3:\n"
        "        return None\n"
        "    if row['stars'] == 4:\n"
        "        return [{'role': 'user', 'content': row['prompt']}, {'role': 'assistant', 'content': row['reply']}]\n"
        "    return {'Questions': row['prompt'].upper(), 'Answers': row['reply']}\n"
    )
    config = place(text, data=path)
    corpus = read.read(config)
    assert [(row.id, row.line, row.messages) for row in corpus.rows] == [
        (0, 1, (Message("user", "HOW ARE YOU?"), Message("assistant", "Fine."))),
        (2, 3, (Message("user", "Well?"), Message("assistant", "Well."))),
    ]
    assert (corpus.rows[1].topic, corpus.rows[1].title) == ("t", "a")
    assert corpus.left_out == [Noted(2, "format_row returned None")]
    assert corpus.set_aside == []
    assert curate.curate(corpus, config).counts["left out: format_row returned None"] == 1


def test_every_column_of_a_parquet_file_comes_with_its_type(place, tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"n": [3], "said": [["a", "b"]]}), tmp_path / "rows.parquet")
    text = "def format_row(row): return {'Questions': str(row['n'] + 1), 'Answers': ' '.join(row['said'])}"
    (row,) = read.read(place(text, data=tmp_path / "rows.parquet")).rows
    assert (row.question, row.answer) == ("4", "a b")


def test_the_configured_columns_are_those_that_count(place, table):
    path = table({"q": "one", "a": "two"})
    text = "def format_row(row): return {**row, 'q': row['q'] * 2}"
    (row,) = read.read(place(text, data=path, question_column="q", answer_column="a")).rows
    assert (row.question, row.answer) == ("oneone", "two")


def test_what_no_file_can_hold_is_taken_out_before_format_row(place, table):
    text = "def format_row(row): return {**row, 'Questions': row['Questions'].encode().decode()}"
    (row,) = read.read(place(text, data=table({"Questions": "a\0b\ud800c", "Answers": "d"}))).rows
    assert row.question == "abc"


def test_rows_whose_content_cannot_be_used_are_set_aside_as_from_a_file(place, table):
    path = table({"text": "a"}, {"text": 7})
    text = "def format_row(row): return {'Questions': row['text'], 'Answers': 'b'}"
    corpus = read.read(place(text, data=path))
    assert [row.question for row in corpus.rows] == ["a"]
    assert corpus.set_aside == [Noted(2, "its 'Questions' is no text")]


@pytest.mark.parametrize(
    ("body", "line", "what", "end"),
    [
        ("return row['Question']", 2, "raised KeyError: 'Question'", ""),
        ("return _deep(row)", 4, "raised ZeroDivisionError: division by zero", ""),
        ("return float('three')", 2, "raised ValueError: could not convert string to float: 'three'", ""),
        (
            "return _json.loads('{]')",
            2,
            "raised JSONDecodeError: Expecting property name enclosed in double quotes",
            None,
        ),
        ("return row['Questions']", 1, "returned str", WANTED),
        ("return {'question': ''}", 1, "returned a dict with 'question'", WANTED),
        ("return {**row, 'messages': []}", 1, "returned a dict with 'Questions', 'Answers', 'messages'", WANTED),
        ("return {}", 1, "returned a dict with nothing in it", WANTED),
    ],
)
def test_a_format_row_that_goes_wrong_is_told_with_its_line(place, table, tmp_path, body, line, what, end):
    text = f"def format_row(row):\n    {body}\n\ndef _deep(row): return 1 / 0\nimport json as _json\n"
    found = told(place(text, data=table({"Questions": "a", "Answers": "b"})), tmp_path, read.read)
    if end is None:  # the rest of the message is Python's own
        assert found.startswith(f", line {line}: format_row {what}")
        return
    assert found == f", line {line}: format_row {what} for the row in line 1 of rows.jsonl{end}"


def test_a_format_row_that_leaves_all_rows_out(place, table):
    with pytest.raises(DataError, match=r"^rows.jsonl: format_row returned None for each of its 2 rows\.$"):
        read.read(place("def format_row(row): ...", data=table({"x": 1}, {"x": 2})))


# The check of the data, and what the content decides


def test_the_check_runs_the_hooks_in_another_process(place, tmp_path, capsys):
    text = "import os, torch\ndef format_row(row):\n    print('pid', os.getpid())\n    return row"
    code = f"""
import sys
from kaggle_lib.config import RunConfig
from kaggle_lib.data import check
config = RunConfig.create({place(text).given()!r})
checked = check.check(config)
assert "torch" not in sys.modules
print(checked)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    plain = check.check(place(text, hooks=""))
    assert done.stdout == f"{plain}\n"
    assert "pid " in done.stderr


def test_the_check_counts_what_is_left_out(place):
    text = "def format_row(row): return row if len(row['Questions']) > 60 else None"
    with SAMPLE.open(encoding="utf-8-sig", newline="") as file:
        short = sum(len(row["Questions"]) <= 60 for row in csv.DictReader(file))
    assert short > 0
    checked = check.check(place(text))
    assert checked.left_out == short
    assert str(checked).endswith(f"of bengali_sample.csv set aside, {short} left out by format_row")


@pytest.mark.parametrize(
    ("body", "kind"),
    [("return 1 / 0", ConfigError), ("return None", DataError)],
)
def test_the_check_raises_what_its_process_found(place, table, body, kind):
    config = place(f"def format_row(row): {body}", data=table({"x": 1}))
    with pytest.raises(kind) as here:
        read.read(config)
    with pytest.raises(kind) as there:
        check.check(config)
    assert str(there.value) == str(here.value)
    assert there.value.exit_code == here.value.exit_code


def test_a_check_that_dies_says_how(place):
    text = "import os\ndef format_row(row):\n    print('last words', flush=True)\n    os._exit(7)"
    with pytest.raises(Exception, match=r"ended with 7\. last words$"):
        check.check(place(text))


def test_the_content_and_not_the_path_is_in_the_fingerprint(place, tmp_path):
    config = place("def format_row(row): return row")
    moved = config.model_copy(update={"hooks": "elsewhere.py"})
    found = hooks.read(config.hooks).sha256
    assert fingerprint(config, "code", found) == fingerprint(moved, "code", found)
    assert fingerprint(config, "code", found) != fingerprint(config, "code", "0" * 64)
    assert fingerprint(config, "code", found) != fingerprint(config, "code")


def test_another_content_makes_other_tokens_though_the_rows_are_the_same(place):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(SAMPLE.parent)
    curated = curate.Curated([], [], [], counts={}, fingerprint="")
    texts = ("def format_row(row): return row", "def format_row(row): return dict(row)")
    keys = {tokenise._key(place(text), tokenizer, curated) for text in texts}
    assert len(keys | {tokenise._key(place("", hooks=""), tokenizer, curated)}) == 3


def test_the_users_file_stands_for_the_copy_while_it_has_its_content(place, tmp_path, capsys):
    config, copy = place("def format_row(row): return row"), tmp_path / "hooks.py"
    hooks.read(config.hooks).put(copy)
    assert hooks.settled(config, copy) == config
    assert capsys.readouterr().out == ""
    place("def format_row(row): return None")
    assert hooks.settled(config, copy).hooks == str(copy)
    said = f"hooks: {config.hooks} is not, or no longer, what this session began with; its copy {copy} is used.\n"
    assert capsys.readouterr().out == said
