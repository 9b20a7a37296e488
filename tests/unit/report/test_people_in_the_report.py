"""What people said of the answers stands in the report, with what it is worth."""

import random

import pytest

from kaggle_lib.errors import UserError
from kaggle_lib.files import write_json
from kaggle_lib.rating import sheet
from kaggle_lib.rating.ratings import Rating
from kaggle_lib.rating.score import score
from kaggle_lib.rating.sheet import CRITERIA, Exchange
from kaggle_lib.report import page, people
from kaggle_lib.runs.folder import RunFolder


def rated(folder, raters):
    groups = ["heldout"] * 12 + ["safety"] * 4
    exchanges = [Exchange(str(n), group, f"m{n}", f"b{n}", f"t{n}") for n, group in enumerate(groups)]
    made, key = sheet.draw(exchanges, run="r", seed=1, pairs=8, singles=4)
    rng, given = random.Random(2), []
    for rater in raters:
        for item in made["items"]:
            behind = key["items"][item["item"]]
            if "check" in behind:
                scores = dict.fromkeys(CRITERIA, behind["check"])
            else:
                scores = {name: rng.randint(1, 5) for name in CRITERIA}
            pair = item["kind"] == "pair"
            given.append(Rating(rater, item["item"], "a" if pair else None, {} if pair else scores, 7.0, "", ""))
    result = score(given, key)
    folder.rating.mkdir(parents=True)
    write_json(folder.rating / "result.json", result)
    return result


def shown(folder):
    return str(people.section(page._environment(), folder))


def test_the_numbers_of_the_result_are_on_the_page(tmp_path):
    folder = RunFolder(tmp_path / "r")
    assert shown(folder) == ""
    result = rated(folder, ["<b>রেহানা</b>", "করিম"])
    html = shown(folder)
    assert f"{result['win_rate']['mean']:.2f} <span" in html
    assert '<th scope="row">heldout</th>' in html and '<th scope="row">safety</th>' in html
    for name in CRITERIA:
        assert f"{result['criteria'][name]['difference']['mean']:.2f}".replace("-", "−") in html
        assert f"{result['agreement'][name]['alpha']:.2f}".replace("-", "−") in html
    assert "&lt;b&gt;রেহানা" in html and "<b>রেহানা" not in html
    items = result["raters"]["করিম"]["items"]
    assert f"করিম: {items} items, " in html
    assert "2 raters" in html and "attention checks, 7 s an item" in html


def test_what_is_undefined_says_why_and_damage_is_one_message(tmp_path):
    folder = RunFolder(tmp_path / "r")
    rated(folder, ["one"])
    assert shown(folder).count("no item was rated by two raters") == 6
    (folder.rating / "result.json").write_text("{")
    with pytest.raises(
        UserError, match=r"result\.json is damaged\. Nothing was changed\. `rate score` writes it anew\."
    ):
        shown(folder)
