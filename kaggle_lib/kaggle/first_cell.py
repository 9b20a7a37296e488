"""Before anything is installed: would this session fail for something that can be seen in seconds?

Imported from the unpacked wheel by the kernel itself, so it imports nothing but the standard library, and of ours only
what does the same. All that is missing is told at once, a line each; no later cell runs then.
"""

from __future__ import annotations

import base64
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kaggle_lib import __version__
from kaggle_lib.data.find import find
from kaggle_lib.errors import DataError, UserError
from kaggle_lib.kaggle import calls, overlay
from kaggle_lib.runs.asking import Hub, offline
from kaggle_lib.session import torch_build
from kaggle_lib.session.machine import find_gpus, hub_cache, short_of
from kaggle_lib.session.secrets import HUB_VARIABLES, Token, hub_token

GPU_TODO = "Choose GPU T4 x2 as accelerator (Session options, or --accelerator NvidiaTeslaT4), and run again."
SECRET_TODO = "Attach the secret HF_TOKEN in the notebook's editor (Add-ons, Secrets), and run again."
WORKING_BYTES = 10**9  # of two checkpoints of an 8B model's adapter, and what is on its way
INSTALLED_BYTES = 3 * 10**9


class Refused(UserError):
    """What is missing, a line each."""


def begin(wanted: Mapping[str, Any], folder: Path, say: Callable[[str], None] = print) -> None:
    """Check, install what is lacking, and put the library in the place of `import kaggle_lib`.

    `wanted` is what `kernel.build` wrote; `folder` holds the unpacked library. Raises Refused.
    """
    began = time.monotonic()
    say(f"kaggle_lib {__version__}, run {wanted['run']}: looking at this session.")
    if problems := check(wanted, folder, say):
        raise Refused("\n".join(problems))
    for file, content in wanted["files"].items():
        Path(file).write_bytes(base64.b64decode(content))
    requirements = "".join(f"{name}{specifier}\n" for name, specifier in wanted["requirements"].items())
    name = "requirements.txt" if wanted["gpu"] else "requirements-cpu.txt"  # `doctor` compares with it
    (folder / "lib" / name).write_text(requirements, encoding="utf-8")
    python = overlay.install(wanted["requirements"], folder / "environment", say)
    paths = [str(folder / "lib"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUTF8": "1", "PYTHONIOENCODING": "utf-8"}
    # An inline backend is the kernel's, and imports IPython.
    environment |= {"PYTHONUNBUFFERED": "1", "MPLBACKEND": "agg"}
    sys.modules["kaggle_lib"] = calls.Library(python, environment, folder / "lib" / "kaggle_lib", __version__)
    say(f"Ready after {time.monotonic() - began:.0f} s.")


def check(wanted: Mapping[str, Any], folder: Path, say: Callable[[str], None]) -> list[str]:
    """Everything that would end this session later, a line each."""
    gpus = find_gpus() if wanted["gpu"] else []
    torch = torch_build.ask() if gpus else None
    problems = [] if gpus or not wanted["gpu"] else [f"No GPU: this session has none. {GPU_TODO}"]
    problems += _corpus(wanted["data"])
    hub = Hub()
    unreachable = _unreachable(hub) if wanted["base_is_of_hub"] or wanted["repo"] else None
    token, size = None, 0
    if unreachable:
        problems.append(unreachable)
    else:
        token, found = _token(wanted)
        problems += found
        if wanted["base_is_of_hub"] and not found:
            size, found = hub.model(wanted["base_model"], wanted["revision"], token)
            problems += found
    if not wanted["base_is_of_hub"]:
        problems += _attached(wanted["base_model"])
    packages = INSTALLED_BYTES if overlay.lacking(wanted["requirements"], overlay.installed()) else 0
    working = WORKING_BYTES if wanted["base_model"] != "sample" else WORKING_BYTES // 10
    for there, free, needed in short_of([(folder, packages), (hub_cache(), size), (Path.cwd(), working)]):
        problems.append(
            f"No space: {there} has {free / 1e9:.1f} GB free, and this run needs {needed / 1e9:.1f} GB there. "
            "Free the disk, or start a new session."
        )
    if torch and unreachable:
        torch.kill()  # what it would say takes longer than a refusal should
    elif torch:
        problems += _no_code(gpus, torch)
    if wanted["repo"] and token and not problems:  # it writes, so it is the last
        problems += hub.not_writable(wanted["repo"], token, public=wanted["public"])
    for note in hub.notes:
        say(note)
    return problems


def _unreachable(hub: Hub) -> str | None:
    if offline():
        return "The Hub may not be asked: HF_HUB_OFFLINE is set in this session, and the run needs it. Unset it."
    why = hub.unreachable()
    return why and overlay.NO_INTERNET.format(why)


def _corpus(data: str) -> Iterator[str]:
    try:
        find(data)
    except DataError as error:
        yield str(error)


def _attached(base_model: str) -> Iterator[str]:
    if base_model != "sample" and not (Path(base_model) / "config.json").is_file():
        yield (
            f"The base model {base_model} is not attached: there is no config.json in it. "
            "Attach the model (Add Input), or give an id of the Hub."
        )


def _token(wanted: Mapping[str, Any]) -> tuple[Token | None, list[str]]:
    """The Hub's token, left in the environment, clean, for the processes that follow; and what is wrong with it."""
    try:
        token = hub_token()
    except UserError as error:
        return None, [str(error)]
    if token:
        os.environ[HUB_VARIABLES[0]] = token.value
    elif wanted["repo"]:
        of = f", and the dataset {wanted['token_dataset']} brings none" if wanted["token_dataset"] else ""
        return None, [f"No Hugging Face token: store=hf://{wanted['repo']} needs one{of}. {SECRET_TODO}"]
    return token, []


def _no_code(gpus: list[dict[str, Any]], torch: subprocess.Popen[str]) -> Iterator[str]:
    try:
        version, built = torch_build.answer(torch)
    except UserError as error:
        yield f"This image's torch cannot be used: {error}. Choose the image's newest environment."
        return
    for number, gpu in enumerate(gpus):
        if gpu["capability"] and not torch_build.has_code(built, gpu["capability"]):
            yield (
                f"GPU {number} is a {gpu['name']} (compute capability {gpu['capability']}), and this image's torch "
                f"{version} has no code for it (only {', '.join(built) or 'for the CPU'}). {GPU_TODO}"
            )
