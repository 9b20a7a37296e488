"""What another machine learns of a run from the Hub alone, with the right to read."""

import pytest
from support.checkpoint_folders import LINEAGE, make_checkpoint, make_events
from support.loopback_hub import LoopbackHub

from kaggle_lib import api
from kaggle_lib.checkpoints import hub_client
from kaggle_lib.checkpoints.hub import HubStore
from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.errors import ConfigError, StoreError

REPO = "loopback/runs"
STORE = f"hf://{REPO}"
RECORD = {
    "id": "A",
    "job": "train",
    "started": "2026-11-25T10:00:00.000Z",
    "last_event": "2026-11-25T10:01:40.000Z",
    "ended": None,
    "ended_because": None,
    "from_step": 0,
    "to_step": 10,
    "seconds": {"wall": 100.0, "kept": 80.0},
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on which session A of another machine holds the run `first`, at step 10 of 60; this one may read."""
    monkeypatch.setattr(hub_client, "_clock", [])
    with LoopbackHub(tmp_path / "hub", xet=False) as hub:
        hub.lead_client(monkeypatch, HF_TOKEN=hub.read_token)
        lease = Lease.mine("A").model_copy(update={"host": "elsewhere", "machine": "x"})
        mine = HubStore(REPO, "first", hub.token).claim({"config": {}, "code": "c0de"}, lease, LINEAGE)
        events = make_events(tmp_path / "events", "A", [1, 2])
        mine.commit(make_checkpoint(tmp_path / "local", 10)[0], RECORD, events)
        hub.requests.clear()
        yield hub


def test_status_tells_what_is_there_and_writes_nothing(hub, capsys):
    status = api.status(run="first", store=STORE)
    files = hub.repo(REPO).resolve("run/first").files
    assert status["storage"] == {"checkpoints": 1, "bytes": sum(entry.size for entry in files.values())}
    assert (status["state"], status["step"], status["total_steps"]) == ("running", 10, 60)
    assert status["goodput"] == 0.8
    assert [one["ended_because"] for one in status["sessions"]] == [None]
    assert f"Storage: 1 checkpoint, {status['storage']['bytes'] / 1e6:.1f} MB in all\n" in capsys.readouterr().out
    assert {record.method for record in hub.requests} <= {"GET", "HEAD"}


@pytest.mark.parametrize("hours", [-10, 10])
def test_the_lease_is_judged_by_the_hubs_clock_not_by_this_machines(hub, hours):
    hub.faults.add(f"date({3600 * hours})") if hours > 0 else hub.faults.add("date", seconds=3600.0 * hours)
    status = api.status(run="first", store=STORE)
    assert (status["lease"]["session"], status["state"]) == ("A", "paused" if hours > 0 else "running")
    left = status["lease"]["seconds_left"]
    assert left == 0 if hours > 0 else 36000 < left <= 36000 + 1800
    assert status["sessions"][0]["ended_because"] == ("killed" if hours > 0 else None)


def test_a_misspelt_name_is_answered_with_the_runs_that_are_there(hub, capsys):
    lease = Lease.mine("B").model_copy(update={"host": "elsewhere", "machine": "x"})
    HubStore(REPO, "second.try", hub.token).claim({"config": {}, "code": "c0de"}, lease, LINEAGE)
    assert api.status(run="frist", store=STORE)["state"] == "empty"
    assert capsys.readouterr().out == "Run frist: nothing is on the store yet; there are first, second.try.\n"
    for ask in (api.report, api.evaluate):
        with pytest.raises(ConfigError) as caught:
            ask(run="frist", store=STORE)
        assert str(caught.value) == f"run: there is no run 'frist' in '{STORE}'; there are first, second.try"
    assert api.status(run="first", store="hf://loopback/other")["state"] == "empty"
    assert capsys.readouterr().out == "Run first: nothing is on the store yet.\n"


def test_a_limit_of_requests_that_is_used_up_is_named_and_nobody_waits_for_it(hub):
    hub.faults.add("rate_limit(1)")
    with pytest.raises(StoreError) as caught:
        for _ in range(2):
            HubStore(REPO, "first", hub.token, seconds=3.0).peek()
    assert str(caught.value) == (
        f"The store {STORE}@run/first cannot be read: the Hub's limit of requests or commits is used up for now (429). "
        "Everything committed before is kept. Try again in an hour."
    )
