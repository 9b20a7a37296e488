"""Sessions whose store is the Hub: another machine goes on bit for bit, and a Hub that fails ends no training."""

import json
import os
import shutil
import signal

import pytest
from support.loopback_http import User
from support.loopback_hub import OWNER, LoopbackHub
from support.sessions import Place, gone

from kaggle_lib.files import read_json
from kaggle_lib.runs import events
from kaggle_lib.runs.launch import descendants

pytestmark = pytest.mark.slow
STORE = "hf://loopback/runs"
TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh"


class HubPlace(Place):
    """The run's store is the Hub; `only` names the run and its places, nothing else."""

    def command(self, name, **more):
        return super().command(name, **{"store": STORE, **more})

    def only(self, name, code=0, **more):
        words = self.command("status", **more)
        words[words.index("status")] = name
        place = Place(self.root, self.run, work=self.work)
        place.command = lambda *_: words
        return place.call(code=code)

    def moved(self, hub, monkeypatch, name):
        """The same run on another machine, with a cache of its own; this one is gone with its disk."""
        shutil.rmtree(self.work, ignore_errors=True)
        for variable, value in hub.environment(HF_TOKEN=os.environ["HF_TOKEN"]).items():
            monkeypatch.setenv(variable, value)
        return HubPlace(self.root, self.run, self.values, self.root / name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run, its store a folder."""
    place = Place(tmp_path_factory.mktemp("whole"))
    assert place.call()["outcome"] == "finished"
    return place


@pytest.fixture(params=["xet", "lfs"])
def hub(request, tmp_path, monkeypatch):
    users = {TOKEN: User(OWNER), "hf_onlyreads": User(OWNER, write=False)}
    with LoopbackHub(tmp_path / "hub", xet=request.param == "xet", users=users) as hub:
        for name, value in hub.environment().items():
            monkeypatch.setenv(name, value)
        yield hub


def files_with(text, *folders):
    """The files below `folders` that hold `text`, whatever they are."""
    return [
        path
        for folder in folders
        for path in folder.rglob("*")
        if path.is_file() and text.encode() in path.read_bytes()
    ]


def test_killed_with_its_machine_and_finished_evaluated_and_reported_on_others(whole, hub, tmp_path, monkeypatch):
    dump = tmp_path / "dump.py"
    dump.write_text(
        "import os, pathlib\n"
        "def callbacks(config):\n"
        f"    pathlib.Path({str(tmp_path / 'environ')!r}).write_text(repr(dict(os.environ)))\n"
        "    return []\n"
    )
    place = HubPlace(tmp_path / "run", values={"hooks": dump, "epochs": 4})
    compared = Place(tmp_path / "whole", values=place.values)
    assert compared.call()["outcome"] == "finished"
    said = []
    process = place.start()
    place.wait_for_step(process, 30)
    tree = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    said += process.communicate()
    assert gone(tree)

    place = place.moved(hub, monkeypatch, "second")
    status = place.call("status")
    assert status["state"] == "paused"
    assert status["checkpoint"]["step"] >= 4
    resumed = place.call()
    assert resumed["resumed_from"] == status["checkpoint"]["step"]
    assert (resumed["outcome"], resumed["on_store"], resumed["step"]) == ("finished", True, 48)
    assert place.final_bytes() == compared.final_bytes()
    assert place.curve() == compared.curve()
    assert hub.repo("loopback/runs").private

    place = place.moved(hub, monkeypatch, "third")
    evaluated = place.call("evaluate")
    assert (evaluated["outcome"], evaluated["on_store"]) == ("finished", True)
    result = read_json(place.folder.evaluation / "result.json")
    assert result["adapter_sha256"] == resumed["adapter_sha256"]

    place = place.moved(hub, monkeypatch, "fourth")
    finished = place.only("train")
    assert (finished["outcome"], finished["adapter_sha256"]) == ("finished", resumed["adapter_sha256"])
    assert not (place.folder.root / "worker.log").exists()
    assert read_json(place.folder.evaluation / "result.json") == result
    assert place.curve() == compared.curve()

    place = place.moved(hub, monkeypatch, "fifth")
    monkeypatch.setenv("HF_TOKEN", "hf_onlyreads")
    place.call("report")
    assert place.curve() == compared.curve()
    page = (place.folder.report / "index.html").read_text(encoding="utf-8")
    status = place.call("status")
    assert status["storage"]["checkpoints"] == 3  # the last two, and the best one that either names
    assert status["storage"]["bytes"] > 3 * status["checkpoint"]["bytes"]
    assert f"On the store: 3 checkpoints, {status['storage']['bytes'] / 1e6:.1f} MB in all.</p>" in page
    assert [one["ended_because"] for one in status["sessions"]] == [
        "killed",
        "finished: all steps are done",
        "finished: evaluated",
    ]
    assert status["lease"] is None

    said += [line for outcome in (resumed, evaluated, finished) for line in outcome.values() if isinstance(line, str)]
    assert not any(TOKEN in str(text) for text in said)
    assert (tmp_path / "environ").read_text().count("HF_HUB_OFFLINE") == 1
    assert files_with(TOKEN, tmp_path) == []


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_a_token_with_an_end_of_line_works_and_a_broken_one_is_one_line(hub, tmp_path, monkeypatch):
    place = HubPlace(tmp_path / "run")
    monkeypatch.setenv("HF_TOKEN", TOKEN + "\n")
    assert place.call("status")["state"] == "empty"
    before = len(hub.requests)
    for value, problem in ((f'"{TOKEN}"', "has quotes around it"), (" ", "holds only spaces"), ("", "is empty")):
        monkeypatch.setenv("HF_TOKEN", value)
        answer = place.call("train", code=1)
        assert answer["reason"] == (
            f"The Hugging Face token in HF_TOKEN {problem}. Store it anew, from "
            "https://huggingface.co/settings/tokens, or remove it there."
        )
        assert answer["stderr"] == answer["reason"] + "\n"
    assert len(hub.requests) == before


def test_a_token_that_only_reads_shows_before_anything_is_loaded(hub, tmp_path, monkeypatch):
    HubPlace(tmp_path / "other", run="other", values={"max_steps": 1}).call()  # the repo exists
    monkeypatch.setenv("HF_TOKEN", "hf_onlyreads")
    place = HubPlace(tmp_path / "run")
    answer = place.call("train", code=1)
    assert "hf_onlyreads" not in answer["stderr"]
    assert len(answer["stderr"].splitlines()) <= 3, answer["stderr"]
    assert not (place.folder.root / "worker.log").exists()
    assert place.only("status", run="other")["state"] == "finished"


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_training_outlives_a_hub_that_fails_and_the_next_call_brings_it_there(whole, hub, tmp_path):
    place = HubPlace(tmp_path / "run")
    process = place.start()
    place.wait_for_step(process, 6)
    hub.faults.add("503", times=None)
    out, err = process.communicate()
    assert process.returncode == 1, (out, err)
    outcome = json.loads(out)
    assert (outcome["outcome"], outcome["step"], outcome["on_store"]) == ("finished", 24, False)
    last = [line for line in err.splitlines() if line.startswith("Finished: all steps are done. ")]
    assert f"The checkpoint of step 24 is in {place.folder.checkpoints} only; the store has " in last[0]
    assert place.final_bytes() == whole.final_bytes()
    hub.faults.clear()
    outcome = place.call(take_over=outcome["session"])
    assert (outcome["outcome"], outcome["on_store"]) == ("finished", True)
    assert place.call("status")["state"] == "finished"


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
def test_training_does_not_wait_for_a_slow_hub(whole, hub, tmp_path):
    hub.faults.add("latency(2)", method="POST", path="/commit/", times=None)
    place = HubPlace(tmp_path / "run")
    outcome = place.call()
    assert (outcome["outcome"], outcome["on_store"]) == ("finished", True)
    assert place.final_bytes() == whole.final_bytes()
    steps = [event for event in events.read_all(place.folder.events) if event["event"] in ("step", "upload")]
    uploads = [event for event in steps if event["event"] == "upload"]
    assert uploads[-1]["step"] == 24
    assert uploads[0]["seconds"] > 2
    assert sum(event["seconds"] for event in steps if event["event"] == "step") < 2 * len(uploads) + 60
    assert len(uploads) < 6  # the newest won


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
def test_a_session_that_was_taken_over_stops_and_says_by_whom(whole, hub, tmp_path, monkeypatch):
    first = HubPlace(tmp_path / "run", values={"epochs": 40})
    process = first.start()
    first.wait_for_step(process, 10)
    holder = first.call("status")["lease"]["session"]
    second = HubPlace(tmp_path / "run", values={"epochs": 40}, work=tmp_path / "second")
    other = second.start(take_over=holder)
    _, err = process.communicate()
    assert process.returncode == 1, err
    lease = second.call("status")["lease"]
    assert f"was taken over by session {lease['session']}" in err
    other.send_signal(signal.SIGTERM)
    out, err = other.communicate()
    assert other.returncode == 75, err
    assert json.loads(out)["on_store"]
