"""Merged weights are the base's own plus the adapter's product, rounded once, in shards that transformers loads."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from kaggle_lib.config import RunConfig
from kaggle_lib.errors import UserError
from kaggle_lib.evaluation.merging import merge
from kaggle_lib.files import read_json, write_json
from kaggle_lib.presets import read_preset
from kaggle_lib.strategies import adapter, sample

pytestmark = pytest.mark.slow
TARGET = "base_model.model.model.layers.2.self_attn.k_proj"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The sample model and a plain LoRA of it whose matrices are all different from zero."""
    from kaggle_lib.strategies import peft

    cache = tmp_path_factory.mktemp("cache")
    config = RunConfig.create({**read_preset("tiny-cpu"), "run": "merge", "max_length": 128, "quantization": "none"})
    model, _ = peft.load(config, torch.device("cpu"), cache)
    model = peft.adapt(model, config)
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter) * 0.02
    folder = cache / "adapter"
    folder.mkdir()
    adapter.write(model, config, folder)
    return sample.make(config.seed, cache), folder, model.eval()


def merged(trained, into, *, dtype=torch.float16, shard_bytes=2 * 10**9):
    beats = []
    into.mkdir()
    merge(trained[0], trained[1], into, dtype, lambda: beats.append(1), shard_bytes)
    return beats


def test_each_weight_is_the_base_plus_scaled_b_a_and_the_rest_is_the_base(trained, tmp_path):
    base, folder, _ = trained
    beats = merged(trained, tmp_path / "out")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    tensors, about = load_file(folder / adapter.WEIGHTS), read_json(folder / adapter.CONFIG)
    scale = about["lora_alpha"] / about["r"]
    assert before.keys() == after.keys() and len(beats) == len(before)
    assert {tensor.dtype for tensor in after.values()} == {torch.float16}
    adapted = 0
    for name, tensor in after.items():
        key = f"base_model.model.{name.removesuffix('.weight')}"
        wanted = before[name].double()
        if f"{key}.lora_A.weight" in tensors:
            adapted += 1
            delta = tensors[f"{key}.lora_B.weight"].double() @ tensors[f"{key}.lora_A.weight"].double()
            wanted = wanted + scale * delta
            assert not torch.equal(tensor, before[name].half())
        # Half a unit in the last of fp16's 11 bits, and what fp32 lost before.
        torch.testing.assert_close(tensor.double(), wanted, rtol=2**-11 * 1.01, atol=6e-8)
    assert adapted == 4 * len(about["target_modules"])
    config = read_json(tmp_path / "out" / "config.json")
    assert config["vocab_size"] == read_json(base / "config.json")["vocab_size"]
    assert config["dtype"] == "float16" and "torch_dtype" not in config


def test_the_merged_model_answers_as_the_adapter_does_and_not_as_the_base(trained, tmp_path):
    _, _, model = trained
    merged(trained, tmp_path / "out", shard_bytes=200_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 2 and files[0] == f"model-00001-of-{len(files):05}.safetensors"
    for file in files:
        tensors = load_file(tmp_path / "out" / file)
        assert tensors and all(index["weight_map"][name] == file for name in tensors)
        assert len(tensors) == 1 or sum(t.numel() * 2 for t in tensors.values()) <= 200_000
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *files,
        "model.safetensors.index.json",
        "config.json",
    }
    ids = torch.arange(1, 65).unsqueeze(0)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    with torch.no_grad():
        wanted, got = model(input_ids=ids).logits, loaded(input_ids=ids).logits
        with model.disable_adapter():
            plain = model(input_ids=ids).logits
    assert (got - wanted).abs().max() < 0.02 * (plain - wanted).abs().max()


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"use_dora": True}, "its use_dora is True"),
        ({"rank_pattern": {"q_proj": 8}}, r"its rank_pattern is \{'q_proj': 8\}"),
        ({"init_lora_weights": "pissa"}, "its init_lora_weights is 'pissa'"),
    ],
)
def test_what_is_no_plain_lora_is_refused(trained, tmp_path, change, why):
    from shutil import copytree

    odd = copytree(trained[1], tmp_path / "odd")
    write_json(odd / adapter.CONFIG, {**read_json(odd / adapter.CONFIG), **change})
    with pytest.raises(UserError, match=rf"^This adapter cannot be merged: {why}\. The adapter is as it was\. "):
        merged((trained[0], odd), tmp_path / "out")


def test_an_adapter_of_another_model_and_a_number_too_large_are_refused(trained, tmp_path):
    from safetensors.torch import save_file

    base, folder, _ = trained
    tensors = load_file(folder / adapter.WEIGHTS)
    odd = tmp_path / "odd"
    odd.mkdir()
    write_json(odd / adapter.CONFIG, read_json(folder / adapter.CONFIG))
    renamed = {name.replace("layers.2.", "layers.9."): tensor for name, tensor in tensors.items()}
    save_file(renamed, odd / adapter.WEIGHTS)
    with pytest.raises(UserError, match=r"the base model has no weights named model\.layers\.9\.self_attn\..*\.weight"):
        merged((base, odd), tmp_path / "one")
    narrow = {**tensors, f"{TARGET}.lora_A.weight": tensors[f"{TARGET}.lora_A.weight"][:, :-1].contiguous()}
    save_file(narrow, odd / adapter.WEIGHTS)
    with pytest.raises(UserError, match=r"model\.layers\.2\.self_attn\.k_proj\.weight has the shape \(64, 128\), and"):
        merged((base, odd), tmp_path / "two")
    huge = {**tensors, f"{TARGET}.lora_A.weight": tensors[f"{TARGET}.lora_A.weight"] * 1e8}
    save_file(huge, odd / adapter.WEIGHTS)
    with pytest.raises(UserError, match=r"k_proj\.weight has a value that torch\.float16 cannot hold"):
        merged((base, odd), tmp_path / "three")
