"""`doctor` tells what is here and what a run would miss; it shows no token and leaves nothing behind."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from kaggle_lib.errors import ConfigError
from kaggle_lib.presets import read_preset
from kaggle_lib.report import doctor
from kaggle_lib.report.doctor import NEEDED, Examination, Finding, as_text, examine
from kaggle_lib.report.pins import pins, satisfies
from kaggle_lib.session.machine import disk, memory

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_LIB_ROOT", str(tmp_path / "kaggle"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HOME", "XDG_CACHE_HOME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def gpus(answer: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a driver's tool first on the path that gives this answer."""
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\nexit {code}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")


def of(found: Examination, topic: str) -> Finding:
    (finding,) = [finding for finding in found.findings if finding.topic == topic]
    return finding


def test_two_t4s_are_told_with_their_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus("Tesla T4, 15360, 560.35.03, 7.5\nTesla T4, 15360, 560.35.03, 7.5", 0, tmp_path, monkeypatch)
    found = examine(read_preset("bengali-8b-t4"))
    assert of(found, "GPU 1") == Finding("GPU 1", "ok", "Tesla T4, 15.0 GiB, compute capability 7.5")
    assert found.facts["gpus"] == 2 * [
        {"name": "Tesla T4", "memory": 15360 * 2**20, "driver": "560.35.03", "capability": "7.5"}
    ]


def test_a_gpu_that_torch_has_no_code_for_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus("Tesla P100-PCIE-16GB, 16384, 560.35.03, 6.0", 0, tmp_path, monkeypatch)
    finding = of(examine({}), "GPU 0")
    assert finding.state == "missing"
    assert finding.text == ("Tesla P100-PCIE-16GB, 16.0 GiB, compute capability 6.0: too old, torch has no code for it")
    assert finding.todo == "Choose another accelerator (on Kaggle: GPU T4 x2)."


def test_bf16_on_a_t4_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus("Tesla T4, 15360, 560.35.03, 7.5", 0, tmp_path, monkeypatch)
    finding = of(examine({"precision": "bf16"}), "GPU 0")
    assert (finding.state, finding.todo) == ("missing", "Set precision=fp16.")


def test_an_old_driver_that_does_not_tell_the_capability_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus("Some GPU, [N/A], 390.1, [N/A]", 0, tmp_path, monkeypatch)
    assert of(examine({}), "GPU 0") == Finding("GPU 0", "note", "Some GPU, compute capability unknown")


def test_without_a_gpu_a_recipe_for_one_misses_it_and_the_demo_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", 9, tmp_path, monkeypatch)
    found = examine({"precision": "fp16", "optim": "adamw_8bit"})
    assert found.exit_code == 1
    assert of(found, "GPU").text == "none, and precision=fp16 and optim=adamw_8bit cannot do without"
    demo = examine({"precision": "fp32", "optim": "adamw_torch"})
    assert of(demo, "GPU").state == "note"
    assert (demo.ok, demo.exit_code) == (True, 0)


def test_the_probe_of_the_store_leaves_nothing_behind(tmp_path: Path) -> None:
    finding = of(examine({"store": "deep/er/store"}), "store")
    assert finding == Finding("store", "ok", f"{tmp_path}/deep/er/store can be written to")
    assert not (tmp_path / "deep").exists()
    (tmp_path / "there").mkdir()
    (tmp_path / "there/mine").write_text("x")
    assert of(examine({"store": "there"}), "store").state == "ok"
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["mine"]


def test_a_store_that_cannot_be_written_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = examine({"store": "file"})
    assert of(found, "store") == Finding(
        "store",
        "missing",
        f"{tmp_path}/file cannot be written to (Not a directory)",
        "Set store to a folder that can be written to.",
    )
    assert found.exit_code == 1


@pytest.mark.parametrize("name", ["store", "work_dir"])
def test_a_name_that_no_file_system_takes_is_one_finding(tmp_path: Path, name: str) -> None:
    found = of(examine({name: "x" * 300}), name)
    assert (found.state, found.todo) == ("missing", f"Set {name} to a folder that can be written to.")
    assert found.text == f"{tmp_path}/{'x' * 300} cannot be written to (File name too long)"


def test_a_token_is_found_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    found = examine({})
    assert of(found, "Hugging Face token").text == "found in HF_TOKEN (not tried)"
    assert of(found, "Kaggle token").state == "note"
    assert found.facts["tokens"] == {"hub": "HF_TOKEN", "kaggle": None}
    assert "secret" not in as_text(found) + json.dumps(found.to_json())


def test_what_is_installed_is_compared_with_the_pins() -> None:
    found = examine({})
    assert of(found, "packages") == Finding("packages", "ok", "all as in requirements-cpu.txt")
    assert found.facts["packages"]["trl"] == "1.14.2"
    assert set(NEEDED) <= set(pins(ROOT / "requirements-cpu.txt"))
    assert set(NEEDED) <= set(pins(ROOT / "requirements.txt"))


def test_unsloth_is_looked_for_where_it_is_the_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> list[Finding]:
        return [finding for finding in examine({"strategy": "unsloth"}).findings if finding.topic == "strategy"]

    assert not [finding for finding in examine({}).findings if finding.topic == "strategy"]
    monkeypatch.setattr(doctor, "find_gpus", list)
    assert found() == [
        Finding("strategy", "note", "unsloth without a GPU is its fallback, transformers and PEFT: for tests")
    ]
    real = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "unsloth_zoo" else real(name))
    todo = "Install what requirements.txt lists (on a CPU: `make setup`), or set strategy=peft."
    assert found() == [Finding("strategy", "missing", "unsloth, and not installed: unsloth_zoo", todo)]


def test_another_version_is_a_note_and_a_missing_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED", ("trl", "no-such-package"))
    monkeypatch.setattr(doctor, "pins", lambda path: {"trl": "==1.15.0"})
    found = [finding for finding in examine({}).findings if finding.topic == "packages"]
    assert [(finding.state, finding.text) for finding in found] == [
        ("missing", "not installed: no-such-package"),
        ("note", "not the tested versions: trl 1.14.2 (tested: ==1.15.0)"),
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


def test_the_data_is_looked_for_and_a_missing_file_is_told() -> None:
    assert [finding for finding in examine({}).findings if finding.topic == "data"] == []
    assert of(examine({"data": "sample"}), "data").state == "ok"
    found = examine({"data": "nowhere/corpus.csv"})
    assert of(found, "data").state == "missing"
    assert "nowhere/corpus.csv" in of(found, "data").text
    assert found.exit_code == 1


def test_a_wrong_setting_is_refused_before_anything_is_looked_at() -> None:
    with pytest.raises(ConfigError, match="precision: should be"):
        examine({"precision": "fp8"})


def test_memory_and_disk_are_in_bytes(tmp_path: Path) -> None:
    assert 2**28 < memory()["available"] <= memory()["total"] < 2**50
    found = disk(tmp_path / "not" / "there")
    assert found["path"] == str(tmp_path / "not/there")
    assert 0 < found["free"] <= found["total"]
