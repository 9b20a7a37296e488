"""The run's page in a real browser: from a phone to a desk, light, dark and printed, with and without its script."""

import pytest
from support.browser import chromium, needed
from support.made_up_run import evaluated, fake_run, loss_of, made_up_config

from kaggle_lib.report import page

pytestmark = [pytest.mark.slow, needed]
# What reaches beyond the window, but for what scrolls in a box of its own.
BEYOND = """[...document.querySelectorAll("main *, nav")].filter((e) => !e.closest(".scroll, .unseen, nav ul")
  && e.getBoundingClientRect().right > innerWidth + 1).map((e) => e.outerHTML.slice(0, 90))"""
COLOR = "getComputedStyle(document.querySelector('polyline')).stroke"


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder, records = fake_run(tmp_path_factory.mktemp("work") / "bengali-demo")
    evaluated(folder)
    return page.build(folder, made_up_config(), records).as_uri()


@pytest.fixture
def open_page(browser, address):
    """Opens it; whatever it asks for beside itself, or stumbles over, fails the test."""
    contexts, asked, errors = [], [], []

    def start(width, scheme="light", script=True):
        contexts.append(
            browser.new_context(
                viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=script
            )
        )
        opened = contexts[-1].new_page()
        opened.on("request", lambda request: asked.append(request.url))
        opened.on("pageerror", lambda error: errors.append(error))
        opened.goto(address)
        return opened

    yield start
    for context in contexts:
        context.close()
    assert (set(asked), errors) == ({address}, [])


@pytest.mark.parametrize("width", [1280, 768, 360])
def test_nothing_reaches_beyond_the_window(open_page, width):
    opened = open_page(width)
    assert opened.evaluate("document.documentElement.scrollWidth") == width
    assert opened.evaluate(BEYOND) == []
    wide = "[...document.querySelectorAll('.scroll')].some((e) => e.scrollWidth > e.clientWidth + 1)"
    assert opened.evaluate(wide) == (width == 360)


def test_curves_follow_light_dark_and_print(open_page):
    light, dark = open_page(1280), open_page(1280, "dark")
    assert (light.evaluate(COLOR), dark.evaluate(COLOR)) == ("rgb(11, 98, 168)", "rgb(109, 179, 242)")
    dark.emulate_media(media="print", color_scheme="dark")
    assert dark.evaluate(COLOR) == "rgb(11, 98, 168)"
    assert dark.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not dark.locator("nav").is_visible()
    assert dark.pdf(format="A4", print_background=True).startswith(b"%PDF")


def test_a_pointer_over_a_curve_is_told_step_and_value(open_page):
    opened = open_page(1280)
    box = opened.locator(".loss .area svg").first.bounding_box()
    opened.mouse.move(box["x"] + box["width"] * 90 / 180, box["y"] + 50)
    told = opened.locator(".loss output").inner_text()
    name, value = told.split(": ")
    assert name == "step 90" and float(value) == pytest.approx(loss_of(90), abs=0.01)
    opened.mouse.move(5, 5)
    assert opened.locator(".loss output").inner_text() == ""


def test_all_of_it_is_there_without_a_script(open_page):
    opened = open_page(360, script=False)
    for words in ("The tuned model needs", "Where the hours went", "training, lost", "What is exact, and when"):
        assert opened.get_by_text(words).first.is_visible()
    assert opened.locator("polyline").first.is_visible()
