"""The manifest: the list of a checkpoint's files with sizes and sha256. Written last, so that its presence says done.

A checkpoint is valid only if its manifest is there and every file in it has that size and hash.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from kaggle_lib.errors import CheckpointError
from kaggle_lib.files import fsync_directory, fsync_file, sha256_of, write_text

NAME = "manifest.json"


class FileEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    size: int
    sha256: str


class Manifest(BaseModel):
    """What `manifest.json` holds. `nonce` is fresh in each, so no two saves are ever the same commit."""

    model_config = ConfigDict(frozen=True, extra="allow")
    step: int
    total_steps: int
    files: dict[str, FileEntry]
    fingerprint: str
    lineage: str
    session: str
    versions: dict[str, str]
    nonce: str
    cut: dict[str, int]
    best: dict[str, float] | None = None

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps

    @property
    def bytes(self) -> int:
        return sum(entry.size for entry in self.files.values())

    @classmethod
    def write(cls, folder: Path, **fields: Any) -> Self:
        """List the files in `folder`, bring them to the disk, and write the manifest last."""
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        files = {}
        for name in names:
            path = folder / name
            fsync_file(path)
            files[name] = FileEntry(size=path.stat().st_size, sha256=sha256_of(path))
        for directory in {(folder / name).parent for name in names}:
            fsync_directory(directory)
        manifest = cls(files=files, nonce=secrets.token_hex(16), **fields)
        write_text(folder / NAME, manifest.model_dump_json(indent=2) + "\n")
        return manifest

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of a checkpoint folder. Raises CheckpointError where it is missing or unreadable."""
        path = folder / NAME
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            raise CheckpointError(f"{folder.name}: {NAME} is missing, so the save was never finished.") from None
        except ValidationError:
            raise CheckpointError(f"{folder.name}: {NAME} is not a manifest.") from None

    def problem(self, folder: Path) -> tuple[str, str] | None:
        """(file, reason) of the first file that is not what the manifest says, or None: the checkpoint is good."""
        for name, entry in self.files.items():
            path = folder / name
            if not path.is_file():
                return name, "is missing"
            if (size := path.stat().st_size) != entry.size:
                return name, f"has {size} bytes, not {entry.size}"
            if sha256_of(path) != entry.sha256:
                return name, "has another sha256 than its manifest says"
        return None


def verify(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose every file is as listed. Raises CheckpointError naming the failing file."""
    manifest = Manifest.read(folder)
    if problem := manifest.problem(folder):
        raise CheckpointError(f"{folder.name}: {problem[0]} {problem[1]}.")
    return manifest
