"""A Hub that is down until a session has ended: its last checkpoint is in the output, and the next one starts there."""

import shutil
import signal
import time

import pytest
from support.loopback_hub import LoopbackHub
from support.sessions import Place

from kaggle_lib.checkpoints.manifest import verify
from kaggle_lib.runs import events
from kaggle_lib.runs.folder import RunFolder

pytestmark = pytest.mark.slow


class Kaggle(Place):
    """A session with folders as Kaggle's, its store on the Hub; the next one has the output of `before` attached."""

    def __init__(self, root, hub, patch, before=None):
        super().__init__(root, work=root / "temp" / "work")
        (root / "working").mkdir(parents=True)
        if before:
            shutil.copytree(before.root / "working", root / "input" / "notebooks" / "someone" / "train")
            shutil.rmtree(before.root)
        for name, value in hub.environment(HF_HOME=str(root / "cache"), KAGGLE_LIB_ROOT=str(root)).items():
            patch.setenv(name, value)

    def command(self, name, **more):
        return super().command(name, store="hf://loopback/runs", work_dir="work", **more)


def test_a_session_without_the_hub_leaves_its_checkpoint_and_the_next_goes_on_from_it(tmp_path, monkeypatch):
    whole = Place(tmp_path / "whole")
    assert whole.call()["outcome"] == "finished"
    with LoopbackHub(tmp_path / "hub", xet=False) as hub:
        first = Kaggle(tmp_path / "first", hub, monkeypatch)
        process = first.start()
        while not any(event["event"] == "session" for event in events.read_all(first.folder.events)):
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        hub.faults.add("400", method=".*", path=".", times=None)  # 503 would be asked again for minutes
        first.wait_for_step(process, 10)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
        assert process.returncode == 75, (out, err)
        rescue = RunFolder(first.root / "working" / "rescue" / "run")
        [step, best] = rescue.checkpoint_steps()
        assert step >= 10 and verify(rescue.checkpoint(step)).best_step == best == 8
        assert verify(rescue.checkpoint(step)).step == step
        assert not [path for path in rescue.root.rglob("*") if path.is_symlink()]
        assert sorted(path.name for path in (first.root / "working").iterdir()) == ["rescue"]
        assert err.splitlines()[-2] == (
            f"Step {step} of 24, on the store: none. Next: attach this notebook's output as an input and run it again, "
            "and it goes to the store first."
        )

        hub.faults.clear()
        second = Kaggle(tmp_path / "second", hub, monkeypatch, before=first)
        attached = second.root / "input" / "notebooks" / "someone" / "train" / "rescue" / "run"
        outcome = second.call()
        assert f"The checkpoint of step {step} was brought from {attached}.\n" in outcome["stderr"]
        assert (outcome["resumed_from"], outcome["outcome"], outcome["on_store"]) == (step, "finished", True)
        uploads = [event["step"] for event in events.read_all(second.folder.events) if event["event"] == "upload"]
        assert uploads[:2] == [best, step]
        assert second.final_bytes() == whole.final_bytes()
        assert second.curve() == whole.curve()
        assert sorted(path.name for path in (second.root / "working").iterdir()) == ["run"]
        adapter = second.root / "working" / "run" / "adapter" / "adapter_model.safetensors"
        assert adapter.read_bytes() == second.final_bytes()["adapter_model.safetensors"]
        assert outcome["stderr"].endswith(
            "Step 24 of 24, on the store: 24. Next: evaluate it.\n"
            "Finished: all steps are done. The checkpoint of step 24 is on the store.\n"
        )
