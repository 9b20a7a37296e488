"""What is on this machine, and what a run would miss. Looks only; the one write is a probe of `store` and `work_dir`.

Versions come from the packages' metadata and GPUs from the driver's tool: nothing heavy is imported.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from kaggle_lib.config import RunConfig
from kaggle_lib.data.check import check
from kaggle_lib.errors import UserError
from kaggle_lib.report.pins import pins, satisfies
from kaggle_lib.runs.opening import store_for
from kaggle_lib.session.machine import disk, find_gpus, memory
from kaggle_lib.session.secrets import Token, hub_token, kaggle_token
from kaggle_lib.session.where import on_scratch, where

PYTHONS = ((3, 11), (3, 13))  # tested, first to last
# A CUDA 12.8 build of torch has no code for what is older than this (a T4 is 7.5, a P100 6.0).
OLDEST_CAPABILITY = 7.0
SET_TOKEN = "set HF_TOKEN, or run `hf auth login`."
NEEDED = (
    *("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers", "safetensors"),
    *("huggingface_hub", "evaluate", "sacrebleu", "rouge-score"),
    *("pydantic", "typer", "filelock", "jinja2", "PyYAML", "tqdm"),
)


@dataclass(frozen=True)
class Finding:
    """`missing`: a run with these settings would fail, and `todo` says what to do; `note`: worth knowing."""

    topic: str
    state: Literal["ok", "note", "missing"]
    text: str
    todo: str = ""


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
    versions = {name: _version(name) for name in NEEDED}
    (hub, hub_found), kaggle = _hub_token(config), kaggle_token()
    folders = {"work_dir": on_scratch(config.work_dir)}
    if not config.hub_store:
        folders = {"store": Path(config.store), **folders}
    facts: dict[str, Any] = {
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
        *_gpus(gpus, config, values),
        *_packages(versions, has_gpu=bool(gpus)),
        *_strategy(config, has_gpu=bool(gpus)),
        hub_found,
        _token("Kaggle", kaggle, "Only the `kaggle` client needs one."),
        *([_hub_store(config)] if config.hub_store else []),
        *(_writable(name, path.absolute()) for name, path in folders.items()),
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


def _gpus(gpus: list[dict[str, Any]], config: RunConfig, given: Mapping[str, object]) -> Iterator[Finding]:
    # Without a preset or a key that says so, nobody asked for a GPU.
    asked = [f"{name}={getattr(config, name)}" for name in ("precision", "optim") if name in given]
    wanted = [text for text in asked if text.endswith(("fp16", "bf16", "adamw_8bit"))]
    if not gpus and wanted:
        todo = "Run it on a GPU, or use preset tiny-cpu."
        yield Finding("GPU", "missing", f"none, and {' and '.join(wanted)} cannot do without", todo)
    elif not gpus:
        yield Finding("GPU", "note", "none: fine for preset tiny-cpu, an 8B model needs one")
    yield from (_gpu(f"GPU {number}", gpu, config) for number, gpu in enumerate(gpus))


def _gpu(topic: str, gpu: Mapping[str, Any], config: RunConfig) -> Finding:
    size = f", {gpu['memory'] / 2**30:.1f} GiB" if gpu["memory"] else ""
    text = f"{gpu['name']}{size}, compute capability {gpu['capability'] or 'unknown'}"
    if gpu["capability"] is None:
        return Finding(topic, "note", text)
    if float(gpu["capability"]) < OLDEST_CAPABILITY:
        todo = "Choose another accelerator (on Kaggle: GPU T4 x2)."
        return Finding(topic, "missing", f"{text}: too old, torch has no code for it", todo)
    if float(gpu["capability"]) < 8 and config.precision == "bf16":
        return Finding(topic, "missing", f"{text}: it only emulates bf16", "Set precision=fp16.")
    return Finding(topic, "ok", text)


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


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages(versions: Mapping[str, str | None], *, has_gpu: bool) -> Iterator[Finding]:
    name = "requirements.txt" if has_gpu else "requirements-cpu.txt"
    path = Path(__file__).parents[2] / name
    absent = [package for package, version in versions.items() if version is None]
    if absent:
        yield Finding("packages", "missing", f"not installed: {', '.join(absent)}", f"Install what {name} lists.")
    if not path.is_file():
        yield Finding("packages", "note", f"the versions are not compared: {name} is not beside the package")
        return
    wanted = pins(path)
    others = [
        f"{package} {version} (tested: {wanted[package]})"
        for package, version in versions.items()
        if version is not None and package in wanted and not satisfies(version, wanted[package])
    ]
    if others:
        yield Finding(
            "packages", "note", f"not the tested versions: {', '.join(others)}", f"Install what {name} lists."
        )
    elif not absent:
        yield Finding("packages", "ok", f"all as in {name}")


def _strategy(config: RunConfig, *, has_gpu: bool) -> Iterator[Finding]:
    if config.strategy != "unsloth":
        return
    if absent := [name for name in ("unsloth", "unsloth_zoo") if _version(name) is None]:
        todo = "Install what requirements.txt lists (on a CPU: `make setup`), or set strategy=peft."
        yield Finding("strategy", "missing", f"unsloth, and not installed: {', '.join(absent)}", todo)
    elif not has_gpu:
        yield Finding("strategy", "note", "unsloth without a GPU is its fallback, transformers and PEFT: for tests")


def _token(owner: str, token: Token | None, todo: str) -> Finding:
    if token is None:
        return Finding(f"{owner} token", "note", "none found", todo)
    return Finding(f"{owner} token", "ok", f"found in {token.place} (not tried)")


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


def _hub_store(config: RunConfig) -> Finding:
    """Whether the run can be read there; that it can be written to shows when `train` claims it."""
    try:
        state = store_for(config).peek()
    except UserError as error:
        return Finding("store", "missing", error.what, error.todo)
    there = "has this run" if state.config else "has no run of this name yet"
    return Finding("store", "ok", f"{config.store} can be read, and {there}")


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


def _data(config: RunConfig, given: Mapping[str, object]) -> Iterator[Finding]:
    if "data" not in given:
        return
    try:
        checked = check(config)
    except UserError as error:
        yield Finding("data", "missing", error.what.removeprefix("data: "), error.todo)
        return
    yield Finding("data", "ok", f"{checked.path} ({checked.rows:,} rows, {checked.set_aside} set aside)")
