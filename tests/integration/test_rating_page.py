"""The raters' page in a real browser: by hand and keyboard, on a phone, with a closed tab, two tabs and no storage."""

import json
from pathlib import Path

import pytest
from support.browser import chromium, needed

from kaggle_lib.rating import commands, sheet
from kaggle_lib.rating.sheet import CRITERIA, Exchange
from kaggle_lib.rating.table import read_table
from kaggle_lib.runs.folder import RunFolder

pytestmark = [pytest.mark.slow, needed]
MESSAGE = "গতকাল আমার সবচেয়ে কাছের বন্ধু চলে গেল। ক্ষুদ্র কষ্ট নয়, র‍্যাব ডাকিনি। "
EVIL = "<script>window.evil = 1</script><img src=x onerror='window.evil = 1'>=1+1"

# Elements whose content is wider than they are, or that reach beyond the window.
CLIPPED = """[...document.querySelectorAll("main *, header *")]
  .filter((e) => e.offsetParent && !e.closest(".file input")
  && (e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline" && e.tagName !== "INPUT"
      || e.getBoundingClientRect().right > innerWidth + 1)).map((e) => e.outerHTML.slice(0, 80))"""
NARROWER = """(() => { const c = document.createElement("canvas").getContext("2d");
  c.font = getComputedStyle(document.body).font;
  return c.measureText("ক্ষ").width < c.measureText("ক্\\u200cষ").width; })()"""
DEAF = """const add = window.addEventListener;
  window.addEventListener = (name, ...rest) => name === "storage" || add.call(window, name, ...rest);"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    run = RunFolder(tmp_path_factory.mktemp("run") / "r")
    exchanges = [
        Exchange(str(n), "heldout", f"{MESSAGE}{n}", f"ওহ {n}। {EVIL}", f'=আমি শুনছি, "বলুন"\n{n}') for n in range(8)
    ]
    commands.build(run, exchanges, seed=4, pairs=5, singles=2, say=lambda _: None)
    return run


@pytest.fixture
def context(browser):
    """A rater's own browser profile, small as a phone."""
    made = browser.new_context(viewport={"width": 360, "height": 740}, locale="bn-BD", accept_downloads=True)
    yield made
    made.close()


def opened(context, folder, rater=None):
    page = context.new_page()
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(str(error)))
    page.on("request", lambda request: page.wrong.append(request.url) if not request.url.startswith("file:") else None)
    page.goto((folder.rating / sheet.PAGE).as_uri())
    if rater:
        page.fill("#rater", rater)
        page.click("#start button")
    return page


def items(folder):
    key = json.loads((folder.rating / sheet.KEY).read_text(encoding="utf-8"))["items"]
    return list(key.items())


def chosen(number, what):
    """What rater `what` gives item `number`, so that every test and every reader knows it."""
    return {
        "better": sheet.CHOICES[(number + what) % 3],
        **{name: (number * (what + 1) + place) % 5 + 1 for place, name in enumerate(CRITERIA)},
    }


def rate_all(page, folder, what, *, keyboard):
    for number, (_, behind) in enumerate(items(folder)):
        given = chosen(number, what)
        if behind["kind"] == "pair":
            keys = {"a": "a", "b": "b", "tie": "="}
            if keyboard:
                page.keyboard.press(keys[given["better"]])
            else:
                page.click(f"[data-better={given['better']}]")
        else:
            for name in CRITERIA:
                if keyboard:
                    page.keyboard.press(str(given[name]))
                else:
                    page.click(f"[data-criterion={name}] [data-value='{given[name]}']")
        if keyboard:
            page.keyboard.press("Enter")
        else:
            page.click("#next")


