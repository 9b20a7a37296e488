"""Bad input by the real command line: one clear message, the right exit code, no traceback, nothing lost."""

import pytest
from support.bad_input import ask, refused, sets, state

LONG = "x" * 300
TRAIN = ("train", "--preset", "tiny-cpu")

PARAMETERS = {
    "unknown key": (["learning_rte=1"], "learning_rte: there is no such key; did you mean learning_rate?\n"),
    "key like no other": (["colour=red"], "colour: there is no such key\n"),
    "text for a number": (["epochs=many"], "epochs: should be a number, not 'many'\n"),
    "fraction for a count": (["rows=1.5"], "rows: should be a whole number or empty, not '1.5'\n"),
    "yes or no for a number": (["seed=true"], "seed: should be a whole number, not 'true'\n"),
    "number for yes or no": (["padding_free=2"], "padding_free: should be true or false, not '2'\n"),
    "other digits": (["rows=১০"], "rows: should be a whole number or empty, not '১০'\n"),
    "nan": (["learning_rate=nan"], "learning_rate: should be a number, not 'nan'\n"),
    "infinite": (["learning_rate=1e999"], "learning_rate: should be a finite number, not inf\n"),
    "zero": (["max_steps=0"], "max_steps: input should be greater than or equal to 1, not 0\n"),
    "negative": (["save_steps=-1"], "save_steps: input should be greater than or equal to 1, not -1\n"),
    "above its range": (["lora_dropout=1"], "lora_dropout: input should be less than 1, not 1.0\n"),
    "no choice": (["precision=fp8"], "precision: should be 'fp16' or 'bf16' or 'fp32', not 'fp8'\n"),
    "no list": (["lora_target_modules="], "lora_target_modules: tuple should have at least 1 item"),
    "run empty": (["run="], "run: '' is no run name. Use letters, digits, dot, dash, underscore; at most 64\n"),
    "run with a slash": (["run=a/b"], "run: 'a/b' is no run name."),
    "run above": (["run=.."], "run: '..' is no run name."),
    "run too long": ([f"run={'r' * 65}"], f"run: '{'r' * 65}' is no run name."),
    "run in Bengali": (["run=বাংলা"], "run: 'বাংলা' is no run name."),
    "store empty": (["store="], "store: should not be empty\n"),
    "store is work_dir": (
        ["store=w", "work_dir=w"],
        "store: 'w' and work_dir 'w' lie in each other; use two folders\n",
    ),
    "store in the run folder": (
        ["store=w/r", "work_dir=w", "run=r"],
        "store: 'w/r' and work_dir 'w' lie in each other",
    ),
    "store on the Hub": (["store=hf://me"], "store: 'hf://me' names no repo of the Hub. Write hf://user/repo\n"),
    "store elsewhere": (["store=s3://me"], "store: 's3://me' is neither a folder nor hf://user/repo\n"),
    "more processes than samples": (["processes=8"], "processes: 8 processes cannot share a step of 4 samples\n"),
    "no rows left": (["test_fraction=0.99"], "validation_fraction: with test_fraction it leaves no rows to train on\n"),
    "no bytes of UTF-8": ([b"system_prompt=\xff\xfe"], "system_prompt: should be UTF-8 text without NUL\n"),
    "without =": (["seed"], "--set seed: should be key=value\n"),
    "twice": (["seed=1", "seed=2"], "--set seed=2: seed is given twice\n"),
    "without a key": (["=5"], "--set =5: should be key=value\n"),
    "preset as a key": (["preset=tiny-cpu"], "--set preset=…: is an option of its own, --preset\n"),
    "several": (
        ["learning_rte=1", "epochs=many", "seed=-1", "processes=8"],
        "the configuration is not usable, 4 problems:\n"
        "  epochs: should be a number, not 'many'\n"
        "  learning_rte: there is no such key; did you mean learning_rate?\n"
        "  seed: input should be greater than or equal to 0, not -1\n"
        "  processes: 8 processes cannot share a step of 4 samples\n",
    ),
}


@pytest.mark.parametrize("kind", PARAMETERS)
def test_parameters(tmp_path, kind):
    words, says = PARAMETERS[kind]
    answer = refused(tmp_path, *TRAIN, *[part for word in words for part in ("--set", word)], code=2, says=says)
    assert answer.err.startswith(says)
    assert answer.told["outcome"] == "failed"
    assert list(tmp_path.iterdir()) == []


