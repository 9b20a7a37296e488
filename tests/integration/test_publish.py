"""What is published is what a stranger needs: it loads by plain PEFT, its card is true, and people's words stay."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, snapshot_download
from jinja2 import Environment
from support.loopback_hub import LoopbackHub
from support.sessions import ROOT, Place

from kaggle_lib import api
from kaggle_lib.data import chat
from kaggle_lib.data.formats import FORMATS
from kaggle_lib.errors import ConfigError, NotFinished, UserError
from kaggle_lib.files import read_json, sha256_of

pytestmark = pytest.mark.slow
BASE, REPO = "loopback/Llama-3.1-tiny", "loopback/Llama-tiny-bn"
MERGED, GGUF = "loopback/Llama-tiny-bn-merged", "loopback/Llama-tiny-bn-GGUF"
DIALOGUES = [
    [{"role": role, "content": content} for role, content in said]
    for said in (
        [("user", "কেমন আছেন?")],
        [("system", " Answer in Bengali. "), ("user", "How are you?")],
        [("user", "এক\nদুই"), ("assistant", "তিন “চার”"), ("user", " ")],
        [("system", "ক"), ("user", "খ"), ("assistant", "গ"), ("user", "ঘ"), ("assistant", "ঙ"), ("user", "চ")],
        [("user", "<|eot_id|>"), ("assistant", ""), ("user", "<b>&amp;\"'")],
    )
]
OWN = FORMATS[0].template.replace("26 Jul 2024", "02 Jan 2020")
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json")


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
    # Its own template has another day's date than the one that we train with, and it names no token for padding.
    own = {name: value for name, value in read_json(made / "tokenizer_config.json").items() if name != "pad_token"}
    files += [
        CommitOperationAdd("tokenizer_config.json", json.dumps(own).encode()),
        CommitOperationAdd("chat_template.jinja", OWN.encode()),
    ]
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


def answers_alone(repo, client, hub, tmp_path):
    """Run the snippet of the repo's card where there is no kaggle_lib; what it printed."""
    text = ModelCard.load(client.hf_hub_download(repo, "README.md")).text
    code = text.split("```python\n")[1].split("```")[0].replace("max_new_tokens=256", "max_new_tokens=8")
    assert "kaggle_lib" not in code
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_OFFLINE": "0",
    }
    environment |= {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "PYTHONPATH": ""}
    blocked = f"import sys\nsys.modules['kaggle_lib'] = None\n{code}"
    ran = subprocess.run(
        [sys.executable, "-I", "-c", blocked],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def test_the_snippet_of_the_card_loads_it_and_answers(published, client, hub, tmp_path):
    assert answers_alone(REPO, client, hub, tmp_path).strip()


def test_answers_end_and_the_template_is_the_trained_one(published, place, client, tmp_path):
    got = Path(snapshot_download(REPO, local_dir=tmp_path / "got"))
    tokenizer = tokenizer_of(got)
    renders_as_trained(tokenizer)
    generation = json.loads((got / "generation_config.json").read_text())
    assert generation["eos_token_id"] == chat.stop_ids(tokenizer)
    assert generation["pad_token_id"] == chat.pad_id(tokenizer)


def tokenizer_of(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def tensors_of(file):
    from safetensors.torch import load_file

    return load_file(file)


def renders_as_trained(tokenizer):
    """Its template, and what it makes of five dialogues: byte by byte what training saw."""
    assert tokenizer.chat_template == FORMATS[0].template != OWN
    trained = Environment().from_string(FORMATS[0].template)
    for dialogue in DIALOGUES:
        for prompt in (True, False):
            given = {"add_generation_prompt": prompt}
            wanted = trained.render(messages=dialogue, **given)
            assert tokenizer.apply_chat_template(dialogue, tokenize=False, **given) == wanted


def test_the_adapter_is_lora_alone_and_as_large_as_rank_and_shapes_say(published, client, tmp_path):
    got = Path(snapshot_download(REPO, local_dir=tmp_path / "got"))
    tensors = tensors_of(got / "adapter_model.safetensors")
    about = json.loads((got / "adapter_config.json").read_text())
    base = {"hidden": 128, "kv": 64, "layers": 4}
    assert about["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert all(re.fullmatch(r".*\.(q|k|v|o)_proj\.lora_[AB]\.weight", name) for name in tensors)
    numbers = about["r"] * base["layers"] * (2 * (128 + 128) + 2 * (128 + base["kv"]))
    assert sum(tensor.numel() for tensor in tensors.values()) == numbers
    assert (got / "adapter_model.safetensors").stat().st_size == pytest.approx(4 * numbers, rel=0.06)
    untouched = json.loads(Path(client.hf_hub_download(BASE, "config.json", local_dir=tmp_path / "base")).read_text())
    assert len(tokenizer_of(got)) <= untouched["vocab_size"]


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


@pytest.fixture(scope="module")
def merged(place, published):
    left = place.folder.root / "export" / ".merged.making"  # of a session that was killed
    left.mkdir(parents=True)
    (left / "model-00007-of-00009.safetensors").write_bytes(b"half")
    return publish(place, to=MERGED, form="merged")


def test_merged_weights_are_a_whole_model_that_transformers_loads_alone(merged, place, hub, client, tmp_path):
    assert client.model_info(MERGED).private is True and merged.form == "merged"
    names = set(client.list_repo_files(MERGED))
    assert names >= {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "README.md"}
    assert names >= {"chat_template.jinja", "report/index.html"}
    assert not [name for name in names if name.startswith(("adapter", "model-"))]
    got = Path(snapshot_download(MERGED, local_dir=tmp_path / "got"))
    renders_as_trained(tokenizer_of(got))
    config, untouched = (
        json.loads(Path(client.hf_hub_download(repo, "config.json", local_dir=tmp_path / "of" / repo)).read_text())
        for repo in (MERGED, BASE)
    )
    assert config["vocab_size"] == untouched["vocab_size"] and config["dtype"] == "float16"
    assert {str(tensor.dtype) for tensor in tensors_of(got / "model.safetensors").values()} == {"torch.float16"}
    assert json.loads((got / "generation_config.json").read_text())["eos_token_id"] == chat.stop_ids(tokenizer_of(got))
    data = ModelCard.load(got / "README.md").data
    assert (data.library_name, data.base_model, data.base_model_relation) == ("transformers", BASE, "finetune")
    assert "merged at 16 bit into" in ModelCard.load(got / "README.md").text
    assert answers_alone(MERGED, client, hub, tmp_path).strip()
    export = place.folder.root / "export"
    assert sorted(path.name for path in export.iterdir()) == [
        "merged",
        "merged.json",
    ]


def test_it_was_compared_with_the_adapter_which_it_equals_to_rounding(merged, place, client):
    measured = read_json(place.folder.root / "export" / "merged.json")["measured"]
    base, adapter, form = (measured[name]["bits_per_byte"] for name in ("base", "adapter", "form"))
    assert form == pytest.approx(adapter, rel=1e-5) and base > 1.005 * adapter
    # Of random weights the likeliest two tokens are sometimes equal to rounding, and an answer goes another way there.
    answers = [measured[name]["answers"] for name in ("form", "adapter")]
    assert len(answers[0]) == 8 and sum(one == other for one, other in zip(*answers, strict=True)) >= 6
    text = ModelCard.load(client.hf_hub_download(MERGED, "README.md")).text
    assert f"held-out answers: {form:.4f} bits per byte" in text


def test_one_form_a_repo(merged, place):
    said = (
        r"^loopback/Llama-tiny-bn holds another form of a model \(adapter: adapter_config\.json\), and a repo can hold"
    )
    with pytest.raises(UserError, match=said):
        publish(place, form="merged")
    with pytest.raises(ConfigError, match=r"^--form: 'merge' is none of adapter, merged, gguf$"):
        publish(place, form="merge")


def test_a_form_that_has_no_room_is_refused_and_leaves_nothing(merged, place, client, monkeypatch, tmp_path):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    usage = shutil._ntuple_diskusage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match=r"^There is no room for this form: it needs 5\d\.\d MB, and .* has 1\.0 MB\. "):
        publish(place, to="loopback/none", form="merged", scratch=str(scratch))
    assert list(scratch.rglob("*")) == [] and not client.repo_exists("loopback/none")


def test_a_gguf_file_holds_the_template_and_is_published_with_its_modelfile(merged, place, client, tmp_path):
    with pytest.raises(UserError, match=r"^A GGUF file cannot be made here: llama\.cpp's converter .* is missing\. "):
        publish(place, to=GGUF, form="gguf", llama_cpp=str(tmp_path))
    done = publish(place, to=GGUF, form="gguf", llama_cpp=str(ROOT / "tests" / "support" / "llama_cpp"))
    assert done.form == "gguf"
    names = set(client.list_repo_files(GGUF))
    assert names >= {"Llama-tiny-bn-q8_0.gguf", "Modelfile", "README.md", "report/index.html"}
    assert not [name for name in names if name.endswith(".safetensors")]
    model = Path(client.hf_hub_download(GGUF, "Modelfile")).read_text(encoding="utf-8")
    assert model.startswith("FROM ./Llama-tiny-bn-q8_0.gguf\n")
    card = ModelCard.load(client.hf_hub_download(GGUF, "README.md"))
    assert (card.data.base_model_relation, "gguf" in card.data.tags) == ("finetune", True)
    assert "ollama create bn -f model/Modelfile" in card.text
