"""What `doctor` says of the packages: by the metadata that are really there, of packages made for the test."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kaggle_lib.report import packages
from kaggle_lib.report.finding import Finding
from kaggle_lib.report.packages import NEEDED, RESTART, look, version
from kaggle_lib.report.pins import pins, satisfies

ROOT = Path(__file__).parents[3]
CPU = ROOT / "requirements-cpu.txt"
TODO = "Install what requirements-cpu.txt lists."


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Put a package in front of whatever is installed: its metadata, and a module of that name unless told."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, version: str, *requires: str, code: bool = True) -> None:
        about = tmp_path / f"{name}-{version}.dist-info"
        about.mkdir()
        monkeypatch.delitem(sys.modules, name, raising=False)  # another test's own import of the real one
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        (about / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {one}" for one in requires), ""]))
        if code:
            (tmp_path / f"{name}.py").write_text(f"__version__ = {version!r}\n")

    return install


def found(*, unsloth: bool = False, requirements: Path = CPU) -> list[tuple[str, str, str]]:
    return [(one.state, one.text, one.todo) for one in look(unsloth=unsloth, requirements=requirements)[1]]


def broken(**given: bool) -> list[tuple[str, str]]:
    """What is missing, each with what to do; whether the versions are the tested ones is left out."""
    return [(text, todo) for state, text, todo in found(**given) if state == "missing"]


def test_what_is_installed_is_compared_with_the_pins() -> None:
    versions, findings = look(unsloth=True, requirements=CPU)
    assert findings == [Finding("packages", "ok", "all as in requirements-cpu.txt")]
    assert versions["trl"] == "1.14.2"
    assert set(NEEDED) <= set(pins(CPU))
    assert set(NEEDED) <= set(pins(ROOT / "requirements.txt"))


def test_another_version_is_a_note_and_a_missing_package_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "NEEDED", ("trl", "no-such-package"))
    tested = tmp_path / "requirements.txt"
    tested.write_text("trl==1.15.0\n")
    todo = "Install what requirements.txt lists."
    assert found(requirements=tested) == [
        ("missing", "not installed: no-such-package", todo),
        ("note", "not the tested versions: trl 1.14.2 (tested: ==1.15.0)", todo),
    ]
    nowhere = tmp_path / "nowhere.txt"
    assert found(requirements=nowhere)[1:] == [
        ("note", "the versions are not compared: nowhere.txt is not beside the package", "")
    ]


def test_packages_that_ask_for_other_versions_of_one_another(installed) -> None:
    installed("datasets", "4.0.0", "huggingface-hub<2.0,>=0.25.0", "fsspec[http]<=2020.1.0")
    installed("unsloth", "2026.10.9", "datasets!=4.0.*,<5.0.0", "transformers<=5.17.0", 'torch<2; sys_platform == "x"')
    installed("huggingface_hub", "2.4.0")
    told = [
        ("datasets 4.0.0 needs huggingface-hub<2.0,>=0.25.0, and 2.4.0 is installed", TODO),
        ("transformers 5.17.0 needs huggingface-hub<2.0,>=1.5.0, and 2.4.0 is installed", TODO),
        ("trl 1.14.2 needs datasets>=4.7.0, and 4.0.0 is installed", TODO),
    ]
    asked = [one for one in broken() if " needs " in one[0]]
    assert sorted(asked) == told
    told_too = ("unsloth 2026.10.9 needs datasets!=4.0.*,<5.0.0, and 4.0.0 is installed", TODO)
    assert told_too in broken(unsloth=True)


@pytest.mark.parametrize(
    ("there", "text", "todo"),
    [
        (
            [("trl", "1.15.0")],
            "trl 1.15.0 and no triton: the loss of this SFTTrainer needs Triton, and dies at its first step",
            "Install trl 1.14.2.",
        ),
        (
            [("torch", "2.13.0+cpu"), ("torchvision", "0.28.0")],
            "torch 2.13.0+cpu and torchvision 0.28.0: not built for one another: transformers, evaluate and unsloth "
            "fail at import",
            "Remove torchvision; nothing here needs it.",
        ),
        (
            [("torch", "2.13.0+cpu"), ("kernels", "0.12.0"), ("bitsandbytes", "0.50.2")],
            "kernels 0.12.0 and bitsandbytes 0.50.2: on a CPU bitsandbytes would fetch code from the Hub, and train "
            "with it",
            "Remove kernels.",
        ),
    ],
)
def test_packages_that_are_known_not_to_work_together(
    installed, monkeypatch: pytest.MonkeyPatch, there, text: str, todo: str
) -> None:
    # A CUDA build of torch brings Triton, the CPU build does not.
    monkeypatch.setattr(packages, "version", lambda name: None if name == "triton" else version(name))
    for name, number in there:
        installed(name, number)
    assert broken() == [(text, todo)]


def test_the_same_packages_in_builds_that_fit_are_not_accused(installed) -> None:
    for name, number in (("torch", "2.11.0+cu128"), ("torchvision", "0.26.0"), ("kernels", "0.12.0")):
        installed(name, number)
    for name, number in (("trl", "1.15.0"), ("triton", "3.6.0"), ("kaggle", "2.2.5"), ("six", "1.17.0")):
        installed(name, number)
    assert broken() == []


def test_torchvision_of_another_torch_is_told_by_its_own_metadata(installed) -> None:
    installed("torch", "2.11.0+cu128")
    installed("torchvision", "0.25.0+cu128", "torch==2.10.0")
    assert broken() == [("torchvision 0.25.0+cu128 needs torch==2.10.0, and 2.11.0+cu128 is installed", TODO)]


def test_a_half_installed_package_is_told(installed, tmp_path: Path) -> None:
    installed("torchvision", "0.26.0+cpu", code=False)
    (tmp_path / "torchvision" / "io").mkdir(parents=True)  # what an interrupted removal leaves
    text = "torchvision 0.26.0+cpu is only half installed: its metadata are there, its code is not"
    assert broken() == [(text, f"{TODO} {RESTART}")]


def test_a_package_that_was_upgraded_under_a_live_kernel_is_told(tmp_path: Path) -> None:
    """In a process of its own, as a kernel: imports one version, pip replaces it on disk, and the next call asks."""
    code = """
