"""The library's functions for a kernel's cells, each in a process of its own: `kl.train()` there runs here.

The notebook's kernel may hold old versions of what the library needs, and what is imported cannot be replaced. So it
imports none of it: it sends the settings, shows the lines that come, passes interrupts on, and takes the result.
"""

from __future__ import annotations

import codecs
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kaggle_lib.errors import UserError
from kaggle_lib.files import read_json, write_json
from kaggle_lib.session.machine import die_with_parent

PLAIN = (str, int, float, bool, types.NoneType, list, tuple, dict)


class Shown(str):
    """A text that a cell shows as it is."""

    def __repr__(self) -> str:
        return str(self)


class Library(types.ModuleType):
    """Stands for `kaggle_lib` in a kernel: every public function of it, run by `python` with `environment`."""

    def __init__(self, python: str, environment: Mapping[str, str], package: Path, version: str) -> None:
        super().__init__("kaggle_lib", "The library, each call in a process of its own.")
        self.__path__ = [str(package)]
        self.__version__ = version
        self._python, self._environment = python, dict(environment)
        self._namespace: dict[str, Any] | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"module 'kaggle_lib' has no attribute {name!r}")
        return functools.partial(self._call, name)

    def configure(self, namespace: Mapping[str, object]) -> Shown:
        """As the library's own, which every later call begins with."""
        self._namespace = {name: _sent(value) for name, value in namespace.items() if _is_setting(name, value)}
        # Which cell assigned what tells papermill's parameters and misspelt ones; the first cell is the library itself.
        cells = namespace.get("In")
        self._namespace["In"] = [cell for cell in cells if "PACKED = " not in cell] if isinstance(cells, list) else []
        return Shown(self._call("configure"))

    def load(self, *_: object, **__: object) -> None:
        """Not here: a model cannot pass from one process to another."""
        raise _not_here("load", "Load it")

    def chat(self, *_: object, **__: object) -> None:
        """Not here, for the same reason."""
        raise _not_here("chat", "Talk to it")

    def _call(self, name: str, /, **words: object) -> Any:
        with tempfile.TemporaryDirectory(prefix="kaggle_lib-call-") as folder:
            request, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
            text = json.dumps({"name": name, "namespace": self._namespace, "words": words}, default=str)
            request.write_text(text, encoding="utf-8")
            process = subprocess.Popen(
                [self._python, "-m", __name__, str(request), str(answer)],
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that an interrupt comes once: from here
            )
            _show(process)
            code = process.wait()
            told = read_json(answer) if answer.exists() else {"error": "UserError", "message": _ended(name, code)}
        if told.get("error") == "KeyboardInterrupt":
            raise KeyboardInterrupt
        if "error" in told:
            raise type(told["error"], (UserError,), {})(told["message"])
        value = told["value"]
        if told["kind"] == "object":
            return types.SimpleNamespace(**value)
        return Path(value) if told["kind"] == "path" else value


def _not_here(name: str, todo: str) -> UserError:
    return UserError(
        f"{name}: this kernel runs the library in processes of its own, and a model cannot pass between them.",
        todo=f"{todo} in a notebook that has kaggle_lib installed.",
    )


def _is_setting(name: str, value: object) -> bool:
    return (
        name[0] != "_" and name not in ("In", "Out") and not isinstance(value, types.ModuleType) and not callable(value)
    )


def _sent(value: object) -> Any:
    """A value as JSON; what no setting can be, by the name of its type."""
    if isinstance(value, Path):
        return str(value)
    try:
        json.dumps(value)
    except (TypeError, ValueError):
        return {"unsendable": type(value).__name__}
    return value


def _received(value: Any) -> Any:
    return type(value["unsendable"], (), {})() if isinstance(value, dict) and "unsendable" in value else value


def _show(process: subprocess.Popen[bytes]) -> None:
    """Print what the process prints until it ends; an interrupt goes to it, and it ends as it sees fit."""
    assert process.stdout is not None
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        try:
            if not (chunk := os.read(process.stdout.fileno(), 65536)):
                process.stdout.close()
                return
            sys.stdout.write(decoder.decode(chunk))
            sys.stdout.flush()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)


def _ended(name: str, code: int) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return f"{name}: its process {how}; what it printed last is above."


def main(request: Path, answer: Path) -> int:
    """In the process of one call: do what `request` says, leave the result in `answer`."""
    die_with_parent()
    import kaggle_lib

    asked = read_json(request)
    try:
        value: Any = None
        if asked["namespace"] is not None:
            value = repr(kaggle_lib.configure({name: _received(one) for name, one in asked["namespace"].items()}))
        if asked["name"] != "configure":
            value = getattr(kaggle_lib, asked["name"])(**asked["words"])
        told = _told(value)
    except UserError as error:
        told = {"error": type(error).__name__, "message": str(error)}
    except KeyboardInterrupt:
        told = {"error": "KeyboardInterrupt"}
    write_json(answer, told)
    return 0


def _told(value: Any) -> dict[str, Any]:
    if isinstance(value, Path):
        return {"kind": "path", "value": str(value)}
    if hasattr(value, "to_json"):
        return {"kind": "object", "value": value.to_json()}
    return {"kind": "value", "value": value}


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
