"""What the image lacks, in an environment of its own on top of the image: nothing that is there is replaced.

The overlay is a virtual environment that sees all that the kernel sees. pip adds to it only what is absent or has
another version, so the image's files, and what a live kernel has imported of them, stay as they are.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Mapping
from pathlib import Path

from kaggle_lib.errors import UserError
from kaggle_lib.report.pins import satisfies
from kaggle_lib.runs.asking import SWITCH_ON
from kaggle_lib.session.secrets import VARIABLES

# What belongs to the image's torch stays with it; a version of another CUDA would be gigabytes, and may not run.
OF_TORCH = re.compile(r"(pytorch-)?(torch(vision|audio)?|triton)|(nvidia|cuda)-.*")
PIP = ("--disable-pip-version-check", "--no-input", "--no-cache-dir", "--progress-bar=off")
NO_NETWORK = re.compile(r"NewConnectionError|NameResolutionError|ConnectTimeoutError|Network is unreachable")


def installed() -> dict[str, str]:
    """Package -> version, of all that this process could import; names as pip compares them."""
    found: dict[str, str] = {}
    for one in importlib.metadata.distributions():
        if one.metadata and one.metadata["Name"]:  # a half removed package has none
            found.setdefault(_name(one.metadata["Name"]), one.version)
    return found


def lacking(wanted: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Of the packages (name -> specifier) what `there` does not satisfy; whatever torch it has is the right one."""
    return [
        f"{name}{specifier}"
        for name, specifier in wanted.items()
        if (version := there.get(_name(name))) is None
        or not (OF_TORCH.fullmatch(_name(name)) or satisfies(version, specifier))
    ]


def install(wanted: Mapping[str, str], folder: Path, say: Callable[[str], None]) -> str:
    """The Python that has them all: this one, or one of an overlay in `folder`. Raises UserError where pip cannot."""
    there = installed()
    missing = lacking(wanted, there)
    if not missing:
        return sys.executable
    python, ready = folder / "bin" / "python", folder / "ready"
    if ready.is_file() and ready.read_text(encoding="utf-8").splitlines() == missing:
        return str(python)
    kept = {name: version for name, version in there.items() if OF_TORCH.fullmatch(name)}
    say(f"Installing what this image lacks: {', '.join(missing)}. {_stays(kept)}")
    began = time.monotonic()
    try:
        venv.EnvBuilder(clear=True, symlinks=True).create(folder)
        lines = [place for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
        [site] = folder.glob("lib/python3*/site-packages")
        (site / "image.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
        constraints = folder / "constraints.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in kept.items()), encoding="utf-8")
    except OSError as error:
        raise UserError(f"No space: {folder} cannot be written ({error.strerror}).", todo="Free the disk.") from None
    # All of them are named, so that pip does not give up one that is there for the sake of another.
    asked = [f"{name}{specifier}" for name, specifier in wanted.items() if _name(name) not in kept]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "--python", str(python), "install", *PIP),
            *("-c", str(constraints), *asked),
        ],
        env={
            "PIP_RETRIES": "3",
            **{name: value for name, value in os.environ.items() if name not in VARIABLES},
            "PIP_USER": "0",
            "PYTHONUTF8": "1",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        if NO_NETWORK.search(done.stdout):
            raise UserError(NO_INTERNET.format("the package index does not answer"))
        say("\n".join(done.stdout.splitlines()[-20:]))
        raise UserError("pip cannot install what this image lacks; its last lines are above.", todo="Run it again.")
    if (site / "torch").exists():
        raise UserError("pip has put another torch beside the image's.", todo="Report this image's versions.")
    ready.write_text("\n".join(missing), encoding="utf-8")
    say(f"Installed after {time.monotonic() - began:.0f} s.")
    return str(python)


NO_INTERNET = "No Internet: {}. " + SWITCH_ON


def _stays(kept: dict[str, str]) -> str:
    return f"Its torch {kept['torch']} stays." if "torch" in kept else "It has no torch."


def _name(name: str) -> str:
    """Source: PEP 503, normalised names."""
    return re.sub(r"[-_.]+", "-", name).lower()
