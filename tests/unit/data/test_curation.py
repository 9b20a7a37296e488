"""Curation changes no word, drops what is empty or repeats, and keeps a dialogue on one side of the split."""

import itertools
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from kaggle_lib.config import RunConfig
from kaggle_lib.data import curate, read
from kaggle_lib.data.read import Corpus, Message, Noted, Row
from kaggle_lib.errors import DataError

SPLITS = ("train", "validation", "test")


def config_of(**values):
    return RunConfig.create({"run": "r", "base_model": "sample", "data": "sample", **values})


def corpus(pairs, titles=None):
    """Rows of (question, answer); `titles`: the (topic, title) of each."""
    rows = [
        Row(n, n + 2, (Message("user", question), Message("assistant", answer)), *(titles[n] if titles else ()))
        for n, (question, answer) in enumerate(pairs)
    ]
    return Corpus(Path("a.csv"), rows)


def numbered(count, titles=None):
    return corpus([(f"প্রশ্ন {n}", f"উত্তর {n}") for n in range(count)], titles)


def ids(rows):
    return [row.id for row in rows]


WORDS = ["ফ্যামিলিপ্রবলেমের", "র‍্যাব", "আলেক্সান্দ্র", "বল্চ্", "উৎসব", "কোরআন", "৯৯৯", "গিয়েছিলাম", "বড়", "আষাঢ়", "😀", "ক্‌ষ"]


def composed(text):
    """The three letters that NFC takes apart, as most keyboards write them."""
    for parts, letter in (("\u09a1\u09bc", "\u09dc"), ("\u09a2\u09bc", "\u09dd"), ("\u09af\u09bc", "\u09df")):
        text = text.replace(parts, letter)
    return text


@pytest.mark.parametrize("word", WORDS)
def test_each_word_equals_its_nfc_code_point_by_code_point(word):
    nfc = unicodedata.normalize("NFC", word)
    for spelt in (word, unicodedata.normalize("NFD", word), composed(nfc)):
        (row,) = curate.curate(corpus([(spelt, f"{spelt} না")]), config_of()).train
        assert [*map(ord, row.question)] == [*map(ord, nfc)]
        assert [*map(ord, row.answer)] == [*map(ord, nfc + " না")]


def test_joiners_and_hasanta_stay():
    said = "র\u200d\u09cdয\u09beব ক\u09cd\u200cষ বল\u09cdচ\u09cd"
    (row,) = curate.curate(corpus([(said, said)]), config_of()).train
    assert row.question == row.answer == said


def test_curating_twice_changes_nothing():
    once = curate.curate(read.read(config_of()), config_of())
    rows = sorted([*once.train, *once.validation, *once.test], key=lambda row: row.id)
    twice = curate.curate(Corpus(Path("a.csv"), rows), config_of())
    assert [(name, getattr(twice, name)) for name in SPLITS] == [(name, getattr(once, name)) for name in SPLITS]
    assert twice.fingerprint == once.fingerprint
    assert twice.counts == {"read": 442, "kept": 442, "train": 398, "validation": 22, "test": 22}


def test_sample_corpus_is_what_the_documents_say():
    config = config_of()
    found = read.read(config)
    assert (len(found.rows), found.set_aside, found.repaired) == (449, [], [])
    curated = curate.curate(found, config)
    assert curated.counts == {
        "read": 449,
        "repaired: spelling, spaces or unseen marks": 20,
        "dropped: empty": 4,
        "dropped: duplicate": 3,
        "kept": 442,
        "train": 398,
        "validation": 22,
        "test": 22,
    }
    texts = [text for row in found.rows for text in (row.question, row.answer)]
    assert {"None", "NA"} <= set(texts)
    for mess in ("  ", "\n", '"', "office", "\u09df", "\u09af\u09bc"):  # য় composed, and as NFC has it
        assert any(mess in text for text in texts), mess
    assert sum(text.rstrip().endswith(".") for text in texts) >= 20
    lengths = [len(row.question) + len(row.answer) for row in found.rows]
    assert min(lengths[:20]) > 300  # the forum's long ones at the head, the dialogues' turns after them
    assert sorted(lengths[20:-1])[200] < 120
    titles = [row.title for row in found.rows[20:] if row.title]
    assert sum(one == other for one, other in itertools.pairwise(titles)) > 250


def test_empty_rows_and_duplicates_go_and_what_says_none_stays():
    pairs = [
        ("ক", "খ"),
        ("", "খ"),
        ("ক", " \n"),
        ("None", "NA"),
        ("null", "nan"),
        ("ক", "খ"),
        ("ক", "গ"),
        ("\u200b", "খ"),
    ]
    curated = curate.curate(corpus(pairs), config_of(test_fraction=0, validation_fraction=0))
    assert ids(curated.train) == [0, 3, 4, 6]
    assert curated.counts == {
        "read": 8,
        "repaired: spelling, spaces or unseen marks": 1,
        "dropped: empty": 3,
        "dropped: duplicate": 1,
        "kept": 4,
        "train": 4,
        "validation": 0,
        "test": 0,
    }


