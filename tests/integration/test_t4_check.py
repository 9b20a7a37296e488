"""t4-check, pushed by the real command line to a loopback Kaggle with two GPUs, which runs it in small on CPUs: three
sessions of two processes, one of them killed by a real SIGKILL, one of one process; the result is on the Hub.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.loopback_hub import LoopbackHub
from support.loopback_kaggle import LoopbackKaggle
from support.quick_sessions import reach

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
STORE = "hf://loopback/runs"
SMALL = {"base_model": "sample", "data": "sample", "precision": "fp32", "optim": "adamw_torch", "strategy": "peft"}
SMALL |= {"rows": 32, "max_length": 128, "processes": 2}
FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt")


def test_pushed_it_measures_every_part_and_leaves_the_result_in_the_output_and_on_the_hub(tmp_path):
    with LoopbackHub(tmp_path / "hub") as hub:
        with LoopbackKaggle(tmp_path / "kaggle", session_environment=reach(hub)) as kaggle:
            kaggle.secrets_travel = True
            kaggle.attach_secret("loopback/t4-check", "HF_TOKEN", hub.token)
            words = [word for key, value in {**SMALL, "store": STORE}.items() for word in ("--set", f"{key}={value}")]
            pushed = subprocess.run(
                [sys.executable, "-m", "kaggle_lib", "push", "--preset", "t4-check", *words],
                cwd=tmp_path,
                env={**os.environ, **hub.environment(), **kaggle.environment(), "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            assert pushed.returncode == 0, pushed.stderr
            [session] = kaggle.sessions
            session.wait(1500)
            assert (session.status, session.exit_code) == ("COMPLETE", 0), session.text
            [left] = session.output.rglob("t4-check.json")
        repo = hub.repo("loopback/runs")
        there = repo.resolve("run/t4-check", 0).files
    assert left.relative_to(session.output) == Path("t4-check/report/t4-check.json")
    assert "report/t4-check.json" in there
    found = json.loads(left.read_text())
    whole, one, killed = (found["strategies"]["peft"][part] for part in ("whole", "one_gpu", "killed"))
    assert (found["steps"], whole["processes"]) == (12, 2)
    assert whole["tokens_of_a_step"] > 100
    assert whole["upload"]["bytes"] > 500_000
    assert whole["upload"]["bytes_per_second"] > 0
    assert one["tokens_of_a_step"] > 100
    assert one["ratio"] > 0
    assert one["largest_loss_difference"] < 1e-5
    assert killed == {"resumed_from": 6, "equal": True, "files": dict.fromkeys(FILES, True)}
