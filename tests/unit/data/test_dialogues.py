"""Which rows are turns of one dialogue, and what an example of `conversations=dialogues` is made of."""

import dataclasses
import unicodedata
from pathlib import Path

import pytest

from kaggle_lib.config import RunConfig
from kaggle_lib.data import chat, curate, tokenise
from kaggle_lib.data.read import Corpus, Message, Row
from kaggle_lib.data.source import DIALOGUE, FORUM, OTHER, dialogues, sources
from kaggle_lib.errors import ConfigError

LONG = "দীর্ঘ কথা " * 30
SIDES = ("train", "validation", "test")


def rows_of(*told):
    """Rows of (topic, title, question, answer)."""
    return [
        Row(n, n + 2, (Message("user", q), Message("assistant", a)), *names) for n, (*names, q, a) in enumerate(told)
    ]


def curated(*told, **values):
    values = {"validation_fraction": 0, "test_fraction": 0, "conversations": "dialogues", **values}
    config = RunConfig.create({"run": "r", "base_model": "sample", "data": "sample", **values})
    return curate.curate(Corpus(Path("a.csv"), rows_of(*told)), config)


def turn(title, number, topic="দোষী"):
    return topic, title, f"{title} প্রশ্ন {number}", f"{title} উত্তর {number}"


def chains(*told):
    rows = rows_of(*told)
    known = [dataclasses.replace(row, source=source) for row, source in zip(rows, sources(rows), strict=True)]
    return [[row.id for row in dialogue] for dialogue in dialogues(known)]


def test_source_is_told_by_emotion_usual_length_and_thread():
    told = [
        turn("কেক", 1),  # a known emotion
        ("দোষী", "চিঠি", LONG, LONG),  # the same, however long
        ("বিষণ্নতা", "ঘুম", LONG, LONG),
        ("বিষণ্নতা", "ঘুম", LONG, "ছোট"),  # short under a topic that is long
        ("অজানা", "ক", "ছোট", "ছোট"),
        ("", "", LONG, LONG),
        ("", "", "ছোট", "ছোট"),
        ("সাধারণ", "এক প্রশ্ন", "কী করব?", "বসো"),  # one question, several answers: a thread
        ("সাধারণ", "এক প্রশ্ন", "কী করব?", "হাঁটো"),
    ]
    assert sources(rows_of(*told)) == [
        *(DIALOGUE, DIALOGUE, FORUM, FORUM, DIALOGUE, FORUM, DIALOGUE, FORUM, FORUM),
    ]
    assert sources(rows_of(("", "", "ক", "খ"), ("", "", LONG, LONG))) == [OTHER, OTHER]


def test_consecutive_rows_of_one_topic_and_title_are_a_dialogue():
    assert chains(turn("ক", 1), turn("ক", 2), turn("খ", 1), turn("খ", 2), turn("খ", 3)) == [[0, 1], [2, 3, 4]]


def test_one_foreign_row_does_not_end_a_dialogue_and_two_do():
    assert chains(turn("ক", 1), turn("খ", 1), turn("ক", 2), turn("গ", 1), turn("ঘ", 1), turn("ক", 3)) == [
        *([0, 2], [1], [3], [4], [5]),
    ]


def test_two_dialogues_that_alternate_are_two():
    assert chains(turn("ক", 1), turn("খ", 1), turn("ক", 2), turn("খ", 2), turn("ক", 3)) == [[0, 2, 4], [1, 3]]


def test_same_title_under_another_topic_is_another_dialogue():
    assert chains(turn("ক", 1), turn("ক", 2, topic="ভীত"), turn("ক", 3)) == [[0, 2], [1]]


def test_rows_without_a_title_and_forum_answers_are_never_chained():
    told = [
        *(("দোষী", "", f"প্রশ্ন {n}", f"উত্তর {n}") for n in range(3)),
        *(("উদ্বেগ", "ঘুম", LONG, f"{LONG} {n}") for n in range(3)),
    ]
    assert chains(*told) == [[0], [1], [2], [3], [4], [5]]


def test_title_in_another_spelling_is_the_same():
    assert chains(turn("আমার  কেক", 1), turn("আমার কেক", 2)) == [[0, 1]]


def test_forum_thread_stays_on_one_side_under_whatever_topics():
    told = [(topic, f"প্রশ্ন {n}", f"{LONG} {n}", f"{LONG} {n} {topic}") for n in range(12) for topic in ("উদ্বেগ", "শোক")]
    found = curated(*told, conversations="pairs", validation_fraction=0.25, test_fraction=0.25)
    sides = [{row.title for row in getattr(found, name)} for name in SIDES]
    assert not (sides[0] & sides[1] | sides[0] & sides[2] | sides[1] & sides[2])
    assert all(len(row.messages) == 2 for name in SIDES for row in getattr(found, name))


def test_training_example_is_the_whole_dialogue_and_keeps_the_last_rows_id():
    found = curated(turn("ক", 1), turn("ক", 2), turn("খ", 1), turn("ক", 3))
    assert [row.id for row in found.train] == [2, 3]
    said = [message.content for message in found.train[1].messages]
    assert said == ["ক প্রশ্ন 1", "ক উত্তর 1", "ক প্রশ্ন 2", "ক উত্তর 2", "ক প্রশ্ন 3", "ক উত্তর 3"]
    assert (found.counts["kept"], found.counts["joined: earlier turns of a dialogue"], found.counts["train"]) == (
        4,
        2,
        2,
    )