def test_missing_parameters_are_told_together(tmp_path):
    answer = refused(tmp_path, "train", *sets(store="s"), code=2, says="the configuration is not usable, 3 problems:\n")
    assert [line.split(".")[0] for line in answer.lines[1:]] == [
        f"  {name}: missing" for name in ("run", "base_model", "data")
    ]


FILES = {
    "missing": (None, "a.yaml: cannot be read (No such file or directory)\n"),
    "no YAML": (b"run: [a\n", "a.yaml: is not YAML ("),
    "no UTF-8": (b"run: \xe9\n", "a.yaml: is not UTF-8 text\n"),
    "a control character": (b"run: \x07\n", "a.yaml: is not YAML ("),
    "doubled key": (b"run: a\nrun: b\n", "a.yaml: line 2: 'run' stands there twice\n"),
    "a list": (b"- run\n", "a.yaml: should hold `key: value` lines\n"),
    "a value in a value": (b"run:\n  name: a\n", "run: should be text, not {'name': 'a'}\n"),
    "a key that is a list": (b"[a, b]: c\n", "a.yaml: line 1: a key should be a name\n"),
}


@pytest.mark.parametrize("kind", FILES)
def test_configuration_files(tmp_path, kind):
    content, says = FILES[kind]
    if content is not None:
        (tmp_path / "a.yaml").write_bytes(content)
    answer = refused(
        tmp_path, "train", "--config", "a.yaml", *sets(base_model="sample", data="sample"), code=2, says=says
    )
    assert answer.err.startswith(says)


USAGE = {
    "no such preset": (
        ["train", "--preset", "tiny"],
        "preset: 'tiny' is not one of bengali-8b-t4, bengali-8b-t4-full, t4-check, tiny-cpu\n",
    ),
    "preset and file": ([*TRAIN, "--config", "a.yaml"], "preset: give a preset or a config file, not both\n"),
}


