"""The loopback Hub, asked by the real huggingface_hub client: all that a checkpoint store needs, by LFS and by Xet."""

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub import snapshot_download as snapshot
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from support.loopback_http import User
from support.loopback_hub import LoopbackHub

REPO, BRANCH = "loopback/run", "run/one run"
WEIGHTS = sha256(b"weights").digest() * 5000
TEXT = b'{"step": 10}'


@pytest.fixture(params=["lfs", "xet"])
def hub(request, monkeypatch, tmp_path):
    with LoopbackHub(tmp_path / "hub", xet=request.param == "xet") as hub:
        hub.lead_client(monkeypatch)
        yield hub


@pytest.fixture
def api(hub):
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo(REPO, private=True)
    api.create_branch(REPO, branch=BRANCH)
    return api


def save(api, files, parent=None, message="save", branch=BRANCH):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(REPO, operations, commit_message=message, revision=branch, parent_commit=parent).oid


def refused(call, *arguments, **named):
    with pytest.raises(HfHubHTTPError) as caught:
        call(*arguments, **named)
    return caught.value


def test_a_commit_lands_whole_and_its_sizes_and_hashes_are_told(hub, api, tmp_path):
    before = api.repo_info(REPO, revision=BRANCH).sha
    operations = [CommitOperationAdd("c/w.safetensors", WEIGHTS), CommitOperationAdd("c/state.json", TEXT)]
    api.preupload_lfs_files(REPO, operations, revision=BRANCH)
    assert hub.repo(REPO).stored_bytes() == 0, "not in a commit yet"
    asked = len(hub.requests)
    info = api.create_commit(REPO, operations, commit_message="ten", revision=BRANCH, parent_commit=before)
    assert [(r.method, r.path) for r in hub.requests[asked:]] == [
        ("POST", f"/api/models/{REPO}/commit/run%2Fone%20run")
    ]

    weights, state = api.get_paths_info(REPO, ["c/w.safetensors", "nowhere", "c/state.json"], revision=info.oid)
    assert (weights.size, weights.lfs.size, weights.lfs.sha256) == (160000, 160000, sha256(WEIGHTS).hexdigest())
    assert (weights.xet_hash is not None) == hub.xet
    assert (state.size, state.lfs, state.blob_id) == (12, None, "0591bd3a381b9319a7f7636906140f704aba1f6d")
    tree = [entry.path for entry in api.list_repo_tree(REPO, recursive=True, revision=BRANCH)]
    assert tree == [".gitattributes", "c", "c/state.json", "c/w.safetensors"]
    assert [entry.path for entry in api.list_repo_tree(REPO, "c", revision=BRANCH)] == tree[2:]

    assert hub.repo(REPO).branches[BRANCH] == info.oid == api.repo_info(REPO, revision=BRANCH).sha
    assert hub.repo(REPO).branches["main"] == before == api.repo_info(REPO).sha, "main is as it was"
    assert [commit.title for commit in api.list_repo_commits(REPO, revision=BRANCH)] == ["ten", "initial commit"]
    assert hub.repo(REPO).files(BRANCH)["c/w.safetensors"] == {"size": 160000, "sha256": weights.lfs.sha256}

    got = Path(snapshot(REPO, revision=info.oid, local_dir=tmp_path / "down", allow_patterns="c/*"))
    assert (got / "c/w.safetensors").read_bytes() == WEIGHTS
    assert (got / "c/state.json").read_bytes() == TEXT
    by_xet = [record for record in hub.requests if record.path.startswith("/_cas/")]
    assert bool(by_xet) == hub.xet


def test_a_stale_parent_is_refused_and_nothing_changes(hub, api):
    first = save(api, {"a": b"1"})
    second = save(api, {"a": b"2"}, parent=first)
    error = refused(save, api, {"a": b"3", "b.pt": WEIGHTS}, parent=first)
    assert error.response.status_code == 412
    assert "A commit has happened since" in str(error)
    assert hub.repo(REPO).branches[BRANCH] == second
    assert set(hub.repo(REPO).files(BRANCH)) == {".gitattributes", "a"}


def test_content_equal_to_the_head_is_not_sent_and_its_parent_is_not_checked(hub, api):
    first = save(api, {"a.pt": WEIGHTS})
    second = save(api, {"b": b"2"}, parent=first)
    assert save(api, {"a.pt": WEIGHTS}, parent=first) == second
    assert hub.repo(REPO).branches[BRANCH] == second


