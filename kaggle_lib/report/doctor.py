"""What is on this machine, and what a run would miss. Looks only; the one write is a probe of `store` and `work_dir`.

Versions come from the packages' metadata, GPUs from the driver's tool, and torch is asked in a process of its own:
nothing heavy is imported.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

from kaggle_lib import __version__
from kaggle_lib.config import RunConfig
from kaggle_lib.data.check import check
from kaggle_lib.errors import UserError
from kaggle_lib.report import hub_access, packages
from kaggle_lib.report.finding import Finding
from kaggle_lib.report.plan import checkpoint_bytes
from kaggle_lib.report.speed import shape_of
from kaggle_lib.runs.launch import visible_gpus
from kaggle_lib.session import torch_build
from kaggle_lib.session.machine import disk, find_gpus, hub_cache, memory, short_of
from kaggle_lib.session.secrets import Token, hub_token, kaggle_token
from kaggle_lib.session.where import on_scratch, root, where

PYTHONS = ((3, 11), (3, 13))  # tested, first to last
BUSY = 1 / 8  # of a GPU's memory, in use before we have begun: more than a screen takes
CHECKPOINT = 50_000_000  # bytes, of a model whose shape is not known
ANOTHER_GPU = "Choose another accelerator (on Kaggle: GPU T4 x2)."
SET_TOKEN = "set HF_TOKEN, or run `hf auth login`."


@dataclass(frozen=True)
class Examination:
    """`facts` for a program, `findings` for a person; `exit_code` is 1 where something needed is missing."""

    facts: dict[str, Any]
    findings: list[Finding]

    @property
    def ok(self) -> bool:
        return all(finding.state != "missing" for finding in self.findings)

    @property
    def exit_code(self) -> int:
        return 0 if self.ok else 1

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **self.facts, "findings": [asdict(finding) for finding in self.findings]}


def examine(values: Mapping[str, object]) -> Examination:
    """Look at this machine for a run of `values`, which need not be complete. Raises ConfigError where one is wrong."""
    # What is not given does not matter for looking, but has to be something.
    config = RunConfig.create({"run": "doctor", "base_model": "sample", "data": "sample", **values})
    gpus = find_gpus()
    torch = torch_build.ask() if gpus and packages.version("torch") else None  # takes a while, and the rest does, too
    requirements = Path(__file__).parents[2] / ("requirements.txt" if gpus else "requirements-cpu.txt")
    versions, of_packages = packages.look(unsloth=config.strategy == "unsloth", requirements=requirements)
    (hub, hub_found), kaggle = _hub_token(config), kaggle_token()
    to_fetch, of_hub = hub_access.look(config, hub)
    folders = {"work_dir": on_scratch(config.work_dir)}
    if not config.hub_store:
        folders = {"store": Path(config.store), **folders}
    facts: dict[str, Any] = {
        "kaggle_lib": __version__,
        "where": where(),
        "python": platform.python_version(),
        "cpus": len(os.sched_getaffinity(0)),
        "memory": memory(),
        "disk": {name: disk(path) for name, path in reversed(folders.items())},
        "gpus": gpus,
        "packages": versions,
        "tokens": {"hub": hub.place if hub else None, "kaggle": kaggle.place if kaggle else None},
    }
    findings = [
        Finding("where", "ok", str(facts["where"])),
        _python(),
        Finding("machine", "ok", _machine(facts)),
        *_gpus(gpus, torch, config, values),
        *of_packages,
        *_strategy(config, has_gpu=bool(gpus)),
        hub_found,
        _token("Kaggle", kaggle, "Only the `kaggle` client needs one."),
        *of_hub,
        *(_writable(name, path.absolute()) for name, path in folders.items()),
        *_space(config, folders, to_fetch),
        *_data(config, values),
    ]
    return Examination(facts, findings)


def as_text(examination: Examination) -> str:
    """A line for each finding, and one below it where something is to be done."""
    lines = []
    for finding in examination.findings:
        lines.append(f"{finding.state:7}  {finding.topic}: {finding.text}")
        if finding.todo:
            lines.append(f"{'':7}  -> {finding.todo}")
    missing = sum(finding.state == "missing" for finding in examination.findings)
    lines.append(f"{missing} missing" if missing else "Nothing that is needed is missing.")
    return "\n".join(lines)


def _gpus(
    gpus: list[dict[str, Any]], torch: Popen[str] | None, config: RunConfig, given: Mapping[str, object]
) -> Iterator[Finding]:
    # Without a preset or a key that says so, nobody asked for a GPU.
    asked = [f"{name}={getattr(config, name)}" for name in ("precision", "optim") if name in given]
    wanted = [text for text in asked if text.endswith(("fp16", "bf16", "adamw_8bit"))]
    if not gpus and wanted:
        todo = "Run it on a GPU, or use preset tiny-cpu."
        yield Finding("GPU", "missing", f"none, and {' and '.join(wanted)} cannot do without", todo)
    elif not gpus:
        yield Finding("GPU", "note", "none: fine for preset tiny-cpu, an 8B model needs one")
    built: tuple[str, list[str]] | None = None
    if torch:
        try:
            built = torch_build.answer(torch)
        except UserError as error:
            todo = "Install the torch of requirements.txt (on Kaggle: choose the newest environment)."
            yield Finding("torch", "missing", f"cannot be imported: {error}", todo)
    free = [str(number) for number, gpu in enumerate(gpus) if not _busy(number, gpu, config)]
    for number, gpu in enumerate(gpus):
        yield _gpu(number, gpu, config, built, f"CUDA_VISIBLE_DEVICES={','.join(free)}" if free else "")


def _gpu(
    number: int, gpu: Mapping[str, Any], config: RunConfig, built: tuple[str, list[str]] | None, others: str
) -> Finding:
    """`built`: torch's version and the architectures that it has code for; `others`: how to take only the free ones."""
    topic, capability = f"GPU {number}", gpu["capability"]
    size = f", {gpu['memory'] / 2**30:.1f} GiB" if gpu["memory"] else ""
    text = f"{gpu['name']}{size}, compute capability {capability or 'unknown'}"
    if capability and built and not torch_build.has_code(built[1], capability):
        told = f"{text}: torch {built[0]} has no code for it (only {', '.join(built[1]) or 'for the CPU'})"
        return Finding(topic, "missing", told, ANOTHER_GPU if built[1] else "Install the torch of requirements.txt.")
    if capability and float(capability) < 8 and config.precision == "bf16":
        return Finding(topic, "missing", f"{text}: it only emulates bf16", "Set precision=fp16.")
    if _busy(number, gpu, config):
        todo = "End what runs there (`nvidia-smi` lists it; a notebook's own model: restart the kernel)"
        told = f"{text}: {gpu['used'] / 2**30:.1f} GiB of it are in use already"
        return Finding(topic, "missing", told, f"{todo}, or leave it out: {others}." if others else f"{todo}.")
    return Finding(topic, "ok" if capability else "note", text)