def downloaded(page, button, into):
    with page.expect_download() as waiting:
        page.click(button)
    path = into / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_three_raters_files_are_scored_and_agree_with_the_sums_by_hand(browser, folder, tmp_path):
    files, expected = [], []
    for what, (rater, keyboard, button) in enumerate(
        (("রেহানা", True, "#json"), ("করিম", False, "#csv"), ("x y/z", True, "#csv"))
    ):
        context = browser.new_context(viewport={"width": 360, "height": 740}, locale="bn-BD", accept_downloads=True)
        page = opened(context, folder, rater)
        rate_all(page, folder, what, keyboard=keyboard)
        assert page.locator("#left").inner_text().strip() == "সব হয়ে গেছে। ধন্যবাদ!"
        files.append(downloaded(page, button, tmp_path))
        assert page.wrong == []
        assert page.evaluate("window.evil") is None
        expected.append({name: chosen(number, what) for number, (name, _) in enumerate(items(folder))})
        context.close()
    key = dict(items(folder))
    assert [path.name.split("-")[2] for path in files] == ["রেহানা.json", "করিম.csv", "x_y_z.csv"]
    result = commands.evaluate(folder, files, say=lambda _: None)
    # Nobody minded the attention checks here, so all three are left out of the numbers.
    checks = {name: behind["check"] for name, behind in key.items() if "check" in behind}
    for rater, given in zip(("রেহানা", "করিম", "x y/z"), expected, strict=True):
        passed = sum({given[name][one] for one in CRITERIA} == {value} for name, value in checks.items())
        assert result["raters"][rater]["checks_passed"] == passed == 0
        assert result["raters"][rater]["items"] == len(key) - len(checks)
    counted = commands.ratings.read(files, {**json.loads((folder.rating / sheet.KEY).read_text(encoding="utf-8"))})
    assert {(one.rater, one.item): (one.better, dict(one.scores)) for one in counted} == {
        (rater, name): (given[name]["better"], {})
        if key[name]["kind"] == "pair"
        else (None, {one: given[name][one] for one in CRITERIA})
        for rater, given in zip(("রেহানা", "করিম", "x y/z"), expected, strict=True)
        for name in key
    }
    without_checks = {**json.loads((folder.rating / sheet.KEY).read_text(encoding="utf-8"))}
    for name in checks:
        without_checks["items"][name] = {"kind": "single", "exchange": "none", "group": "heldout", "a": "nobody"}
    found = commands.score(counted, without_checks)
    pairs = [name for name, behind in key.items() if behind["kind"] == "pair"]
    worth = []
    for name in pairs:
        sides = {"tie": 0.5} | {side: float(key[name][side] == "tuned") for side in ("a", "b")}
        worth.append(sum(sides[given[name]["better"]] for given in expected) / 3)
    assert found["win_rate"]["mean"] == pytest.approx(sum(worth) / len(worth))
    for criterion in CRITERIA:
        for side in sheet.SIDES:
            rated = [name for name, behind in key.items() if behind["kind"] == "single" and behind.get("a") == side]
            mean = sum(given[name][criterion] for given in expected for name in rated) / (3 * len(rated))
            assert found["criteria"][criterion][side]["mean"] == pytest.approx(mean)


def test_the_export_gives_every_text_back_and_runs_no_formula(context, folder, tmp_path):
    page = opened(context, folder, "র")
    page.fill("textarea", '=HYPERLINK("x")')
    rate_all(page, folder, 0, keyboard=False)
    content = downloaded(page, "#csv", tmp_path).read_bytes()
    assert content.startswith(b"\xef\xbb\xbf")
    rows = [row for _, row in read_table(content, ("item", "better"))]
    shown = {
        item["item"]: item
        for item in page.evaluate("JSON.parse(document.getElementById('sheet').textContent)")["items"]
    }
    assert [(row["message"], row["answer_a"], row["answer_b"]) for row in rows] == [
        (shown[row["item"]]["message"], shown[row["item"]]["a"], shown[row["item"]].get("b", "")) for row in rows
    ]
    assert rows[0]["comment"] == '=HYPERLINK("x")'
    assert not any(f'"{sign}' in content.decode("utf-8-sig").replace('""', "") for sign in "=+@")


def test_a_closed_tab_goes_on_where_it_was(context, folder):
    page = opened(context, folder, "রেহানা")
    for _ in range(3):
        page.keyboard.press("a")
        for _ in CRITERIA:
            page.keyboard.press("3")
        page.keyboard.press("ArrowRight")
    page.close()
    page = opened(context, folder)
    assert page.locator("#count").inner_text() == f"৩ / {str(len(items(folder))).translate(sheet.BENGALI_DIGITS)}"
    assert page.locator("#work").is_visible()
    # Undo is of this sitting; going back shows what was given.
    page.keyboard.press("ArrowLeft")
    assert page.locator("#work [aria-pressed=true]").count() == (1 if items(folder)[2][1]["kind"] == "pair" else 5)


