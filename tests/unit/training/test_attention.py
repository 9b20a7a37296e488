"""Our attention computes what stock SDPA does, keeps packed samples apart, and repeats K and V for their heads."""

import pytest
import torch

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def models():
    """The same random Llama (8 query heads on 2 of K and V) with stock attention and with ours."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from kaggle_lib.training import kernels

    def make(attention):
        torch.manual_seed(0)
        shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 99}
        config = LlamaConfig(**shape, num_attention_heads=8, num_key_value_heads=2, attn_implementation=attention)
        return LlamaForCausalLM(config).double().eval()

    return make("sdpa"), make(kernels.ATTENTION)


def both(models, **inputs):
    """Logits and the gradient of the first layer's K projection of either model."""
    found = []
    for model in models:
        model.zero_grad()
        logits = model(**inputs, use_cache=False).logits
        logits.logsumexp(-1).sum().backward()
        found.append((logits.detach(), model.model.layers[0].self_attn.k_proj.weight.grad.clone()))
    return found


def ids(*shape):
    return torch.randint(0, 99, shape, generator=torch.Generator().manual_seed(1))


def test_a_row_alone(models):
    stock, ours = both(models, input_ids=ids(1, 33))
    torch.testing.assert_close(ours, stock, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padded_rows(models, side):
    seen = torch.ones(2, 20, dtype=torch.long)
    seen[1, -7:] = 0
    seen = seen if side == "right" else seen.flip(1)
    real = seen.bool()
    stock, ours = (model(ids(2, 20), attention_mask=seen, use_cache=False).logits[real] for model in models)
    torch.testing.assert_close(ours, stock, rtol=1e-12, atol=1e-12)


def test_packed_rows_by_lengths_and_by_positions(models):
    lengths = [5, 1, 17, 10]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    inputs = {"input_ids": ids(1, 33), "position_ids": positions}
    stock, ours = both(models, **inputs)  # both from the positions alone
    torch.testing.assert_close(ours, stock, rtol=1e-12, atol=1e-12)
    _, by_length = both(models, **inputs, segments=lengths)
    torch.testing.assert_close(by_length, stock, rtol=1e-12, atol=1e-12)


def test_a_packed_sample_is_bit_equal_to_the_sample_alone(models):
    first, second = ids(1, 13), ids(1, 20)
    positions = torch.cat([torch.arange(13), torch.arange(20)])[None]
    packed = models[1](torch.cat([first, second], 1), position_ids=positions, segments=[13, 20], use_cache=False)
    assert torch.equal(packed.logits[:, 13:], models[1](second, use_cache=False).logits)


def test_generation_with_a_cache(models):
    stock, ours = (
        model.generate(ids(1, 9), max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=98)
        for model in models
    )
    assert torch.equal(ours, stock)
    assert stock.shape[1] > 12


def test_keys_and_values_have_a_head_for_each_query(models, monkeypatch):
    """The kernels that are not flash attention have no grouped heads: with `enable_gqa` they fall back to T × T."""
    from kaggle_lib.training import kernels

    seen = []
    real = kernels.scaled_dot_product_attention

    def watch(query, key, value, **options):
        seen.append((query.shape, key.shape, value.shape, options))
        return real(query, key, value, **options)

    monkeypatch.setattr(kernels, "scaled_dot_product_attention", watch)
    models[1](ids(1, 12), position_ids=torch.tensor([[*range(4), *range(8)]]), segments=[4, 8], use_cache=False)
    assert [query[2] for query, *_ in seen] == [4, 8, 4, 8]
    assert all(query == key == value for query, key, value, _ in seen)
    assert all(options["attn_mask"] is None and options["is_causal"] for *_, options in seen)
