"""The report's part on the data: what became of each record, how the splits are made up, whether they leak."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from kaggle_lib.report.part import part
from kaggle_lib.runs.folder import RunFolder

SIDES = ("question", "answer")
LENGTHS = ("short", "medium", "long")


def section(environment: Environment, folder: RunFolder) -> Markup:
    """The section's HTML; empty where no worker has written the data sheet here yet. Raises UserError where it is
    damaged."""

    def shown(sheet: Any) -> dict[str, Any]:
        return {
            "sheet": sheet,
            "counts": list(sheet["counts"].items()),
            "leaks": sum(sheet["leaks"].values()),
            "sources": list(sheet["lengths"]),
            "lengths": LENGTHS,
            "sides": SIDES,
        }

    return part(environment, "datasheet.html", folder.data_sheet, shown, "Remove it; `train` makes it anew.")
