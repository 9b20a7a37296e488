"""The store on the Hub: what it leaves alone, what it gives back, and many sessions at once. The real client."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from support.checkpoint_folders import BYTES, FILES, LINEAGE, make_checkpoint, make_events, tree
from support.loopback_hub import LoopbackHub

from kaggle_lib.checkpoints import hub_client, hub_storage
from kaggle_lib.checkpoints.hub import HubStore
from kaggle_lib.checkpoints.hub_claim import MOST_COMMITS
from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.errors import ConfigError, LeaseHeld, LeaseLost, StoreError

ROOT = Path(__file__).parents[3]
REPO = "loopback/runs"
CONFIG = {"config": {"seed": 42}, "code": "c0de"}


@pytest.fixture(params=["lfs", "xet"])
def hub(request, tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub", xet=request.param == "xet") as hub:
        hub.lead_client(monkeypatch)
        yield hub


@pytest.fixture
def lfs(tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub", xet=False) as hub:
        hub.lead_client(monkeypatch)
        yield hub


@pytest.fixture
def events(tmp_path):
    return make_events(tmp_path / "events", "A", [1, 2])


def claim(hub, session="A", run="r", take_over=None, **more):
    return HubStore(REPO, run, hub.token, **more).claim(CONFIG, Lease.mine(session), LINEAGE, take_over)


def checkpoint(tmp_path, step, **more):
    return make_checkpoint(tmp_path / "local", step, **more)[0]


def steps(hub, run="r"):
    return [(stored.step, stored.problem) for stored in HubStore(REPO, run, hub.token).peek().checkpoints]


def fetched(hub, target, run="r"):
    """Every stored checkpoint of a run, fetched and so verified: the newest first."""
    store = HubStore(REPO, run, hub.token)
    return [store.fetch(stored, target / run / str(stored.step)).step for stored in store.peek().checkpoints]


def large(hub, revision="run/r"):
    """Bytes of the checkpoints at a revision that are in LFS or Xet."""
    files = hub.repo(REPO).resolve(revision).files
    return sum(entry.size for path, entry in files.items() if path.startswith("checkpoints/") and entry.lfs)


# What it leaves alone


def test_a_new_repo_is_private_and_main_stays_as_it_was(hub, tmp_path, events):
    claim(hub).commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    repo = hub.repo(REPO)
    assert repo.private
    assert [commit.title for commit in repo.commits("main")] == ["initial commit"]
    names = {f"checkpoints/step-00000010/{name}" for name in [*FILES, "manifest.json"]}
    names |= {".gitattributes", "config.json", "events/A.jsonl", "head.json", "lease.json", "ledger.json"}
    assert set(repo.files("run/r")) == names


def test_what_a_person_published_on_main_is_untouched_and_takes_no_part_in_the_run(hub, tmp_path, events):
    api = HfApi(token=hub.token)
    api.create_repo(REPO, private=True)
    content = {"README.md": b"# Mine\n", "adapter_model.safetensors": b"\0weights", ".gitignore": b"*.tmp\n"}
    operations = [CommitOperationAdd(name, data) for name, data in content.items()]
    api.create_commit(REPO, operations, commit_message="mine")
    before = hub.repo(REPO).files("main")
    mine = claim(hub)
    for step in (10, 20):
        mine.commit(checkpoint(tmp_path, step), {"id": "A"}, events)
    assert mine.free(1) == [10]
    assert hub.repo(REPO).files("main") == before
    assert hub.repo(REPO).files("run/r")["README.md"] == before["README.md"]
    assert "adapter_model.safetensors" not in hub.repo(REPO).files("run/r")
    assert api.hf_hub_download(REPO, "adapter_model.safetensors", cache_dir=tmp_path / "cache")


def test_a_public_repo_is_refused_unless_it_is_asked_for(lfs, tmp_path, events):
    HfApi(token=lfs.token).create_repo(REPO, private=False)
    with pytest.raises(StoreError) as caught:
        claim(lfs)
    assert str(caught.value) == (
        "The repo loopback/runs is public: everybody could read the run 'r'. Nothing was written. Make it private in "
        "its settings on the Hub, or give public_store=true, or another store."
    )
    assert list(lfs.repo(REPO).branches) == ["main"]
    claim(lfs, public=True).commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    assert steps(lfs) == [(10, None)]
    assert not lfs.repo(REPO).private


@pytest.mark.parametrize(
    ("repo", "run"), [("runs", "r"), ("a/b/c", "r"), ("a/b c", "r"), ("a/b", "x..y"), ("a/b", ".x")]
)
def test_what_cannot_be_a_repo_or_a_branch_is_refused_before_anything_is_sent(lfs, repo, run):
    with pytest.raises(ConfigError, match=r"^(store: .* is no repo of the Hub|run: .* cannot be a branch)"):
        HubStore(repo, run, lfs.token)
    assert lfs.requests == []


def test_leases_are_by_the_hubs_clock(lfs, monkeypatch):
    mine = claim(lfs)
    now = hub_client.now()
    assert abs(now - lfs.requests[-1].time) < 5
    assert 1795 < mine.lease.expires - now <= 1801
    monkeypatch.setattr(hub_client.time, "time", lambda: 0.0)  # this machine's own clock is wrong
    assert abs(hub_client.now() - now) < 60


def test_the_client_keeps_a_factory_of_the_users_and_other_requests_have_no_deadline(lfs):
    from huggingface_hub.utils import get_session

    claim(lfs)
    assert hub_client.left() == float("inf")
    response = get_session().get(f"{lfs.endpoint}/api/models/{REPO}", headers={"authorization": f"Bearer {lfs.token}"})
    assert response.request.extensions["timeout"]["read"] == hub_client.IDLE
    assert response.json()["private"] is True


def test_opening_the_package_or_a_folder_loads_no_client():
    code = (
        "import sys, kaggle_lib, kaggle_lib.runs.opening as o; from kaggle_lib.config import RunConfig;"
        "o.store_for(RunConfig.create({'run': 'r', 'base_model': 'sample', 'data': 'sample'}));"
        "print([name for name in ('huggingface_hub', 'httpx', 'torch') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


# What it gives back


def test_freed_checkpoints_are_gone_from_the_storage_and_the_kept_ones_are_whole(hub, tmp_path, events):
    mine = claim(hub)
    for step in (10, 20, 30, 40):
        mine.commit(checkpoint(tmp_path, step), {"id": "A"}, events)
    before = large(hub)
    assert 3 * BYTES < hub.repo(REPO).stored_bytes() == before <= 4 * BYTES
    assert mine.free(2) == [20, 10]
    assert mine.head == hub.repo(REPO).branches["run/r"]  # no history was rewritten
    assert hub.repo(REPO).stored_bytes() == large(hub) < 2 * BYTES
    assert fetched(hub, tmp_path / "back") == [40, 30]


def test_300_saves_leave_the_storage_of_keep_and_the_best_and_a_bounded_history(lfs, tmp_path, events, monkeypatch):
    monkeypatch.setattr("support.checkpoint_folders.FILES", {"adapter_model.safetensors": 40, "optimizer.pt": 60})
    mine, most, longest = claim(lfs), 0, 0
    for step in range(1, 301):
        mine.commit(checkpoint(tmp_path, step, total_steps=300, best=min(step, 120)), {"id": "A"}, events)
        mine.free(2)
        most = max(most, lfs.repo(REPO).stored_bytes())
        if step % 10 == 0:
            longest = max(longest, len(lfs.repo(REPO).commits("run/r")))
    assert most == 300
    assert MOST_COMMITS - 20 < longest < MOST_COMMITS + 10
    assert steps(lfs) == [(300, None), (299, None), (120, None)]
    assert len(lfs.repo(REPO)._commits) < MOST_COMMITS + 10


def test_what_a_killed_session_left_is_freed_by_the_next_one(hub, tmp_path, events):
    first = claim(hub)
    for step in (10, 20):
        first.commit(checkpoint(tmp_path, step), {"id": "A"}, events)
    folder = "checkpoints/step-00000010"  # a kill between the commit that removes it and the deletion
    HfApi(token=hub.token).delete_folder(folder, REPO, revision="run/r", commit_message="free")
    assert hub.repo(REPO).stored_bytes() > BYTES
    assert claim(hub, "B", take_over="A").free(1) == []
    assert hub.repo(REPO).stored_bytes() == large(hub) < BYTES
    assert fetched(hub, tmp_path / "back") == [20]


def test_what_a_tag_or_another_branch_holds_is_never_freed(hub, tmp_path, events):
    mine = claim(hub)
    mine.commit(checkpoint(tmp_path, 10), {"id": "A"}, events)
    api = HfApi(token=hub.token)
    api.create_tag(REPO, tag="best", revision="run/r")
    mine.commit(checkpoint(tmp_path, 20), {"id": "A"}, events)
    api.create_branch(REPO, branch="mine", revision="run/r")
    for step in (30, 40):
        mine.commit(checkpoint(tmp_path, step), {"id": "A"}, events)
        mine.free(1)
    head = mine.head
    assert mine.free(1) == [] and mine.head == head  # it is not tried for ever
    assert steps(hub) == [(40, None)]
    assert hub.repo(REPO).stored_bytes() == large(hub) + large(hub, "mine")  # which has steps 10 and 20
    name = "checkpoints/step-00000010/optimizer.pt"
    api.hf_hub_download(REPO, name, revision="best", cache_dir=tmp_path / "cache")


def test_a_session_that_was_taken_over_neither_frees_nor_squashes(lfs, tmp_path, events):
    old = claim(lfs)
    for step in (10, 20):
        old.commit(checkpoint(tmp_path, step), {"id": "A"}, events)
    claim(lfs, "B", take_over="A")
    before = len(lfs.requests)
    with pytest.raises(LeaseLost):
        old.free(1)
    assert [record.method for record in lfs.requests[before:]] == ["GET", "GET"]
    assert fetched(lfs, tmp_path / "back") == [20, 10]


# Many at once


def test_of_fifty_races_each_has_one_writer_and_no_live_file_is_lost(lfs, tmp_path, events):
    folders = {}
    for race in range(50):
        step = race + 1
        for session in "AB":
            salt = f"{session}{race}"
            folders[session] = make_checkpoint(tmp_path / session, step, salt=salt, total_steps=99)[0]
        begin = threading.Barrier(2)

        def session(name, begin=begin, race=race):
            begin.wait()
            try:
                mine = claim(lfs, f"{name}{race}")
                mine.commit(folders[name], {"id": name}, events)
                mine.free(2)
                return mine
            except (LeaseHeld, LeaseLost):
                return None

        with ThreadPoolExecutor(2) as pool:
            held = [mine for mine in pool.map(session, "AB") if mine]
        assert len(held) == 1
        held[0].release("paused", {"id": held[0].lease.session}, events)
    assert fetched(lfs, tmp_path / "back") == [50, 49]


def test_two_runs_with_the_same_content_one_frees_while_the_other_saves(hub, tmp_path, events):
    """Each frees at once what the other is about to save, and the contents of a step are equal in both."""
    claims = {run: claim(hub, run=run) for run in ("r", "s")}
    folders = {step: make_checkpoint(tmp_path / "local", step, total_steps=99)[0] for step in range(1, 13)}

    def train(run):
        for folder in folders.values():
            claims[run].commit(folder, {"id": "A"}, events)
            claims[run].free(1)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, ("r", "s")))
    claims["r"].free(1)  # what came by its branch and the other run has let go of since
    claims["s"].free(1)
    assert (fetched(hub, tmp_path / "back"), fetched(hub, tmp_path / "back", "s")) == ([12], [12])
    assert hub.repo(REPO).stored_bytes() == large(hub)


def test_content_that_another_run_has_saved_meanwhile_is_not_deleted(lfs, tmp_path, events):
    one, other = claim(lfs, run="r"), claim(lfs, run="s")
    folders = [make_checkpoint(tmp_path / "local", step)[0] for step in (10, 20)]
    for folder in folders:
        one.commit(folder, {"id": "A"}, events)
    # After the look that found it unused, before the commit that would tell the other run.
    lfs.faults.add("call", path="/commit/run/r", function=lambda: other.commit(folders[0], {"id": "A"}, events))
    assert one.free(1) == [10]
    assert (fetched(lfs, tmp_path / "back"), fetched(lfs, tmp_path / "back", "s")) == ([20], [10])


def test_content_that_another_run_is_deleting_goes_there_anew(hub, tmp_path, events, monkeypatch):
    monkeypatch.setattr(hub_storage, "CONDEMNED", 4.0)
    one, other = claim(hub, run="r"), claim(hub, run="s")
    folders = [make_checkpoint(tmp_path / "local", step)[0] for step in (10, 20)]
    for folder in folders:
        one.commit(folder, {"id": "A"}, events)
    saving = []

    def meanwhile():
        """The same as what is about to go is committed to another run, after the last look at the heads."""
        thread = threading.Thread(target=other.commit, args=(folders[0], {"id": "A"}, events))
        thread.start()
        saving.append(thread)
        repo = hub.repo(REPO)
        while "checkpoints/step-00000010/manifest.json" not in repo.files("run/s"):
            hub.wait(0.01)

    hub.faults.add("call", path="/lfs-files/batch", function=meanwhile)
    assert one.free(1) == [10]
    saving[0].join()
    assert fetched(hub, tmp_path / "back", "s") == [10]
    assert tree(tmp_path / "back" / "s" / "10") == tree(folders[0])
    assert steps(hub) == [(20, None)]
