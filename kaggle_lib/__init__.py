"""Fine-tune on free Kaggle GPUs: one run outlives many sessions, and resumes bit for bit.

In a notebook:

    import kaggle_lib as kl
    kl.train(preset="tiny-cpu", run="first")

or, with parameters in a cell of their own, `kl.configure(globals())` and then `kl.train()`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kaggle_lib.api import (
        chat,
        doctor,
        evaluate,
        load,
        plan,
        prepare,
        publish,
        rate_build,
        rate_score,
        report,
        status,
        t4_check,
        train,
    )
    from kaggle_lib.config import RunConfig
    from kaggle_lib.runs.outcome import Outcome
    from kaggle_lib.settings import configure

__version__ = "0.1.0"
# fmt: off
__all__ = [
    "Outcome", "RunConfig", "__version__",
    "chat", "configure", "doctor", "evaluate", "load", "plan", "prepare", "publish", "rate_build", "rate_score",
    "report", "status", "t4_check", "train",
]
# fmt: on

# Looked up at first use (PEP 562), so that importing the package imports nothing heavy.
_HOMES = {
    "Outcome": "kaggle_lib.runs.outcome",
    "RunConfig": "kaggle_lib.config",
    "chat": "kaggle_lib.api",
    "configure": "kaggle_lib.settings",
    "doctor": "kaggle_lib.api",
    "evaluate": "kaggle_lib.api",
    "load": "kaggle_lib.api",
    "plan": "kaggle_lib.api",
    "prepare": "kaggle_lib.api",
    "publish": "kaggle_lib.api",
    "rate_build": "kaggle_lib.api",
    "rate_score": "kaggle_lib.api",
    "report": "kaggle_lib.api",
    "status": "kaggle_lib.api",
    "t4_check": "kaggle_lib.api",
    "train": "kaggle_lib.api",
}

# The room `report` has the name of a function. Importing a room binds its name in the package, once: here, so that no
# later import can put the room in the function's place.
importlib.import_module("kaggle_lib.report")
globals().pop("report")


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
