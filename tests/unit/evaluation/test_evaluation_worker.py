"""The evaluation's worker, on the sample model and corpus: base and tuned on the same rows, and how it fails."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import sacrebleu
import torch

from kaggle_lib import strategies
from kaggle_lib.config import RunConfig
from kaggle_lib.data import chat, curate, read, tokenise
from kaggle_lib.errors import DataError, UserError
from kaggle_lib.evaluation import likelihood, overlap, retention, safety, scoring, worker
from kaggle_lib.evaluation.result import NOTE, TRANSLATED, WORTH
from kaggle_lib.files import sha256_of, write_json
from kaggle_lib.presets import read_preset
from kaggle_lib.runs import events
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.strategies import adapter

COMPREHENSION = Path(__file__).with_name("comprehension.jsonl")  # 12 rows of Belebele's schema, written for this test
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
    folder, run_config = prepared(tmp_path_factory.mktemp("moved"), spread=0.05, retention=str(COMPREHENSION))
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
    texts = [row.answer for row in curate.curate(read.read(run_config), run_config).test]
    assert result["base"]["rows"] == len(texts)
    characters = sum(len(text.strip()) for text in texts)
    expected |= {"characters": characters, "bits_per_character": expected["nll"] / math.log(2) / characters}
    assert result["base"] == {**expected, **{name: pytest.approx(expected[name], rel=1e-6) for name in FLOATS}}
    assert result["base"]["bytes"] == sum(len(text.strip().encode("utf-8")) for text in texts)


FLOATS = ("bits_per_byte", "bits_per_character", "perplexity", "nll", "eot_nll")


def test_both_are_measured_on_the_same_rows_and_only_the_adapter_differs(evaluated, tmp_path):
    _, _, result = evaluated
    assert {name: result["tuned"][name] for name in ("rows", "tokens", "bytes")} == {
        name: result["base"][name] for name in ("rows", "tokens", "bytes")
    }
    assert all(abs(result["tuned"][name] - result["base"][name]) > 1e-3 for name in FLOATS)
    folder, _ = prepared(tmp_path, answer_prompts=True, answer_tokens=6, answer_rows=5)
    worker.main(folder.root)
    fresh = json.loads((folder.evaluation / "result.json").read_bytes())
    assert fresh["tuned"] == fresh["base"] == result["base"]
    assert [sample["tuned"] for sample in fresh["samples"]] == [sample["base"] for sample in fresh["samples"]]
    assert all(
        (one["base"], one["difference"], one["interval"] in (None, [0, 0])) == (one["tuned"], 0, True)
        for one in fresh["measures"]
        if one["base"] is not None
    )
    assert fresh["retention"] == {"skipped": "Not measured: retention=off"}
    lines = lines_of(folder, "answers.jsonl")
    assert [(name, sum(line["set"] == name for line in lines)) for name in ("heldout", "safety", "native")] == [
        ("heldout", 5),
        ("safety", 40),
        ("native", 60),
    ]
    asked = [one["text"] for name in ("safety", "native") for one in safety.prompts(name)]
    assert [line["question"] for line in lines[5:]] == asked
    assert all(0 < line["tuned"]["tokens"] <= 6 for line in lines)
    assert (fresh["safety"]["prompts"], fresh["native"]["prompts"], fresh["native"]["reviewed"]) == (40, 60, False)
    assert fresh["decoding"]["max_new_tokens"] == "6"


NAMES = [
    *("schema", "kaggle_lib", "run", "step", "language", "base", "tuned", "measures", "groups", "retention", "safety"),
    *("native", "decoding", "samples", "examples", "scrubbed", "bootstrap", "model_index", "adapter_sha256"),
    *("note", "worth"),
]


def lines_of(folder, name):
    return [json.loads(line) for line in (folder.evaluation / name).read_text(encoding="utf-8").splitlines()]


def test_result_says_what_it_is_of(evaluated):
    folder, run_config, result = evaluated
    assert list(result) == NAMES
    assert (result["schema"], result["run"], result["step"]) == (2, "a", 60)
    assert (result["note"], result["worth"]) == (NOTE, WORTH + TRANSLATED)
    assert result["adapter_sha256"] == sha256_of(folder.adapter / "adapter_model.safetensors")
    assert result["decoding"]["method"] == "greedy"
    assert set(result["decoding"]["ended_by_budget"]) == set(result["decoding"]["letters_trimmed"]) == {"base", "tuned"}
    test = curate.curate(read.read(run_config), run_config).test
    chosen = worker.choose(test, run_config.seed, 5)
    assert [sample["id"] for sample in result["samples"]] == sorted(row.id for row in chosen)
    assert [(s["question"], s["reference"]) for s in result["samples"]] == [(r.question, r.answer) for r in chosen]
    assert all(sample["base"] != sample["tuned"] for sample in result["samples"])
    assert {name: result[name]["skipped"] for name in ("safety", "native")} == {
        "safety": "Not measured: answer_prompts=false",
        "native": "Not measured: answer_prompts=false",
    }


def test_retention_is_the_likeliest_letter_of_four_one_question_at_a_time(evaluated):
    folder, run_config, result = evaluated
    _, model, tokenizer = loaded(run_config, folder)
    letters = [tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in "ABCD"]
    rows = [json.loads(line) for line in COMPREHENSION.read_text(encoding="utf-8").splitlines()]
    right, logs = [], []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([retention.prompt(row, tokenizer, run_config)])).logits[0, -1]
        logs.append(logits.double().log_softmax(0)[letters].tolist())
        right.append(
            max(range(4), key=lambda place, found=logs[-1]: found[place]) + 1 == int(row["correct_answer_num"])
        )
    measure = result["retention"]["measures"][0]
    assert (measure["rows"], measure["base"]) == (12, pytest.approx(100 * sum(right) / 12))
    parts = [
        json.loads(line) for path in (folder.evaluation / "parts").iterdir() for line in path.open(encoding="utf-8")
    ]
    kept = {one["id"]: one["log_p"] for one in parts if (one["kind"], one["side"]) == ("retention", "base")}
    for number, found in enumerate(logs):
        assert kept[f"retention-{number}"] == pytest.approx(found, rel=1e-4)


def test_retention_rows_are_always_the_same_and_a_wrong_file_is_named(tmp_path):
    line = COMPREHENSION.read_text(encoding="utf-8").splitlines()[0]
    path = tmp_path / "many.jsonl"
    path.write_text("".join(f"{line}\n" for _ in range(900)), encoding="utf-8")
    ids = [row["id"] for row in retention.load(path)]
    assert len(ids) == 300 and ids == [row["id"] for row in retention.load(path)]
    assert ids[:6] == [f"retention-{number}" for number in (0, 1, 3, 4, 5, 14)]
    path.write_text(line.replace('"mc_answer3"', '"other"'), encoding="utf-8")
    with pytest.raises(DataError, match=r"many.jsonl, line 1: KeyError\('mc_answer3'\) is not of Belebele's schema"):
        retention.load(path)
    path.write_text(line.replace('"correct_answer_num": "1"', '"correct_answer_num": "5"'), encoding="utf-8")
    with pytest.raises(DataError, match="line 1: correct_answer_num is 5, not 1 to 4"):
        retention.load(path)


def test_belebele_that_could_not_be_fetched_is_said_in_the_result(tmp_path):
    folder = RunFolder(tmp_path / "work" / "a")
    wanted = config(tmp_path, retention="belebele")
    why = "Not measured: Belebele could not be fetched from the Hub; evaluate again with the Internet on"
    assert worker._retention_rows(folder, wanted, retention) == ([], why)
    folder.cache.mkdir(parents=True)
    (folder.cache / worker.BELEBELE).write_bytes(COMPREHENSION.read_bytes())
    rows, said = worker._retention_rows(folder, wanted, retention)
    assert (len(rows), said) == (12, "")


def test_the_files_beside_it_give_the_same_scores(evaluated):
    folder, run_config, result = evaluated
    test = curate.curate(read.read(run_config), run_config).test
    answers, scores = lines_of(folder, "answers.jsonl"), lines_of(folder, "scores.jsonl")
    assert [line["id"] for line in answers] == [line["id"] for line in scores] == [row.id for row in test]
    measures = {one["name"]: one for one in result["measures"]}
    for side in ("base", "tuned"):
        nll = math.fsum(line[side]["nll"] for line in scores)
        assert nll == pytest.approx(result[side]["nll"], rel=1e-12)
        assert measures["bits_per_byte"][side] == pytest.approx(result[side]["bits_per_byte"], rel=1e-12)
        said, wanted = [line[side]["text"] for line in answers], [line["reference"] for line in answers]
        by_hand = sacrebleu.corpus_chrf([overlap.normal(text) for text in said], [wanted], word_order=2).score
        assert measures["chrf++"][side] == pytest.approx(by_hand, rel=1e-12)
        mean = sum(line[side]["rouge1"] for line in scores) / len(scores)
        assert measures["rouge1"][side] == pytest.approx(mean, rel=1e-9, abs=1e-12)
    groups = [group for group in result["groups"] if group["by"] == "source" and len(group["measures"]) == 1]
    assert sum(group["rows"] for group in groups) == len(test)
    whole = sum(
        group["measures"][0]["tuned"] * sum(line["bytes"] for line in scores if line["source"] == group["name"])
        for group in groups
    )
    assert whole / result["tuned"]["bytes"] == pytest.approx(result["tuned"]["bits_per_byte"], rel=1e-9)


def test_the_chosen_rows_are_drawn_by_the_seed_whatever_the_order_and_more_hold_fewer(evaluated):
    _, run_config, _ = evaluated
    test = curate.curate(read.read(run_config), run_config).test
    ids = [row.id for row in worker.choose(test, 42, 5)]
    assert len(ids) == 5
    assert ids == [row.id for row in worker.choose(test[::-1], 42, 5)]
    assert ids != [row.id for row in worker.choose(test, 43, 5)]
    assert set(ids) < {row.id for row in worker.choose(test, 42, 9)}
    assert worker.choose(test[:3], 42, 5) == test[:3]


def test_it_leaves_signs_of_life_events_and_an_outcome(evaluated):
    folder, _, _ = evaluated
    assert folder.heartbeat.read_text() == "evaluate"
    assert folder.read_outcome() == {"outcome": "finished", "reason": ""}
    happened = list(events.read(folder.events / f"{SESSION}.jsonl"))
    assert [(event["event"], event["phase"]) for event in happened] == [("phase", "load"), ("phase", "evaluate")]
    assert happened[0]["versions"]["torch"] == torch.__version__
    names = sorted(path.name for path in folder.evaluation.iterdir())
    assert names == ["answers.jsonl", "parts", "result.json", "scores.jsonl"]


def test_an_evaluation_that_is_asked_to_stop_pauses_and_goes_on_to_the_same_result(evaluated, tmp_path, monkeypatch):
    whole, _, _ = evaluated
    folder, _ = prepared(tmp_path, spread=0.05, retention=str(COMPREHENSION))
    beats = iter(range(10_000))
    beat = RunFolder.beat

    def stop_after_a_while(self, phase):
        beat(self, phase)
        if next(beats) == 150:  # in the middle of a batch of answers
            self.request(self.stop_request)

    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "beat", stop_after_a_while)
        assert worker.main(folder.root) == {"outcome": "paused", "reason": "asked to stop"}
    assert folder.read_outcome() == {"outcome": "paused", "reason": "asked to stop"}
    assert not (folder.evaluation / "result.json").exists()
    part = next((folder.evaluation / "parts").iterdir())
    kept = part.read_text(encoding="utf-8")
    done = [json.loads(line) for line in kept.splitlines()]
    assert [name for name, _ in itertools.groupby((one["kind"], one["side"]) for one in done)] == [
        ("likelihood", "base"),
        ("likelihood", "tuned"),
        ("answer", "base"),
    ]
    part.write_text(kept + '{"kind": "answer", "si', encoding="utf-8")  # as a kill leaves a line
    folder.clear_requests()
    assert worker.main(folder.root) == {"outcome": "finished", "reason": ""}
    assert part.read_text(encoding="utf-8").startswith(kept)
    for name in ("answers.jsonl", "scores.jsonl", "result.json"):
        assert (folder.evaluation / name).read_bytes() == (whole.evaluation / name).read_bytes(), name


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


def test_an_embedding_model_without_its_package_is_one_clear_error(tmp_path):
    folder, _ = prepared(tmp_path, similarity_model="org/model@abc")
    assert failure(folder) == (
        "similarity_model=org/model@abc needs sentence-transformers, which is not installed. Nothing was evaluated. "
        "`pip install sentence-transformers`, or leave similarity_model out."
    )


def test_similarity_has_a_floor_and_100_for_the_same_text():
    def encode(texts):  # a stand-in: how often each of three letters is there
        return [[text.count(letter) for letter in "কমন"] for text in texts]

    wanted = ["কক", "মম", "নন", "কম"] * 3
    answers = [{"reference": text, "base": {"text": "কন"}, "tuned": {"text": text}} for text in wanted]
    found = scoring.similarity(answers, 1, "org/model@abc", encode)
    assert found["tuned"] == pytest.approx(100)
    assert found["base"] == pytest.approx(100 * (2 * 0.5**0.5 + 0.5) / 4)
    assert found["floor"]["tuned"] < 60 and found["signature"] == "org/model@abc"


def test_ruined_weights_are_one_clear_error(tmp_path):
    folder, _ = prepared(tmp_path, spread=1e30)
    assert failure(folder) == (
        "The model's likelihood of the test rows is not a finite number, so its weights are ruined. "
        "Evaluate an earlier checkpoint, or train again with a lower learning_rate."
    )
