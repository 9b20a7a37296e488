"""Whatever a spreadsheet makes of a rater's file, it gives the same ratings, or is refused by name."""

import csv
import io
import json
import random

import pytest

from kaggle_lib.errors import UserError
from kaggle_lib.rating import ratings, sheet
from kaggle_lib.rating.sheet import CRITERIA, Exchange
from kaggle_lib.rating.table import ITEM_COLUMNS, guarded, read_table, unguarded, write_table

TEXTS = [
    'আমি, আপনি; "সে"',
    "প্রথম\nদ্বিতীয়",
    "=1+1",
    "'=1",
    "''-",
    "'ক",
    "-ভালো",
    "@নাম",
    "\tট্যাব",
    "র‍্যাব",
    "",
    "+৮৮০",
    "ক\r\nখ",
]


@pytest.fixture
def made():
    return sheet.draw(
        [Exchange(str(n), "heldout", text, f"ওহ {text}", f"আচ্ছা {text}") for n, text in enumerate(TEXTS)],
        run="r",
        seed=3,
        pairs=6,
        singles=4,
    )


def rows_of(page, rng, rater="রেহানা"):
    rows = []
    for item in page["items"]:
        row = {"sheet": page["sheet"], "rater": rater, "item": item["item"], "kind": item["kind"]}
        row |= {"message": item["message"], "answer_a": item["a"], "answer_b": item.get("b", "")}
        if item["kind"] == "pair":
            row["better"] = rng.choice(sheet.CHOICES)
        else:
            row |= {name: rng.randint(1, 5) for name in CRITERIA}
        rows.append({**row, "seconds": "12.5", "at": f"2026-11-25T10:00:{len(rows):02d}.000Z", "comment": "=কেন?"})
    return rows


def csv_of(rows):
    return write_table(rows, (*ITEM_COLUMNS, *CRITERIA))


def rewritten(content, delimiter, encoding, end="\r\n", empty=0):
    """The table as a spreadsheet saves it: only quoted where it must be."""
    rows = list(csv.reader(io.StringIO(content.decode("utf-8-sig"), newline="")))
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end)
    writer.writerows(rows + [[""] * len(rows[0])] * empty)
    return text.getvalue().encode(encoding)


def test_all_forms_of_one_table_give_the_same_ratings(made, tmp_path):
    page, key = made
    content = csv_of(rows_of(page, random.Random(1)))
    assert content.startswith(b"\xef\xbb\xbf")
    forms = {
        "as-exported": content,
        "without-mark": content.removeprefix(b"\xef\xbb\xbf"),
        "semicolons": rewritten(content, ";", "utf-8-sig"),
        "unicode-text": rewritten(content, "\t", "utf-16"),
        "utf-16le-without-mark": rewritten(content, "\t", "utf-16-le"),
        "line-feeds": rewritten(content, ",", "utf-8", end="\n"),
        "empty-rows-behind": rewritten(content, ",", "utf-8-sig", empty=40),
    }
    found = []
    for name, form in forms.items():
        path = tmp_path / f"{name}.csv"
        path.write_bytes(form)
        found.append(ratings.read([path], key))
    assert all(one == found[0] for one in found)
    assert len(found[0]) == len(page["items"])
    assert {(one.rater, one.comment, one.seconds) for one in found[0]} == {("রেহানা", "=কেন?", 12.5)}


def test_texts_come_back_unchanged_and_nothing_is_run():
    rows = [{"item": text} for text in TEXTS]
    content = write_table(rows, ("item", "more"))
    cells = [row[0] for row in csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))][1:]
    assert not any(cell[:1] in "=+-@\t\r" for cell in cells if cell)
    assert [unguarded(guarded(text)) for text in TEXTS] == TEXTS
    assert [row["item"] for _, row in read_table(content, ("item",))] == [text for text in TEXTS if text]


def test_digits_of_either_script_and_what_spreadsheets_make_of_numbers(made, tmp_path):
    page, key = made
    single = next(item for item in page["items"] if item["kind"] == "single")
    for given, meant in (("৪", 4), ("4.0", 4), (" 5 ", 5), ("১", 1), ("4,0", 4), (3, 3)):
        path = tmp_path / "one.json"
        path.write_text(
            json.dumps({"sheet": page["sheet"], "rater": "x", "ratings": [{"item": single["item"], "empathy": given}]})
        )
        (one,) = ratings.read([path], key)
        assert one.scores == {"empathy": meant}


