"""Which of its sources a row comes from, and which rows were turns of one dialogue.

The Bengali corpus joins two machine-translated ones: counselling-forum answers, long, several of them to one title, and
EmpatheticDialogues' turns, short, whose topics are that data set's emotions and whose consecutive rows are consecutive
turns. A file of another kind has rows without topic and title, which are of neither source.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from kaggle_lib.data.read import Row
from kaggle_lib.data.text import canonical

FORUM, DIALOGUE, OTHER = "forum", "dialogue", "other"
# The 32 emotions of EmpatheticDialogues (Rashkin et al. 2019, table 1) in Bengali, as people and machines put them.
EMOTIONS = frozenset(
    canonical(
        "ভীত রাগান্বিত বিরক্ত প্রত্যাশী প্রত্যাশিত উদ্বিগ্ন চিন্তিত শঙ্কিত আশঙ্কিত লজ্জিত যত্নশীল আত্মবিশ্বাসী বিষয়বস্তু সন্তুষ্ট "
        "বিধ্বস্ত হতাশ বিতৃষ্ণ ঘৃণিত বিব্রত উত্তেজিত বিশ্বস্ত ক্ষিপ্ত ক্ষুব্ধ কৃতজ্ঞ দোষী আশাবাদী মুগ্ধ ঈর্ষান্বিত আনন্দিত একাকী "
        "নস্টালজিক স্মৃতিকাতর প্রস্তুত গর্বিত দুঃখিত আবেগপ্রবণ সংবেদনশীল বিস্মিত অবাক আতঙ্কিত বিশ্বাসী"
    ).split()
)
# Characters of question and answer together. The lengths have two peaks, about 100 and above 600.
FORUM_FROM = 250


def sources(rows: Sequence[Row]) -> list[str]:
    """The source of each row: by its topic where that is an emotion, else by the usual length under that topic, or
    because one question stands under one title with several answers; a row without a topic by its own length."""
    named = [(canonical(row.topic), canonical(row.title)) for row in rows]
    if not any(topic or title for topic, title in named):
        return [OTHER] * len(rows)
    lengths: dict[str, list[int]] = defaultdict(list)
    asked: dict[tuple[str, str], list[str]] = defaultdict(list)
    for row, (topic, title) in zip(rows, named, strict=True):
        lengths[topic].append(_length(row))
        asked[topic, title].append(row.question)
    usual = {topic: median(found) for topic, found in lengths.items()}
    threads = {name for name, questions in asked.items() if name[1] and 2 * len(set(questions)) <= len(questions)}

    def source(row: Row, topic: str, title: str) -> str:
        if topic in EMOTIONS:
            return DIALOGUE
        length = usual[topic] if topic else _length(row)
        return FORUM if length >= FORUM_FROM or (topic, title) in threads else DIALOGUE

    return [source(row, *name) for row, name in zip(rows, named, strict=True)]


def _length(row: Row) -> int:
    return len(row.question) + len(row.answer)


def dialogues(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows in file order as dialogues; one that is no turn of any is alone.

    Turns follow each other in the file under one topic and title, with at most one foreign row between two of them.
    Forum answers, rows without a title and rows that are conversations already are never chained.
    """
    found: list[list[Row]] = []
    last: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        name = canonical(row.topic), canonical(row.title)
        chained = row.source == DIALOGUE and name[1] != "" and len(row.messages) == 2
        before = last.get(name) if chained else None
        if before and row.id - before[-1].id <= 2:
            before.append(row)
            continue
        found.append([row])
        if chained:
            last[name] = found[-1]
    return found
