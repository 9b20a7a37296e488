"""The pins: they resolve for every Python that we name, they are what is installed, and the light side runs there."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support import lock

from kaggle_lib.report.pins import pins

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")

# The set that resolves with unsloth, trains, and resumes; each was tried.
STACK = {
    "accelerate": "1.15.0",
    "bitsandbytes": "0.50.2",
    "datasets": "4.8.5",
    "evaluate": "0.4.6",
    "huggingface_hub": "1.33.0",
    "jupytext": "1.19.6",
    "papermill": "2.7.0",
    "peft": "0.21.2",
    "rouge-score": "0.1.2",
    "sacrebleu": "2.6.0",
    "safetensors": "0.8.0",
    "tokenizers": "0.23.3",
    "transformers": "5.17.0",
    "trl": "1.14.2",
}
CPU = {**STACK, "torch": "2.13.0", "ipykernel": "7.4.0"}
KAGGLE = {**STACK, "unsloth": "2026.10.9", "unsloth_zoo": "2026.10.9", "xformers": "0.0.35"}
# Kaggle's image of mid-2026 and the next: its torch has to stay.
IMAGES = ({"torch": "2.10.0", "torchvision": "0.25.0", "triton": "3.6.0"}, {"torch": "2.11.0", "torchvision": "0.26.0"})


def test_the_pins_are_the_tried_ones() -> None:
    cpu, kaggle = pins(ROOT / "requirements-cpu.txt"), pins(ROOT / "requirements.txt")
    assert {name: cpu.get(name) for name in CPU} == {name: f"=={version}" for name, version in CPU.items()}
    assert {name: kaggle.get(name) for name in KAGGLE} == {name: f"=={version}" for name, version in KAGGLE.items()}
    shared = set(cpu) & set(kaggle) - {"torch", "ipykernel"}
    assert {name: cpu[name] for name in shared} == {name: kaggle[name] for name in shared}
    assert all(specifier.startswith("==") for specifier in cpu.values())
    unsloth = pins(ROOT / "requirements-cpu-unsloth.txt")
    assert unsloth == {name: kaggle[name] for name in ("unsloth", "unsloth_zoo")}


def test_what_is_installed_is_what_is_pinned() -> None:
    wanted = pins(ROOT / "requirements-cpu.txt") | pins(ROOT / "requirements-cpu-unsloth.txt")
    installed = {name: f"=={importlib.metadata.version(name).split('+')[0]}" for name in wanted}
    assert installed == wanted


def test_what_the_package_asks_for_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {re.split(r"[<>=]", line)[0] for line in project["dependencies"]}
    assert asked <= set(pins(ROOT / "requirements-cpu.txt"))
    assert asked <= set(pins(ROOT / "requirements.txt"))


def run(*words: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def resolve(python: str, *files: Path) -> dict[str, str]:
    unreachable = ("error sending request", "Failed to fetch", "Could not connect", "dns error", "Connection refused")
    try:
        return lock.resolve(python, *files)
    except lock.Unresolved as error:
        if any(sign in str(error) for sign in unreachable):
            pytest.skip(f"the package index is not reached: {str(error).splitlines()[-1]}")
        raise


@pytest.mark.slow
@pytest.mark.parametrize("python", lock.PYTHONS)
def test_the_pins_resolve(python: str) -> None:
    cpu = resolve(python, ROOT / "requirements-cpu.txt")
    assert {name: cpu[name.replace("_", "-")] for name in CPU} == CPU
    kaggle = resolve(python, ROOT / "requirements.txt")
    assert {name: kaggle[name.replace("_", "-")] for name in KAGGLE} == KAGGLE


@pytest.mark.slow
@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image["torch"])
def test_the_torch_of_kaggles_image_stays(image: dict[str, str], tmp_path: Path) -> None:
    there = tmp_path / "there.txt"
    there.write_text("".join(f"{name}=={version}\n" for name, version in image.items()))
    for python in ("3.12", "3.13"):
        found = resolve(python, ROOT / "requirements.txt", there)
        assert {name: found[name] for name in image} == image


def interpreters() -> dict[str, Path]:
    """Usable Pythons of each version, from the path (a pyenv shim may be there and lead nowhere) and from pyenv."""
    found = {}
    for python in lock.PYTHONS:
        installed = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
        candidates = [shutil.which(f"python{python}"), *sorted(installed.glob(f"{python}.*/bin/python"), reverse=True)]
        for candidate in candidates:
            if candidate and run(candidate, "-c", "import venv, ensurepip").returncode == 0:
                found[python] = Path(candidate)
                break
    return found


# (Python, packages that Kaggle's image has in another version than ours)
LIGHT = [("3.11", ("pydantic==2.12.3", "typer==0.25.1")), ("3.12", ()), ("3.13", ())]
# The supervisor's side, without the training stack.
LIGHT_TESTS = (
    *("tests/unit/test_config.py", "tests/unit/session", "tests/unit/data/test_steps.py"),
    *("tests/unit/checkpoints/test_folder_store.py", "tests/unit/checkpoints/test_hub_client.py"),
    "tests/unit/runs/test_ledger.py",
)
CURATE = """
from kaggle_lib.config import RunConfig
from kaggle_lib.data import curate, read
from kaggle_lib.presets import read_preset
config = RunConfig.create(read_preset("tiny-cpu"))
curated = curate.curate(read.read(config), config)
print(len(curated.train) + len(curated.validation) + len(curated.test), curated.fingerprint)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("python", "extra"), LIGHT, ids=[f"{python}{'-image' if extra else ''}" for python, extra in LIGHT]
)
def test_the_light_side_runs_on_it(python: str, extra: tuple[str, ...], tmp_path: Path) -> None:
    interpreter = interpreters().get(python)
    if interpreter is None:
        pytest.skip(f"there is no usable Python {python} here")
    environment = tmp_path / "environment"
    assert run(interpreter, "-m", "venv", environment).returncode == 0
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tested = pins(ROOT / "requirements-cpu.txt")
    light = [re.split(r"[<>=]", line)[0] for line in project["dependencies"]]
    wanted = {
        **{name: name + tested[name] for name in [*light, "pytest"]},
        **{pin.split("==")[0]: pin for pin in extra},
    }
    installed = run(UV, "pip", "install", "--quiet", "--python", environment / "bin/python", *wanted.values())
    if installed.returncode:
        pytest.skip(f"the package index is not reached: {installed.stderr.strip()[-300:]}")
    compiled = run(
        environment / "bin/python", "-m", "compileall", "-q", "kaggle_lib", PYTHONPYCACHEPREFIX=str(tmp_path)
    )
    assert (compiled.returncode, compiled.stdout) == (0, "")
    python_there = environment / "bin/python"
    there = {"PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(tmp_path)}
    done = run(python_there, "-m", "pytest", "-p", "no:cacheprovider", "-m", "not slow", *LIGHT_TESTS, **there)
    assert done.returncode == 0, done.stdout[-3000:]
    assert re.search(r"\d{3} passed", done.stdout)
    # The help and the curated rows are the same whatever the Python and the packages' versions.
    for words in (("-m", "kaggle_lib", "train", "--help"), ("-c", CURATE)):
        here, light = run(sys.executable, *words, **there), run(python_there, *words, **there)
        assert (light.returncode, light.stderr, light.stdout) == (0, "", here.stdout)
