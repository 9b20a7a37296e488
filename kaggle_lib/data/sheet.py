"""The data sheet: what the corpus was, what became of each row, and whether anything leaks between the splits.

JSON types, so that it lies beside the tokenised rows and in the run folder, for the report and for anybody else.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from kaggle_lib.config import RunConfig
from kaggle_lib.data.read import Corpus, Row
from kaggle_lib.data.similar import repeats
from kaggle_lib.data.split import Form, names, texts
from kaggle_lib.data.text import letters

BENGALI = "bengaliempatheticconversationscorpus"  # its file's name, and without dashes the end of its name on Kaggle
LICENCE = {
    "sample": "Written for this project, under its own licence (Apache-2.0).",
    "bengali": "The Bengali Empathetic Conversations Corpus states no licence. EmpatheticDialogues, from which most of "
    "it was machine-translated, is CC BY-NC 4.0: not for commercial use, and its authors are to be named.",
    "own": "Nothing is known here of this file's licence: it is its user's to check.",
}
TOPICS = 40  # most that are listed


def of(
    corpus: Corpus, config: RunConfig, splits: Mapping[str, Sequence[Row]], forms: Mapping[int, Form]
) -> dict[str, Any]:
    """The data sheet of the rows in `splits`, without the counts of the stages and the tokens, which come later.

    `file`, `rows` (all records of the file), `splits` (rows, and of which source and length), `lengths` (by source, in
    characters and words), `topics`, `leaks`, `licence`. A length is [median, 95th percentile, longest].
    """
    used = [row for rows in splits.values() for row in rows]
    sources = sorted({row.source for row in used})
    topics = Counter(row.topic for row in used)
    return {
        "file": corpus.path.name,
        "rows": len(corpus.rows) + len(corpus.set_aside) + len(corpus.left_out),
        "conversations": config.conversations,
        "splits": {
            name: {
                "rows": len(rows),
                "sources": dict(sorted(Counter(row.source for row in rows).items())),
                "lengths": dict(sorted(Counter(row.length for row in rows).items())),
            }
            for name, rows in splits.items()
        },
        "lengths": {source: _lengths([row for row in used if row.source == source]) for source in sources},
        "topics": {
            "count": len(topics.keys() - {""}),
            "rows_without": topics.pop("", 0),
            "most": [list(one) for one in sorted(topics.items(), key=lambda one: (-one[1], one[0]))[:TOPICS]],
        },
        "leaks": leaks(splits, forms),
        "licence": LICENCE[_whose(corpus, config)],
    }


def leaks(splits: Mapping[str, Sequence[Row]], forms: Mapping[int, Form]) -> dict[str, int]:
    """How many times two splits hold the same dialogue or thread, the same letters, or texts of similarity 0.9.

    Looked for in the result and by other means than those that made it: no pair is missed by chance.
    """
    found = {"dialogues": 0, "look_alikes": 0, "near_duplicates": 0}
    for (_, less), (_, more) in itertools.combinations(sorted(splits.items()), 2):
        for kind, signs in (("dialogues", names), ("look_alikes", lambda row: ["".join(map(letters, forms[row.id]))])):
            both = [{sign for row in rows for sign in signs(row)} for rows in (less, more)]
            found[kind] += len(both[0] & both[1])
    for held_out, others in ((["test", "validation"], ["train"]), (["test"], ["validation"])):
        first, second = (
            [text for name in side for row in splits[name] for text in texts(forms[row.id])]
            for side in (held_out, others)
        )
        found["near_duplicates"] += len(list(repeats(first, second)))
    return found


def _lengths(rows: Sequence[Row]) -> dict[str, Any]:
    sides = {"question": [row.question for row in rows], "answer": [row.answer for row in rows]}
    return {
        "rows": len(rows),
        **{
            side: {"characters": spread([*map(len, said)]), "words": spread([len(text.split()) for text in said])}
            for side, said in sides.items()
        },
    }


def spread(values: Sequence[int]) -> list[int]:
    """[median, 95th percentile, largest], each one of the values (nearest rank); zeros where there are none."""
    inorder = sorted(values) or [0]
    return [inorder[-(-len(inorder) * percent // 100) - 1] for percent in (50, 95, 100)]


def _whose(corpus: Corpus, config: RunConfig) -> str:
    if config.data == "sample":
        return "sample"
    named = f"{config.data} {corpus.path.name}".lower().replace("-", "")
    return "bengali" if BENGALI in named else "own"
