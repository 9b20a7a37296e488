"""What `doctor` finds out about the Hub before a session does: its answer, the base model, a token that only reads."""

from __future__ import annotations

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from support.loopback_hub import OWNER, LoopbackHub

from kaggle_lib.report.doctor import examine
from kaggle_lib.report.finding import Finding

BASE, STORE = f"{OWNER}/base", f"{OWNER}/runs"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with LoopbackHub(tmp_path / "hub") as hub:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("KAGGLE_LIB_ROOT", str(tmp_path / "kaggle"))
        hub.lead_client(monkeypatch)
        yield hub


def found(**values):
    """{topic: finding} of what the Hub has to do with."""
    topics = ("Internet", "base model", "store", "Hub", "space", "Hugging Face token")
    return {one.topic: one for one in examine(values).findings if one.topic in topics}


def test_a_token_that_writes_is_tried_by_a_write_that_leaves_nothing(hub):
    hub.create_repo(STORE)
    before = hub.repo(STORE).branches.copy()
    text = f"hf://{STORE} can be read and written to, and has no run of this name yet"
    assert found(store=f"hf://{STORE}")["store"] == Finding("store", "ok", text)
    assert hub.repo(STORE).branches == before
    asked = [(one.method, one.path.rpartition("/branch/")[2]) for one in hub.requests if "/branch/" in one.path]
    assert asked == [("POST", "kaggle-lib-write-check"), ("DELETE", "kaggle-lib-write-check")]


@pytest.mark.parametrize("there", [True, False])
def test_a_token_that_reads_and_cannot_write_is_missing(hub, there, monkeypatch):
    if there:
        hub.create_repo(STORE)
    monkeypatch.setenv("HF_TOKEN", hub.read_token)
    text = (
        f"The Hugging Face token in HF_TOKEN may not write to {STORE} (HTTP 403). Store one that may write to it, from "
        "https://huggingface.co/settings/tokens."
    )
    assert found(store=f"hf://{STORE}")["store"] == Finding("store", "missing", text)


def test_a_store_that_is_not_there_yet_is_left_to_the_run(hub):
    assert found(store=f"hf://{STORE}")["store"].state == "ok"
    assert hub.repos == {}


def test_a_token_that_the_hub_does_not_know_is_missing(hub, monkeypatch):
    hub.create_repo(STORE)
    monkeypatch.setenv("HF_TOKEN", "hf_unknown000000000000000000000000")
    assert found(store=f"hf://{STORE}")["store"].state == "missing"


def test_a_base_model_is_asked_for_and_its_bytes_are_counted(hub):
    hub.create_repo(BASE)
    files = [CommitOperationAdd("config.json", b"{}"), CommitOperationAdd("model.safetensors", b"w" * 30_000_000)]
    HfApi(endpoint=hub.endpoint, token=hub.token).create_commit(BASE, files, commit_message="base")
    told = found(base_model=BASE)
    assert told["Internet"] == Finding("Internet", "ok", f"{hub.endpoint} answers")
    assert told["base model"] == Finding("base model", "ok", f"{BASE}, 0.03 GB to fetch")
    assert told["store"].state == "ok"  # a folder
    absent = found(base_model=f"{OWNER}/bsae")["base model"]
    assert absent.state == "missing"
    assert absent.text == (
        f"The base model {OWNER}/bsae cannot be had: there is no model of that name on the Hub that the token may "
        "read. Check base_model, and the token."
    )


def test_internet_that_is_off_is_one_finding_with_where_to_switch_it_on(hub, tmp_path, monkeypatch):
    hub.stop()
    values = {"base_model": BASE, "store": f"hf://{STORE}"}
    told = found(**values)
    assert set(told) == {"Internet", "Hugging Face token"}
    assert told["Internet"].text == f"{hub.endpoint} does not answer (Connection refused)"
    assert told["Internet"].todo == "Check the network (and HF_ENDPOINT, if it is set)."
    (tmp_path / "kaggle/working").mkdir(parents=True)
    assert found(**values)["Internet"].todo == (
        "Switch it on in the notebook's editor, on the right under Session options (Internet on; the account needs a "
        "verified phone number), or push with enable_internet, and run again."
    )
    assert "Internet" not in found(base_model="sample")


def test_a_client_that_is_told_to_stay_offline_is_told(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    offline = Finding("Internet", "missing", "HF_HUB_OFFLINE is set, and the run needs the Hub", "Unset it.")
    assert found(base_model=BASE)["Internet"] == offline
    assert found(store=f"hf://{STORE}")["Internet"] == offline
    assert hub.requests == []
