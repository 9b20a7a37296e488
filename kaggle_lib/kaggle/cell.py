"""The first cell of a kernel: it unpacks the library that the notebook carries, looks at the session, gets it ready.

This file's text stands in the cell, and below it what `kernel.build` adds: what the run needs, and the packed wheel.
Standard library only.
"""

import base64
import hashlib
import io
import json  # noqa: F401  # for what is added below
import lzma
import os
import sys
import tempfile
import zipfile
from pathlib import Path


class Refused(Exception):
    """Shown as one line, in place of a traceback; no later cell runs."""

    def _render_traceback_(self) -> "list[str]":
        return [f"Refused: {self}"]


def unpack(packed: str, sha256: str) -> Path:
    """The folder that holds the library in `lib`. Raises Refused where the packed wheel is damaged, or has no room."""
    if sys.version_info < (3, 11):  # noqa: UP036  # not the Python that this was linted for
        raise Refused(f"Python 3.11 or newer is needed, and this image has {sys.version.split()[0]}.")
    try:
        wheel = lzma.decompress(base64.b64decode(packed))
    except (ValueError, EOFError, lzma.LZMAError):
        wheel = b""
    if hashlib.sha256(wheel).hexdigest() != sha256:
        raise Refused("This notebook is damaged: its library is not the one that was packed. Push it again.")
    root = Path(os.environ.get("KAGGLE_LIB_ROOT") or "/kaggle")
    # Not below `working`, which Kaggle keeps as the output.
    place = root / "temp" if (root / "working").is_dir() else Path(tempfile.gettempdir())
    folder = place / f"kaggle_lib-{sha256[:12]}"
    try:
        with zipfile.ZipFile(io.BytesIO(wheel)) as files:
            files.extractall(folder / "lib")
    except OSError as error:
        raise Refused(
            f"No space: {folder} cannot be written ({error.strerror}). Free the disk, and run again."
        ) from None
    sys.path.insert(0, str(folder / "lib"))
    return folder
