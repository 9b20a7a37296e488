"""Storage buckets of the loopback Hub, by the real client."""

from pathlib import Path

import hf_xet
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import BucketBatchError, BucketNotFoundError, EntryNotFoundError, HfHubHTTPError
from support.loopback_http import User
from support.loopback_hub import LoopbackHub

BUCKET = "loopback/payload"
CONTENT = {"run/10/a.pt": b"weights of ten" * 9000, "run/10/empty": b"", "run/20/a.pt": b"twenty" * 500}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with LoopbackHub(tmp_path / "hub", xet=False) as hub:  # buckets use Xet all the same
        hub.lead_client(monkeypatch)
        yield hub


@pytest.fixture
def api(hub):
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_bucket(BUCKET, private=True)
    return api


def put(api, files):
    api.batch_bucket_files(BUCKET, add=[(content, path) for path, content in files.items()])


def test_files_are_put_listed_read_back_and_deleted(hub, api, tmp_path):
    put(api, CONTENT)
    info = api.bucket_info(BUCKET)
    assert (info.private, info.size, info.total_files) == (True, 129_000, 3)
    told = {file.path: file for file in api.get_bucket_paths_info(BUCKET, [*CONTENT, "nowhere"])}
    (tmp_path / "local").write_bytes(CONTENT["run/10/a.pt"])
    (local,) = hf_xet.hash_files([str(tmp_path / "local")])
    assert (told["run/10/a.pt"].xet_hash, told["run/10/a.pt"].size) == (local.hash, 126_000)
    assert set(told) == set(CONTENT)
    assert [entry.path for entry in api.list_bucket_tree(BUCKET, prefix="run")] == ["run/10", "run/20"]
    assert [file.path for file in api.list_bucket_tree(BUCKET, recursive=True)] == sorted(CONTENT)
    assert [file.path for file in api.list_bucket_tree(BUCKET, prefix="run/10")] == ["run/10/a.pt", "run/10/empty"]

    api.download_bucket_files(BUCKET, [(path, tmp_path / "down" / path) for path in CONTENT])
    assert {path: (tmp_path / "down" / path).read_bytes() for path in CONTENT} == CONTENT
    api.batch_bucket_files(BUCKET, delete=["run/10/a.pt", "run/10/empty"])
    assert hub.bucket(BUCKET).stored_bytes() == 3000
    with pytest.raises(EntryNotFoundError, match=r"run/10/a\.pt"):
        api.download_bucket_files(BUCKET, [("run/10/a.pt", tmp_path / "x")], raise_on_missing_files=True)


@pytest.mark.parametrize(
    ("pattern", "status", "left"), [("10/a", 200, {"run/10/empty", "run/20/a.pt"}), (".", 422, set())]
)
def test_a_batch_is_not_atomic(hub, api, pattern, status, left):
    hub.faults.add("fail_operations", pattern=pattern)
    with pytest.raises(BucketBatchError) as caught:
        put(api, CONTENT)
    assert caught.value.response.status_code == status
    assert {failure["path"] for failure in caught.value.failures} == set(CONTENT) - left
    assert set(hub.bucket(BUCKET).files) == left
    put(api, CONTENT)
    assert set(hub.bucket(BUCKET).files) == set(CONTENT)


def test_a_bucket_is_public_unless_asked_otherwise_and_stays_what_it_is(hub, api):
    api.create_bucket("loopback/open")
    assert api.bucket_info("loopback/open").private is False
    api.create_bucket("loopback/open", private=True, exist_ok=True)
    assert api.bucket_info("loopback/open").private is False
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_bucket("loopback/open")
    stranger = HfApi(endpoint=hub.endpoint, token=False)
    assert stranger.bucket_info("loopback/open").id == "loopback/open"
    with pytest.raises(BucketNotFoundError):
        stranger.bucket_info(BUCKET)
    api.delete_bucket("loopback/open")
    with pytest.raises(BucketNotFoundError):
        api.bucket_info("loopback/open")


def test_a_token_for_repos_only_fails_in_xet_and_not_as_an_http_error(hub, api):
    hub.users["hf_repos"] = User("loopback", buckets=False)
    narrow = HfApi(endpoint=hub.endpoint, token="hf_repos")
    with pytest.raises(ConnectionError):
        put(narrow, CONTENT)
    with pytest.raises(HfHubHTTPError, match="403"):
        narrow.batch_bucket_files(BUCKET, delete=["a"])
    assert hub.bucket(BUCKET).files == {}


def test_a_repos_file_is_copied_into_a_bucket_by_reference(hub, api, monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.xet = True
    api.create_repo("loopback/run", private=True)
    api.upload_file(path_or_fileobj=b"abc" * 9000, path_in_repo="a.pt", repo_id="loopback/run")
    (file,) = api.get_paths_info("loopback/run", ["a.pt"])
    api.batch_bucket_files(BUCKET, copy=[("model", "loopback/run", file.xet_hash, "copy.pt")])
    api.download_bucket_files(BUCKET, [("copy.pt", tmp_path / "copy.pt")])
    assert Path(tmp_path / "copy.pt").read_bytes() == b"abc" * 9000


def test_buckets_outlive_the_server(hub, api, tmp_path):
    put(api, CONTENT)
    with LoopbackHub(hub.root, xet=False) as again:
        assert again.bucket(BUCKET).files == hub.bucket(BUCKET).files
        other = HfApi(endpoint=again.endpoint, token=again.token)
        other.download_bucket_files(BUCKET, [("run/20/a.pt", tmp_path / "a.pt")])
    assert (tmp_path / "a.pt").read_bytes() == CONTENT["run/20/a.pt"]