def _busy(number: int, gpu: Mapping[str, Any], config: RunConfig) -> bool:
    """Whether a worker would find much of its memory taken. Workers take the first GPUs that they may see, one each."""
    hidden = "CUDA_VISIBLE_DEVICES" in os.environ and str(number) not in visible_gpus()
    if hidden or (config.processes != "auto" and number >= config.processes):
        return False
    return bool(gpu["memory"] and gpu["used"] and gpu["used"] > BUSY * gpu["memory"])


def _python() -> Finding:
    shown = f"{platform.python_version()} ({sys.executable})"
    low, high = PYTHONS
    if low <= sys.version_info[:2] <= high:
        return Finding("Python", "ok", shown)
    return Finding("Python", "note", f"{shown}: tested are 3.{low[1]} to 3.{high[1]}")


def _machine(facts: Mapping[str, Any]) -> str:
    ram, disks = facts["memory"], facts["disk"]
    shown = f"{ram['available'] / 2**30:.1f} of {ram['total'] / 2**30:.1f} GiB of memory free"
    free = [f"{usage['free'] / 1e9:.0f} GB free for {name}" for name, usage in disks.items()]
    return ", ".join([f"{facts['cpus']} CPU cores", shown, *free])


def _strategy(config: RunConfig, *, has_gpu: bool) -> Iterator[Finding]:
    if config.strategy != "unsloth":
        return
    if absent := [name for name in packages.UNSLOTH if packages.version(name) is None]:
        todo = "Install what requirements.txt lists (on a CPU: `make setup`), or set strategy=peft."
        yield Finding("strategy", "missing", f"unsloth, and not installed: {', '.join(absent)}", todo)
    elif not has_gpu:
        yield Finding("strategy", "note", "unsloth without a GPU is its fallback, transformers and PEFT: for tests")


