"""A part of the report that shows one JSON file of the run folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from kaggle_lib.errors import UserError
from kaggle_lib.files import read_json


def part(
    environment: Environment, template: str, path: Path, shown: Callable[[Any], Mapping[str, Any]], todo: str
) -> Markup:
    """The part's HTML, `shown` making the template's values of the file's content; empty where there is no file.

    Raises UserError, with `todo`, where the file is not what it should be.
    """
    try:
        return Markup(environment.get_template(template).render(**shown(read_json(path))))
    except FileNotFoundError:
        return Markup("")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} is damaged.", kept="Nothing was changed.", todo=todo) from error
