"""Time and memory of the corpus' way to token ids, stage by stage, over a generated corpus of the real size.

The corpus is 38,210 rows of random Bengali sentences, made of the sample corpus' words: dialogues of two to six turns,
a tenth forum answers at the head, and mess of each kind that curation knows. Each stage is a process of its own; its
imports are timed apart.

    python benchmarks/data.py [--rows 38210] [--tokenizer FOLDER] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kaggle_lib.config import RunConfig

SAMPLE = Path(__file__).parents[1] / "kaggle_lib/data/sample"
HEADER = ("Topics", "Question-Title", "Questions", "Answers")
EMOTIONS = ("দোষী", "একাকী", "বিষয়বস্তু", "ভীত", "কৃতজ্ঞ", "হতাশ", "গর্বিত", "আনন্দিত", "বিস্মিত", "দুঃখিত")
FORUM = ("বিষণ্নতা", "উদ্বেগ", "বিবাহ", "শোক", "নেশা", "ঘুম", "আত্মসম্মান", "সম্পর্ক")
# What looks the same and is spelt otherwise.
LOOKALIKES = (("আ", "অ\u09be"), ("র", "ব\u09bc"), ("ৎ", "ত\u09cd\u200d"), ("।", "৷"))


class Maker:
    """Rows of the corpus' shape; the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        with (SAMPLE / "bengali_sample.csv").open(encoding="utf-8", newline="") as file:
            words = [word for row in csv.DictReader(file) for cell in row.values() for word in cell.split()]
        self.words = sorted({word.strip("।.,?!\"'") for word in words} - {""})

    def sentence(self, most: int) -> str:
        words = self.random.choices(self.words, k=self.random.randint(max(2, most // 3), most))
        return " ".join(words) + self.random.choice(("।", "।", ".", "?"))

    def text(self, sentences: int, most: int) -> str:
        return self.random.choice((" ", " ", "  ")).join(self.sentence(most) for _ in range(sentences))

    def forum(self, rows: int) -> list[list[str]]:
        """Long answers, one to three of them to one title and question."""
        made: list[list[str]] = []
        while len(made) < rows:
            topic, title, question = self.random.choice(FORUM), self.sentence(9), self.text(4, 20)
            for _ in range(self.random.choice((1, 1, 2, 3))):
                made.append([topic, title, question, self.text(self.random.randint(6, 16), 18)])
        return made[:rows]

    def turns(self, rows: int) -> list[list[str]]:
        """Short turns, two to six of them a dialogue; some dialogues have no title, some a row of another within."""
        made: list[list[str]] = []
        while len(made) < rows:
            topic = self.random.choice(EMOTIONS)
            title = "" if self.random.random() < 0.05 else self.sentence(5)
            for _ in range(self.random.randint(2, 6)):
                made.append([topic, title, self.text(self.random.choice((1, 1, 2)), 16), self.text(1, 18)])
            if self.random.random() < 0.02:
                made.insert(-1, [self.random.choice(EMOTIONS), self.sentence(5), self.sentence(9), self.sentence(9)])
        return made[:rows]

    def mess(self, rows: list[list[str]], share: float = 0.01) -> None:
        """Overwrite `share` of the rows with each kind of copy, and as many cells with each kind of noise."""
        count = max(1, round(share * len(rows)))
        for kind in ("exact", "look-alike", "near", "empty", "nul", "spaces"):
            for _ in range(count):
                to, of = self.random.sample(range(len(rows)), 2)
                question, answer = rows[of][2:]
                if kind == "exact":
                    rows[to][2:] = [question, answer]
                elif kind == "look-alike":
                    rows[to][2:] = [lookalike(question), lookalike(answer)]
                elif kind == "near":
                    rows[to][2:] = [question + " " + answer, f"{answer} {answer[:40]}"]
                    rows[of][2:] = [question + " " + answer, f"{answer} {answer[:39]}"]
                elif kind == "empty":
                    rows[to][self.random.randint(2, 3)] = self.random.choice(("", " ", "\u200b"))
                elif kind == "nul":
                    rows[to][2] = "\0" + rows[to][2]
                else:
                    rows[to][3] = rows[to][3].replace(" ", "\u00a0  ")


def lookalike(text: str) -> str:
    for good, other in LOOKALIKES:
        text = text.replace(good, other)
    return text


def generate(path: Path, rows: int, seed: int = 1) -> None:
    """Write the corpus as the original is written: a comma CSV with a BOM."""
    maker = Maker(seed)
    made = [*maker.forum(rows // 10), *maker.turns(rows - rows // 10)]
    maker.mess(made)
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([HEADER, *made])
        for line in range(max(1, rows // 2000)):  # more fields than the header
            file.write(f"দোষী,কেক {line},ক,খ,গ\r\n")


def now() -> tuple[float, float]:
    """Wall clock, and this process's CPU time over all its threads: on a busy machine the second says more."""
    return time.perf_counter(), time.process_time()


def stages(config: RunConfig, tokenizer_folder: Path, cache: Path) -> dict[str, list[float]]:
    """(wall, CPU) seconds of each stage of the first time, one after another as `tokenise.tokenised` does them."""
    from kaggle_lib.data import chat, curate, read, sheet, split, tokenise

    tokenizer = load(tokenizer_folder)
    chat.check(tokenizer, 1 << 20)
    spent: dict[str, list[float]] = {}

    def timed(module: object, name: str, label: str) -> None:
        inner = getattr(module, name)

        def outer(*given: object, **how: object) -> object:
            begun = now()
            try:
                return inner(*given, **how)
            finally:
                before = spent.get(label, [0.0, 0.0])
                spent[label] = [was + end - begin for was, begin, end in zip(before, begun, now(), strict=True)]

        setattr(module, name, outer)

    timed(read, "read", "read the file")
    timed(curate, "_normal", "repair the text, tell the sources")
    timed(curate, "_kept", "drop what is empty or repeats")
    timed(split, "join_similar", "near duplicates (MinHash, exact check)")
    timed(curate, "ordered", "order by source and length")
    timed(curate, "split", "split")
    timed(sheet, "leaks", "leak check")
    timed(tokenise, "_make", "tokenise and write")
    timed(tokenise, "tokenised", "all")
    tokenise.tokenised(config, tokenizer, cache)
    return spent


def again(config: RunConfig, tokenizer_folder: Path, cache: Path) -> dict[str, list[float]]:
    """The same when all is in the cache; the libraries and the tokenizer are loaded before."""
    import datasets  # noqa: F401

    from kaggle_lib.data import tokenise

    tokenizer = load(tokenizer_folder)
    begun = now()
    tokenise.tokenised(config, tokenizer, cache)
    return {"all, from the cache": [end - begin for begin, end in zip(begun, now(), strict=True)]}


def load(folder: Path) -> object:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=38_210)
    parser.add_argument("--tokenizer", type=Path, default=SAMPLE, help="a folder with a tokenizer.json")
    parser.add_argument("--keep", type=Path, help="where the corpus and the cache stay")
    parser.add_argument("--part", choices=("first", "again"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if not given.part:
        with tempfile.TemporaryDirectory() as aside:
            folder = given.keep or Path(aside)
            folder.mkdir(parents=True, exist_ok=True)
            generate(folder / "corpus.csv", given.rows)
            words = [*("--rows", str(given.rows)), *("--tokenizer", given.tokenizer), *("--keep", folder)]
            for part in ("first", "again"):
                subprocess.run([sys.executable, __file__, *words, "--part", part], check=True)
        return
    path, cache = given.keep / "corpus.csv", given.keep / "cache"
    config = RunConfig.create({"run": "r", "base_model": "sample", "data": str(path)})
    told = (stages if given.part == "first" else again)(config, given.tokenizer, cache)
    about = json.loads(next(cache.glob("tokens-*/counts.json")).read_text(encoding="utf-8"))
    print(f"\n{given.part}: {path.stat().st_size / 2**20:.1f} MiB, {about['counts']}", flush=True)
    print("\n| stage | wall s | CPU s |\n|---|---|---|")
    for name, (wall, cpu) in told.items():
        print(f"| {name} | {wall:.2f} | {cpu:.2f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    sheet = about["sheet"]
    print(f"\npeak {peak:.2f} GiB, leaks {sheet['leaks']}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main()
