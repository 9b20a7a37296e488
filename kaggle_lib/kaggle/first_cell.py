"""Before anything is installed: would this session fail for something that can be seen in seconds?

Imported from the unpacked wheel by the kernel itself, so it imports nothing but the standard library, and of ours only
what does the same. All that is missing is told at once, a line each; no later cell runs then.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
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
from kaggle_lib.kaggle.asking import Hub
from kaggle_lib.session.machine import find_gpus
from kaggle_lib.session.secrets import HUB_VARIABLES, Token, hub_token

TORCH_SECONDS = 90
# Its arithmetic: "sm_75" runs on a GPU of the same major version and this or a higher minor one, "compute_75" on any
# newer one (CUDA C++ Programming Guide, "Binary compatibility" and "PTX compatibility").
ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)[a-z]?")
ASK_TORCH = "import torch; print(torch.__version__, *torch.cuda.get_arch_list())"
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
    torch = _ask_torch() if gpus else None
    problems = [] if gpus or not wanted["gpu"] else [f"No GPU: this session has none. {GPU_TODO}"]
    problems += _corpus(wanted["data"])
    hub = Hub(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
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
    problems += _space([(folder, packages), (hub_cache(), size), (Path.cwd(), working)])
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
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):  # as huggingface_hub reads it
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


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it fetches (its documentation, "Environment variables")."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or cache / "huggingface") / "hub")


def _space(needs: list[tuple[Path, int]]) -> Iterator[str]:
    """What shares a disk is needed there together."""
    disks: dict[int, tuple[Path, int, int]] = {}
    for path, needed in needs:
        there = next(place for place in (path, *path.absolute().parents) if place.exists())
        device = there.stat().st_dev
        first, _, sum_ = disks.get(device, (there, 0, 0))
        disks[device] = (first, shutil.disk_usage(there).free, sum_ + needed)
    for there, free, needed in disks.values():
        if free < needed:
            yield (
                f"No space: {there} has {free / 1e9:.1f} GB free, and this run needs {needed / 1e9:.1f} GB there. "
                "Free the disk, or start a new session."
            )


def _ask_torch() -> subprocess.Popen[str]:
    """What the image's torch has code for, asked while the rest is looked at: it takes seconds to import."""
    return subprocess.Popen(
        [sys.executable, "-c", ASK_TORCH],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )


def _no_code(gpus: list[dict[str, Any]], torch: subprocess.Popen[str]) -> Iterator[str]:
    try:
        out, err = torch.communicate(timeout=TORCH_SECONDS)
    except subprocess.TimeoutExpired:
        torch.kill()
        out, err = "", f"no answer in {TORCH_SECONDS} s"
    if torch.returncode or not out.strip():
        last = (err.strip().splitlines() or ["no answer"])[-1]
        yield f"This image's torch cannot be used: {last}. Choose the image's newest environment."
        return
    version, *built = out.split()
    for number, gpu in enumerate(gpus):
        if gpu["capability"] and not has_code(built, gpu["capability"]):
            yield (
                f"GPU {number} is a {gpu['name']} (compute capability {gpu['capability']}), and this image's torch "
                f"{version} has no code for it (only {', '.join(built) or 'for the CPU'}). {GPU_TODO}"
            )


def has_code(built: list[str], capability: str) -> bool:
    """Whether a torch that was built for these architectures runs on a GPU of that compute capability."""
    own = tuple(map(int, capability.split(".")))
    for text in built:
        if match := ARCHITECTURE.fullmatch(text):
            made = int(match[2]), int(match[3])
            if made <= own and (match[1] == "compute" or made[0] == own[0]):
                return True
    return False
