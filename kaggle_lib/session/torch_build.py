"""What the torch that is here was built for, asked in a process of its own: it takes seconds to import, and memory.

Standard library only: a kernel's first cell imports it, too.
"""

from __future__ import annotations

import re
import subprocess
import sys

from kaggle_lib.errors import UserError

SECONDS = 90
# Its arithmetic: "sm_75" runs on a GPU of the same major version and this or a higher minor one, "compute_75" on any
# newer one (CUDA C++ Programming Guide, "Binary compatibility" and "PTX compatibility").
ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)[a-z]?")
ASK = "import torch; print(torch.__version__, *torch.cuda.get_arch_list())"


def ask() -> subprocess.Popen[str]:
    """Begin to ask; `answer` waits for what it says, or kill it."""
    return subprocess.Popen(
        [sys.executable, "-c", ASK],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
    )


def answer(asked: subprocess.Popen[str]) -> tuple[str, list[str]]:
    """(torch's version, the architectures that it has code for). Raises UserError where it cannot be imported."""
    try:
        out, err = asked.communicate(timeout=SECONDS)
    except subprocess.TimeoutExpired:
        asked.kill()
        out, err = "", f"no answer in {SECONDS} s"
    if asked.returncode or not out.strip():
        raise UserError((err.strip().splitlines() or ["no answer"])[-1])
    version, *built = out.split()
    return version, built


def has_code(built: list[str], capability: str) -> bool:
    """Whether a torch that was built for these architectures runs on a GPU of that compute capability."""
    own = tuple(map(int, capability.split(".")))
    for text in built:
        if match := ARCHITECTURE.fullmatch(text):
            made = int(match[2]), int(match[3])
            if made <= own and (match[1] == "compute" or made[0] == own[0]):
                return True
    return False
