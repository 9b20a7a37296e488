"""t4-check end to end on a CPU: its store the Hub, two processes for the two GPUs, a real SIGKILL."""

import json

import pytest
from support.loopback_hub import LoopbackHub
from support.sessions import Place

from kaggle_lib.runs import events
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.opening import open_run

pytestmark = pytest.mark.slow
SMALL = {"base_model": "sample", "data": "sample", "precision": "fp32", "optim": "adamw_torch", "strategy": "peft"}
SMALL |= {"rows": 32, "max_length": 128, "processes": 2, "max_steps": 4, "save_steps": 2}


class Checked(Place):
    def command(self, name, **more):
        words = super().command("status", store="hf://loopback/runs", **{**SMALL, **more})
        words[words.index("status")] = name
        return words


def test_every_part_is_measured_and_the_result_is_on_the_hub(tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub", xet=False) as hub:
        for name, value in hub.environment().items():
            monkeypatch.setenv(name, value)
        place = Checked(tmp_path / "place")
        told = place.call("t4-check")
        assert open_run({"run": "run", "store": "hf://loopback/runs"}).store.fetch_kind("report", tmp_path / "report")
    there = json.loads((tmp_path / "report" / "t4-check.json").read_text())
    assert there == {name: value for name, value in told.items() if name != "stderr"}
    whole, one, killed = (told["strategies"]["peft"][part] for part in ("whole", "one_gpu", "killed"))
    [parts] = place.work.glob("*.parts")
    steps = events.curve(events.read_all(RunFolder(parts / "whole" / parts.stem).events))
    assert [step["step"] for step in steps] == [1, 2, 3, 4]
    timed = steps[1:]
    assert whole["tokens_per_second"] == sum(e["tokens"] for e in timed) / sum(e["seconds"] for e in timed)
    assert whole["processes"] == 2
    assert whole["upload"]["bytes"] > 500_000
    assert whole["upload"]["bytes_per_second"] > 0
    [alone] = [
        step for step in events.curve(events.read_all(RunFolder(parts / "one_gpu" / parts.stem).events))
        if step["step"] == 4
    ]  # fmt: skip
    assert one["ratio"] == pytest.approx(alone["seconds"] / steps[3]["seconds"])
    assert one["largest_loss_difference"] < 1e-5
    files = dict.fromkeys(("adapter_model.safetensors", "optimizer.pt", "scheduler.pt"), True)
    assert killed == {"resumed_from": 2, "equal": True, "files": files}