def test_duplicates_are_found_after_nfc():
    nfc = "বড\u09bc কথা"
    pairs = [(nfc, "হ্যাঁ"), (composed(nfc), "হ্যাঁ"), (f"{nfc}\r\nনা", "হ্যাঁ"), (f"{composed(nfc)}\nনা", "হ্যাঁ")]
    assert len(set(pairs)) == 4
    curated = curate.curate(corpus(pairs), config_of(test_fraction=0, validation_fraction=0))
    assert [(row.id, row.question) for row in curated.train] == [(0, nfc), (2, f"{nfc}\nনা")]


def test_counts_name_what_was_set_aside_and_repaired():
    found = numbered(10)
    found.set_aside.extend([Noted(20, "a blank line"), Noted(21, "a blank line"), Noted(22, "it is no JSON")])
    found.repaired.append(Noted(3, "NUL removed"))
    counts = curate.curate(found, config_of()).counts
    told = {name: number for name, number in counts.items() if ": " in name}
    assert told == {"set aside: a blank line": 2, "set aside: it is no JSON": 1, "repaired: NUL removed": 1}


def test_fingerprint_is_of_the_kept_rows_alone():
    base = curate.curate(numbered(10), config_of()).fingerprint
    assert curate.curate(numbered(11), config_of()).fingerprint != base
    other = numbered(10)
    other.rows[9] = Row(9, 99, (Message("user", "প্রশ্ন 9"), Message("assistant", "উত্তর ৯")))
    assert curate.curate(other, config_of()).fingerprint != base
    other.rows[9] = Row(9, 99, numbered(10).rows[9].messages)  # another line
    other.set_aside.append(Noted(100, "a blank line"))
    assert curate.curate(other, config_of(seed=7, test_fraction=0.3)).fingerprint == base


@pytest.mark.parametrize("field", ["topic", "title", "question", "answer", "role"])
def test_each_letter_counts_in_the_fingerprint(field):
    def of(topic="ক", title="খ", question="গ", answer="ঘ", first="user"):
        row = Row(0, 2, (Message(first, question), Message("assistant", answer)), topic, title)
        return curate.curate(Corpus(Path("a.csv"), [row]), config_of()).fingerprint

    assert of(**{"first" if field == "role" else field: "system" if field == "role" else "ঙ"}) != of()


def dialogues(sizes):
    return [("দুঃখ", f"ঘটনা {n}") for n, size in enumerate(sizes) for _ in range(size)]


@pytest.mark.parametrize("seed", range(5))
def test_dialogue_stays_on_one_side(seed):
    titles = dialogues([1, 4, 2, 3, 5, 1, 2, 4] * 10)
    curated = curate.curate(numbered(len(titles), titles), config_of(seed=seed))
    sides = {name: {row.title for row in getattr(curated, name)} for name in SPLITS}
    assert not sides["train"] & sides["test"]
    assert not sides["train"] & sides["validation"]
    assert not sides["validation"] & sides["test"]
    everything = sorted(i for name in SPLITS for i in ids(getattr(curated, name)))
    assert everything == list(range(220))
    for name in ("validation", "test"):  # 5 % of 220 rows
        assert len(getattr(curated, name)) == 11
        assert ids(getattr(curated, name)) == sorted(ids(getattr(curated, name)))


def test_title_that_comes_back_later_stays_on_its_side():
    titles = [("দুঃখ", f"ঘটনা {n % 20}") for n in range(100)]
    curated = curate.curate(numbered(100, titles), config_of())
    for name in SPLITS:
        held = {row.title for row in getattr(curated, name)}
        assert len(getattr(curated, name)) == 5 * len(held)


def test_rows_without_a_title_are_drawn_alone_whatever_their_topic():
    curated = curate.curate(numbered(100, [("দুঃখ", " ")] * 100), config_of())
    assert [len(getattr(curated, name)) for name in SPLITS] == [90, 5, 5]


def test_same_topic_and_another_title_is_another_dialogue():
    titles = [("দুঃখ", "ক")] * 50 + [("সুখ", "ক")] * 50
    curated = curate.curate(numbered(100, titles), config_of(validation_fraction=0))
    assert ids(curated.test) in (list(range(50)), list(range(50, 100)))


def test_split_is_drawn_by_the_seed_and_nothing_else():
    import random

    splits = []
    for seed, state in ((42, 1), (42, 2), (43, 1)):
        random.seed(state)
        curated = curate.curate(numbered(100), config_of(seed=seed))
        splits.append((ids(curated.validation), ids(curated.test)))
    assert splits[0] == splits[1] != splits[2]
    assert splits[0] == ([8, 9, 16, 82, 90], [6, 19, 25, 38, 71])


