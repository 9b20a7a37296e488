"""The manifest: the list of a checkpoint's files with sizes and sha256. Written last, so that its presence says done.

A checkpoint is valid only if its manifest is there and every file in it has that size and hash.
"""

from __future__ import annotations

import errno
import re
import secrets
import shutil
import stat
from pathlib import Path, PurePosixPath
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from kaggle_lib.errors import CheckpointError
from kaggle_lib.files import fsync_directory, fsync_file, fsync_tree, sha256_of, write_text

NAME = "manifest.json"


def folder_name(step: int) -> str:
    """The name of a checkpoint's folder, in the run folder and on the store."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint folder's name; None for any other name."""
    match = re.fullmatch(r"step-([0-9]{8})", name, re.ASCII)
    return int(match[1]) if match else None


class FileEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    size: int
    sha256: str


class Manifest(BaseModel):
    """What `manifest.json` holds. `nonce` is fresh in each, so no two saves are ever the same commit.

    `best`: `step` and `bits_per_byte` of the best validation so far. `stopped_early`: why the run ended here, before
    its last step.
    """

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
    stopped_early: str | None = None

    @field_validator("files")
    @classmethod
    def _inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        # An empty list would verify whatever is there; a name that leads outside would be copied to anywhere.
        if not files:
            raise ValueError("no file is listed")
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or path.as_posix() != name or name == NAME or "\0" in name:
                raise ValueError(f"{name!r} is no name of a file inside a checkpoint")
        return files

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps or self.stopped_early is not None

    @property
    def end(self) -> str:
        """Where a finished run has ended: at its last step, or why before it."""
        early = f" ({self.stopped_early})" if self.stopped_early else ""
        return f"step {self.step} of {self.total_steps}{early}"

    @property
    def best_step(self) -> int | None:
        return int(self.best["step"]) if self.best else None

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

    @staticmethod
    def read(folder: Path) -> Manifest:
        """The manifest of a checkpoint folder. Raises CheckpointError where it is missing, unreadable or misplaced.

        Other errors of the file system (no permission, a mount that is gone) are raised as they are: no damage.
        """
        try:
            content = (folder / NAME).read_bytes()
        except FileNotFoundError:
            raise damaged(folder, NAME, "is missing, so the save was never finished") from None
        except (IsADirectoryError, NotADirectoryError):
            raise damaged(folder, NAME, "is not a file") from None
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise damaged(folder, NAME, f"cannot be read ({error.strerror})") from None
        return parse(content, folder)

    def problem(self, folder: Path, *, hashed: bool = True) -> tuple[str, str] | None:
        """(file, reason) of the first file that is not what the manifest says, or None: the checkpoint is good.

        `hashed=False` looks at names and sizes only.
        """
        for name, entry in self.files.items():
            path = folder / name
            try:
                found = path.stat()
                if not stat.S_ISREG(found.st_mode):
                    return name, "is not a file"
                if found.st_size != entry.size:
                    return name, f"has {found.st_size} bytes, not {entry.size}"
                if hashed and sha256_of(path) != entry.sha256:
                    return name, "has another sha256 than its manifest says"
            except (FileNotFoundError, NotADirectoryError):
                return name, "is missing"
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                return name, f"cannot be read ({error.strerror})"
        return None


def parse(content: bytes, folder: Path) -> Manifest:
    """What the `manifest.json` of a checkpoint folder holds. Raises CheckpointError where it is none of that folder."""
    if not content:
        raise damaged(folder, NAME, "is empty")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"][:1])
        raise damaged(folder, NAME, f"is not a manifest ({where}{first['msg']})") from None
    if step_of(folder.name) not in (None, manifest.step):
        raise damaged(folder, NAME, f"is of step {manifest.step}")
    return manifest


def damaged(folder: Path, file: str, reason: str) -> CheckpointError:
    return CheckpointError(f"{folder.name}: {file} {reason}.", file=file, reason=reason)


def verify(folder: Path) -> Manifest:
    """The manifest of a checkpoint whose every file is as listed. Raises CheckpointError naming the failing file."""
    manifest = Manifest.read(folder)
    if problem := manifest.problem(folder):
        raise damaged(folder, *problem)
    return manifest


def copy(source: Path, target: Path) -> Manifest:
    """Copy a checkpoint's listed files and its manifest into the new folder `target`, to the disk, and verify the copy.

    Raises CheckpointError naming the file where `source` is damaged, OSError where the copy could not be made.
    """
    manifest = Manifest.read(source)
    if problem := manifest.problem(source, hashed=False):
        raise damaged(source, *problem)
    try:
        target.mkdir()
        for name in [*manifest.files, NAME]:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, target / name)
        fsync_tree(target)
        failing = manifest.problem(target)
        if failing is None and sha256_of(target / NAME) != sha256_of(source / NAME):
            failing = NAME, "has another sha256 than what was copied"
        if failing:
            raise OSError(errno.EIO, f"the copy {failing[1]}", str(target / failing[0]))
    except OSError:
        # Whose fault was it? Only a damaged source may be passed over for the checkpoint before it.
        if problem := manifest.problem(source):
            raise damaged(source, *problem) from None
        raise
    return manifest