def test_held_out_row_has_the_dialogue_so_far_and_the_splits_are_those_of_pairs():
    told = [turn(f"ঘটনা {'কখগঘঙচছজঝঞ'[n]}", k) for n in range(10) for k in range(3)]
    both = {
        mode: curated(*told, conversations=mode, validation_fraction=0.1, test_fraction=0.2)
        for mode in ("pairs", "dialogues")
    }
    for name in ("validation", "test"):
        pairs, talks = getattr(both["pairs"], name), getattr(both["dialogues"], name)
        assert [(row.id, row.question, row.answer) for row in pairs] == [
            (row.id, row.question, row.answer) for row in talks
        ]
        assert [len(row.messages) for row in talks] == [2, 4, 6] * (len(talks) // 3)
    assert [row.id for row in both["dialogues"].train] == [row.id for row in both["pairs"].train if row.id % 3 == 2]
    assert both["pairs"].fingerprint == both["dialogues"].fingerprint


def test_duplicate_that_was_dropped_is_not_said_again_and_is_no_foreign_row():
    told = [turn("খ", 9), turn("ক", 1), ("দোষী", "ক", *turn("খ", 9)[2:]), turn("গ", 1), turn("ক", 2)]
    found = curated(*told)
    assert [row.id for row in found.train] == [0, 3, 4]
    said = [message.content for message in found.train[-1].messages]
    assert said == ["ক প্রশ্ন 1", "ক উত্তর 1", "ক প্রশ্ন 2", "ক উত্তর 2"]


MESSAGES = [
    *(Message("user", "প্রথম প্রশ্ন"), Message("assistant", "প্রথম উত্তর")),
    *(Message("user", "দ্বিতীয় প্রশ্ন"), Message("assistant", "দ্বিতীয় উত্তর")),
    *(Message("user", "তৃতীয় প্রশ্ন"), Message("assistant", "শেষ উত্তর")),
]


def learned(tokenizer, encoded):
    """The texts between what is not learned."""
    parts, open_part = [], False
    for token in encoded.labels:
        if token == chat.IGNORED:
            open_part = False
            continue
        if not open_part:
            parts.append([])
        open_part = True
        parts[-1].append(token)
    return [tokenizer.decode(part) for part in parts]


def config_of(**values):
    return RunConfig.create({"run": "r", "base_model": "sample", "data": "sample", **values})


def test_every_answer_is_learned_with_its_end_and_nothing_else(sample_tokenizer):
    one = chat.encode(MESSAGES, sample_tokenizer, config_of(), every=True)
    answers = ["প্রথম উত্তর", "দ্বিতীয় উত্তর", "শেষ উত্তর"]
    assert learned(sample_tokenizer, one) == [f"{text}<|eot_id|>" for text in answers]
    assert one.answer_bytes == sum(len(unicodedata.normalize("NFC", text).encode()) for text in answers)
    last = chat.encode(MESSAGES, sample_tokenizer, config_of())
    assert last.input_ids == one.input_ids
    assert learned(sample_tokenizer, last) == ["শেষ উত্তর<|eot_id|>"]
    assert (one.cut, one.unlearned, last.unlearned) == ("", 0, 0)


def test_at_every_length_the_oldest_turns_go_and_no_answer_is_learned_in_part(sample_tokenizer):
    whole = len(chat.encode(MESSAGES, sample_tokenizer, config_of(), every=True).input_ids)
    answers = [f"{text}<|eot_id|>" for text in ("প্রথম উত্তর", "দ্বিতীয় উত্তর", "শেষ উত্তর")]
    seen = set()
    for room in range(whole - 1, 0, -1):
        config = config_of(max_length=max(16, room))
        try:
            one = chat.encode(MESSAGES, sample_tokenizer, config, every=True)
        except ConfigError:
            break
        assert len(one.input_ids) == len(one.labels) <= room
        if one.cut == "answer":
            break
        assert one.cut == "prompt"
        assert learned(sample_tokenizer, one) == answers[one.unlearned :]
        seen.add(one.unlearned)
    assert seen == {0, 1, 2}


@pytest.mark.parametrize("limit", [256, 110])
def test_cut_dialogues_are_counted(tmp_path, sample_tokenizer, limit):
    path = tmp_path / "a.csv"
    told = [",".join(turn(f"ঘটনা {'কখগ'[n]}", k)) for n in range(3) for k in range(4)]
    path.write_text("Topics,Question-Title,Questions,Answers\n" + "\n".join(told), encoding="utf-8")
    config = config_of(data=str(path), conversations="dialogues", max_length=limit, validation_fraction=0)
    splits = tokenise.tokenised(config, sample_tokenizer, tmp_path / "cache")
    assert [row["id"] for row in splits.train] == sorted(row["id"] for row in splits.train)
    assert {row["id"] % 4 for row in splits.train} == {3}
    ends = [row["labels"].count(chat.eot_id(sample_tokenizer)) for row in splits.train]
    if limit == 256:
        assert ends == [4, 4]
        assert "cut: answers not learned" not in splits.counts
    else:
        assert sum(ends) < 8
        assert splits.counts["cut: answers not learned"] == 8 - sum(ends)
    assert [row["labels"].count(chat.eot_id(sample_tokenizer)) for row in splits.test] == [1] * 4
    assert splits.sheet["counts"] == splits.counts
    assert splits.sheet["tokens"]["train"][2] == max(len(row["input_ids"]) for row in splits.train)
