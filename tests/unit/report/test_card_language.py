"""The model card of a run whose answers are not Bengali says nothing that is true of Bengali alone."""

from huggingface_hub import ModelCard

from kaggle_lib.config import RunConfig
from kaggle_lib.report import card


def card_of(**values):
    config = RunConfig.create({"run": "r", "base_model": "Qwen/Qwen2.5-0.5B-Instruct", "data": "mine.csv", **values})
    about = {"repo": "you/r", "base": config.base_model, "commit": None, "step": 4, "total_steps": 4}
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


def test_bengali_is_as_it_was():
    made = card_of()
    assert made.data.to_dict()["language"] == "bn"
    assert "empathetic answers in Bengali" in made.text
    assert any("\u0980" <= letter <= "\u09ff" for letter in made.text)
    assert "machine-translated" not in made.text  # of a corpus of one's own nothing is known
    assert "machine-translated" in card_of(data="BengaliEmpatheticConversationsCorpus .csv").text
