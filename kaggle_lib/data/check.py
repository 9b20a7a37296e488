"""Try a corpus before anything is claimed or loaded: read and curate it, and count.

Where a hooks file has a say, in a process of its own: the supervisor runs no user's code, so what that imports (torch,
a GPU with it) or breaks stays out of the notebook, and a file that was edited is run anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from kaggle_lib import errors
from kaggle_lib.config import RunConfig
from kaggle_lib.data import tokenise
from kaggle_lib.data.find import find
from kaggle_lib.session.machine import die_with_parent


@dataclass(frozen=True)
class Checked:
    """Rows: `set_aside` and `left_out` (by format_row) of the file at `path`; examples of each split."""

    path: str
    rows: int
    set_aside: int
    left_out: int
    train: int
    validation: int
    test: int

    def __str__(self) -> str:
        left_out = f", {self.left_out} left out by format_row" if self.left_out else ""
        return (
            f"{self.train} rows to train on, {self.validation} for validation, {self.test} for the test; "
            f"{self.set_aside} of {Path(self.path).name} set aside{left_out}"
        )


def check(config: RunConfig, cache: Path | None = None) -> Checked:
    """The corpus of `config`, counted; kept in `cache` for the worker. Raises DataError or ConfigError where it or the
    hooks file cannot be used."""
    if not config.hooks:
        return _check(config, cache)
    root = str(Path(__file__).parents[2])
    child = subprocess.run(
        [sys.executable, "-m", __name__],
        input=json.dumps(config.model_dump(mode="json")),
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        env={
            **os.environ,
            "PYTHONIOENCODING": "utf-8",
            "PYTHONPATH": os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
        },
        check=False,
    )
    sys.stderr.write(child.stderr)  # what the hooks print
    if child.returncode:
        raise errors.UserError(
            f"The check of the data with the hooks file {config.hooks} ended with {child.returncode}.",
            todo="\n".join(child.stderr.splitlines()[-15:]),
        )
    told = json.loads(child.stdout)
    if "problems" in told:
        raise errors.ConfigError(told["problems"])
    if "what" in told:
        raise errors.DataError(told["what"], todo=told["todo"])
    return Checked(**told)


def _check(config: RunConfig, cache: Path | None = None) -> Checked:
    counts = tokenise.curated(config, cache).counts
    aside, left_out = (sum(counts[name] for name in counts if name.startswith(kind)) for kind in ("set", "left out"))
    splits = {name: counts[name] for name in ("train", "validation", "test")}
    return Checked(str(find(config.data)), counts["read"], aside, left_out, **splits)


def main() -> None:
    """The process of its own: a configuration on standard input, one JSON object on standard output."""
    die_with_parent()
    config = RunConfig.from_json(json.load(sys.stdin))
    try:
        with contextlib.redirect_stdout(sys.stderr):
            told = asdict(_check(config))
    except errors.ConfigError as error:
        told = {"problems": error.problems}
    except errors.DataError as error:
        told = {"what": error.what, "todo": error.todo}
    print(json.dumps(told))


if __name__ == "__main__":
    main()
