"""`kl.configure(globals())`: what is a setting, what is the user's own, what is refused, and whose value counts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from papermill.translators import PythonTranslator

import kaggle_lib as kl
from kaggle_lib.api import gather
from kaggle_lib.errors import ConfigError
from kaggle_lib.settings import Settings

PARAMETERS = 'preset: str = "tiny-cpu"\nrun: str = "first"\n'


@pytest.fixture(autouse=True)
def none_before_and_after() -> Iterator[None]:
    Settings.current = Settings()
    yield
    Settings.current = Settings()


def notebook(*cells: str) -> dict[str, Any]:
    """What `globals()` holds in a kernel after these cells: their variables, and their text in `In`."""
    namespace: dict[str, Any] = {"__name__": "__main__", "In": [""]}
    for cell in cells:
        namespace["In"].append(cell)
        exec(cell, namespace)
    return namespace


def injected(**parameters: object) -> str:
    """The cell that the real papermill writes for them."""
    return str(PythonTranslator.codify(parameters))


def problems(namespace: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        kl.configure(namespace)
    return caught.value.problems


def test_values_of_every_type_arrive_as_their_keys_take_them() -> None:
    given = {
        "run": "007",
        "max_steps": 6,
        "epochs": 2,
        "learning_rate": "1e-4",
        "padding_free": "False",
        "rows": None,
        "system_prompt": "",
        "token_budget": "auto",
        "lora_target_modules": ["q_proj", "v_proj"],
        "store": Path("kept"),
    }
    settings = kl.configure(notebook(PARAMETERS, injected(**{**given, "store": "kept"}), "note = 5"))
    wanted = {
        "run": "007",
        "max_steps": 6,
        "epochs": 2.0,
        "learning_rate": 1e-4,
        "padding_free": False,
        "rows": None,
        "system_prompt": None,
        "token_budget": "auto",
        "lora_target_modules": ("q_proj", "v_proj"),
        "store": "kept",
    }
    assert (settings.preset, settings.config, settings.values) == ("tiny-cpu", None, wanted)
    assert {name: type(value) for name, value in settings.values.items()} == {n: type(v) for n, v in wanted.items()}
    # The same from a plain script, which has no cells.
    assert kl.configure({"preset": "tiny-cpu", **given}).values == wanted


def test_a_users_own_variables_are_left_alone() -> None:
    own = "seeds = [1, 2]\nlearning_rates = (1, 2)\nrunner = 3\nfrom math import pi as note\n"
    code = "import json as data\ndef rows(): ...\nclass optim: ...\n"
    namespace = notebook(PARAMETERS + 'plot_style: str = "dark"\n', own, code, injected(plot_style="light"))
    before = dict(namespace)
    settings = kl.configure(namespace)
    assert settings.values == {"run": "first"}
    assert repr(settings) == "Settings(preset='tiny-cpu', run='first'); not settings: plot_style"
    assert namespace == before
    assert namespace["data"] is json


@pytest.mark.parametrize(
    ("cells", "told"),
    [
        (
            [PARAMETERS, injected(learning_rte=0.1)],
            ["learning_rte: papermill was given it, and there is no such key; did you mean learning_rate?"],
        ),
        (
            [PARAMETERS, injected(zzz=None, presett="x")],
            [
                "zzz: papermill was given it, and there is no such key",
                "presett: papermill was given it, and there is no such key; did you mean preset?",
            ],
        ),
        (
            [PARAMETERS + "learnig_rate: float = 1e-5\n"],
            [
                "learnig_rate: there is no such key; did you mean learning_rate? "
                "A variable of your own belongs in another cell"
            ],
        ),
        ([PARAMETERS, injected(padding_free="flase")], ["padding_free: should be true or false, not 'flase'"]),
        (
            [PARAMETERS, injected(run=7)],
            [
                "run: is text, and 7 came as int, so its spelling may be lost; "
                'quote it in a notebook, and with papermill use `-r run "7"` instead of -p'
            ],
        ),
        ([PARAMETERS, injected(epochs=math.nan)], ["epochs: should be a finite number, not nan"]),
        (
            [PARAMETERS, injected(preset="tiny")],
            ["preset: 'tiny' is not one of bengali-8b-t4, bengali-8b-t4-full, t4-check, tiny-cpu"],
        ),
        (
            [PARAMETERS, injected(preset="", config="none.yaml")],
            ["none.yaml: cannot be read (No such file or directory)"],
        ),
        ([PARAMETERS, injected(config="none.yaml")], ["preset: give a preset or a config file, not both"]),
        (
            [PARAMETERS, injected(seed="x", keeep=1, preset=3)],
            [
                "keeep: papermill was given it, and there is no such key; did you mean keep?",
                "preset: is text, and 3 came as int, so its spelling may be lost; "
                'quote it in a notebook, and with papermill use `-r preset "3"` instead of -p',
                "seed: should be a whole number, not 'x'",
            ],
        ),
    ],
)
def test_what_cannot_be_meant_is_told_in_a_line_each(cells: list[str], told: list[str]) -> None:
    kl.configure({"run": "earlier"})
    assert problems(notebook(*cells)) == told
    assert Settings.current == Settings()  # not the earlier ones, which are not what the notebook says


class Table:
    pass


def test_an_object_under_the_name_of_a_key_is_told() -> None:
    told = "data: is a Table here, which no setting can be; give that variable another name"
    assert problems({"run": "r", "data": Table()}) == [told]
    assert problems({"run": "r", "data": {"a": 1}}) == ["data: should be text, not {'a': 1}"]


def test_only_papermills_newest_cell_counts_and_a_persons_typed_one_is_none() -> None:
    namespace = notebook(PARAMETERS, injected(learning_rte=0.1), injected(learning_rate=0.1))
    assert kl.configure(namespace).values == {"run": "first", "learning_rate": 0.1}
    deleted = notebook(PARAMETERS, injected(learning_rte=0.1), "del learning_rte")
    assert kl.configure(deleted).others == ()
    heading = '# Parameters\nrun: str = "first"\nplot_style: str = "dark"\n'
    assert kl.configure(notebook(heading)).others == ("plot_style",)


def test_cells_that_are_no_python_are_passed_over() -> None:
    namespace = notebook(PARAMETERS)
    namespace["In"] += ["!ls\n", "%%bash\nrun=1", None, 5]
    assert kl.configure(namespace).values == {"run": "first"}
    assert kl.configure({**namespace, "In": "gone"}).values == {"run": "first"}


def test_the_arguments_of_a_call_win_over_the_settings_and_these_over_the_preset() -> None:
    kl.configure({"preset": "bengali-8b-t4", "run": "mine", "learning_rate": 1e-5})
    values = gather(None, None, {})
    assert (values["run"], values["learning_rate"], values["rows"]) == ("mine", 1e-5, "6000")
    values = gather("tiny-cpu", None, {"run": "other"})
    assert (values["run"], values["learning_rate"], values["base_model"]) == ("other", 1e-5, "sample")


def test_a_file_of_a_call_replaces_the_notebooks_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 3\n", encoding="utf-8")
    kl.configure({"preset": "tiny-cpu", "run": "mine"})
    assert gather(None, file, {}) == {"seed": "3", "run": "mine"}
    assert kl.configure({"preset": "", "config": str(file)}).config == str(file)


def test_configuring_again_replaces_all_settings() -> None:
    kl.configure({"preset": "tiny-cpu", "run": "first", "seed": 1})
    kl.configure({"run": "second"})
    assert gather(None, None, {}) == {"run": "second"}


def test_a_notebook_shows_the_message_alone() -> None:
    assert ConfigError(["run: missing"])._render_traceback_() == ["ConfigError: run: missing"]
