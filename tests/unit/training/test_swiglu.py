"""The MLP that keeps two tensors computes what stock does, to the bit, with adapters and NF4, and keeps less."""

import pytest
import torch

from kaggle_lib.training import swiglu

pytestmark = pytest.mark.slow


def draw(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)), requires_grad=True)


def test_gradients_are_those_of_finite_differences():
    gate, up = draw(3, 7), draw(7, 3).t().detach().contiguous().requires_grad_()
    assert torch.autograd.gradcheck(swiglu.SwiGLU.apply, (gate, up))
    assert torch.autograd.gradcheck(lambda up: swiglu.SwiGLU.apply(gate.detach(), up), (up,))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_forward_and_backward_are_stocks_to_the_bit(dtype):
    found = []
    for act in (swiglu.SwiGLU.apply, lambda gate, up: torch.nn.functional.silu(gate) * up):
        gate, up = draw(1, 50, 64, dtype=dtype), draw(64, 50, 1, dtype=dtype).detach().transpose(0, 2).requires_grad_()
        out = act(gate, up)
        out.backward(torch.linspace(-2, 2, 3200).view(1, 50, 64).to(dtype))
        found.append((out.detach(), gate.grad, up.grad))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*found, strict=True))


@pytest.fixture
def models():
    """The same Llama, every projection with an adapter that does something: stock, and with `install`."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 99}
    names = ["gate_proj", "up_proj", "down_proj", "q_proj"]

    def make():
        torch.manual_seed(0)
        base = LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, num_key_value_heads=1))
        model = get_peft_model(base, LoraConfig(r=2, lora_dropout=0.1, target_modules=names, init_lora_weights=False))
        return model.train()

    return make(), swiglu.install(make())


def gradients(model):
    kept = []
    ids = torch.arange(40)[None] % 99
    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
    loss.backward()
    wide = {x.data_ptr() for x in kept if x.shape[-2:] == (40, 96)}
    return loss.item(), [p.grad for p in model.parameters() if p.requires_grad], len(wide)


def test_a_whole_model_has_the_same_loss_and_gradients_and_keeps_less(models):
    (loss, theirs, stock), (again, mine, lean) = map(gradients, models)
    assert loss == again
    assert len(mine) == 2 * 2 * 4
    assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))
    assert stock - lean >= 2  # one a layer


def test_what_somebody_has_replaced_is_left_alone(models):
    stock, _ = models
    mlp = stock.get_base_model().model.layers[0].mlp
    mlp.forward = lambda x: x
    other = stock.get_base_model().model.layers[1].mlp
    other.act_fn = torch.nn.GELU()
    swiglu.install(stock)
    assert mlp.forward(7) == 7
    assert "forward" not in vars(other)
