"""The report's part on what people said of the answers, once `rate score` has read their files."""

from __future__ import annotations

from jinja2 import Environment
from markupsafe import Markup

from kaggle_lib.errors import UserError
from kaggle_lib.files import read_json
from kaggle_lib.rating.sheet import CRITERIA
from kaggle_lib.runs.folder import RunFolder

RESULT = "result.json"


def section(environment: Environment, folder: RunFolder) -> Markup:
    """The section's HTML; empty where nobody has rated yet. Raises UserError where the result is damaged."""
    path = folder.rating / RESULT
    try:
        found = read_json(path)
        template = environment.get_template("people.html")
        return Markup(template.render(found=found, parts={"all": found, **found["groups"]}, criteria=CRITERIA))
    except FileNotFoundError:
        return Markup("")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is damaged.", kept="Nothing was changed.", todo="`rate score` writes it anew."
        ) from error
