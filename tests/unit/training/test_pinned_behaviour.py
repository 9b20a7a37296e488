"""What the pinned transformers, TRL, PEFT and bitsandbytes do by themselves, and that ours does not follow.

Each test shows the library's own behaviour first: when a new pin changes it, the test says that our cure can go.
"""

import hashlib
import inspect
import json

import pytest
import torch

from kaggle_lib.config import RunConfig
from kaggle_lib.presets import read_preset

pytestmark = pytest.mark.slow


def parameters(method):
    return list(inspect.signature(method).parameters)


def test_the_overridden_methods_have_the_pinned_signatures():
    from transformers import Trainer
    from trl import SFTTrainer

    from kaggle_lib.training.trainer import RunTrainer

    pinned = {
        "get_train_dataloader": ["self"],
        "get_batch_samples": ["self", "epoch_iterator", "num_batches", "device"],
        "floating_point_ops": ["self", "inputs"],
        "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
        "_save_checkpoint": ["self", "model", "trial"],
        "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
        "_load_rng_state": ["self", "checkpoint"],
        "_load_optimizer_and_scheduler": ["self", "checkpoint"],
        "_load_scaler": ["self", "checkpoint"],
        "log": ["self", "logs", "start_time"],
    }
    for name, expected in pinned.items():
        assert parameters(getattr(Trainer, name)) == expected, name
        assert parameters(getattr(RunTrainer, name)) == expected, name
        assert getattr(RunTrainer, name) is not getattr(SFTTrainer, name), name
    assert parameters(Trainer.training_step) == ["self", "model", "inputs", "num_items_in_batch"]
    # Called by position in Trainer's loop; `evaluate` by keywords, of which we need none.
    assert "self.training_step(model, inputs, num_items_in_batch)" in inspect.getsource(Trainer._run_epoch)
    assert parameters(Trainer._maybe_log_save_evaluate)[:4] == ["self", "tr_loss", "grad_norm", "model"]


def test_a_fresh_adapter_is_drawn_from_the_seed(tiny):
    from kaggle_lib.strategies import adapter

    def digest(seed):
        torch.manual_seed(torch.seed() % 2**32)  # whatever was drawn before
        config = RunConfig.create({"run": "r", "base_model": "b", "data": "sample", "seed": seed})
        tensors = adapter.state(tiny[0](config))
        return hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in tensors.values())).hexdigest()

    assert digest(1) == digest(1) != digest(2)


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    """The sample model in NF4 with a fresh adapter, as the strategy gives it."""
    from kaggle_lib.strategies import peft

    config = RunConfig.create(read_preset("tiny-cpu"))
    model, tokenizer = peft.load(config, torch.device("cpu"), tmp_path_factory.mktemp("cache"))
    return config, peft.adapt(model, config), tokenizer


def test_nf4_is_real_and_the_adapter_fp32(quantised):
    import bitsandbytes as bnb

    config, model, _ = quantised
    linear = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert len(linear) == 4 * 7
    assert {module.weight.dtype for module in linear} == {torch.uint8}
    assert {module.weight.quant_state.quant_type for module in linear} == {"nf4"}
    assert all(module.weight.quant_state.nested for module in linear)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # r × (in + out) of q, k, v, o in each of 4 layers: hidden 128, two key-value heads of 32.
    assert trainable == 4 * config.lora_r * ((128 + 128) + 2 * (128 + 64) + (128 + 128))
    assert all("lora_" in name for name, p in model.named_parameters() if p.requires_grad)


def test_an_evaluation_does_not_repack_the_4_bit_weights(quantised):
    import bitsandbytes as bnb

    _, model, _ = quantised
    linear = [module for module in model.modules() if isinstance(module, bnb.nn.Linear4bit)]
    assert not any(module.support_avx512bf16_for_cpu for module in linear)
    before = [module.weight.data.clone() for module in linear]
    ids = torch.arange(6, 40)[None]
    with torch.no_grad():
        first = model.train(False)(ids).logits
        assert torch.equal(first, model(ids).logits)
    assert all(torch.equal(module.weight.data, old) for module, old in zip(linear, before, strict=True))
    model.train()


def test_half_precision_base_weights_get_no_fp32_copy():
    from transformers import LlamaConfig, LlamaForCausalLM

    from kaggle_lib.strategies import peft

    shape = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    config = RunConfig.create({"run": "r", "base_model": "b", "data": "sample"})
    model = peft.adapt(LlamaForCausalLM(shape).half().requires_grad_(False), config)
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.float16}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_trl_rounds_a_quantised_models_adapter_and_ours_does_not(quantised, make_trainer):
    from trl import SFTConfig, SFTTrainer

    from kaggle_lib.strategies import adapter
    from kaggle_lib.training.feed import sft_config

    _, model, _ = quantised
    generator = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    before = adapter.state(model)
    trainer = make_trainer([9, 30], model=model, quantization="nf4")
    after = adapter.state(trainer.model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}
    args = sft_config(trainer.config, trainer.folder, trainer.steps, on_cpu=True)
    assert isinstance(args, SFTConfig)
    SFTTrainer(model=model, args=args, train_dataset=trainer.rows, processing_class=trainer.processing_class)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.bfloat16}


def test_no_precision_but_the_configured_one(make_trainer):
    from kaggle_lib.training.feed import sft_config

    trainer = make_trainer([9, 30])
    args = sft_config(trainer.config, trainer.folder, trainer.steps, on_cpu=True)
    assert (args.fp16, args.bf16, args.gradient_accumulation_steps, args.report_to) == (False, False, 1, [])
    assert (args.logging_nan_inf_filter, args.average_tokens_across_devices) == (False, False)
    assert (args.packing, args.padding_free, args.max_length) == (False, False, None)
    assert args.loss_type == "chunked_nll"


def test_without_its_state_trainer_begins_anew_and_ours_refuses(make_trainer):
    from kaggle_lib.errors import CheckpointError

    first = make_trainer([9, 30, 14, 22], max_steps=4, save_steps=2)
    first.train()
    path = first.folder.checkpoint(2)
    (path / "trainer_state.json").unlink()
    second = make_trainer([9, 30, 14, 22], max_steps=4, save_steps=2)
    with pytest.raises(CheckpointError, match=r"step-00000002: trainer_state\.json is missing"):
        second.train(resume_from_checkpoint=str(path))


def test_a_scaler_of_another_precision_is_not_loaded(make_trainer):
    first = make_trainer([9, 30, 14, 22], max_steps=4, save_steps=2)
    first.train()
    torch.save({"scale": 65536.0}, first.folder.checkpoint(2) / "scaler.pt")
    second = make_trainer([9, 30, 14, 22], max_steps=4, save_steps=2)
    second.train(resume_from_checkpoint=str(first.folder.checkpoint(2)))
    assert second.state.global_step == 4


def test_no_history_grows_in_the_checkpoint(make_trainer):
    trainer = make_trainer([9, 30, 14, 22], max_steps=8, save_steps=8, eval_steps=4)
    trainer.train()
    state = json.loads((trainer.folder.checkpoint(8) / "trainer_state.json").read_text())
    assert state["log_history"] == []
    assert state["best_model_checkpoint"] is None
    assert state["best_global_step"] in (4, 8)
