"""The hooks `adapt` and `callbacks`: what they may change, and what is refused before a step is taken."""

import pytest
import torch

from kaggle_lib import hooks
from kaggle_lib.config import RunConfig
from kaggle_lib.errors import ConfigError
from kaggle_lib.strategies import adapter


@pytest.fixture
def with_hooks(tmp_path):
    """`with_hooks(text)`: a configuration whose hooks file holds `text`."""

    def make(text):
        (tmp_path / "mine.py").write_text(text, encoding="utf-8")
        given = {"run": "r", "base_model": "some/base", "data": "sample", "hooks": tmp_path / "mine.py"}
        return RunConfig.create({**given, "precision": "fp32", "optim": "adamw_torch"})

    return make


ONE_ADAPTER = "; it should return the PEFT model with its one adapter `default`"


def adapted(tiny, config):
    """As a strategy's `adapt` is called: `tiny` gives the PEFT model whatever base it is handed."""
    make_model, _ = tiny
    return hooks.adapt(lambda _, config: make_model(config), None, config)


def refused(call, tmp_path):
    with pytest.raises(ConfigError) as caught:
        call()
    assert str(caught.value).startswith(f"hooks: {tmp_path / 'mine.py'}, ")
    return str(caught.value).removeprefix(f"hooks: {tmp_path / 'mine.py'}, ")


def test_adapt_gets_the_peft_model_and_decides_what_is_trained(tiny, with_hooks):
    text = (
        "def adapt(model, config):\n"
        "    assert model.peft_config['default'].r == config.lora_r\n"
        "    for name, parameter in model.named_parameters():\n"
        "        if '.layers.0.' in name:\n"
        "            parameter.requires_grad_(False)\n"
        "    return model\n"
    )
    model = adapted(tiny, with_hooks(text))
    trained = {name for name, one in model.named_parameters() if one.requires_grad}
    assert len(trained) == 8  # of one layer, A and B of four projections
    assert all(".layers.1." in name for name in trained)
    assert len(adapter.state(model)) == 16


def test_adapt_may_put_another_adapter_in_and_it_is_trained_in_fp32(tiny, with_hooks):
    text = (
        "from peft import LoraConfig, get_peft_model\n"
        "def adapt(model, config):\n"
        "    config = LoraConfig(r=2, target_modules=['gate_proj'], task_type='CAUSAL_LM')\n"
        "    return get_peft_model(model.unload(), config).bfloat16()\n"
    )
    model = adapted(tiny, with_hooks(text))
    assert {name.split(".")[-3] for name in adapter.state(model)} == {"gate_proj"}
    assert {one.dtype for one in model.parameters() if one.requires_grad} == {torch.float32}


def test_without_the_function_the_model_is_the_strategys(tiny, with_hooks):
    model = adapted(tiny, with_hooks("def callbacks(config): return []"))
    assert sum(one.requires_grad for one in model.parameters()) == 16


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("pass", "line 1: adapt returned NoneType" + ONE_ADAPTER),
        (
            "return model.unload()",
            "line 1: adapt returned LlamaForCausalLM" + ONE_ADAPTER,
        ),
        (
            "model.add_adapter('b', model.peft_config['default']); return model",
            "line 1: adapt returned PeftModelForCausalLM" + ONE_ADAPTER,
        ),
        (
            "return model.requires_grad_(False)",
            "line 1: adapt returned a model without a trainable parameter; it should return the PEFT model",
        ),
        (
            "model.get_base_model().lm_head.weight.requires_grad_(True); return model",
            "line 1: adapt returned a model that would train base_model.model.lm_head.weight, which no checkpoint "
            "holds; it should return the PEFT model",
        ),
        ("return model.layer[3]", "line 2: adapt raised AttributeError: 'LlamaForCausalLM' object has no attribute"),
    ],
)
def test_a_model_that_cannot_be_trained_or_saved_is_refused(tiny, with_hooks, tmp_path, body, message):
    config = with_hooks(f"def adapt(model, config):\n    {body}\n")
    assert refused(lambda: adapted(tiny, config), tmp_path).startswith(message)


def test_callbacks_are_instances(with_hooks, tmp_path):
    head = "from transformers import TrainerCallback\nclass Mine(TrainerCallback): ...\n"
    made = hooks.callbacks(with_hooks(f"{head}def callbacks(config): return [Mine(), Mine()]"))
    assert [type(one).__name__ for one in made] == ["Mine", "Mine"]
    assert hooks.callbacks(with_hooks("def adapt(model, config): return model")) == []
    wanted = "it should return a list of TrainerCallback instances"
    for returned, told in {
        "Mine()": "Mine",
        "[Mine]": "a list with the class Mine in it",
        "[Mine(), 1]": "a list with int in it",
        "None": "NoneType",
    }.items():
        config = with_hooks(f"{head}def callbacks(config): return {returned}")
        assert refused(lambda c=config: hooks.callbacks(c), tmp_path) == f"line 3: callbacks returned {told}; {wanted}"


def test_a_callback_is_told_each_steps_own_loss(make_trainer, with_hooks):
    text = (
        "from transformers import TrainerCallback\n"
        "class Note(TrainerCallback):\n"
        "    def __init__(self): self.losses = []\n"
        "    def on_log(self, args, state, control, logs=None, **_):\n"
        "        self.losses.append((state.global_step, logs['loss'], logs['learning_rate']))\n"
        "def callbacks(config): return [Note()]\n"
    )
    trainer = make_trainer([5, 9, 14, 6, 8, 11, 7, 10], max_steps=3)
    (note,) = hooks.callbacks(with_hooks(text))
    trainer.add_callback(note)
    trainer.train()
    from kaggle_lib.runs import events

    steps = events.curve(events.read_all(trainer.folder.events))
    assert [(step["step"], step["loss"], step["lr"]) for step in steps] == note.losses
    assert len(note.losses) == 3
