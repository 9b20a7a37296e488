"""The library as a wheel whose bytes depend on its files alone, and how it is packed into a notebook's cell."""

from __future__ import annotations

import base64
import hashlib
import io
import lzma
import tomllib
import zipfile
from functools import lru_cache
from pathlib import Path

from kaggle_lib import __version__

PACKAGE = Path(__file__).parents[1]
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can hold


def build(root: Path) -> bytes:
    """A wheel of the package beside the `pyproject.toml` in `root`. The same files give the same bytes.

    Nothing in it is compressed: what deflate makes differs from one zlib to another.
    """
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    about = f"kaggle_lib-{__version__}.dist-info"
    files = {
        path.relative_to(PACKAGE.parent).as_posix(): path.read_bytes()
        for path in sorted(PACKAGE.rglob("*"))
        if path.is_file()
        and not any(part[0] == "." or part == "__pycache__" for part in path.relative_to(PACKAGE).parts)
    }
    metadata = [f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {__version__}"]
    metadata += [f"Requires-Python: {project['requires-python']}"]
    metadata += [f"Requires-Dist: {one}" for one in project["dependencies"]]
    files[f"{about}/METADATA"] = "\n".join([*metadata, ""]).encode()
    files[f"{about}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: kaggle_lib\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{name},{_hash(content)},{len(content)}" for name, content in files.items()]
    files[f"{about}/RECORD"] = "\n".join([*record, f"{about}/RECORD,,", ""]).encode()
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as wheel:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system, entry.external_attr = 3, 0o100644 << 16  # of Unix, whatever made it
            wheel.writestr(entry, content)
    return made.getvalue()


@lru_cache(maxsize=1)
def pack(wheel: bytes) -> str:
    """The wheel as text of ASCII letters in lines, small."""
    text = base64.b64encode(lzma.compress(wheel, preset=6)).decode()
    return "\n".join(text[start : start + 120] for start in range(0, len(text), 120))


def _hash(content: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