def test_impossible_rows_are_refused_by_name_all_at_once(made, tmp_path):
    page, key = made
    rows = rows_of(page, random.Random(1))
    singles = [number for number, row in enumerate(rows) if row["kind"] == "single"]
    pairs = [number for number, row in enumerate(rows) if row["kind"] == "pair"]
    for row in rows:
        row["message"] = row["answer_a"] = row["answer_b"] = "ক"  # one line each, so that lines can be counted
    rows[singles[0]]["empathy"] = 6
    rows[singles[1]]["safety"] = "ভালো"
    rows[singles[2]]["fluency"] = 4.5
    rows[singles[3]]["better"] = "a"
    rows[pairs[0]]["better"] = "c"
    rows[pairs[1]]["relevance"] = 3
    rows[pairs[2]]["item"] = "r999"
    rows[pairs[3]]["sheet"] = "s0"
    path = tmp_path / "rehana.csv"
    path.write_bytes(csv_of(rows))
    with pytest.raises(UserError) as refused:
        ratings.read([path], key)
    expected = sorted(
        [
            (singles[0], "empathy: '6' is not one of 1 to 5"),
            (singles[1], "safety: 'ভালো' is not one of 1 to 5"),
            (singles[2], "fluency: '4.5' is not one of 1 to 5"),
            (singles[3], "better: this item has one answer only"),
            (pairs[0], "better: 'c' is none of a, b, tie"),
            (pairs[1], "relevance: this item is a pair, which is not scored"),
            (pairs[2], "item: there is no 'r999' on this sheet"),
            (pairs[3], f"sheet: 's0' is not of this key, whose sheet is {page['sheet']!r}"),
        ]
    )
    lines = [f"  rehana.csv, line {number + 2}, {what}" for number, what in expected]
    assert str(refused.value).split("\n") == [
        "The ratings cannot be used, 8 problems:",
        *lines,
        "Nothing was scored or written. Correct the rows, or leave the file out.",
    ]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", b"", "it is empty"),
        ("a.csv", b"item,empathy\r\nr001,3\r\n", "it has no column better, relevance, fluency, culture, safety"),
        ("a.csv", "item,better\nক".encode("cp1252", "replace") + b"\x93", "it is not text in UTF-8-SIG (byte 13)"),
        ("a.json", b"[1, 2]", "it is not a file of the rating page: there is no list `ratings`"),
        ("a.json", b'{"ratings": [1]}', "rating 1 is not an object"),
        ("a.json", b"{", "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ],
)
def test_what_is_no_such_file_is_named(made, tmp_path, name, content, why):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        ratings.read([tmp_path / name], made[1])
    assert str(refused.value).startswith(f"The ratings cannot be used, 1 problem:\n  {name}: {why}\n")


def test_several_files_are_one_and_the_later_rating_of_a_rater_counts(made, tmp_path):
    page, key = made
    first = rows_of(page, random.Random(1))
    changed = [{**row, "at": "2026-11-26T00:00:00.000Z"} for row in rows_of(page, random.Random(2))[:3]]
    unrated = [{"item": row["item"], "kind": row["kind"], "sheet": page["sheet"]} for row in first]
    for name, rows in (
        ("z.csv", first),
        ("a.csv", changed),
        ("b.csv", rows_of(page, random.Random(3), "করিম")),
        ("c.csv", unrated),
    ):
        (tmp_path / name).write_bytes(csv_of(rows))
    for order in (("z", "a", "b", "c"), ("a", "c", "z", "b")):
        found = ratings.read([tmp_path / f"{name}.csv" for name in order], key)
        assert len(found) == 2 * len(page["items"])
        later = {row["item"]: row.get("better") for row in changed}
        assert {one.item: one.better for one in found if one.rater == "রেহানা" and one.item in later} == later
    with pytest.raises(UserError, match=r"^There is no rating in these files\."):
        ratings.read([tmp_path / "c.csv"], key)


def test_a_row_without_a_name_is_the_files(made, tmp_path):
    page, key = made
    rows = rows_of(page, random.Random(1), rater="")
    (tmp_path / "karim.csv").write_bytes(csv_of(rows))
    assert {one.rater for one in ratings.read([tmp_path / "karim.csv"], key)} == {"karim"}