def _token(owner: str, token: Token | None, todo: str) -> Finding:
    if token is None:
        return Finding(f"{owner} token", "note", "none found", todo)
    return Finding(f"{owner} token", "ok", f"found in {token.place}")


def _hub_token(config: RunConfig) -> tuple[Token | None, Finding]:
    try:
        token = hub_token()
    except UserError as error:
        return None, Finding("Hugging Face token", "missing", error.what, error.todo)
    if token is None and config.hub_store:
        return None, Finding(
            "Hugging Face token", "missing", f"none found, and store={config.store} needs one", SET_TOKEN
        )
    return token, _token("Hugging Face", token, f"Only a gated base model needs one: {SET_TOKEN}")


def _writable(name: str, path: Path) -> Finding:
    """Write a few bytes into the folder, read them, remove them; folders made for it go again, too."""
    made: list[Path] = []
    try:
        for folder in [place for place in (*reversed(path.parents), path) if not place.exists()]:
            folder.mkdir()
            made.append(folder)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".doctor-") as file:
            file.write(b"kaggle_lib")
            file.flush()
            os.fsync(file.fileno())
            if Path(file.name).read_bytes() != b"kaggle_lib":
                return Finding(name, "missing", f"{path} gives back other bytes than were written", "Use another.")
    except OSError as error:
        todo = f"Set {name} to a folder that can be written to."
        return Finding(name, "missing", f"{path} cannot be written to ({error.strerror})", todo)
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # somebody else's file is in it by now
                folder.rmdir()
    return Finding(name, "ok", f"{path} can be written to")


def _space(config: RunConfig, folders: Mapping[str, Path], to_fetch: int) -> Iterator[Finding]:
    """What `keep` checkpoints take, and one that is being written, in every folder that has them."""
    shape = shape_of(config)
    each = CHECKPOINT
    with contextlib.suppress(KeyError):  # an architecture whose layers have other names
        each = checkpoint_bytes(shape, config) if shape else each
    needs = [(path, (config.keep + 1) * each) for path in folders.values()]
    for there, free, needed in short_of([*needs, (hub_cache(), to_fetch)]):
        text = f"{there} has {free / 1e9:.1f} GB free, and this run needs {needed / 1e9:.1f} GB there"
        yield Finding("space", "missing", text, "Free the disk, or set work_dir, store or HF_HOME to another one.")


def _data(config: RunConfig, given: Mapping[str, object]) -> Iterator[Finding]:
    if "data" not in given:
        return
    try:
        checked = check(config)
    except UserError as error:
        places = [path for place in ("*", "datasets/*/*", "d/*/*") for path in sorted((root() / "input").glob(place))]
        names = [path.name for path in places if path.is_dir() and path.name not in ("datasets", "d")]
        attached = f" Attached here: {', '.join(names)}." if where() != "local" and names else ""
        yield Finding("data", "missing", error.what.removeprefix("data: ") + attached, error.todo)
        return
    yield Finding("data", "ok", f"{checked.path} ({checked.rows:,} rows, {checked.set_aside} set aside)")
