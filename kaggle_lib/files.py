"""Writing files so that a power cut leaves the old content or the new, never half of it."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any


def fsync_directory(path: Path) -> None:
    """Make a rename or a new name in `path` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_tree(folder: Path) -> None:
    """Bring every file and every name under `folder` to the disk."""
    for directory, _, names in os.walk(folder):
        for name in names:
            fsync_file(Path(directory) / name)
        fsync_directory(Path(directory))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file under its final name in one step: aside, to the disk, then renamed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
    fsync_directory(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def dump_json(value: Any) -> str:
    """JSON as people read it: Bengali as Bengali, keys in the order given, no NaN."""
    return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    write_text(path, dump_json(value))


def read_json(path: Path) -> Any:
    """Raises FileNotFoundError, or ValueError where the content is not JSON in UTF-8."""
    return json.loads(path.read_text(encoding="utf-8"))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_line(path: Path, line: str) -> None:
    """Append one line by a single write, so that two processes never mix theirs.

    What a writer that died has left of its line is ended first. Raises OSError where the disk does not take it all.
    """
    fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        end = os.lseek(fd, 0, os.SEEK_END)
        torn = end > 0 and os.pread(fd, 1, end - 1) != b"\n"
        content = (("\n" if torn else "") + line + "\n").encode("utf-8")
        if os.write(fd, content) < len(content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    finally:
        os.close(fd)


def set_aside(path: Path, why: str) -> Path:
    """Rename a folder (`NAME.WHY-1`, `-2`, …) so that it is kept and no longer counts; returns the new path."""
    for number in itertools.count(1):
        target = path.with_name(f"{path.name}.{why}-{number}")
        if not target.exists():
            return path.rename(target)
    raise AssertionError("unreachable")


def replace_folder(source: Path, target: Path) -> None:
    """Put a copy of `source` at `target`; what was there before goes only when the copy is complete.

    A kill between the two renames leaves no `target`, but both contents beside it: `repair_folder` puts one back.
    """
    new, old = _beside(target)
    shutil.rmtree(new, ignore_errors=True)
    shutil.copytree(source, new)
    fsync_tree(new)
    if target.exists():
        shutil.rmtree(old, ignore_errors=True)
        target.rename(old)
    new.rename(target)
    fsync_directory(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def repair_folder(target: Path) -> None:
    """Undo what a killed `replace_folder` left behind: the old content is back, or the new one in place."""
    new, old = _beside(target)
    if not target.exists() and old.exists():
        old.rename(target)
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def _beside(target: Path) -> tuple[Path, Path]:
    return target.with_name(f".{target.name}.new"), target.with_name(f".{target.name}.old")
