"""Tokenised rows come from the cache only where nothing has changed that they depend on, and it is whole."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import unicodedata
from pathlib import Path

import pytest

from kaggle_lib import config as configuration
from kaggle_lib.config import RunConfig
from kaggle_lib.data import chat, curate, read, tokenise

SPLITS = ("train", "validation", "test")


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "a.csv"
    lines = [f"বিষয়,শিরোনাম {n // 2},আমি কেমন আছি {n}?,ভালো {n}।\n" for n in range(40)]
    path.write_text("Topics,Question-Title,Questions,Answers\n" + "".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def make(tmp_path, data, sample_tokenizer):
    """`make(**settings)`: (the splits, the folders of the cache that this call made or made anew)."""
    cache = tmp_path / "cache"

    def folders():
        return {path: path.stat().st_ino for path in cache.glob("*")} if cache.exists() else {}

    def call(tokenizer=sample_tokenizer, **values):
        before = folders()
        config = RunConfig.create({"run": "r", "base_model": "sample", "data": str(data), "max_length": 256, **values})
        splits = tokenise.tokenised(config, tokenizer, cache)
        return splits, [path for path, inode in folders().items() if before.get(path) != inode and path.is_dir()]

    return call


def rows(splits):
    return {name: getattr(splits, name).to_list() for name in SPLITS}


def test_rows_are_the_curated_ones_encoded(make, data, sample_tokenizer):
    splits, made = make()
    assert len(made) == 1
    config = RunConfig.create({"run": "r", "base_model": "sample", "data": str(data), "max_length": 256})
    curated = curate.curate(read.read(config), config)
    for name in SPLITS:
        expected = [
            {key: value for key, value in dataclasses.asdict(one).items() if key not in ("cut", "unlearned")}
            | {"id": row.id}
            for row in getattr(curated, name)
            for one in [chat.encode(row.messages, sample_tokenizer, config)]
        ]
        assert rows(splits)[name] == expected
        assert getattr(splits, name).column_names == ["id", "input_ids", "labels", "answer_bytes"]
    assert [len(getattr(splits, name)) for name in SPLITS] == [36, 2, 2]
    kinds = [(field.name, str(field.type)) for field in splits.train.data.schema]
    ids = "list<item: int32>"
    assert kinds == [("id", "int64"), ("input_ids", ids), ("labels", ids), ("answer_bytes", "int64")]
    assert splits.counts == curated.counts
    assert splits.fingerprint == curated.fingerprint
    answers = {row.id: unicodedata.normalize("NFC", row.answer) for row in curated.train}
    assert all(row["answer_bytes"] == len(answers[row["id"]].encode("utf-8")) for row in splits.train)


def lengths(splits):
    return [len(row["input_ids"]) for name in SPLITS for row in getattr(splits, name)]


def test_what_was_cut_is_counted(make):
    whole, _ = make()
    assert not any(name.startswith("cut") for name in whole.counts)
    less = max(lengths(whole)) - 2  # the longest lose some of their questions, and no answer is touched
    too_long = sum(length > less for length in lengths(whole))
    assert 0 < too_long < 40
    splits, _ = make(max_length=less)
    assert {name: number for name, number in splits.counts.items() if name.startswith("cut")} == {
        "cut: prompt": too_long
    }
    assert max(lengths(splits)) <= less
    again, made = make(max_length=less)
    assert (made, again.counts) == ([], splits.counts)


def test_same_again_is_read_from_the_cache(make):
    first, _ = make()
    again, made = make()
    assert made == []
    assert rows(again) == rows(first)
    assert (again.counts, again.fingerprint) == (first.counts, first.fingerprint)


@pytest.mark.parametrize(
    "values",
    [
        {"learning_rate": 1e-5, "epochs": 9, "train_batch_size": 2},
        {"run": "other", "eval_steps": 3, "save_steps": 7},
    ],
    ids=["training", "logging"],
)
def test_settings_that_shape_no_row_change_nothing(make, values):
    make()
    assert make(**values)[1] == []


CHANGES = {
    "system prompt": {"system_prompt": "শোনো"},
    "seed": {"seed": 43},
    "rows": {"rows": 10},
    "share": {"test_fraction": 0.2},
}


@pytest.mark.parametrize("kind", CHANGES)
def test_setting_that_shapes_the_rows_makes_others(make, kind):
    before, _ = make()
    after, made = make(**CHANGES[kind])
    assert len(made) == 1
    assert rows(after) != rows(before)


def test_mark_and_line_ends_use_the_same_cache(make, data):
    make()
    data.write_bytes(b"\xef\xbb\xbf" + data.read_bytes().replace(b"\n", b"\r\n"))
    assert make()[1] == []


def test_changed_cell_makes_others(make, data):
    make()
    data.write_text(data.read_text(encoding="utf-8").replace("ভালো 7।", "ভালো নেই 7।"), encoding="utf-8")
    assert len(make()[1]) == 1


def test_row_that_is_set_aside_is_in_the_counts_though_the_kept_rows_are_the_same(make, data):
    make()
    with data.open("a", encoding="utf-8") as file:
        file.write("ক,খ\n")
    assert make()[0].counts["set aside: it has 2 fields and the header 4"] == 1


def test_same_rows_split_another_way_are_others(sample_tokenizer):
    """The ids in a row are the same; only the border between two splits has moved."""
    row = read.Row(0, 2, (read.Message("user", "ক"), read.Message("assistant", "খ")))
    one, two, three = (dataclasses.replace(row, id=n) for n in range(3))

    config = RunConfig.create({"run": "r", "base_model": "sample", "data": "sample"})
    keys = {
        tokenise._key(config, sample_tokenizer, curate.Curated(*splits, counts={}, fingerprint=""))
        for splits in (([one], [two, three], []), ([one], [two], [three]), ([one, two], [], [three]))
    }
    assert len(keys) == 3


def test_another_tokenizer_makes_others(make, sample_tokenizer):
    from transformers import PreTrainedTokenizerFast

    make()
    content = json.loads(sample_tokenizer.backend_tokenizer.to_str())
    content["model"]["merges"] = content["model"]["merges"][:100]
    from tokenizers import Tokenizer

    other = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )
    splits, made = make(tokenizer=other)
    assert len(made) == 1
    assert rows(splits) != rows(make()[0])


def test_use_of_the_tokenizer_does_not_make_another_of_it(make, sample_tokenizer):
    make()
    sample_tokenizer("<|eot_id|>", split_special_tokens=True, truncation=True, max_length=5)
    sample_tokenizer("<|eot_id|>", padding="max_length", max_length=9)
    assert make()[1] == []


def test_edit_of_the_code_makes_others(make, tmp_path, monkeypatch):
    """The real hash over a copy of the package, before and after a line in `data/` is added."""
    copy = tmp_path / "kaggle_lib"
    shutil.copytree(Path(configuration.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(configuration, "__file__", str(copy / "config.py"))
    assert len(make()[1]) == 1
    assert make()[1] == []
    with (copy / "data" / "chat.py").open("a", encoding="utf-8") as file:
        file.write("# an edit\n")
    assert len(make()[1]) == 1
    with (copy / "report" / "page.py").open("a", encoding="utf-8") as file:
        file.write("# not of the data's code\n")
    assert make()[1] == []


def test_edit_of_the_template_makes_others(make, monkeypatch):
    make()
    monkeypatch.setattr(chat, "template", lambda tokenizer: "another")
    assert len(make()[1]) == 1


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "flipped bit": lambda folder: flip(next((folder / "train").glob("*.arrow"))),
    "cut file": lambda folder: next((folder / "test").glob("*.arrow")).write_bytes(b""),
    "lost file": lambda folder: next((folder / "validation").glob("*.arrow")).unlink(),
    "lost folder": lambda folder: shutil.rmtree(folder / "train"),
    "lost hashes": lambda folder: (folder / "sha256.json").unlink(),
    "cut hashes": lambda folder: (folder / "sha256.json").write_text('{"counts.json": '),
    "hashes of nothing": lambda folder: (folder / "sha256.json").write_text("{}"),
    "hashes of another kind": lambda folder: (folder / "sha256.json").write_text("[1]"),
    "flipped count": lambda folder: flip(folder / "counts.json"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_cache_is_made_anew(make, kind):
    before, (folder,) = make()
    expected = rows(before)
    DAMAGE[kind](folder)
    after, made = make()
    assert made == [folder]
    assert rows(after) == expected
    assert (after.counts, after.fingerprint) == (before.counts, before.fingerprint)


def test_half_made_cache_of_a_killed_process_is_no_cache(make, monkeypatch):
    whole, (folder,) = make()
    expected = rows(whole)
    shutil.rmtree(folder)

    def killed(path, value):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokenise, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            make()
    left = [path.name for path in folder.parent.iterdir() if path.is_dir()]
    assert left == [f".{folder.name}.making"]
    after, made = make()
    assert made == [folder]
    assert rows(after) == expected
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]


def die_while_writing(settings, folder, cache, split):
    """The work of a process that is killed as soon as the rows of `split` are there."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    save = Dataset.save_to_disk

    def save_and_die(self, path, **how):
        save(self, path, **how)
        if Path(path).name == split:
            os.kill(os.getpid(), signal.SIGKILL)

    Dataset.save_to_disk = save_and_die
    tokenise.tokenised(RunConfig.create(settings), AutoTokenizer.from_pretrained(folder), Path(cache))


