"""What a rater gets tells nothing of which answer is whose; the key tells all of it."""

import json
import re

import pytest

from kaggle_lib.errors import UserError
from kaggle_lib.rating import sheet
from kaggle_lib.rating.commands import build
from kaggle_lib.rating.sheet import Exchange
from kaggle_lib.rating.table import read_table
from kaggle_lib.runs.folder import RunFolder

LONG = "এত বছরের বন্ধুকে হারানো খুব কষ্টের। ওকে নিয়ে বলতে ইচ্ছে হলে আমি শুনছি।"


def exchanges(count, group="heldout"):
    """The one model always answers at length, the other never: a leak of order or side would show."""
    return [Exchange(str(n), group, f"বার্তা {n}", f"ওহ {n}।", f"{LONG} {n}") for n in range(count)]


def drawn(**more):
    return sheet.draw(exchanges(240), **{"run": "bengali-8b", "seed": 7, "pairs": 200, "singles": 20, **more})


def test_sides_are_even_and_the_seed_alone_decides():
    page, key = drawn()
    pairs = [behind for behind in key["items"].values() if behind["kind"] == "pair"]
    assert len(pairs) == 200
    assert sum(behind["a"] == "tuned" for behind in pairs) == 100
    assert all({behind["a"], behind["b"]} == {"base", "tuned"} for behind in pairs)
    assert drawn() == (page, key)
    other, behind = drawn(seed=8)
    assert other["sheet"] != page["sheet"]
    assert [one.get("a") for one in behind["items"].values()] != [one.get("a") for one in key["items"].values()]


def test_the_key_names_each_answer():
    page, key = drawn(singles=40)
    texts = {one.id: one for one in exchanges(240)}
    for item in page["items"]:
        behind = key["items"][item["item"]]
        if "check" in behind:
            continue
        exchange = texts[behind["exchange"]]
        assert item["message"] == exchange.message
        for side in ("a", "b") if behind["kind"] == "pair" else ("a",):
            assert item[side] == exchange.answer(behind[side])
    singles = [one for one in key["items"].values() if one["kind"] == "single" and "check" not in one]
    assert sorted({(one["exchange"], one["a"]) for one in singles}) == sorted(
        (one["exchange"], one["a"]) for one in singles
    )
    assert sum(one["a"] == "base" for one in singles) == sum(one["a"] == "tuned" for one in singles) == 40
    paired = {one["exchange"] for one in key["items"].values() if one["kind"] == "pair"}
    assert not paired & {one["exchange"] for one in singles}


def test_the_order_of_the_rows_tells_nothing():
    _, key = drawn(pairs=0, singles=120)
    sides = [one["a"] for one in key["items"].values() if "check" not in one]
    half = len(sides) // 2
    assert 0.4 < sides[:half].count("tuned") / half < 0.6
    # Neither answer of a message comes before the other more often than by chance.
    seen = {}
    for one in key["items"].values():
        if "check" not in one:
            seen.setdefault(one["exchange"], one["a"])
    assert 0.4 < list(seen.values()).count("tuned") / len(seen) < 0.6


def test_what_a_rater_gets_holds_no_trace_of_the_models(tmp_path):
    folder = RunFolder(tmp_path / "bengali-8b")
    build(folder, exchanges(60), seed=7, pairs=40, singles=10, say=lambda _: None)
    assert sorted(path.name for path in folder.rating.iterdir()) == ["key.json", "page.html", "sheet.csv"]
    for name in ("page.html", "sheet.csv"):
        content = (folder.rating / name).read_text(encoding="utf-8-sig")
        assert not re.search(r"base|tuned|bengali-8b|llama|adapter|peft|unsloth|heldout|step|check_", content, re.I), (
            name
        )
    key = json.loads((folder.rating / "key.json").read_text(encoding="utf-8"))
    assert key["run"] == "bengali-8b"


def test_an_attention_check_for_every_twenty_items_says_what_to_do():
    page, key = drawn(pairs=30, singles=5)
    checks = {name: one["check"] for name, one in key["items"].items() if "check" in one}
    assert len(checks) == 1 + 40 // 20
    for item in page["items"]:
        if item["item"] in checks:
            value = checks[item["item"]]
            assert item["a"].endswith(f"give this answer {value} on every scale.")
            assert f"মাপে {'০১২৩৪৫'[value]} দিন" in item["a"]
    page, key = drawn(pairs=30, singles=0)
    checks = {name for name, one in key["items"].items() if one.get("check") == "tie"}
    assert len(checks) == 2
    assert all(
        "«সমান»" in item["a"] == item["b"] or item["a"] == item["b"] for item in page["items"] if item["item"] in checks
    )


def test_equal_answers_are_no_pair_and_few_answers_are_used_for_both():
    same = [Exchange(f"same {n}", "heldout", "ক", "খ", " খ ") for n in range(5)]
    _, key = sheet.draw([*same, *exchanges(3)], run="r", seed=1, pairs=10, singles=10)
    kinds = [one["kind"] for one in key["items"].values() if "check" not in one]
    assert (kinds.count("pair"), kinds.count("single")) == (3, 16)
    with pytest.raises(
        UserError, match=r"^There is nothing to rate: no answers, or the two models' answers are all equal\. "
    ):
        sheet.draw(same, run="r", seed=1, pairs=10, singles=0)
    with pytest.raises(UserError, match="There is nothing to rate"):
        sheet.draw([], run="r", seed=1, pairs=10, singles=10)


def test_another_sheet_does_not_take_the_first_ones_key(tmp_path):
    folder, said = RunFolder(tmp_path / "r"), []
    for seed in (1, 1, 2):
        build(folder, exchanges(10), seed=seed, pairs=5, singles=0, say=said.append)
    first = json.loads((tmp_path / "r/rating.earlier-1/key.json").read_text())
    assert first["seed"] == 1
    assert json.loads((folder.rating / "key.json").read_text())["seed"] == 2
    assert [line for line in said if "set aside" in line] == [
        f"An earlier sheet ({first['sheet']}) was set aside: its files and its key are in {folder.rating}.earlier-1."
    ]


def test_a_message_from_the_data_ends_no_script_and_runs_no_formula(tmp_path):
    evil = [Exchange("1", "heldout", "</script><b>", "=HYPERLINK(1)", "'=1\n@x")]
    page, key = sheet.draw(evil, run="r", seed=1, pairs=1, singles=0)
    sheet.write(tmp_path, page, key)
    html = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert html.count("</script>") == 3
    assert "\\u003c/script\\u003e\\u003cb\\u003e" in html
    content = (tmp_path / "sheet.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    for row in content.decode("utf-8-sig").split("\r\n")[1:-1]:
        assert not re.search(r'"[=+\-@]', row)
    rows = [row for _, row in read_table(content, ("item",))]
    assert {row["answer_a"] for row in rows} >= {page["items"][n]["a"] for n in range(len(rows))}
