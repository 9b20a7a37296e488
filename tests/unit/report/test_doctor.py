"""`doctor` tells what is here and what a run would miss; it shows no token and leaves nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from kaggle_lib import __version__
from kaggle_lib.errors import ConfigError
from kaggle_lib.presets import read_preset
from kaggle_lib.report import doctor
from kaggle_lib.report.doctor import Examination, as_text, examine
from kaggle_lib.report.finding import Finding
from kaggle_lib.session.machine import disk, memory

BUILT = ["sm_75", "sm_80", "sm_90", "compute_120"]
T4, P100 = "Tesla T4, 15360, 560.35.03, 7.5", "Tesla P100-PCIE-16GB, 16384, 560.35.03, 6.0"


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KAGGLE_LIB_ROOT", str(tmp_path / "kaggle"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # where nobody answers
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HOME", "XDG_CACHE_HOME", "KAGGLE_KEY", "KAGGLE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)


def gpus(
    answer: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torch: str = f"built = {BUILT}"
) -> None:
    """Put a driver's tool first on the path that gives this answer, and a torch that is built for these GPUs."""
    (tmp_path / "image").mkdir()
    source = f'{torch}\nclass cuda:\n    get_arch_list = staticmethod(lambda: built)\n__version__ = "2.11.0+cu128"\n'
    (tmp_path / "image" / "torch.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "image"))
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\nexit {code}\n")
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")


def of(found: Examination, topic: str) -> Finding:
    (finding,) = [finding for finding in found.findings if finding.topic == topic]
    return finding


def test_two_t4s_are_told_with_their_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(f"{T4}, 3\n{T4}, 3", 0, tmp_path, monkeypatch)
    found = examine(read_preset("bengali-8b-t4"))
    assert of(found, "GPU 1") == Finding("GPU 1", "ok", "Tesla T4, 15.0 GiB, compute capability 7.5")
    assert found.facts["gpus"] == 2 * [
        {"name": "Tesla T4", "memory": 15360 * 2**20, "driver": "560.35.03", "capability": "7.5", "used": 3 * 2**20}
    ]


def test_a_gpu_that_torch_has_no_code_for_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(f"{P100}, 0", 0, tmp_path, monkeypatch)
    assert of(examine({}), "GPU 0") == Finding(
        "GPU 0",
        "missing",
        "Tesla P100-PCIE-16GB, 16.0 GiB, compute capability 6.0: torch 2.11.0+cu128 has no code for it "
        "(only sm_75, sm_80, sm_90, compute_120)",
        "Choose another accelerator (on Kaggle: GPU T4 x2).",
    )


@pytest.mark.parametrize(
    ("torch", "topic", "text", "todo"),
    [
        ("built = []", "GPU 0",
         "Tesla T4, 15.0 GiB, compute capability 7.5: torch 2.11.0+cu128 has no code for it (only for the CPU)",
         "Install the torch of requirements.txt."),
        ("raise ImportError('libcudart.so.12 is not there')", "torch",
         "cannot be imported: ImportError: libcudart.so.12 is not there",
         "Install the torch of requirements.txt (on Kaggle: choose the newest environment)."),
    ],
)  # fmt: skip
def test_a_torch_that_no_gpu_can_use_is_missing(
    torch: str, topic: str, text: str, todo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(f"{T4}, 3", 0, tmp_path, monkeypatch, torch)
    found = examine({})
    assert of(found, topic) == Finding(topic, "missing", text, todo)
    assert found.exit_code == 1


def test_bf16_on_a_t4_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(f"{T4}, 3", 0, tmp_path, monkeypatch)
    finding = of(examine({"precision": "bf16"}), "GPU 0")
    assert (finding.state, finding.todo) == ("missing", "Set precision=fp16.")


def test_one_gpu_of_two_that_is_busy_is_missing_where_a_worker_would_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus(f"{T4}, 1500\n{T4}, 9216", 0, tmp_path, monkeypatch)
    end = "End what runs there (`nvidia-smi` lists it; a notebook's own model: restart the kernel)"
    busy = "Tesla T4, 15.0 GiB, compute capability 7.5: 9.0 GiB of it are in use already"
    found = examine({})
    assert of(found, "GPU 0").state == "ok"
    assert of(found, "GPU 1") == Finding("GPU 1", "missing", busy, f"{end}, or leave it out: CUDA_VISIBLE_DEVICES=0.")
    assert of(examine({"processes": 1}), "GPU 1").state == "ok"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert of(examine({}), "GPU 1").state == "ok"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert of(examine({}), "GPU 1").state == "missing"


def test_where_every_gpu_is_busy_none_is_left_to_take(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(f"{T4}, 9216", 0, tmp_path, monkeypatch)
    assert of(examine({}), "GPU 0").todo == (
        "End what runs there (`nvidia-smi` lists it; a notebook's own model: restart the kernel)."
    )


def test_an_old_driver_that_does_not_tell_the_capability_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus("Some GPU, [N/A], 390.1, [N/A], [N/A]", 0, tmp_path, monkeypatch)
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
    assert of(found, "Hugging Face token").text == "found in HF_TOKEN"
    assert of(found, "Kaggle token").state == "note"
    assert found.facts["tokens"] == {"hub": "HF_TOKEN", "kaggle": None}
    assert "secret" not in as_text(found) + json.dumps(found.to_json())


def test_unsloth_is_looked_for_where_it_is_the_strategy(monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> list[Finding]:
        return [finding for finding in examine({"strategy": "unsloth"}).findings if finding.topic == "strategy"]

    assert not [finding for finding in examine({}).findings if finding.topic == "strategy"]
    monkeypatch.setattr(doctor, "find_gpus", list)
    assert found() == [
        Finding("strategy", "note", "unsloth without a GPU is its fallback, transformers and PEFT: for tests")
    ]
    real = doctor.packages.version
    monkeypatch.setattr(doctor.packages, "version", lambda name: None if name == "unsloth_zoo" else real(name))
    todo = "Install what requirements.txt lists (on a CPU: `make setup`), or set strategy=peft."
    assert found() == [Finding("strategy", "missing", "unsloth, and not installed: unsloth_zoo", todo)]


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


def test_no_space_is_told_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 800_000_000))
    values = {"base_model": "meta-llama/Llama-3.1-8B-Instruct", "optim": "adamw_torch", "keep": 2}
    # 13.63 M parameters: 54.5 MB of adapter, twice that of moments, 25 MB beside; three of them in two folders.
    text = f"{tmp_path} has 0.8 GB free, and this run needs 1.1 GB there"
    todo = "Free the disk, or set work_dir, store or HF_HOME to another one."
    assert of(examine(values), "space") == Finding("space", "missing", text, todo)
    assert [finding for finding in examine({**values, "keep": 1}).findings if finding.topic == "space"] == []


def test_another_dataset_than_the_runs_is_named(tmp_path: Path) -> None:
    (tmp_path / "kaggle/working").mkdir(parents=True)
    (tmp_path / "kaggle/input/datasets/somebody/movies").mkdir(parents=True)
    (tmp_path / "kaggle/input/llama-weights").mkdir(parents=True)
    found = of(examine({"data": "somebody/corpus"}), "data")
    assert found.text.startswith(
        "there is no file 'somebody/corpus', and no dataset of that name is attached (looked in "
    )
    assert found.text.endswith(" Attached here: llama-weights, movies.")
    assert found.todo == "Attach the dataset to the notebook (Add Input), or give the path of the file."


def test_a_dataset_with_other_columns_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    folder = tmp_path / "kaggle/input/datasets/somebody/corpus"
    folder.mkdir(parents=True)
    (folder / "movies.csv").write_text("Title,Year\nOne,1999\n")
    found = of(examine({"data": "somebody/corpus"}), "data")
    assert (found.state, found.text) == (
        "missing",
        "movies.csv: there is no column 'Questions' and no column 'Answers'; its first line gives 'Title', 'Year'.",
    )


def test_for_a_program_it_is_one_json_object_and_the_exit_code(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for store, code in (("store", 0), ("file", 1)):
        words = [sys.executable, "-m", "kaggle_lib", "doctor", "--set", f"store={store}", "--json"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        told = json.loads(done.stdout)
        assert (done.returncode, told["ok"]) == (code, code == 0)
        assert told["kaggle_lib"] == __version__
        [finding] = [one for one in told["findings"] if one["topic"] == "store"]
        assert finding["state"] == ("missing" if code else "ok")
