"""What is published is what a stranger needs: it loads by plain PEFT, its card is true, and people's words stay."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, snapshot_download
from support.loopback_hub import LoopbackHub
from support.sessions import Place

from kaggle_lib import api
from kaggle_lib.errors import ConfigError, NotFinished, UserError
from kaggle_lib.files import sha256_of

pytestmark = pytest.mark.slow
BASE, REPO = "loopback/Llama-tiny", "loopback/Llama-tiny-bn"
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch, LoopbackHub(tmp_path_factory.mktemp("hub")) as hub:
        hub.lead_client(patch)
        yield hub


@pytest.fixture(scope="module")
def client(hub):
    return HfApi(endpoint=hub.endpoint, token=hub.token)


@pytest.fixture(scope="module")
def place(hub, client, tmp_path_factory):
    """A finished run on a base model of the Hub."""
    from kaggle_lib.strategies import sample

    made = sample.make(42, tmp_path_factory.mktemp("cache"))
    client.create_repo(BASE, private=True)
    files = [CommitOperationAdd(name, str(made / name)) for name in FILES]
    client.create_commit(BASE, files, commit_message="model")
    place = Place(
        tmp_path_factory.mktemp("run"), run="bn", values={"base_model": BASE, "max_steps": 6, "save_steps": 3}
    )
    with pytest.raises(
        NotFinished, match=r"^Run 'bn' is not finished \(step 0\), so there is nothing to publish yet\."
    ):
        begun(place)
    assert place.call()["outcome"] == "finished"
    return place


def begun(place):
    """A run that has been claimed, but has made no step."""
    process = place.start()
    try:
        while not (place.stored / "config.json").exists():
            assert process.poll() is None, process.communicate()
    finally:
        process.kill()
        process.communicate()
    publish(place)


def publish(place, **more):
    values = {"run": place.run, "store": str(place.root / "store"), "work_dir": str(place.work)}
    return api.publish(**{"to": REPO, **more}, **values)


@pytest.fixture(scope="module")
def published(place):
    return publish(place)


def test_everything_is_there_in_one_commit_of_a_private_repo(published, place, hub, client):
    info = client.model_info(REPO, files_metadata=True)
    assert info.private is True and info.sha == published.commit
    names = {one.rfilename for one in info.siblings}
    assert names >= {
        *("adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "tokenizer_config.json"),
        *("chat_template.jinja", "generation_config.json", "README.md", "report/index.html"),
    }
    assert not [name for name in names if name.startswith(("optimizer", "scheduler", "trainer_state", "events"))]
    assert len(client.list_repo_commits(REPO)) == 2  # the one that made the repo, and ours
    adapter = next(one for one in info.siblings if one.rfilename == "adapter_model.safetensors")
    assert adapter.lfs.sha256 == sha256_of(place.folder.adapter / "adapter_model.safetensors")


def test_the_card_is_of_the_run(published, place, client):
    card = ModelCard.load(client.hf_hub_download(REPO, "README.md"))
    data = card.data.to_dict()
    assert {
        name: data.get(name) for name in ("language", "license", "library_name", "base_model", "base_model_relation")
    } == {
        "language": "bn",
        "license": "llama3.1",
        "library_name": "peft",
        "base_model": BASE,
        "base_model_relation": "adapter",
    }
    commit = client.model_info(BASE).sha
    assert f'revision="{commit}"' in card.text
    assert "Built with Llama." in card.text and "It is not a clinician" in card.text
    frozen = json.loads((place.stored / "config.json").read_text(encoding="utf-8"))["config"]
    assert f"| learning_rate | {frozen['learning_rate']} |" in card.text
    assert f"| max_steps | {6} |" in card.text
    assert "step 6 of 6" in card.text
    assert "/tmp" not in card.text and "/work" not in card.text


def test_the_snippet_of_the_card_loads_it_and_answers(published, client, hub, tmp_path):
    text = ModelCard.load(client.hf_hub_download(REPO, "README.md")).text
    code = text.split("```python\n")[1].split("```")[0].replace("max_new_tokens=256", "max_new_tokens=8")
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
    }
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "PYTHONPATH": ""}
    ran = subprocess.run(
        [sys.executable, "-I", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_answers_end_and_the_template_is_the_trained_one(published, place, client, tmp_path):
    from transformers import AutoTokenizer

    from kaggle_lib.data import chat

    got = Path(snapshot_download(REPO, local_dir=tmp_path / "got"))
    tokenizer = AutoTokenizer.from_pretrained(got)
    assert tokenizer.chat_template == chat.template(tokenizer)
    generation = json.loads((got / "generation_config.json").read_text())
    assert generation["eos_token_id"] == chat.stop_ids(tokenizer)
    assert generation["pad_token_id"] == chat.pad_id(tokenizer)


def test_once_more_changes_nothing_and_what_a_person_wrote_stays(published, place, client):
    assert publish(place).unchanged is True
    assert client.model_info(REPO).sha == published.commit
    text = Path(client.hf_hub_download(REPO, "README.md")).read_text(encoding="utf-8")
    edited = text.replace("# bn\n", "# আমাদের মডেল\n\nA word by a person.\n").replace(
        "language: bn", "language: [bn, en]"
    )
    edited = edited.replace("step 6 of 6", "step 7 of 6") + "\nAnd one at the end.\n"
    client.upload_file(path_or_fileobj=edited.encode(), path_in_repo="README.md", repo_id=REPO)
    client.upload_file(path_or_fileobj=b"x", path_in_repo="notes.txt", repo_id=REPO)
    client.upload_file(path_or_fileobj=b"old", path_in_repo="report/old.html", repo_id=REPO)
    again = publish(place)
    text = Path(client.hf_hub_download(REPO, "README.md", revision=again.commit)).read_text(encoding="utf-8")
    assert "# আমাদের মডেল\n\nA word by a person.\n" in text and text.endswith("And one at the end.\n")
    assert "step 6 of 6" in text and "step 7 of 6" not in text
    assert ModelCard(text).data.language == ["bn", "en"]
    names = client.list_repo_files(REPO)
    assert "notes.txt" in names and "report/old.html" not in names


def test_what_cannot_be_published_is_refused_before_anything_is_sent(published, place, client, hub):
    with pytest.raises(
        ConfigError, match=r"^--to: the store is '.*', so say which repo of the Hub \(user/name\) to publish to$"
    ):
        publish(place, to=None)
    with pytest.raises(ConfigError, match=r"^--to: 'nothing' is no repo of the Hub \(user/name\)$"):
        publish(place, to="nothing")
    client.create_repo("loopback/open", private=False)
    with pytest.raises(
        UserError, match=r"^loopback/open is public, so everybody could read what is published there\. "
    ):
        publish(place, to="loopback/open")
    assert client.list_repo_files("loopback/open") == [".gitattributes"]
    assert publish(place, to="loopback/open", public=True).private is False
