"""docs/errors.md has every message of an error that we raise, each with its cause, and none that we do not raise."""

import re
from collections import Counter

import pytest
from support import errors_page

from kaggle_lib import errors


def test_the_page_has_every_message_of_the_code_and_no_other():
    code, page = set(errors_page.of_code()), set(errors_page.of_page())
    told = "run `python tests/support/errors_page.py`"
    assert sorted(code - page) == [], f"not in the page: {told}"
    assert sorted(page - code) == [], f"not in the code: {told}"
    assert len(code) > 200
    assert [message for message, count in Counter(errors_page.of_page()).items() if count > 1] == []


def test_every_message_has_a_cause():
    rows = re.findall(r"^\| (.+?) \| (.*) \|$", errors_page.PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert [message for message, cause in rows if len(cause) < 12 and message != "message"] == []


def test_no_raise_of_ours_escapes():
    """Each of our error classes that is made has a message that was read, or passes on another's text."""
    made = {name for path in errors_page.PACKAGE.rglob("*.py") for name, _ in errors_page.Module(path).messages()}
    assert made == errors_page.classes() == {name for name in vars(errors) if name[0].isupper() and name != "Sequence"}


@pytest.mark.parametrize(
    ("source", "messages"),
    [
        ('raise UserError("One.")', ["One."]),
        ('raise UserError(f"One {x} and {y}{z}.")', ["One … and …."]),
        ('def f(x):\n    raise DataError("a" if x else f"b {x}")', ["a", "b …"]),
        (
            'def f():\n    what = "it is so"\n    raise ConfigError([f"key: {what}, and {other}"])',
            ["key: it is so, and …"],
        ),
        ('def f():\n    what = "a b"\n    what = "c d"\n    raise UserError(what)', ["c d"]),
        (
            'def f(x):\n    if x:\n        what = "a b"\n    else:\n        what = "c d"\n    raise UserError(what)',
            ["a b", "c d"],
        ),
        ('def f(x):\n    what = "a"\n    if x:\n        what += " b"\n    raise UserError(what)', ["a", "a b"]),
        ('def f():\n    raise wrong("not so")\ndef wrong(what):\n    return UserError(f"{what}!")', ["not so!"]),
        ('def f():\n    problems = []\n    problems.append(f"{a}: no")\n    raise ConfigError(problems)', ["…: no"]),
        ("raise ValueError('not ours')", []),
    ],
)
def test_how_messages_are_read(tmp_path, source, messages):
    path = tmp_path / "module.py"
    path.write_text(source, encoding="utf-8")
    found = {errors_page.plain(text) for _, text in errors_page.Module(path).messages()}
    assert sorted(found) == sorted(messages)
