"""The evaluation's worker, on the sample model and corpus: base and tuned on the same rows, and how it fails."""

from __future__ import annotations

import json

import pytest
import torch

from kaggle_lib import strategies
from kaggle_lib.config import RunConfig
from kaggle_lib.data import chat, curate, read, tokenise
from kaggle_lib.errors import UserError
from kaggle_lib.evaluation import likelihood, worker
from kaggle_lib.files import sha256_of, write_json
from kaggle_lib.presets import read_preset
from kaggle_lib.runs import events
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.strategies import adapter

SESSION = "20261125T100000-aaaa1111"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """So small a model is slower on two threads, and far slower on a machine that is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config(root, **more):
    place = {"run": "a", "work_dir": str(root / "work"), "store": str(root / "store")}
    return RunConfig.create({**read_preset("tiny-cpu"), **place, **more})


def loaded(run_config, folder):
    strategy = strategies.get(run_config)
    return strategy, *strategy.load(run_config, torch.device("cpu"), folder.cache)


def prepared(root, spread=None, **more):
    """A run folder whose adapter has been moved by `spread` (None: fresh, so that it changes nothing)."""
    run_config = config(root, **more)
    folder = RunFolder(root / "work" / "a")
    folder.create()
    run = {"job": "evaluate", "config": run_config.model_dump(mode="json"), "session": SESSION, "attempt": 0}
    write_json(folder.run_json, {**run, "checkpoint": 60, "lineage": "l", "fingerprint": "f"})
    strategy, model, _ = loaded(run_config, folder)
    model = strategy.adapt(model, run_config)
    torch.manual_seed(3)
    for name, parameter in model.named_parameters():
        if spread and "lora_B" in name:
            torch.nn.init.normal_(parameter, std=spread)
    folder.adapter.mkdir()
    adapter.write(model, run_config, folder.adapter)
    return folder, run_config


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder, run_config = prepared(tmp_path_factory.mktemp("moved"), spread=0.05)
    assert worker.main(folder.root) == {"outcome": "finished", "reason": ""}
    return folder, run_config, json.loads((folder.evaluation / "result.json").read_text(encoding="utf-8"))


def test_base_is_the_model_without_the_adapter_on_the_whole_test_split(evaluated):
    folder, run_config, result = evaluated
    _, model, tokenizer = loaded(run_config, folder)
    rows = tokenise.tokenised(run_config, tokenizer, folder.cache).test
    assert len(rows) >= 20
    ends = chat.eot_id(tokenizer)
    # One row at a time, by the model that never had an adapter.
    scores = likelihood.score_rows(model, rows, pad_id=chat.pad_id(tokenizer), eot_id=ends, max_tokens=1)
    expected = likelihood.summarise(scores)
    assert result["base"] == {**expected, **{name: pytest.approx(expected[name], rel=1e-6) for name in FLOATS}}
    texts = [row.answer for row in curate.curate(read.read(run_config), run_config).test]
    assert result["base"]["rows"] == len(texts)
    assert result["base"]["bytes"] == sum(len(text.strip().encode("utf-8")) for text in texts)


FLOATS = ("bits_per_byte", "perplexity", "nll", "eot_nll")


def test_both_are_measured_on_the_same_rows_and_only_the_adapter_differs(evaluated, tmp_path):
    _, _, result = evaluated
    assert {name: result["tuned"][name] for name in ("rows", "tokens", "bytes")} == {
        name: result["base"][name] for name in ("rows", "tokens", "bytes")
    }
    assert all(abs(result["tuned"][name] - result["base"][name]) > 1e-3 for name in FLOATS)
    folder, _ = prepared(tmp_path)
    worker.main(folder.root)
    fresh = json.loads((folder.evaluation / "result.json").read_bytes())
    assert fresh["tuned"] == fresh["base"] == result["base"]
    assert [sample["tuned"] for sample in fresh["samples"]] == [sample["base"] for sample in result["samples"]]


def test_result_says_what_it_is_of(evaluated):
    folder, run_config, result = evaluated
    names = ["run", "step", "base", "tuned", "decoding", "samples", "adapter_sha256", "note"]
    assert list(result) == names
    assert (result["run"], result["step"], result["note"]) == ("a", 60, worker.NOTE)
    assert result["adapter_sha256"] == sha256_of(folder.adapter / "adapter_model.safetensors")
    assert result["decoding"]["method"] == "greedy"
    assert set(result["decoding"]["ended_by_budget"]) == set(result["decoding"]["letters_trimmed"]) == {"base", "tuned"}
    test = curate.curate(read.read(run_config), run_config).test
    chosen = worker.choose(test, run_config.seed)
    assert [sample["id"] for sample in result["samples"]] == sorted(row.id for row in chosen)
    assert [(s["question"], s["reference"]) for s in result["samples"]] == [(r.question, r.answer) for r in chosen]
    assert all(sample["base"] != sample["tuned"] for sample in result["samples"])


def test_samples_are_five_drawn_by_the_seed_whatever_the_order(evaluated):
    _, run_config, _ = evaluated
    test = curate.curate(read.read(run_config), run_config).test
    ids = [row.id for row in worker.choose(test, 42)]
    assert len(ids) == 5
    assert ids == [row.id for row in worker.choose(test[::-1], 42)]
    assert ids != [row.id for row in worker.choose(test, 43)]
    assert worker.choose(test[:3], 42) == test[:3]


def test_it_leaves_signs_of_life_events_and_an_outcome(evaluated):
    folder, _, _ = evaluated
    assert folder.heartbeat.read_text() == "evaluate"
    assert folder.read_outcome() == {"outcome": "finished", "reason": ""}
    happened = list(events.read(folder.events / f"{SESSION}.jsonl"))
    assert [(event["event"], event["phase"]) for event in happened] == [("phase", "load"), ("phase", "evaluate")]
    assert happened[0]["versions"]["torch"] == torch.__version__
    assert not [path for path in folder.evaluation.iterdir() if path.name != "result.json"]


def failure(folder):
    with pytest.raises(UserError) as caught:
        worker.main(folder.root)
    outcome = folder.read_outcome()
    assert outcome["outcome"] == "failed" and outcome["user"] is True
    assert outcome["reason"] == str(caught.value)
    assert not (folder.evaluation / "result.json").exists()
    return outcome["reason"]


def test_a_run_without_an_adapter_is_one_clear_error(tmp_path):
    folder, _ = prepared(tmp_path)
    (folder.adapter / "adapter_model.safetensors").unlink()
    assert failure(folder) == f"Run 'a' has no adapter in {folder.adapter}. Train it first; `train` puts it there."


def test_a_run_without_test_rows_is_one_clear_error(tmp_path):
    folder, _ = prepared(tmp_path, test_fraction="0")
    assert failure(folder) == (
        "Run 'a' has no test rows, so there is nothing to evaluate on. The adapter is as it was. "
        "Start another run with test_fraction above 0, or with more rows."
    )


def test_ruined_weights_are_one_clear_error(tmp_path):
    folder, _ = prepared(tmp_path, spread=1e30)
    assert failure(folder) == (
        "The model's likelihood of the test rows is not a finite number, so its weights are ruined. "
        "Evaluate an earlier checkpoint, or train again with a lower learning_rate."
    )
