"""A run ends where validations no longer improve: at the same step, with the same bytes, however it was interrupted."""

import pytest

from kaggle_lib.checkpoints.manifest import verify
from kaggle_lib.runs import events
from kaggle_lib.strategies import adapter

pytestmark = pytest.mark.slow
LENGTHS = [9, 30, 14, 22, 51, 8, 17, 40]
# Random tokens cannot be learnt, so at this rate validation gets worse soon.
VALUES = {"max_steps": 14, "learning_rate": 5e-2, "lr_scheduler_type": "constant", "save_steps": 3, "eval_steps": 2}
VALUES |= {"early_stopping_patience": 2}


def final(trainer, step):
    names = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt")
    return [(trainer.folder.checkpoint(step) / name).read_bytes() for name in names]


def curve(trainer, kind="step", *names):
    return [[event[name] for name in names] for event in events.curve(events.read_all(trainer.folder.events), kind)]


@pytest.fixture
def whole(make_trainer):
    trainer = make_trainer(LENGTHS, name="whole", **VALUES)
    trainer.train()
    return trainer


def test_it_ends_after_so_many_validations_without_a_new_best_and_says_so(whole):
    end = whole.state.global_step
    bits = dict(curve(whole, "evaluation", "step", "bits_per_byte"))
    best = min(bits, key=lambda step: (bits[step], step))
    assert end == best + 4 < 14 and list(bits) == list(range(2, end + 1, 2))
    early = f"early stopping at step {end}: no improvement since step {best}"
    manifest = verify(whole.folder.checkpoint(end))
    assert (manifest.finished, manifest.step, manifest.total_steps, manifest.stopped_early) == (True, end, 14, early)
    assert manifest.best == {"step": best, "bits_per_byte": bits[best]}
    told = [event.get("stopped_early") for event in events.read_all(whole.folder.events) if "bits_per_byte" in event]
    assert told == [None] * (len(bits) - 1) + [early]
    # Each new best was saved at once, between the saves at every third step.
    falling = [step for step in bits if bits[step] == min(bits[one] for one in bits if one <= step)]
    saved = {step for step in range(1, end + 1) if step % 3 == 0 or step in falling or step == end}
    assert set(whole.folder.checkpoint_steps()) == saved
    assert verify(whole.folder.checkpoint(best)).best == manifest.best


def test_interrupted_early_or_late_it_ends_at_the_same_one_with_the_same_bytes(make_trainer, whole):
    end = whole.state.global_step
    saved = whole.folder.checkpoint_steps()[1:]
    for step in {saved[0], whole.state.best_global_step, saved[-1]}:
        again = make_trainer(LENGTHS, name=f"from-{step}", **VALUES)
        again.folder.checkpoint(step).symlink_to(whole.folder.checkpoint(step))
        adapter.read(again.model, again.folder.checkpoint(step))
        again.train(resume_from_checkpoint=str(again.folder.checkpoint(step)))
        assert (again.state.global_step, again.ended) == (end, whole.ended), step
        assert final(again, end) == final(whole, end)
        assert curve(again, "step", "step", "loss") == curve(whole, "step", "step", "loss")[step:]


def test_early_stopping_changes_no_bit_before_it_and_the_last_step_is_no_early_stop(make_trainer, whole):
    end = whole.state.global_step
    values = {**VALUES, "early_stopping_patience": 0, "save_steps": end, "keep_best": False}
    plain = make_trainer(LENGTHS, name="plain", **values)
    plain.train()
    assert final(plain, end) == final(whole, end)
    assert plain.folder.checkpoint_steps() == sorted({*range(end, 14, end), 14}, reverse=True)
    last = make_trainer(LENGTHS, name="last", **{**VALUES, "max_steps": end})
    last.train()
    assert last.ended == {} and verify(last.folder.checkpoint(end)).stopped_early is None
