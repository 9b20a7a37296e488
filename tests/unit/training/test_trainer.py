"""One optimizer step is one item: its loss and gradients do not depend on how it is cut; a checkpoint holds all."""

import hashlib
import json
import math

import pytest
import torch

from kaggle_lib.checkpoints.manifest import verify
from kaggle_lib.errors import CheckpointError
from kaggle_lib.runs import events

pytestmark = pytest.mark.slow
LENGTHS = [5, 40, 90, 300]


def first_step(trainer):
    trainer.train()
    (event,) = [event for event in events.read_all(trainer.folder.events) if event["event"] == "step"]
    return event


def hashes(folder, step):
    names = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt")
    return [hashlib.sha256((folder.checkpoint(step) / name).read_bytes()).hexdigest() for name in names]


CUTS = [
    {"padding_free": True, "token_budget": 1024, "min_micro_batches": 1},
    {"padding_free": True, "token_budget": 1024, "min_micro_batches": 2},
    {"padding_free": True, "token_budget": 150, "min_micro_batches": 1},
    {"padding_free": True, "token_budget": 64, "min_micro_batches": 4},
    {"padding_free": False, "token_budget": 4096, "min_micro_batches": 1},
    {"padding_free": False, "token_budget": 4096, "min_micro_batches": 2},
    {"padding_free": False, "token_budget": 64, "min_micro_batches": 4},
]


def test_loss_and_gradient_norm_are_the_same_for_every_cut(make_trainer):
    shapes, seen = set(), []
    for number, cut in enumerate(CUTS):
        trainer = make_trainer(LENGTHS, name=f"cut-{number}", max_steps=1, lora_dropout=0, **cut)
        shapes.add((cut["padding_free"], tuple(len(batch) for batch in trainer.steps.micro_batches(0))))
        seen.append(first_step(trainer))
    # All in one, one each, and unequal ones, with and without padding.
    assert shapes >= {(packed, shape) for packed in (True, False) for shape in ((4,), (1, 3), (1, 1, 1, 1))}
    for event in seen[1:]:
        assert event["loss"] == pytest.approx(seen[0]["loss"], rel=1e-5)
        assert event["grad_norm"] == pytest.approx(seen[0]["grad_norm"], rel=1e-5)


def test_the_loss_is_summed_nll_over_answer_tokens(make_trainer):
    trainer = make_trainer(LENGTHS, max_steps=1, lora_dropout=0)
    nll, tokens = 0.0, 0
    with torch.no_grad():
        for row in trainer.rows:
            logits = trainer.model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
            for position, label in enumerate(row["labels"][1:]):
                if label != -100:
                    nll -= logits[position, label].item()
                    tokens += 1
    assert tokens == sum(LENGTHS)
    event = first_step(trainer)
    assert event["loss"] == pytest.approx(nll / tokens, rel=1e-5)
    assert sorted(event["samples"]) == [100, 101, 102, 103]
    assert event["tokens"] == sum(len(row["input_ids"]) for row in trainer.rows)
    assert event["step"] == 1


def test_no_sample_sees_another_without_padding(make_trainer):
    from kaggle_lib.training import batch

    trainer = make_trainer(LENGTHS, max_steps=1, lora_dropout=0)
    model, (first, second) = trainer.model.eval(), [trainer.rows[0], trainer.rows[1]]
    model.config.use_cache = False
    joined = batch.padding_free([first, second])
    embeddings = model.get_input_embeddings()(joined["input_ids"]).detach().requires_grad_(True)
    start = len(first["input_ids"])
    places = {name: joined[name] for name in ("position_ids", "segments")}
    logits = model(inputs_embeds=embeddings, **places, use_cache=False).logits
    logits[0, start:].logsumexp(-1).sum().backward()
    assert embeddings.grad[0, :start].abs().max().item() == 0.0
    assert embeddings.grad[0, start:].abs().max().item() > 0.0

    def loss_of_second(ids):
        joined = batch.padding_free([{**first, "input_ids": ids}, second])
        return model(joined["input_ids"], **places, use_cache=False).logits[0, start:]

    with torch.no_grad():
        assert torch.equal(loss_of_second(first["input_ids"]), loss_of_second(first["input_ids"][::-1]))


def test_validation_changes_no_bit_and_knows_the_best_step(make_trainer):
    lengths = [9, 30, 14, 22, 51, 8, 17, 40]
    plain = make_trainer(lengths, name="plain", max_steps=6, learning_rate=5e-3, save_steps=3)
    plain.train()
    watched = make_trainer(lengths, name="watched", max_steps=6, learning_rate=5e-3, save_steps=3, eval_steps=2)
    watched.train()
    for step in (3, 6):
        assert hashes(plain.folder, step) == hashes(watched.folder, step)

    def losses(trainer):
        return [event["loss"] for event in events.curve(events.read_all(trainer.folder.events))]

    assert losses(plain) == losses(watched)
    evaluations = events.curve(events.read_all(watched.folder.events), "evaluation")
    assert [event["step"] for event in evaluations] == [2, 4, 6]
    assert all(event["rows"] == 3 and event["bytes"] == 3 * 60 for event in evaluations)
    best = min(evaluations, key=lambda event: event["bits_per_byte"])
    assert verify(watched.folder.checkpoint(6)).best == {"step": best["step"], "bits_per_byte": best["bits_per_byte"]}


