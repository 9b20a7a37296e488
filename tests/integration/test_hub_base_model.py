"""A base model of the Hub is fetched once, at one commit for the whole run, and the workers load it offline."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from support.loopback_http import User
from support.loopback_hub import OWNER, LoopbackHub
from support.sessions import Place

from kaggle_lib.config import RunConfig
from kaggle_lib.errors import UserError
from kaggle_lib.runs import base_model

ROOT = Path(__file__).parents[2]
REPO, TOKEN = "loopback/tiny", "hf_AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh"
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(params=["lfs", "xet"])
def hub(request, monkeypatch, tmp_path):
    with LoopbackHub(tmp_path / "hub", xet=request.param == "xet", users={TOKEN: User(OWNER)}) as hub:
        hub.lead_client(monkeypatch)
        yield hub


def put(hub, files, revision="main"):
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo(REPO, private=True, exist_ok=True)
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    return api.create_commit(REPO, operations, commit_message="model", revision=revision).oid


def config(**values):
    return RunConfig.create({"run": "r", "data": "sample", "base_model": REPO, **values})


def refused(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.slow
def test_a_run_keeps_its_commit_though_the_branch_moves_and_another_machine_goes_on(hub, tmp_path, monkeypatch):
    strategy = "unsloth" if hub.xet else "peft"
    whole = Place(tmp_path / "sample", values={"strategy": strategy})
    assert whole.call()["outcome"] == "finished"
    made = whole.work / ".cache" / "sample-model-42"
    files = {name: (made / name).read_bytes() for name in FILES}
    commit = put(hub, {**files, "pytorch_model.bin": b"the same again", "original/model.safetensors": b"and again"})

    place = Place(tmp_path / "hub-model", values={"base_model": REPO, "strategy": strategy})
    process = place.start()
    place.wait_for_step(process, 6)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 75, err
    assert f"Fetching the base model {REPO} ({commit[:12]}): {len(FILES)} files, 0.00 GB." in err
    cached = sorted(path.name for path in (tmp_path / "hub").glob(f"clients/*/hub/models--*/snapshots/{commit}/*"))
    assert cached == sorted(FILES)

    assert put(hub, {"config.json": b"{}", "model.safetensors": b"another model"}) != commit
    shutil.rmtree(place.work)
    for name, value in hub.environment().items():  # a cache of its own
        monkeypatch.setenv(name, value)
    second = Place(place.root, values=place.values, work=tmp_path / "second machine")
    outcome = second.call()
    assert outcome["resumed_from"] > 0
    assert f"({commit[:12]}): {len(FILES)} files" in outcome["stderr"]
    assert second.final_bytes() == whole.final_bytes()
    adapter = json.loads((second.folder.adapter / "adapter_config.json").read_text())
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == (REPO, commit)

    # What is in the cache is not fetched again, and is enough where the Hub fails.
    hub.faults.add("503", path="^/api/models/")
    evaluated = second.call("evaluate")
    assert "Fetching" not in evaluated["stderr"]
    assert f"The Hub does not answer (HfHubHTTPError): taking {REPO} from the cache." in evaluated["stderr"]


@pytest.mark.slow
@pytest.mark.parametrize("hub", ["xet"], indirect=True)
def test_no_byte_of_the_token_is_left_by_the_command_line_or_a_notebook(hub, tmp_path):
    sample = Place(tmp_path / "sample", values={"max_steps": 1})
    sample.call()
    put(hub, {name: (sample.work / ".cache/sample-model-42" / name).read_bytes() for name in FILES})
    dump = tmp_path / "dump.py"
    dump.write_text(
        "import os, pathlib\n"
        "def callbacks(config):\n"
        "    pathlib.Path(config.work_dir, 'environ').write_text(repr(dict(os.environ)))\n"
        "    return []\n"
    )
    place = Place(tmp_path / "run", values={"base_model": REPO, "max_steps": 2, "hooks": dump})
    said = [place.call(), place.call("evaluate"), place.call("report"), place.call("status"), place.call("doctor")]
    assert "'HF_HUB_OFFLINE': '1'" in (place.work / "environ").read_text()
    words = {"base_model": REPO, "hooks": dump, "rows": 16, "max_length": 96, "max_steps": 2, "work_dir": "nb-work"}
    done = subprocess.run(
        [
            Path(sys.executable).with_name("papermill"),
            "--no-progress-bar",
            ROOT / "notebooks/quickstart.ipynb",
            "out.ipynb",
        ]
        + [word for name, value in words.items() for word in ("-r", name, str(value))],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(tmp_path / "ipython")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Finished: all steps are done." in (tmp_path / "out.ipynb").read_text()
    assert "'HF_HUB_OFFLINE': '1'" in (tmp_path / "nb-work/environ").read_text()
    assert TOKEN not in repr(said) + done.stdout + done.stderr
    left = [path for path in tmp_path.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]
    assert left == []


@pytest.mark.slow
def test_an_interrupt_ends_a_download_that_stalls(hub, tmp_path):
    put(hub, {"config.json": b"{}", "model.safetensors": b"weights"})
    hub.faults.add("stall_headers(600)", path="/resolve/", times=None)
    place = Place(tmp_path / "run", values={"base_model": REPO})
    process = place.start()
    for line in process.stderr:
        if line.startswith("Fetching"):
            break
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 75, err
    assert json.loads(out)["reason"] == "interrupted, before the base model was here"
    assert place.call("status")["state"] == "paused"


def test_what_is_not_on_the_hub_is_one_error(hub, monkeypatch):
    commit = put(hub, {"config.json": b"{}"})
    assert base_model.commit_of(config()) == commit
    assert base_model.commit_of(config(revision=commit)) == commit
    start = f"The base model {REPO!r} cannot be loaded: "
    assert refused(base_model.commit_of, config(revision="v2")) == (
        f"{start}it has no revision 'v2' on the Hub. Nothing has been changed. Check revision."
    )
    hub.faults.add("403", path="^/api/models/", code="GatedRepo", times=1)
    assert refused(base_model.commit_of, config()) == (
        f"{start}its licence has to be accepted first. Nothing has been changed. Accept it on "
        f"https://huggingface.co/{REPO}, with the account that the token is of."
    )
    hub.faults.add("503", path="^/api/models/", times=1)
    assert refused(base_model.commit_of, config()).startswith(f"{start}HfHubHTTPError: ")
    absent = config(base_model="loopback/absent")
    told = "cannot be loaded: there is no folder of that name here, and no model on the Hub that "
    assert f"{told}the token may read." in refused(base_model.commit_of, absent)
    monkeypatch.delenv("HF_TOKEN")
    assert f"{told}can be read without a token." in refused(base_model.commit_of, config())  # a private one


def test_offline_the_cache_decides(hub, monkeypatch):
    commit = put(hub, {"config.json": b"{}", "model.safetensors": b"weights"})
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    why = "huggingface_hub is offline (HF_HUB_OFFLINE), and its cache does not have it."
    assert why in refused(base_model.commit_of, config())
    assert why in refused(base_model.fetch, config(), commit, print)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    said = []
    base_model.fetch(config(), commit, said.append)
    assert len(said) == 3
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    base_model.fetch(config(), commit, said.append)
    assert len(said) == 3


def test_there_must_be_room_for_it(hub, monkeypatch, tmp_path):
    commit = put(hub, {"config.json": b"{}", "model.safetensors": b"weights"})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5))
    assert refused(base_model.fetch, config(), commit, print).startswith(
        f"There is no room for the base model {REPO!r}: it needs 0.0 GB, and "
    )


def test_weights_are_taken_once_and_other_forms_are_left():
    small = ["config.json", "tokenizer.model", "merges.txt", "chat_template.jinja"]
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    more = ["README.md", ".gitattributes", "original/params.json", "consolidated.safetensors", "model.fp16.safetensors"]
    pickled = ["pytorch_model-00001-of-00001.bin"]
    assert base_model.wanted([*small, *shards, *pickled, *more]) == [*small, *shards]
    assert base_model.wanted([*small, *pickled, *more]) == [*small, *pickled]
