"""The report's part on the data: what became of each record, how the splits are made up, whether they leak."""

from __future__ import annotations

from jinja2 import Environment
from markupsafe import Markup

from kaggle_lib.errors import UserError
from kaggle_lib.files import read_json
from kaggle_lib.runs.folder import RunFolder

SIDES = ("question", "answer")
LENGTHS = ("short", "medium", "long")


def section(environment: Environment, folder: RunFolder) -> Markup:
    """The section's HTML; empty where no worker has written the data sheet here yet. Raises UserError where it is
    damaged."""
    try:
        sheet = read_json(folder.data_sheet)
        return Markup(
            environment.get_template("datasheet.html").render(
                sheet=sheet,
                counts=list(sheet["counts"].items()),
                leaks=sum(sheet["leaks"].values()),
                sources=list(sheet["lengths"]),
                lengths=LENGTHS,
                sides=SIDES,
            )
        )
    except FileNotFoundError:
        return Markup("")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{folder.data_sheet} is damaged.", kept="Nothing was changed.", todo="Remove it; `train` makes it anew."
        ) from error
