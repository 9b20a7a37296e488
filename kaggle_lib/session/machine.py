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
    """`name`, `memory` (bytes), `driver`, `capability` and `used` (bytes, by any process) of each NVIDIA GPU; only the
    name where just /proc tells."""
    query = "--query-gpu=name,memory.total,driver_version,compute_cap,memory.used"
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
            {"name": name, "memory": _bytes(size), "driver": driver, "capability": _version(cap), "used": _bytes(used)}
            for name, size, driver, cap, used in (row for row in rows if len(row) == 5)
        ]
    found = []
    for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        model = re.search(r"^Model:\s*(.+)$", path.read_text(errors="replace"), re.MULTILINE)
        unknown = dict.fromkeys(("memory", "driver", "capability", "used"))
        found.append({"name": model[1] if model else "unknown", **unknown})
    return found


def _bytes(text: str) -> int | None:
    """Of mebibytes, as the tool tells them."""
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


def short_of(needs: list[tuple[Path, int]]) -> list[tuple[Path, int, int]]:
    """Where bytes are lacking: (folder, free, needed). What shares a disk is needed there together."""
    disks: dict[int, tuple[Path, int, int]] = {}
    for path, needed in needs:
        there = _existing(path)
        first, _, sum_ = disks.get(there.stat().st_dev, (there, 0, 0))
        disks[there.stat().st_dev] = (first, shutil.disk_usage(there).free, sum_ + needed)
    return [(there, free, needed) for there, free, needed in disks.values() if free < needed]


def hub_cache() -> Path:
    """Where huggingface_hub keeps what it fetches (its documentation, "Environment variables")."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or cache / "huggingface") / "hub")


def _existing(path: Path) -> Path:
    # Not Path.exists(), which raises for a name that is too long.
    path = path.absolute()
    return next(place for place in (path, *path.parents) if os.path.exists(place))  # noqa: PTH110