@pytest.mark.parametrize("kind", USAGE)
def test_presets(tmp_path, kind):
    words, says = USAGE[kind]
    assert refused(tmp_path, *words, code=2, says=says).err == says


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian"], "No such command 'trian'"),
        (["train", "--sett", "a=b"], "No such option '--sett'"),
        (["train", "now"], "Got unexpected extra argument (now)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(tmp_path, words, says):
    answer = ask(tmp_path, *words)
    assert answer.code == 2
    assert answer.told == {"outcome": "failed", "reason": "wrong usage; standard error says what"}
    assert says in answer.err
    assert len(answer.lines) <= 6
    assert list(tmp_path.iterdir()) == []


def rows(count, first=0):
    return "".join(f"What is {n}?,It is {n}.\n" for n in range(first, first + count))


HEAD = "Questions,Answers\n"
DATA = {
    "missing": ("nowhere.csv", None, "data: there is no file or folder 'nowhere.csv'. Check the path;"),
    "no such dataset": (
        "me/corpus",
        None,
        "data: there is no file 'me/corpus', and no dataset of that name is attached",
    ),
    "header only": ("a.csv", HEAD, "a.csv: has a header and no rows.\n"),
    "empty": ("a.csv", "", "a.csv: is empty.\n"),
    "blank": ("a.csv", "\n \n", "a.csv: is empty.\n"),
    "another kind": ("a.docx", "x", "a.docx: is none of .csv, .tsv, .jsonl, .ndjson, .json, .parquet."),
    "Excel renamed": ("a.csv", b"PK\x03\x04" + bytes(range(256)), "a.csv: is a ZIP or Excel file, not .csv."),
    "binary": ("a.csv", bytes(range(256)) + bytes(100), "a.csv: is no text (binary, or UTF-16 without its mark)."),
    "Latin-1": (
        "a.csv",
        (HEAD + "Où ça?,Là-bas é\nÀ qui?,À moi é\nNoël?,Déjà é\n").encode("latin-1"),
        "another encoding",
    ),
    "no header": (
        "a.csv",
        rows(20),
        "a.csv: there is no column 'Questions' and no column 'Answers'; its first line gives",
    ),
    "doubled column": (
        "a.csv",
        "Questions,Answers,Questions\na,b,c\n",
        "a.csv: the column 'Questions' stands there 2 times.",
    ),
    "column near": (
        "a.csv",
        "Question,Answers\na,b\n",
        "there is no column 'Questions'; its first line gives 'Question', 'Answers'. Did you mean 'Question'?",
    ),
    "malformed": (
        "a.csv",
        HEAD + rows(100) + "a,b,c,d\n" * 6,
        "a.csv: 6 of 106 rows are malformed, more than 5% (line 102: it has 4 fields and the header 2;",
    ),
    "all malformed": (
        "a.csv",
        HEAD + "a,b,c\n" * 3,
        "a.csv: none of its 3 rows can be used (line 2: it has 3 fields and the header 2)",
    ),
    "open quote": (
        "a.csv",
        HEAD + rows(3) + '"What,now\n' + rows(3),
        "a.csv: the quote that opens in line 5 is never closed. Close or remove it.\n",
    ),
    "JSON array": (
        "a.json",
        '[{"Questions": "a", "Answers": "b"}]',
        "a.json: is one JSON array. Write JSON Lines: one object a line.\n",
    ),
    "no JSON": ("a.jsonl", "hello\n", "a.jsonl: is no JSON Lines file (line 1: it is no JSON).\n"),
    "numbers for text": (
        "a.jsonl",
        '{"Questions": 1, "Answers": 2}\n',
        "a.jsonl: none of its 1 rows can be used (line 1: its 'Questions' is no text)",
    ),
    "wrong turns": (
        "a.jsonl",
        '{"messages": [{"role": "user", "content": "a"}]}\n',
        "its messages are no turns of user and assistant",
    ),
    "no Parquet": ("a.parquet", HEAD + rows(3), "a.parquet: is no Parquet file that can be read"),
    "rows empty": ("a.csv", HEAD + ",\n" * 5, "a.csv: no row is left to train on (read 5, dropped: empty 5"),
    "answers empty": ("a.csv", HEAD + "Why?, \n" * 5, "a.csv: no row is left to train on"),
}


@pytest.mark.parametrize("kind", DATA)
def test_data_files(tmp_path, kind):
    name, content, says = DATA[kind]
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    answer = refused(tmp_path, *TRAIN, *sets(data=name), code=1, says=says)
    assert answer.told["outcome"] == "failed"
    assert not (tmp_path / "store").exists()


def test_folders_of_data(tmp_path):
    (tmp_path / "corpus").mkdir()
    refused(tmp_path, *TRAIN, *sets(data="corpus"), code=1, says="data: corpus holds no .csv, .tsv,")
    for name in ("a.csv", "b.jsonl"):
        (tmp_path / "corpus" / name).write_text(HEAD)
    says = "data: 'corpus' holds several tables (a.csv, b.jsonl). Give the path of the one that is meant.\n"
    refused(tmp_path, *TRAIN, *sets(data="corpus"), code=1, says=says)


def test_same_column_twice(tmp_path):
    says = "question_column and answer_column are both 'Questions'."
    (tmp_path / "a.csv").write_text(HEAD + rows(3))
    refused(tmp_path, *TRAIN, *sets(data="a.csv", answer_column="Questions"), code=1, says=says)


PLACES = {
    "store is a file": ({"store": "file"}, "The store file/r cannot be read: Not a directory"),
    "store cannot be written": ({"store": "/proc/store"}, "The store /proc/store/r cannot be claimed: No such file"),
    "store name too long": ({"store": LONG}, f"The store {LONG}/r cannot be read: File name too long"),
    "work_dir is a file": ({"work_dir": "file"}, "file/r cannot be used: Not a directory"),
    "work_dir cannot be written": (
        {"work_dir": "/proc/work"},
        "The run folder /proc/work/r cannot be used: No such file",
    ),
    "work_dir name too long": ({"work_dir": LONG}, f"{LONG}/r cannot be used: File name too long"),
}


@pytest.mark.parametrize("kind", PLACES)
def test_places(tmp_path, kind):
    values, says = PLACES[kind]
    (tmp_path / "file").write_text("mine")
    answer = ask(tmp_path, *TRAIN, *sets(run="r", **values))
    assert answer.code == 1, answer
    assert says in answer.lines[-1]
    assert answer.told == {"outcome": "failed", "reason": answer.lines[-1]}
    left = {name: content for name, content in state(tmp_path).items() if not name.startswith("work/.cache/")}
    assert left == {"file": b"mine"}  # and the curated rows, which only save time
