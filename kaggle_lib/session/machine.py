"""What this machine has: GPUs, memory, disk, and its way to leave no orphan.

Read from the driver's tool and from /proc; nothing heavy is imported.
"""

from __future__ import annotations

import csv
import ctypes
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1  # prctl(2)


def die_with_parent() -> None:
    """From now on this process is killed when the thread that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def find_gpus() -> list[dict[str, Any]]:
    """`name`, `memory` (bytes), `driver` and `capability` of each NVIDIA GPU; only the name where just /proc tells."""
    query = "--query-gpu=name,memory.total,driver_version,compute_cap"
    try:
        asked = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        rows = list(csv.reader(asked.stdout.splitlines(), skipinitialspace=True)) if asked.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        rows = []
    if rows:
        return [
            {"name": name, "memory": _mebibytes(memory), "driver": driver, "capability": _version(capability)}
            for name, memory, driver, capability in (row for row in rows if len(row) == 4)
        ]
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        model = re.search(r"^Model:\s*(.+)$", path.read_text(errors="replace"), re.MULTILINE)
        found.append({"name": model[1] if model else "unknown", "memory": None, "driver": None, "capability": None})
    return found


def _mebibytes(text: str) -> int | None:
    return int(text) * 2**20 if text.isdigit() else None


def _version(text: str) -> str | None:
    """Old drivers answer `[N/A]`."""
    return text if re.fullmatch(r"\d+\.\d+", text) else None


def memory() -> dict[str, int]:
    """Bytes of memory, `total` and `available`; a container's own limit counts where it is the smaller."""
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    total, available = (int(lines[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(name).read_text()))
        except (OSError, ValueError):  # no such file, or the word "max"
            continue
    return {"total": total, "available": min(available, total)}


def disk(path: Path) -> dict[str, Any]:
    usage = shutil.disk_usage(_existing(path))
    return {"path": str(path.absolute()), "total": usage.total, "free": usage.free}


def _existing(path: Path) -> Path:
    # Not Path.exists(), which raises for a name that is too long.
    path = path.absolute()
    return next(place for place in (path, *path.parents) if os.path.exists(place))  # noqa: PTH110
