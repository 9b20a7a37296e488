"""The packages that a run stands on: there, whole, as they were imported, able to work together, and the tested ones.

All from their metadata: nothing is imported.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

# Every package below depends on it, huggingface_hub too, so it is there where this is.
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from kaggle_lib.report.finding import Finding
from kaggle_lib.report.pins import pins, satisfies

STACK = ("torch", "transformers", "trl", "peft", "accelerate", "bitsandbytes", "datasets", "tokenizers", "safetensors")
NEEDED = (
    *(*STACK, "huggingface_hub", "evaluate", "sacrebleu", "rouge-score"),
    *("pydantic", "typer", "filelock", "jinja2", "PyYAML", "tqdm"),
)
UNSLOTH = ("unsloth", "unsloth_zoo")
# Not needed, and yet able to break what is: of the image, or brought by another package.
BESIDE = ("torchvision", "torchaudio", "triton", "xformers", "torchao", "kernels", "kaggle", "six", "numpy")
RESTART = "Restart the kernel (Run, Restart), and run its cells again."
Versions = Mapping[str, str | None]


def _is(version: str | None, specifier: str) -> bool:
    return version is not None and SpecifierSet(specifier).contains(version, prereleases=True)


# What the packages' own requirements do not say: whether it is so here, the packages, why it fails, what to do.
TROUBLES: tuple[tuple[Callable[[Versions], bool], tuple[str, ...], str, str], ...] = (
    (
        lambda v: _is(v["trl"], "==1.15.0") and v["triton"] is None,
        *(("trl", "triton"), "the loss of this SFTTrainer needs Triton, and dies at its first step"),
        "Install trl 1.14.2.",
    ),
    (
        lambda v: (v["torch"] or "").endswith("+cpu") and not (v["torchvision"] or "+cpu").endswith("+cpu"),
        *(("torch", "torchvision"), "not built for one another: transformers, evaluate and unsloth fail at import"),
        "Remove torchvision; nothing here needs it.",
    ),
    (
        lambda v: (v["torch"] or "").endswith("+cpu") and v["kernels"] is not None,
        *(("kernels", "bitsandbytes"), "on a CPU bitsandbytes would fetch code from the Hub, and train with it"),
        "Remove kernels.",
    ),
    (
        lambda v: _is(v["kaggle"], "==2.2.5") and v["six"] is None,
        *(("kaggle", "six"), "`push` and `chain` fail: this client imports six without asking for it"),
        "Install six.",
    ),
)


def look(*, unsloth: bool, requirements: Path) -> tuple[dict[str, str | None], list[Finding]]:
    """(the version of each needed package, what was found). `requirements`: the tested versions, a file that may be
    absent."""
    there = {name: version(name) for name in (*STACK, *NEEDED, *UNSLOTH, *BESIDE)}
    needed = {name: there[name] for name in NEEDED}
    absent = [name for name, one in needed.items() if one is None]
    todo = f"Install what {requirements.name} lists."
    broken = [
        *([Finding("packages", "missing", f"not installed: {', '.join(absent)}", todo)] if absent else []),
        *(Finding("packages", "missing", text, f"{todo} {RESTART}") for text in _half(there)),
        *(Finding("packages", "missing", text, RESTART) for text in _replaced(there)),
        *(Finding("packages", "missing", text, todo) for text in _contradicted(there, unsloth=unsloth)),
        *(Finding("packages", "missing", text, todo) for text, todo in _troubled(there)),
    ]
    return needed, [*broken, *_untested(needed, requirements, todo, broken=bool(broken))]


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _half(there: Versions) -> Iterator[str]:
    """What was interrupted, or left behind, by an installation."""
    for name, one in there.items():
        if one is None or _module(name) in sys.modules:
            continue
        found = importlib.util.find_spec(_module(name))
        if found is None or found.origin is None:  # no origin: a folder without the package's first file
            yield f"{name} {one} is only half installed: its metadata are there, its code is not"


def _replaced(there: Versions) -> Iterator[str]:
    """What this process has imported stays as it was, and what it imports later is new: a mixture of two versions."""
    for name, one in there.items():
        imported = getattr(sys.modules.get(_module(name)), "__version__", None)
        if one and isinstance(imported, str) and imported.split("+")[0] != one.split("+")[0]:
            yield f"{name} {imported} is imported here, and {one} has been installed since"


def _contradicted(there: Versions, *, unsloth: bool) -> Iterator[str]:
    """What the packages themselves ask of one another, as `pip check` would; of these alone."""
    versions = {canonicalize_name(name): one for name, one in there.items() if one is not None}
    for name in (*STACK, "torchvision", "xformers", *(UNSLOTH if unsloth else ())):
        for line in (importlib.metadata.requires(name) or ()) if there[name] else ():
            asked = Requirement(line)
            found = versions.get(canonicalize_name(asked.name))
            if found is None or (asked.marker and not asked.marker.evaluate({"extra": ""})):
                continue
            if not asked.specifier.contains(found, prereleases=True):
                yield f"{name} {there[name]} needs {asked.name}{asked.specifier}, and {found} is installed"


def _troubled(there: Versions) -> Iterator[tuple[str, str]]:
    for holds, names, why, todo in TROUBLES:
        if holds(there):
            who = " and ".join(f"{name} {there[name]}" if there[name] else f"no {name}" for name in names)
            yield f"{who}: {why}", todo


def _untested(needed: Versions, requirements: Path, todo: str, *, broken: bool) -> Iterator[Finding]:
    if not requirements.is_file():
        text = f"the versions are not compared: {requirements.name} is not beside the package"
        yield Finding("packages", "note", text)
        return
    wanted = pins(requirements)
    others = [
        f"{name} {one} (tested: {wanted[name]})"
        for name, one in needed.items()
        if one is not None and name in wanted and not satisfies(one, wanted[name])
    ]
    if others:
        yield Finding("packages", "note", f"not the tested versions: {', '.join(others)}", todo)
    elif not broken:
        yield Finding("packages", "ok", f"all as in {requirements.name}")


def _module(name: str) -> str:
    return {"PyYAML": "yaml"}.get(name, name.replace("-", "_"))
