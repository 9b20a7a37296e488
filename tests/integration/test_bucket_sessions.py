"""Sessions with payload=bucket: another machine goes on from the bucket, and a bucket that fails is said aloud."""

import os
import shutil
import signal
from dataclasses import dataclass

import pytest
from support.loopback_http import User
from support.loopback_hub import OWNER, LoopbackHub
from support.sessions import Place, gone

from kaggle_lib.runs import events
from kaggle_lib.runs.launch import descendants

pytestmark = pytest.mark.slow
REPO = "loopback/runs"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    users = {"hf_writes": User(OWNER), "hf_repos": User(OWNER, buckets=False)}
    with LoopbackHub(tmp_path / "hub", users=users) as hub:
        for name, value in hub.environment().items():
            monkeypatch.setenv(name, value)
        yield hub


@dataclass
class HubPlace(Place):
    only: bool = False  # give nothing but the run and its places: a preset would say payload=repo

    def command(self, name, **more):
        words = super().command("status" if self.only else name, **{"store": f"hf://{REPO}", **more})
        return [name if word == "status" else word for word in words]


def test_killed_with_its_machine_and_finished_on_another_from_the_bucket(hub, tmp_path):
    place = HubPlace(tmp_path / "run")
    process = place.start(payload="bucket")
    place.wait_for_step(process, 10)
    tree = descendants(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert gone(tree)
    shutil.rmtree(place.work)

    place = HubPlace(tmp_path / "run", work=tmp_path / "second", only=True)
    status = place.call("status")
    assert status["checkpoint"]["step"] >= 4
    outcome = place.call()
    assert outcome["resumed_from"] == status["checkpoint"]["step"]
    assert (outcome["outcome"], outcome["step"], outcome["on_store"]) == ("finished", 24, True)
    assert "bucket" not in outcome["stderr"]
    assert hub.repo(REPO).stored_bytes() == 0
    # The last two, and the best one that either names: validation is at 8, 16 and 24.
    assert len({key.rsplit("/", 1)[0] for key in hub.bucket(REPO).files if key.endswith("optimizer.pt")}) == 3

    third = HubPlace(tmp_path / "run", work=tmp_path / "third", only=True)
    finished = third.call()
    assert (finished["outcome"], finished["adapter_sha256"]) == ("finished", outcome["adapter_sha256"])
    assert third.final_bytes() == place.final_bytes()


def test_a_token_for_repos_only_means_the_repo_and_the_last_lines_say_so(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_repos")
    place = HubPlace(tmp_path / "run", values={"max_steps": 2})
    outcome = place.call(payload="bucket")
    assert (outcome["outcome"], outcome["on_store"]) == ("finished", True)
    said = (
        f"This session's checkpoints go to the repo, not to a bucket. The store hf://{REPO}@run/run cannot be given a "
        "bucket: the token may not do that (403)."
    )
    assert outcome["stderr"].count(f"warning: {said}\n") == 1
    last = f"Finished: all steps are done. The checkpoint of step 2 is on the store. {said}"
    assert last in outcome["stderr"].splitlines()[-2:]
    warnings = [event["message"] for event in events.read_all(place.folder.events) if event["event"] == "warning"]
    assert warnings == [said]
    assert hub.repo(REPO).stored_bytes() > 0