def test_a_checkpoint_holds_everything_and_no_path_of_this_machine(make_trainer, tmp_path):
    trainer = make_trainer([9, 30, 14, 22], max_steps=2, save_steps=1, eval_steps=1)
    trainer.train()
    folder = trainer.folder.checkpoint(1)
    manifest = verify(folder)
    assert set(manifest.files) == {
        "adapter_model.safetensors",
        "adapter_config.json",
        "optimizer.pt",
        "scheduler.pt",
        "trainer_state.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "events/session.jsonl",
    }
    assert (manifest.step, manifest.total_steps, manifest.finished) == (1, 2, False)
    adapter = json.loads((folder / "adapter_config.json").read_text())
    assert adapter["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj"]
    assert adapter["base_model_name_or_path"] == "some/base"
    for name in manifest.files:
        assert str(tmp_path).encode() not in (folder / name).read_bytes()
    carried = [event["step"] for event in events.read(folder / "events" / "session.jsonl") if event["event"] == "step"]
    assert carried == [1]


def test_adapter_loads_in_plain_peft(make_trainer, tiny, tmp_path):
    from peft import PeftModel

    from kaggle_lib.config import RunConfig

    trainer = make_trainer([9, 30, 14, 22], max_steps=2, save_steps=2, learning_rate=0.05)
    trainer.train()
    config = RunConfig.create({"run": "r", "base_model": "some/base", "data": "sample"})
    base = tiny[0](config).unload()
    loaded = PeftModel.from_pretrained(base, trainer.folder.checkpoint(2)).eval()
    ids = torch.tensor([trainer.rows[1]["input_ids"]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, trainer.model.eval()(ids).logits)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "adapter_model.safetensors"])
def test_resuming_without_a_file_is_an_error_not_a_default(make_trainer, name):
    from kaggle_lib.strategies import adapter

    first = make_trainer([9, 30, 14, 22], max_steps=4, save_steps=2)
    first.train()
    path = first.folder.checkpoint(2)
    (path / name).unlink()
    second = make_trainer([9, 30, 14, 22], max_steps=4, save_steps=2)
    with pytest.raises(CheckpointError, match=f"step-00000002: {name} "):
        adapter.read(second.model, path)
        second.train(resume_from_checkpoint=str(path))


def test_in_process_resume_is_bit_exact(make_trainer):
    from kaggle_lib.strategies import adapter

    lengths = [9, 30, 14, 22, 51, 8, 17, 40, 12, 33, 28]
    whole = make_trainer(lengths, name="whole", epochs=2, save_steps=2, learning_rate=5e-3)
    whole.train()
    first = make_trainer(lengths, name="parted", epochs=2, save_steps=2, learning_rate=5e-3)
    first.asked_stop = False
    first.folder.request(first.folder.save_request)
    first.folder.request(first.folder.stop_request)  # saved and stopped after the first step
    first.train()
    assert first.state.global_step == 1
    first.folder.stop_request.unlink()
    second = make_trainer(lengths, name="parted", epochs=2, save_steps=2, learning_rate=5e-3)
    adapter.read(second.model, second.folder.checkpoint(1))
    second.train(resume_from_checkpoint=str(second.folder.checkpoint(1)))
    assert second.state.global_step == whole.steps.total == 6
    for step in (2, 4, 6):
        assert hashes(whole.folder, step) == hashes(second.folder, step)

    def curve(trainer):
        return [(e["samples"], e["loss"], e["lr"]) for e in events.curve(events.read_all(trainer.folder.events))]

    assert curve(whole) == curve(second)
    ids = [sample for samples, _, _ in curve(second) for sample in samples]
    assert sorted(ids[:11]) == sorted(ids[11:]) == list(range(100, 111))


def test_a_loss_that_is_not_finite_stops_and_saves_nothing(make_trainer):
    from kaggle_lib.errors import WorkerError

    trainer = make_trainer([9, 30, 14, 22], max_steps=3, save_steps=1)
    with torch.no_grad():
        next(p for p in trainer.model.parameters() if p.requires_grad).fill_(math.nan)
    with pytest.raises(WorkerError, match="The loss of step 1 is nan"):
        trainer.train()
    assert trainer.folder.checkpoint_steps() == []
    with pytest.raises(CheckpointError, match=r"The adapter is ruined: .*lora_A.* holds values that are not finite"):
        trainer._save_checkpoint(trainer.model, None)
    assert trainer.folder.checkpoint_steps() == []


def test_a_validation_is_not_done_again_after_a_resume(make_trainer):
    from kaggle_lib.strategies import adapter

    values = {"max_steps": 4, "save_steps": 2, "eval_steps": 2}
    first = make_trainer([9, 30, 14, 22], **values)
    first.train()
    second = make_trainer([9, 30, 14, 22], **values)
    adapter.read(second.model, second.folder.checkpoint(2))
    second.train(resume_from_checkpoint=str(second.folder.checkpoint(2)))
    done = [event["step"] for event in events.read_all(second.folder.events) if event["event"] == "evaluation"]
    assert done == [2, 4, 4]
    assert second.state.best_metric == first.state.best_metric