def test_undo_takes_back_the_last_answer(context, folder):
    page = opened(context, folder, "রেহানা")
    kind = items(folder)[0][1]["kind"]
    keys = ("a", "b") if kind == "pair" else ("3", "5")
    pressed = "#work [aria-pressed=true]"
    page.keyboard.press(keys[0])
    before = page.locator(pressed).all_inner_texts()
    if kind == "single":
        page.keyboard.press("ArrowUp")
    page.keyboard.press(keys[1])
    assert page.locator(pressed).all_inner_texts() != before
    page.keyboard.press("u")
    assert page.locator(pressed).all_inner_texts() == before
    page.keyboard.press("u")
    assert page.locator(pressed).count() == 0
    assert page.locator("#undo").is_disabled()


@pytest.mark.parametrize("told", [True, False])
def test_two_tabs_lose_nothing_and_are_told_where_the_browser_tells(context, folder, told):
    if not told:
        context.add_init_script(DEAF)
    first, second = opened(context, folder, "রেহানা"), opened(context, folder)
    for page, number in ((first, 0), (second, 1), (first, 2), (second, 3)):
        page.evaluate(f"go({number})")
        page.keyboard.press("b")
        for _ in CRITERIA:
            page.keyboard.press("4")
    stored = json.loads(first.evaluate("localStorage.getItem(place())"))["ratings"]
    assert sorted(stored) == [name for name, _ in items(folder)[:4]]
    assert ("আরেকটি ট্যাবেও খোলা" in first.locator("#notices").inner_text()) is told


def test_where_nothing_can_be_stored_the_page_says_so_and_still_exports(context, folder, tmp_path):
    page = context.new_page()
    page.add_init_script("Storage.prototype.setItem = () => { throw new DOMException('no', 'QuotaExceededError'); }")
    page.goto((folder.rating / sheet.PAGE).as_uri())
    page.fill("#rater", "র")
    page.click("#start button")
    assert "হারিয়ে যাবে" in page.locator("#notices").inner_text()
    rate_all(page, folder, 1, keyboard=True)
    assert page.locator("#saved").inner_text() == ""
    found = json.loads(downloaded(page, "#json", tmp_path).read_text(encoding="utf-8"))
    assert len(found["ratings"]) == len(items(folder))


def test_an_exported_file_goes_on_in_another_browser(browser, context, folder, tmp_path):
    page = opened(context, folder, "রেহানা")
    rate_all(page, folder, 2, keyboard=True)
    path = downloaded(page, "#json", tmp_path)
    elsewhere = browser.new_context(locale="en-US")
    page = opened(elsewhere, folder)
    foreign = tmp_path / "foreign.json"
    foreign.write_text('{"sheet": "s0", "ratings": []}')
    page.set_input_files("#import", foreign)
    page.wait_for_selector("#notices p")
    assert page.locator("#notices").inner_text() == "That file is of another page, so it was not taken."
    page.set_input_files("#import", path)
    page.wait_for_selector("#end", state="visible")
    assert page.locator("#left").inner_text().strip() == "All done. Thank you!"
    elsewhere.close()


@pytest.mark.parametrize("width", [360, 1100])
def test_nothing_is_clipped_and_letters_are_shaped(browser, folder, width):
    context = browser.new_context(viewport={"width": width, "height": 740}, locale="bn-BD")
    page = opened(context, folder)
    seen = set()
    for _ in range(len(items(folder)) + 2):
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        clipped = page.evaluate(CLIPPED)
        assert clipped == []
        seen.add(page.evaluate("document.getElementById('work').className"))
        if page.locator("#start").is_visible():
            page.fill("#rater", "র")
            page.click("#start button")
        else:
            page.keyboard.press("ArrowRight")
    assert {"pair", "single"} <= seen
    # A conjunct is one glyph: narrower than its letters with the joint shown.
    narrower = page.evaluate(NARROWER)
    assert narrower
    context.close()


@pytest.mark.skipif(not Path("/usr/share/fonts").is_dir(), reason="no fonts")
def test_dark_and_light_are_readable(browser, folder):
    for scheme, lighter in (("dark", True), ("light", False)):
        context = browser.new_context(color_scheme=scheme)
        page = opened(context, folder)
        ink, paper = page.evaluate(
            "['color', 'backgroundColor'].map((n) => getComputedStyle(document.body)[n].match(/\\d+/g).map(Number)"
            ".reduce((a, b) => a + b))"
        )
        assert (ink > paper) is lighter
        assert abs(ink - paper) > 450
        context.close()
