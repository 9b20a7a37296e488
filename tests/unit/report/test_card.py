"""The model card of other languages and other base models says nothing that is true of Bengali or Llama alone."""

from huggingface_hub import ModelCard

from kaggle_lib.checkpoints.manifest import Manifest
from kaggle_lib.config import RunConfig
from kaggle_lib.report import card


def card_of(**values):
    config = RunConfig.create({"run": "r", "base_model": "Qwen/Qwen2.5-0.5B-Instruct", "data": "mine.csv", **values})
    named = dict.fromkeys(("fingerprint", "lineage", "session", "nonce"), "x")
    files = {"adapter_model.safetensors": {"size": 1, "sha256": "0" * 64}}
    end = Manifest(step=4, total_steps=4, files=files, versions={}, cut={}, **named)
    about = {"repo": "you/r", "base": config.base_model, "commit": None, "manifest": end, "which": "last"}
    return ModelCard(str(card.write(config, **about, ledger=[], result=None)))


def test_another_language_is_named_and_nothing_is_bengali():
    made = card_of(language="hi")
    assert made.data.to_dict()["language"] == "hi"
    assert made.data.to_dict().get("license") is None
    assert "answers in the language `hi`" in made.text
    assert not any("\u0980" <= letter <= "\u09ff" for letter in made.text)
    for word in ("Bengali", "machine-translated", "Built with Llama", "harmful prompts"):
        assert word not in made.text, word
    assert "It is not a clinician" in made.text


def test_the_licence_is_the_base_models_and_gemma_2_is_loaded_with_its_caps():
    for base, licence in {
        "meta-llama/Llama-3.1-8B-Instruct": "llama3.1",
        "meta-llama/Llama-3.2-1B-Instruct": "llama3.2",
        "meta-llama/Meta-Llama-3-8B-Instruct": "llama3",
        "google/gemma-2-2b-it": "gemma",
        "google/gemma-3-1b-it": "gemma",
        "Qwen/Qwen2.5-0.5B-Instruct": None,
    }.items():
        made = card_of(base_model=base)
        assert made.data.to_dict().get("license") == licence, base
        assert ('attn_implementation="eager")' in made.text) == ("gemma-2-" in base), base


def test_bengali_is_as_it_was():
    made = card_of()
    assert made.data.to_dict()["language"] == "bn"
    assert "empathetic answers in Bengali" in made.text
    assert any("\u0980" <= letter <= "\u09ff" for letter in made.text)
    assert "machine-translated" not in made.text  # of a corpus of one's own nothing is known
    assert "machine-translated" in card_of(data="BengaliEmpatheticConversationsCorpus .csv").text