def test_of_racing_writers_with_one_parent_exactly_one_wins(hub, api):
    head = save(api, {"a": b"0"})
    for turn in range(5):

        def race(writer, turn=turn, head=head):
            try:
                return save(api, {"a": f"{turn} {writer}".encode()}, parent=head)
            except HfHubHTTPError as error:
                return error.response.status_code

        with ThreadPoolExecutor(4) as pool:
            ends = list(pool.map(race, range(4)))
        assert sorted(end for end in ends if isinstance(end, int)) == [412, 412, 412]
        (head,) = [end for end in ends if isinstance(end, str)]
        assert hub.repo(REPO).branches[BRANCH] == head
    assert len(hub.repo(REPO).commits(BRANCH)) == 7


def test_a_commit_whose_client_dies_in_the_middle_is_not_carried_out(hub, api):
    head = api.model_info(REPO).sha
    lines = [{"key": "header", "value": {"summary": "half"}}]
    lines += [{"key": "file", "value": {"path": f"{number}", "content": "eA=="}} for number in range(2)]
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path = f"/api/models/{REPO}/commit/main"
    for sent in (body[: len(body) // 2], body[: body.index(b"\n", body.index(b'"file"')) + 1], body):
        host, port = hub.endpoint.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head_lines = f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {hub.token}\r\n"
            connection.sendall(f"{head_lines}Content-Length: {len(body)}\r\n\r\n".encode() + sent)
            connection.shutdown(socket.SHUT_WR)
            answered = connection.recv(100)
        assert answered.startswith(b"HTTP/1.1 200") == (sent == body)
        assert (api.model_info(REPO).sha != head) == (sent == body)


def test_branches_and_tags_are_made_once_and_found_by_name(hub, api):
    first = save(api, {"a": b"1"})
    assert refused(api.create_branch, REPO, branch=BRANCH).response.status_code == 409
    api.create_branch(REPO, branch=BRANCH, exist_ok=True)
    api.create_tag(REPO, tag="v/1", revision=BRANCH)
    assert refused(api.create_tag, REPO, tag="v/1").response.status_code == 409
    refs = api.list_repo_refs(REPO)
    assert [ref.name for ref in refs.branches] == ["main", BRANCH]
    assert [(ref.name, ref.ref, ref.target_commit) for ref in refs.tags] == [("v/1", "refs/tags/v/1", first)]
    api.delete_branch(REPO, branch=BRANCH)
    assert api.repo_info(REPO, revision="v/1").sha == first, "the tag keeps it"
    api.delete_tag(REPO, tag="v/1")
    with pytest.raises(RevisionNotFoundError):
        api.repo_info(REPO, revision=first)


def test_deleting_a_file_frees_nothing_and_a_squash_does(hub, api):
    save(api, {"old.pt": WEIGHTS, "same.pt": WEIGHTS, "text": b"t"})
    delete = [CommitOperationDelete("old.pt"), CommitOperationDelete("same.pt")]
    api.create_commit(REPO, delete, commit_message="delete", revision=BRANCH)
    head = save(api, {"new.pt": WEIGHTS[:100]})
    assert hub.repo(REPO).stored_bytes() == api.model_info(REPO, expand=["usedStorage"]).used_storage == 160100
    api.super_squash_history(REPO, branch=BRANCH, commit_message="one commit")
    assert [commit.title for commit in api.list_repo_commits(REPO, revision=BRANCH)] == ["one commit"]
    assert hub.repo(REPO).stored_bytes() == 100
    with pytest.raises(RevisionNotFoundError):
        api.list_repo_commits(REPO, revision=head)
    assert refused(save, api, {"x": b"x"}, parent=head).response.status_code == 412


@pytest.mark.parametrize("rewrite", [True, False])
def test_lfs_files_are_freed_for_ever(hub, api, tmp_path, rewrite):
    save(api, {"old.pt": WEIGHTS, "text": b"t"})
    head = save(api, {"new.pt": WEIGHTS[:100]})
    listed = {file.filename: file for file in api.list_lfs_files(REPO)}
    assert {name: (file.size, file.file_oid, file.ref) for name, file in listed.items()} == {
        "old.pt": (160000, sha256(WEIGHTS).hexdigest(), f"refs/heads/{BRANCH}"),
        "new.pt": (100, sha256(WEIGHTS[:100]).hexdigest(), f"refs/heads/{BRANCH}"),
    }
    api.permanently_delete_lfs_files(REPO, [listed["old.pt"]], rewrite_history=rewrite)
    assert hub.repo(REPO).stored_bytes() == 100
    assert (api.repo_info(REPO, revision=BRANCH).sha == head) == (not rewrite)
    assert api.file_exists(REPO, "old.pt", revision=BRANCH) is False
    assert ("old.pt" in api.list_repo_files(REPO, revision=BRANCH)) == (not rewrite)
    assert Path(hf_hub_download(REPO, "new.pt", revision=BRANCH, local_dir=tmp_path)).read_bytes() == WEIGHTS[:100]

    save(api, {"again.pt": WEIGHTS})
    assert hub.repo(REPO).stored_bytes() == 160100, "the same bytes can come back"
    assert Path(hf_hub_download(REPO, "again.pt", revision=BRANCH, local_dir=tmp_path)).read_bytes() == WEIGHTS


def test_a_pointer_without_its_content_is_refused(hub, api):
    add = CommitOperationAdd("a.pt", WEIGHTS)
    api.preupload_lfs_files(REPO, [add], revision=BRANCH)
    hub.repo(REPO).objects.clear()
    error = refused(api.create_commit, REPO, [add], commit_message="x", revision=BRANCH)
    assert isinstance(error, BadRequestError)
    assert "a.pt points to an LFS file that does not exist" in str(error)


def test_a_file_is_copied_to_another_branch_without_its_bytes(hub, api, tmp_path):
    save(api, {"a.pt": WEIGHTS})
    api.create_branch(REPO, branch="fork")
    copy = CommitOperationCopy("a.pt", "b.pt", src_revision=BRANCH)
    api.create_commit(REPO, [copy], commit_message="fork", revision="fork")
    assert hub.repo(REPO).stored_bytes() == 160000
    assert Path(hf_hub_download(REPO, "b.pt", revision="fork", local_dir=tmp_path)).read_bytes() == WEIGHTS


def test_a_live_token_in_a_commit_is_refused_by_the_files_name(hub, api):
    error = refused(save, api, {"log.txt": b"token " + hub.token.encode()})
    assert isinstance(error, BadRequestError)
    assert "log.txt contains a live Hugging Face token" in str(error)


def test_a_private_repo_looks_like_none_to_others(hub, api):
    hub.users["hf_other"] = User("other")
    save(api, {"a": b"1"})
    for token, status in ((False, 401), ("hf_other", 404)):
        other = HfApi(endpoint=hub.endpoint, token=token)
        with pytest.raises(RepositoryNotFoundError) as caught:
            other.repo_info(REPO)
        assert caught.value.response.status_code == status
        with pytest.raises(RepositoryNotFoundError):
            save(other, {"a": b"2"})
    bad = refused(HfApi(endpoint=hub.endpoint, token="hf_unknown").repo_info, REPO)
    assert bad.response.status_code == 401
    assert not isinstance(bad, RepositoryNotFoundError)
    api.update_repo_settings(REPO, visibility="public")
    assert api.repo_info(REPO).private is False
    other = HfApi(endpoint=hub.endpoint, token=False)
    assert other.repo_info(REPO).id == REPO
    assert refused(save, HfApi(endpoint=hub.endpoint, token="hf_other"), {"a": b"2"}).response.status_code == 403


def test_a_read_only_token_reads_and_only_an_old_repo_is_created_with_it(hub, api, tmp_path):
    save(api, {"a.pt": WEIGHTS})
    reader = HfApi(endpoint=hub.endpoint, token=hub.read_token)
    assert reader.whoami()["auth"]["accessToken"]["role"] == "read"
    assert reader.create_repo(REPO, exist_ok=True).repo_id == REPO
    assert refused(reader.create_repo, "loopback/new").response.status_code == 403
    for write in (
        lambda: save(reader, {"a": b"2"}),
        lambda: reader.create_branch(REPO, branch="b"),
        lambda: reader.super_squash_history(REPO),
        lambda: reader.delete_repo(REPO),
    ):
        assert refused(write).response.status_code == 403
    got = hf_hub_download(REPO, "a.pt", revision=BRANCH, token=hub.read_token, local_dir=tmp_path)
    assert Path(got).read_bytes() == WEIGHTS


def test_what_is_not_there_has_the_clients_own_errors(hub, api, tmp_path):
    assert refused(api.create_repo, REPO).response.status_code == 409
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    with pytest.raises(RevisionNotFoundError):
        save(api, {"a": b"1"}, branch="nowhere")
    with pytest.raises(RemoteEntryNotFoundError):
        hf_hub_download(REPO, "nowhere", local_dir=tmp_path)
    with pytest.raises(RemoteEntryNotFoundError):
        api.create_commit(REPO, [CommitOperationDelete("nowhere")], commit_message="x", revision=BRANCH)
    api.delete_repo(REPO)
    with pytest.raises(RepositoryNotFoundError):
        api.repo_info(REPO)


def test_long_listings_come_in_pages(hub, api):
    hub.page_size = 2
    save(api, {f"{number}.pt": bytes([number]) * 10 for number in range(5)})
    names = [file.path for file in api.list_repo_tree(REPO, revision=BRANCH, recursive=True)]
    assert names == [".gitattributes", *(f"{number}.pt" for number in range(5))]
    assert len(list(api.list_lfs_files(REPO))) == 5


def test_a_range_of_a_file_is_served(hub, api, tmp_path):
    from huggingface_hub import HfFileSystem

    save(api, {"a.pt": WEIGHTS})
    with HfFileSystem(endpoint=hub.endpoint, token=hub.token).open(f"{REPO}/a.pt", revision=BRANCH) as file:
        file.seek(70_001)
        assert file.read(1000) == WEIGHTS[70_001:71_001]


def test_what_xet_uploaded_is_there_for_a_client_without_it(hub, api, tmp_path, monkeypatch):
    import huggingface_hub

    squeezable = b"abcd" * 50_000 + os.urandom(300_000)
    save(api, {"a.pt": squeezable})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    assert Path(hf_hub_download(REPO, "a.pt", revision=BRANCH, local_dir=tmp_path)).read_bytes() == squeezable


def test_the_xet_storage_takes_no_write_with_a_read_token_and_no_half_a_xorb(hub, api):
    tokens = {}
    for mode in ("read", "write"):
        url = f"{hub.endpoint}/api/models/{REPO}/xet-{mode}-token/main"
        tokens[mode] = httpx.get(url, headers={"Authorization": f"Bearer {hub.token}"})
    if not hub.xet:
        assert [reply.status_code for reply in tokens.values()] == [404, 404]
        return
    told = tokens["write"].json()
    assert tokens["write"].headers["X-Xet-Cas-Url"] == told["casUrl"]
    xorb, url = b"\0\3\0\0\0\3\0\0abc", f"{told['casUrl']}/v1/xorbs/default/{'0' * 64}"

    def post(token, content):
        return httpx.post(url, content=content, headers={"Authorization": f"Bearer {token}"}).status_code

    assert post(told["accessToken"], xorb) == 200
    assert post(told["accessToken"], xorb[:-1]) == 400
    assert post(tokens["read"].json()["accessToken"], xorb) == 403
    assert post(told["accessToken"][:-1], xorb) == 401


def test_a_killed_server_starts_again_on_its_data(tmp_path):
    """And it runs by itself: another process, driven by HTTP alone."""
    command = [sys.executable, "-m", "support.loopback_hub", "--root", str(tmp_path)]
    heads = []
    for turn in range(2):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[1], encoding="utf-8")
        try:
            told = json.loads(process.stdout.readline())
            client = [sys.executable, "-c", CLIENT, told["endpoint"], told["token"], str(turn)]
            environment = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
            done = subprocess.run(client, env=environment, capture_output=True, encoding="utf-8", check=False)
            assert done.returncode == 0, done.stderr
            heads.append(json.loads(done.stdout))
        finally:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    assert heads[0]["after"] == heads[1]["before"]
    with LoopbackHub(tmp_path) as hub:
        assert hub.repo(REPO).branches["main"] == heads[1]["after"]
        assert set(hub.repo(REPO).files()) == {".gitattributes", "0.pt", "1.pt"}
        assert hub.repo(REPO).stored_bytes() == 100_001


CLIENT = """
import json, sys
from huggingface_hub import CommitOperationAdd, HfApi
endpoint, token, turn = sys.argv[1:]
api = HfApi(endpoint=endpoint, token=token)
api.create_repo("loopback/run", private=True, exist_ok=True)
before = api.repo_info("loopback/run").sha
add = CommitOperationAdd(f"{turn}.pt", b"x" * (50_000 + int(turn)))
after = api.create_commit("loopback/run", [add], commit_message=turn, parent_commit=before).oid
print(json.dumps({"before": before, "after": after}))
"""
