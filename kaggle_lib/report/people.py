"""The report's part on what people said of the answers, once `rate score` has read their files."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from kaggle_lib.rating.commands import RESULT
from kaggle_lib.rating.sheet import CRITERIA
from kaggle_lib.report.part import part
from kaggle_lib.runs.folder import RunFolder


def section(environment: Environment, folder: RunFolder) -> Markup:
    """The section's HTML; empty where nobody has rated yet. Raises UserError where the result is damaged."""

    def shown(found: Any) -> dict[str, Any]:
        return {"found": found, "parts": {"all": found, **found["groups"]}, "criteria": CRITERIA}

    return part(environment, "people.html", folder.rating / RESULT, shown, "`rate score` writes it anew.")