def test_split_and_fingerprint_are_the_same_in_another_process_and_hash_seed():
    code = (
        "from kaggle_lib.config import RunConfig; from kaggle_lib.data import curate, read;"
        "config = RunConfig.create({'run': 'r', 'base_model': 'sample', 'data': 'sample', 'rows': 50});"
        "made = curate.curate(read.read(config), config);"
        "print([[row.id for row in rows] for rows in (made.train, made.validation, made.test)], made.fingerprint)"
    )
    here = curate.curate(read.read(config_of(rows=50)), config_of(rows=50))
    for seed in ("0", "99"):
        printed = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        assert printed.strip() == f"{[ids(getattr(here, name)) for name in SPLITS]} {here.fingerprint}"


def test_title_that_half_the_file_has_is_trained_on_and_overshoots_no_share():
    titles = [("", "শিরোনামহীন")] * 60 + [("", f"ঘটনা {n}") for n in range(40)]
    for seed in range(10):
        curated = curate.curate(numbered(100, titles), config_of(seed=seed))
        assert [len(getattr(curated, name)) for name in SPLITS] == [90, 5, 5]
        assert set(range(60)) <= set(ids(curated.train))


def test_few_long_dialogues_give_a_whole_one_to_each_share():
    curated = curate.curate(numbered(60, dialogues([30, 20, 10])), config_of())
    assert [ids(getattr(curated, name)) for name in SPLITS] == [
        list(range(30)),
        list(range(30, 50)),
        list(range(50, 60)),
    ]


def test_share_of_nothing_stays_empty():
    curated = curate.curate(numbered(100), config_of(test_fraction=0, validation_fraction=0.1))
    assert [len(getattr(curated, name)) for name in SPLITS] == [90, 10, 0]
    curated = curate.curate(numbered(2), config_of(test_fraction=0.6, validation_fraction=0.39))
    assert [len(getattr(curated, name)) for name in SPLITS] == [1, 0, 1]


def test_rows_that_differ_in_white_space_alone_are_duplicates():
    pairs = [("ক", "খ"), (" ক\n", "খ  "), ("ক", "খ গ"), ("ক", "খ  গ"), ("ক", "খ\nগ"), ("ক", "খগ")]
    curated = curate.curate(corpus(pairs), config_of(test_fraction=0, validation_fraction=0))
    assert ids(curated.train) == [0, 2, 5]
    assert curated.counts["dropped: duplicate"] == 2
    assert curated.counts["dropped: duplicate in another spelling"] == 1


def test_system_prompt_and_earlier_turns_tell_rows_apart():
    def row(number, *texts):
        roles = ("system", "user", "assistant") if len(texts) == 3 else ("user", "assistant") * (len(texts) // 2)
        return Row(number, number + 1, tuple(map(Message, roles, texts)))

    rows = [
        row(0, "ক", "খ"),
        row(1, "s", "ক", "খ"),
        row(2, "t", "ক", "খ"),
        row(3, "ক", "খ", "ক", "খ"),
        row(4, "", "ক", "খ"),
        row(5, "ক", "", "ক", "খ"),
        row(6, "s", "ক", "খ"),
    ]
    curated = curate.curate(Corpus(Path("a.jsonl"), rows), config_of(test_fraction=0, validation_fraction=0))
    assert ids(curated.train) == [0, 1, 2, 3, 4]
    assert (curated.counts["dropped: empty"], curated.counts["dropped: duplicate"]) == (1, 1)


def test_rows_draws_training_rows_by_the_seed_and_leaves_the_others():
    every = curate.curate(numbered(100), config_of())
    some = curate.curate(numbered(100), config_of(rows=20))
    other = curate.curate(numbered(100), config_of(rows=20, seed=42, validation_fraction=0.05))
    assert len(some.train) == some.counts["train"] == 20
    assert ids(some.train) == sorted(ids(some.train)) == ids(other.train)
    assert set(ids(some.train)) < set(ids(every.train))
    assert (some.validation, some.test) == (every.validation, every.test)
    assert ids(curate.curate(numbered(100), config_of(rows=21)).train) != ids(some.train)
    assert set(ids(some.train)) < set(ids(curate.curate(numbered(100), config_of(rows=21)).train))
    assert curate.curate(numbered(100), config_of(rows=1000)).train == every.train


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1, 0, 0]), (2, [1, 0, 1]), (3, [1, 1, 1]), (10, [8, 1, 1]), (30, [26, 2, 2])]
)
def test_tiny_corpora_keep_rows_to_train_on(count, sizes):
    curated = curate.curate(numbered(count), config_of())
    assert [len(getattr(curated, name)) for name in SPLITS] == sizes


def test_corpus_of_one_dialogue_is_trained_on():
    curated = curate.curate(numbered(30, dialogues([30])), config_of())
    assert [len(getattr(curated, name)) for name in SPLITS] == [30, 0, 0]


def test_nothing_left_to_train_on_is_told_with_the_counts():
    with pytest.raises(DataError) as told:
        curate.curate(corpus([("", "খ"), ("ক", "")]), config_of())
    assert str(told.value) == (
        "a.csv: no row is left to train on (read 2, dropped: empty 2, kept 0, train 0, validation 0, test 0). "
        "Check the columns' names and the fractions of validation and test."
    )