@pytest.mark.slow
def test_process_killed_while_writing_leaves_nothing_half_and_no_lock(make, tmp_path, data):
    settings = {"run": "r", "base_model": "sample", "data": str(data), "max_length": 256}
    folder = str(Path(tokenise.__file__).parent / "sample")
    cache = tmp_path / "cache"
    process = multiprocessing.get_context("spawn").Process(
        target=die_while_writing, args=(settings, folder, str(cache), "validation")
    )
    process.start()
    process.join(timeout=120)
    assert process.exitcode == -signal.SIGKILL
    (left,) = (path for path in cache.iterdir() if path.is_dir())
    assert left.name.endswith(".making")
    assert sorted(path.name for path in left.iterdir()) == ["train", "validation"]
    splits, (made,) = make()
    assert [len(getattr(splits, name)) for name in SPLITS] == [36, 2, 2]
    assert [path for path in cache.iterdir() if path.is_dir()] == [made]


def work(settings, folder, cache, answers):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    splits = tokenise.tokenised(RunConfig.create(settings), tokenizer, Path(cache))
    answers.put((len(splits.train), splits.train[0]["input_ids"][:5]))


@pytest.mark.slow
def test_two_processes_at_once_get_the_same(tmp_path, data):
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    settings = {"run": "r", "base_model": "sample", "data": str(data), "max_length": 256}
    folder = str(Path(tokenise.__file__).parent / "sample")
    both = [context.Process(target=work, args=(settings, folder, str(tmp_path / "c"), answers)) for _ in range(2)]
    for process in both:
        process.start()
    first, second = answers.get(timeout=120), answers.get(timeout=120)
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert first == second
    assert first[0] == 36
    assert len([path for path in (tmp_path / "c").iterdir() if path.is_dir()]) == 1


def test_splits_without_rows_are_empty(make):
    splits, _ = make(validation_fraction=0, test_fraction=0)
    assert [len(getattr(splits, name)) for name in SPLITS] == [40, 0, 0]
    assert splits.test.column_names == ["id", "input_ids", "labels", "answer_bytes"]
    assert make(validation_fraction=0, test_fraction=0)[1] == []
