"""Each fault of the loopback Hub does to the real client what the script says, and nothing else."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._xet import abort_xet_session
from support.loopback_hub import LoopbackHub

REPO = "loopback/run"
WEIGHTS = sha256(b"weights").digest() * 5000


def serve(tmp_path, monkeypatch, xet=False, **more):
    hub = LoopbackHub(tmp_path / "hub", xet=xet)
    hub.start()
    hub.lead_client(monkeypatch, **more)
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo(REPO, private=True)
    return hub, api


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub, _ = serve(tmp_path, monkeypatch)
    yield hub
    hub.stop()


@pytest.fixture
def api(hub):
    return HfApi(endpoint=hub.endpoint, token=hub.token)


def save(api, content=b"1", path="a", parent=None):
    return api.create_commit(REPO, [CommitOperationAdd(path, content)], commit_message="save", parent_commit=parent).oid


def refused(call, *arguments, **named):
    with pytest.raises(HfHubHTTPError) as caught:
        call(*arguments, **named)
    return caught.value


@pytest.mark.parametrize(
    ("action", "status", "text", "retry_after"),
    [
        (503, 503, "503 Service Unavailable", None),
        ("429(7)", 429, "hourly quotas for action: commit", "7"),
        ("500", 500, "Internal Error", None),
        ("409", 409, "Another commit operation is in progress for this repository", None),
        ("412", 412, "A commit has happened since", None),
        ("storage_limit", 403, "403 Forbidden: Private repository storage limit reached", None),
    ],
)
def test_a_refused_commit_leaves_the_head(hub, api, action, status, text, retry_after):
    head = hub.repo(REPO).branches["main"]
    fault = hub.faults.add(action, path="/commit/main$")
    error = refused(save, api, parent=head)
    assert error.response.status_code == status
    assert text in str(error)
    assert error.response.headers.get("Retry-After") == retry_after
    assert hub.repo(REPO).branches["main"] == head
    assert hub.requests[-1].faults == (fault.action,)
    assert fault.hits == 1
    assert save(api, parent=head) == hub.repo(REPO).branches["main"], "one request, and no more"


def test_the_script_says_which_requests_and_how_many(hub, api):
    fault = hub.faults.add("503", method="GET", path="^/api/models/loopback/run$", times=2, after=1)
    hub.faults.add("500", path="/refs$", times=None, text="Always", code="RevisionNotFound")
    statuses = [api.repo_info(REPO) and 200]
    statuses += [refused(api.repo_info, REPO).response.status_code for _ in range(2)]
    statuses += [api.repo_info(REPO) and 200]
    assert statuses == [200, 503, 503, 200]
    assert (fault.hits, fault.left) == (2, 0)
    for _ in range(3):
        error = refused(api.list_repo_refs, REPO)
        assert type(error).__name__ == "RevisionNotFoundError"
        assert error.response.json() == {"error": "Always"}
    hub.faults.clear()
    assert len(api.list_repo_refs(REPO).branches) == 1


def test_412_for_ever_is_for_ever(hub, api):
    hub.faults.add("412", times=None)
    head = hub.repo(REPO).branches["main"]
    assert [refused(save, api, parent=head).response.status_code for _ in range(5)] == [412] * 5


@pytest.mark.parametrize(("action", "lands"), [("drop_reply", True), ("drop_before", False)])
def test_a_dropped_connection(hub, api, action, lands):
    head = hub.repo(REPO).branches["main"]
    hub.faults.add(action, path="/commit/")
    with pytest.raises(httpx.RemoteProtocolError):
        save(api, parent=head)
    assert (hub.repo(REPO).branches["main"] != head) == lands
    assert hub.requests[-1].status == 0


def test_a_commit_may_land_under_a_500(hub, api):
    head = hub.repo(REPO).branches["main"]
    hub.faults.add("lose_commit_500")
    assert refused(save, api, parent=head).response.status_code == 500
    assert [commit.title for commit in hub.repo(REPO).commits()] == ["save", "initial commit"]
    assert hub.repo(REPO).commits()[1].id == head


@pytest.mark.parametrize("file", [None, "README.md"])
def test_a_head_that_moved(hub, api, file):
    head = hub.repo(REPO).branches["main"]
    hub.faults.add("move_head", file=file)
    assert refused(save, api, parent=head).response.status_code == 412
    (moved, first) = hub.repo(REPO).commits()
    assert (moved.author, first.id) == ("someone", head)
    assert set(moved.files) == {".gitattributes"} | ({file} if file else set())


def test_heads_lag_in_every_read_by_name_and_in_no_commit(hub, api):
    first = hub.repo(REPO).branches["main"]
    second = save(api)
    hub.faults.add("lag_heads(1000)")
    assert api.repo_info(REPO).sha == first
    assert api.repo_info(REPO, revision="main").sha == first
    assert api.list_repo_refs(REPO).branches[0].target_commit == first
    assert api.list_repo_files(REPO) == [".gitattributes"]
    assert api.get_paths_info(REPO, ["a"]) == []
    assert len(api.list_repo_commits(REPO)) == 1
    assert api.repo_info(REPO, revision=second).sha == second, "what has an id is found"
    assert refused(save, api, b"2", parent=first).response.status_code == 412
    third = save(api, b"2", parent=second)
    assert api.repo_info(REPO).sha == first
    hub.faults.clear()
    assert api.repo_info(REPO).sha == third


def test_files_that_the_server_ignores_are_left_out_silently(hub, api):
    hub.faults.add("should_ignore", pattern=r"\.json$")
    operations = [CommitOperationAdd("a.json", b"{}"), CommitOperationAdd("b", b"1")]
    api.create_commit(REPO, operations, commit_message="save")
    assert set(hub.repo(REPO).files()) == {".gitattributes", "b"}


def test_a_reply_that_comes_late_was_carried_out(hub, api):
    head = hub.repo(REPO).branches["main"]
    hub.faults.add("stall_headers", method="POST", path="/commit/")
    url, headers = f"{hub.endpoint}/api/models/{REPO}/commit/main", {"Authorization": f"Bearer {hub.token}"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, content=b'{"key": "header", "value": {"summary": "x"}}', headers=headers, timeout=0.3)
    assert hub.repo(REPO).commits()[1].id == head
    hub.faults.add("stall_headers", path="/api/models/")
    with pytest.raises(httpx.ReadTimeout):
        api.repo_info(REPO, timeout=0.3)


def test_a_body_that_stops_halfway(hub, api):
    hub.faults.add("stall_body")
    headers = {"Authorization": f"Bearer {hub.token}"}
    with httpx.stream("GET", f"{hub.endpoint}/api/models/{REPO}", headers=headers, timeout=0.3) as reply:
        assert reply.status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            reply.read()


def test_stopping_the_hub_ends_what_is_stalled(hub, api):
    hub.faults.add("stall_headers")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(api.repo_info, REPO)
        hub.faults.taken.wait()
        hub.stop()
        assert isinstance(waiting.exception(), httpx.RemoteProtocolError)
    for thread in [thread for thread in threading.enumerate() if "process_request_thread" in thread.name]:
        thread.join(20)
        assert not thread.is_alive(), "a stall outlives its Hub"


def test_a_stopped_hub_leaves_no_connection_open(hub, api):
    api.repo_info(REPO)
    hub.stop()
    with pytest.raises(httpx.ConnectError):
        api.repo_info(REPO)


def test_latency_and_a_slow_line_are_waited_for(hub, api, monkeypatch):
    waited = []
    monkeypatch.setattr(hub, "wait", waited.append)
    hub.faults.add("latency(2)", path="/commit/")
    hub.faults.add("slow_upload(1e6)", path="^/_lfs/.*[0-9a-f]{64}$")
    save(api, WEIGHTS, "a.pt")
    save(api, WEIGHTS[:50_000], "b.pt")
    assert waited == [0.16, 2.0, 0.05, 2.0]


@pytest.mark.parametrize("xet", [False, True])
def test_a_corrupt_download_has_the_right_size(tmp_path, monkeypatch, xet):
    hub, api = serve(tmp_path, monkeypatch, xet=xet)
    save(api, WEIGHTS, "a.pt")
    fault = hub.faults.add("corrupt_download")
    got = Path(api.hf_hub_download(REPO, "a.pt", local_dir=tmp_path / "bad")).read_bytes()
    assert (fault.hits, len(got)) == (1, len(WEIGHTS))
    assert [at for at in range(len(got)) if got[at] != WEIGHTS[at]] == [80_000]
    assert Path(api.hf_hub_download(REPO, "a.pt", local_dir=tmp_path / "good")).read_bytes() == WEIGHTS
    hub.stop()


def test_one_file_can_be_corrupted_by_its_name(hub, api, tmp_path):
    for name in ("a.pt", "b.pt"):
        save(api, name.encode() * 1000, name)
    hub.faults.add("corrupt_download", path=r"/b\.pt$", times=None)
    folder = Path(api.snapshot_download(REPO, local_dir=tmp_path / "down"))
    assert (folder / "a.pt").read_bytes() == b"a.pt" * 1000
    assert (folder / "b.pt").read_bytes() != b"b.pt" * 1000


def test_stalled_xet_storage_fails_the_upload_and_the_download(tmp_path, monkeypatch):
    quick = {"HF_XET_CLIENT_READ_TIMEOUT": "200ms", "HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "1"}
    hub, api = serve(tmp_path, monkeypatch, xet=True, **quick)
    save(api, WEIGHTS, "a.pt")
    hub.faults.add("stall_cas", path="/v1/xorbs/|/v1/reconstructions/")
    with pytest.raises(ConnectionError):
        save(api, WEIGHTS[::-1], "b.pt")
    assert "b.pt" not in hub.repo(REPO).files()
    with pytest.raises(RuntimeError, match=r"error sending request for url .*/v1/reconstructions/"):
        api.hf_hub_download(REPO, "a.pt", local_dir=tmp_path / "down")
    hub.faults.clear()
    save(api, WEIGHTS[::-1], "b.pt")
    hub.stop()


def test_a_stalled_xet_upload_is_aborted_from_another_thread(tmp_path, monkeypatch):
    hub, api = serve(tmp_path, monkeypatch, xet=True, HF_XET_CLIENT_READ_TIMEOUT="600s")
    hub.faults.add("stall_cas")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(save, api, WEIGHTS, "a.pt")
        hub.faults.taken.wait()
        abort_xet_session()
        assert isinstance(waiting.exception(), (RuntimeError, KeyboardInterrupt))  # the latter now and then
    hub.faults.clear()
    save(api, WEIGHTS, "a.pt")
    assert hub.repo(REPO).stored_bytes() == 160000
    hub.stop()


def test_other_processes_write_the_script_and_read_the_state(tmp_path, monkeypatch):
    script = tmp_path / "faults.json"
    script.write_text(json.dumps([{"action": "503", "path": "/commit/", "times": 1}]))
    monkeypatch.setenv("LOOPBACK_FAULTS", str(script))
    hub, api = serve(tmp_path, monkeypatch)
    assert refused(save, api).response.status_code == 503
    posted = httpx.post(f"{hub.endpoint}/_faults", json={"action": "409", "times": None}).json()
    assert [(fault["action"], fault["times"], fault["hits"]) for fault in posted] == [
        ("status", 0, 1),
        ("status", None, 0),
    ]
    assert refused(save, api).response.status_code == 409
    bad = httpx.post(f"{hub.endpoint}/_faults", json={"action": "explode"})
    assert (bad.status_code, bad.json()["error"].split(";")[0]) == (400, "no action explode")
    httpx.delete(f"{hub.endpoint}/_faults")
    head = save(api, WEIGHTS, "a.pt")
    state = httpx.get(f"{hub.endpoint}/_state").json()
    run = state["repos"][f"models/{REPO}"]
    assert run["branches"]["main"]["commit"] == head
    assert run["branches"]["main"]["files"]["a.pt"] == {"size": 160000, "sha256": sha256(WEIGHTS).hexdigest()}
    assert (run["private"], run["stored_bytes"], state["faults"]) == (True, 160000, [])
    assert state["requests"][-1]["path"] == f"/api/models/{REPO}/commit/main"
    hub.stop()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ({"action": "drop_reply(3)"}, "drop_reply has no argument"),
        ({"action": "503", "seconds": 3}, "503 has no argument seconds"),
    ],
)
def test_an_argument_that_there_is_not_is_refused(hub, line, reason):
    with pytest.raises(ValueError, match=reason):
        hub.faults.load(line)


def test_a_function_is_called_before_the_request_is_judged(hub, api):
    other = HfApi(endpoint=hub.endpoint, token=hub.token)
    head = hub.repo(REPO).branches["main"]
    hub.faults.add("call", path="/commit/", function=lambda: save(other, b"other", "b", parent=head))
    assert refused(save, api, parent=head).response.status_code == 412
    assert set(hub.repo(REPO).files()) == {".gitattributes", "b"}
