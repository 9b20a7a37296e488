"""What the loopbacks' scripts of faults have in common, and their way to be begun and ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Generic, Protocol, Self, TypeVar

from support.loopback_http import Server


class Line(Protocol):
    """A line of a script. `left` None: for ever; `skip`: what goes by first; `hits`: how often it was done."""

    left: int | None
    skip: int
    hits: int

    def told(self) -> dict[str, Any]: ...


One = TypeVar("One", bound=Line)


class Script(Generic[One]):
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._script: list[One] = []

    def append(self, line: One) -> One:
        with self._lock:
            self._script.append(line)
        return line

    def load(self, script: Any) -> None:
        """Add what JSON tells: an object, or a list of them."""
        for line in script if isinstance(script, list) else [script]:
            self.add(**line)

    def add(self, **told: Any) -> One:
        raise NotImplementedError

    def clear(self) -> None:
        with self._lock:
            self._script.clear()

    def hit(self, meant: Callable[[One], object]) -> list[One]:
        """The lines whose turn it is among those `meant`; each is counted."""
        found = []
        with self._lock:
            for line in self._script:
                if line.left == 0 or not meant(line):
                    continue
                if line.skip:
                    line.skip -= 1
                    continue
                line.left = None if line.left is None else line.left - 1
                line.hits += 1
                found.append(line)
        return found

    def told(self) -> list[dict[str, Any]]:
        return [line.told() for line in list(self._script)]


class Served:
    """A loopback service: begun and ended with a `with`."""

    _server: Server

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop()
