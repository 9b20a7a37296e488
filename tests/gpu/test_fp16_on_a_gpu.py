"""fp16's scaler: a step whose gradients overflow is skipped and counted; too many in a row end the session."""

import pytest
from support.sessions import Place

from kaggle_lib.runs import events

pytestmark = pytest.mark.slow
HOOKS = """
import os
from transformers import TrainerCallback

step = 0


class Count(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        global step
        step = state.global_step + 1


def adapt(model, config):
    steps = [int(number) for number in os.environ["OVERFLOW"].split(",")]

    def watch(module, inputs, output):
        if output.requires_grad and step in steps:
            output.register_hook(lambda gradient: gradient * float("inf"))

    model.get_base_model().model.layers[-1].register_forward_hook(watch)
    return model


def callbacks(config):
    return [Count()]
"""


@pytest.fixture
def place(tmp_path):
    hooks = tmp_path / "hooks.py"
    hooks.write_text(HOOKS)
    values = {"precision": "fp16", "optim": "adamw_8bit", "hooks": hooks, "recomputation": "none", "epochs": 4}
    return Place(tmp_path, values=values)


def test_an_overflow_is_skipped_and_counted(place, monkeypatch):
    monkeypatch.setenv("OVERFLOW", "10,11,14")
    assert place.call()["outcome"] == "finished"
    steps = [event for event in events.read_all(place.folder.events) if event["event"] == "step"]
    skipped = [event["step"] for event in steps if event.get("skipped")]
    assert set(skipped) >= {10, 11, 14}
    assert all((event["grad_norm"] is None) == (event["step"] in skipped) for event in steps)


def test_too_many_in_a_row_end_the_session_and_keep_the_checkpoint(place, monkeypatch):
    monkeypatch.setenv("OVERFLOW", ",".join(map(str, range(10, 200))))
    ended = place.call(code=1)
    assert "The gradients of 20 steps in a row were not finite in fp16." in ended["reason"]
    assert place.call("status")["checkpoint"]["step"] == 28
