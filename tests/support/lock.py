"""`make lock`: renew the pins of the requirements files as far as they resolve together, and say what changed, what
stays, and why. Nothing is written where they do not resolve for every Python that is tested.

A range stays as it is: there Kaggle's image decides. More words go to uv: `--no-index --find-links FOLDER`.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from kaggle_lib.report.pins import pins

PYTHONS = ("3.11", "3.12", "3.13")
KAGGLE, CPU, CPU_UNSLOTH = "requirements.txt", "requirements-cpu.txt", "requirements-cpu-unsloth.txt"
# What is not renewed by itself: how far it may go, and why.
HELD = {
    "torch": ("==2.13.0", "every saved byte depends on it, and a CPU build has to be on the index"),
    "trl": ("<1.15", "the loss of 1.15.0 needs Triton, and dies on a CPU"),
    "xformers": ("==0.0.35", "built for the torch of Kaggle's image"),
    "kaggle": ("==2.2.5", "`push` and `chain` read what this client prints"),
}
TOGETHER = "with the other pins no newer one resolves"


class Unresolved(Exception):
    """What uv says."""


def resolve(python: str, *files: Path, words: tuple[str, ...] = ()) -> dict[str, str]:
    """The versions that these requirements come to for that Python on Linux, from the index's metadata alone."""
    platform = ("--python-version", python, "--python-platform", "x86_64-manylinux_2_28")
    shape = ("--quiet", "--no-header", "--no-annotate", "--only-binary", "torch")
    uv = Path(sys.executable).with_name("uv")
    done = subprocess.run(
        [str(word) for word in (uv, "pip", "compile", *files, *platform, *shape, *words)],
        capture_output=True,
        encoding="utf-8",
        stdin=subprocess.DEVNULL,
        check=False,
    )
    if done.returncode:
        raise Unresolved(done.stderr.strip())
    return dict(line.split("==") for line in done.stdout.splitlines())


def lock(root: Path, words: tuple[str, ...] = ()) -> list[str]:
    """Write the files of `root` anew; a line for each change and for each pin that is behind. Raises Unresolved."""
    before = {name: pins(root / name) for name in (KAGGLE, CPU, CPU_UNSLOTH)}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)

        def found(python: str, lines: list[str], *more: str) -> dict[str, str]:
            path = scratch / "asked.txt"
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            return resolve(python, path, words=(*words, *more))

        kaggle = found(PYTHONS[0], [_asked(*pin) for pin in before[KAGGLE].items()])
        both = [name for name in before[CPU] if before[KAGGLE].get(name, "").startswith("==")]
        shared = [f"{name}=={kaggle[canonicalize_name(name)]}" for name in both]
        cpu = found(PYTHONS[0], [*(_asked(*pin) for pin in before[CPU].items() if pin[0] not in both), *shared])
        pinned = {name for one in before.values() for name, specifier in one.items() if specifier.startswith("==")}
        newest = found(PYTHONS[0], sorted(pinned), "--no-deps")
        after = {
            name: {
                one: f"=={(cpu if name == CPU else kaggle)[canonicalize_name(one)]}"
                if specifier.startswith("==")
                else specifier
                for one, specifier in before[name].items()
            }
            for name in before
        }
        for python in PYTHONS:
            for name in (KAGGLE, CPU):
                found(python, [f"{one}{specifier}" for one, specifier in after[name].items()])
    lines = []
    for name in before:
        text = (root / name).read_text(encoding="utf-8")
        for one, old in before[name].items():
            new = after[name][one]
            text = re.sub(rf"^{re.escape(one + old)}(?=\s|$)", one + new, text, flags=re.MULTILINE)
            if new != old:
                lines.append(f"{name}: {one} {old[2:]} -> {new[2:]}")
        (root / name).write_text(text, encoding="utf-8")
    chosen = {one: specifier[2:] for name in before for one, specifier in after[name].items() if one in pinned}
    for one in sorted(pinned, key=str.lower):
        if newest[canonicalize_name(one)] != chosen[one]:
            why = HELD[one][1] if one in HELD else "; ".join(_askers(one, newest[canonicalize_name(one)])) or TOGETHER
            lines.append(f"stays: {one} {chosen[one]} ({newest[canonicalize_name(one)]} is out): {why}")
    return lines


def _asked(name: str, specifier: str) -> str:
    return name + (HELD.get(name, ("", ""))[0] if specifier.startswith("==") else specifier)


def _askers(name: str, newest: str) -> Iterator[str]:
    """What is installed here and allows no such version."""
    for one in importlib.metadata.distributions():
        for asked in map(Requirement, one.requires or ()):
            concerns = canonicalize_name(asked.name) == canonicalize_name(name) and not (
                asked.marker and "extra" in str(asked.marker)
            )
            if concerns and not asked.specifier.contains(newest, prereleases=True):
                yield f"{one.name} {one.version} asks for {asked.specifier}"


def main(root: Path, words: tuple[str, ...]) -> int:
    try:
        lines = lock(root, words)
    except Unresolved as error:
        print(f"The pins do not resolve, and nothing was written:\n{error}", file=sys.stderr)
        return 1
    print("\n".join(lines or ["Every pin is the newest."]))
    if any("->" in line for line in lines):
        print("Now `make setup test`; the versions that were tried stand in tests/integration/test_pins.py, too.")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(__file__).parents[2], tuple(sys.argv[1:])))