import sys
from pathlib import Path
site = Path(sys.argv[1])
sys.path.insert(0, str(site))
import filelock, evaluate
print(filelock.__version__)
about = (site / "filelock-3.12.0.dist-info").rename(site / "filelock-3.29.0.dist-info")
(about / "METADATA").write_text("Name: filelock\\nVersion: 3.29.0\\n")
from kaggle_lib.report.packages import look
for one in look(unsloth=False, requirements=Path(sys.argv[2]))[1]:
    print(one.state, one.text, one.todo)
"""
    (tmp_path / "filelock.py").write_text('__version__ = "3.12.0"\n')
    (tmp_path / "evaluate.py").write_text('__version__ = "0.4.6+of.a.build"\n')
    (tmp_path / "filelock-3.12.0.dist-info").mkdir()
    words = [sys.executable, "-c", code, str(tmp_path), str(CPU)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "3.12.0",
        f"missing filelock 3.12.0 is imported here, and 3.29.0 has been installed since {RESTART}",
    ]


@pytest.mark.parametrize(
    ("version", "specifier", "expected"),
    [
        ("2.13.0+cpu", "==2.13.0", True),
        ("2.13", "==2.13.0", True),
        ("2.13.1", "==2.13.0", False),
        ("2.10.0+cu128", ">=2.10,<2.12", True),
        ("2.9.1", ">=2.10,<2.12", False),
        ("2.12.0", ">=2.10,<2.12", False),
        ("6.0.3", "==6.0.3", True),
    ],
)
def test_a_version_satisfies_its_pin(version: str, specifier: str, expected: bool) -> None:
    assert satisfies(version, specifier) is expected
