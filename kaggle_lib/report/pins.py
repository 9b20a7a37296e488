"""The tested versions, as the requirements files pin them."""

from __future__ import annotations

import re
from pathlib import Path


def pins(path: Path) -> dict[str, str]:
    """Package -> version specifier, as a requirements file says."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if match := re.match(r"([A-Za-z0-9._-]+)\s*([=<>!~][^#;]*)", line):
            found[match[1]] = match[2].replace(" ", "")
    return found


def satisfies(version: str, specifier: str) -> bool:
    """Is a release such as `2.13.0+cpu` within `==2.13.0` or `>=2.10,<2.12`? Builds of one release are the same."""
    own = _release(version)
    compare = {"==": lambda a, b: a == b, ">=": lambda a, b: a >= b, "<": lambda a, b: a < b}
    for part in specifier.split(","):
        match = re.fullmatch(r"(==|>=|<)(.+)", part)
        assert match, f"{specifier!r} is not a kind of pin that we write"
        other = _release(match[2])
        size = max(len(own), len(other))
        if not compare[match[1]](_padded(own, size), _padded(other, size)):
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.split("+")[0]))


def _padded(release: tuple[int, ...], size: int) -> tuple[int, ...]:
    return release + (0,) * (size - len(release))
