"""Likelihood of answers: equal to a plain loop, token weighted, and without a trace in the training."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from kaggle_lib.evaluation.likelihood import RowScore, score_rows, summarise

PAD, EOT, VOCABULARY = 3, 5, 97


def tiny(**more):
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.3,
            attention_dropout=0.5,
            **more,
        )
    )


def adapted(model, dropout=0.5):
    model = get_peft_model(
        model,
        LoraConfig(r=4, lora_dropout=dropout, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def rows_of(*shapes):
    """Rows of (prompt tokens, answer tokens without the end of turn), ids counted down from 900."""
    draw = torch.Generator().manual_seed(7)
    rows = []
    for number, (prompt, answer) in enumerate(shapes):
        ids = [*torch.randint(10, VOCABULARY, (prompt + answer,), generator=draw).tolist(), EOT]
        labels = [-100] * prompt + ids[prompt:]
        rows.append({"id": 900 - number, "input_ids": ids, "labels": labels, "answer_bytes": 2 * answer + number})
    return rows


ROWS = rows_of((3, 5), (9, 1), (2, 17), (30, 4), (5, 5), (1, 11), (4, 5))


def plain_loop(model, row):
    """Token by token in float64, one row at a time."""
    model.eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0].double()
    nll = eot = 0.0
    for position, label in enumerate(row["labels"]):
        if label == -100:
            continue
        value = -float(torch.log_softmax(logits[position - 1], 0)[label])
        if label == EOT:
            eot += value
        else:
            nll += value
    return nll, eot


@pytest.fixture(scope="module")
def model():
    return adapted(tiny())


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("max_tokens", [1, 20, 35, 64, 10_000])
def test_equal_to_a_plain_loop_for_any_batch_size_and_padding_side(model, max_tokens, padding):
    scores = score_rows(model, ROWS, pad_id=PAD, eot_id=EOT, max_tokens=max_tokens, padding=padding)
    assert [score.id for score in scores] == [900, 899, 898, 897, 896, 895, 894]
    assert [score.tokens for score in scores] == [5, 1, 17, 4, 5, 11, 5]
    assert [score.bytes for score in scores] == [10, 3, 36, 11, 14, 27, 16]
    for row, score in zip(ROWS, scores, strict=True):
        nll, eot = plain_loop(model, row)
        assert score.nll == pytest.approx(nll, rel=1e-6)
        assert score.eot_nll == pytest.approx(eot, rel=1e-6)


def test_batches_hold_at_most_max_tokens_with_their_pads_and_each_one_beats():
    seen, beats = [], []
    model = tiny()
    model.register_forward_pre_hook(lambda _, __, kwargs: seen.append(kwargs), with_kwargs=True)
    score_rows(model, ROWS, pad_id=PAD, eot_id=EOT, max_tokens=26, beat=lambda: beats.append(len(seen)))
    # Lengths 35 | 20 | 13, 11 | 11, 10 | 9: the first is longer than the limit, so it goes alone.
    assert [tuple(kwargs["input_ids"].shape) for kwargs in seen] == [(1, 35), (1, 20), (2, 13), (2, 11), (1, 9)]
    assert beats == [1, 2, 3, 4, 5]
    assert all(kwargs["use_cache"] is False for kwargs in seen)
    # Logits begin where the first answer of the batch begins: no logits for the long prompt.
    assert [kwargs["logits_to_keep"] for kwargs in seen] == [6, 19, 13, 8, 7]


def test_no_fp32_copy_of_all_logits(monkeypatch):
    import kaggle_lib.evaluation.likelihood as likelihood

    monkeypatch.setattr(likelihood, "CHUNK", 3)
    model, sizes = tiny().to(torch.bfloat16), []
    plain = torch.Tensor.logsumexp
    monkeypatch.setattr(torch.Tensor, "logsumexp", lambda x, *a: (sizes.append((x.dtype, x.shape[0])), plain(x, *a))[1])
    score_rows(model, ROWS[:2], pad_id=PAD, eot_id=EOT, max_tokens=100)
    assert sizes == [(torch.float32, 3), (torch.float32, 3), (torch.float32, 2)]


def test_disabled_adapter_scores_the_base_model(model):
    with model.disable_adapter():
        base = score_rows(model, ROWS, pad_id=PAD, eot_id=EOT, max_tokens=64)
    assert base == score_rows(tiny(), ROWS, pad_id=PAD, eot_id=EOT, max_tokens=64)
    assert base != score_rows(model, ROWS, pad_id=PAD, eot_id=EOT, max_tokens=64)


def test_every_module_keeps_its_mode():
    model = adapted(tiny()).train()
    frozen = model.get_base_model().model.layers[0]
    frozen.eval()
    modes = [module.training for module in model.modules()]
    assert True in modes and False in modes
    score_rows(model, ROWS[:2], pad_id=PAD, eot_id=EOT, max_tokens=64)
    assert [module.training for module in model.modules()] == modes


def trained(model, score):
    """Ten steps of training with dropout; scored after every second one if asked. Returns losses and weights."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    torch.manual_seed(11)
    losses = []
    for step in range(10):
        row = ROWS[step % len(ROWS)]
        model.train()
        loss = model(input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if score and step % 2:
            score_rows(model, ROWS, pad_id=PAD, eot_id=EOT, max_tokens=40)
    return losses, [p.detach().clone() for p in model.parameters() if p.requires_grad]


def nf4(folder):
    if not (folder / "config.json").exists():
        tiny().save_pretrained(folder)
    model = LlamaForCausalLM.from_pretrained(
        folder,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        ),
        dtype=torch.float32,
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    torch.manual_seed(1)
    model = adapted(model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


@pytest.mark.parametrize("kind", ["fp32", "nf4"])
def test_training_is_bit_equal_with_scoring_on_and_off(kind, tmp_path):
    make = (lambda: nf4(tmp_path)) if kind == "nf4" else (lambda: adapted(tiny()))
    with_losses, with_weights = trained(make(), score=True)
    losses, weights = trained(make(), score=False)
    assert with_losses == losses
    assert all(torch.equal(one, other) for one, other in zip(with_weights, weights, strict=True))
    assert with_weights[0].any()


def test_nf4_on_a_cpu_equals_a_plain_loop(tmp_path):
    model = nf4(tmp_path)
    for row, score in zip(ROWS, score_rows(model, ROWS, pad_id=PAD, eot_id=EOT, max_tokens=64), strict=True):
        nll, eot = plain_loop(model, row)
        assert score.nll == pytest.approx(nll, rel=1e-6)
        assert score.eot_nll == pytest.approx(eot, rel=1e-6)


def test_summary_by_hand():
    # Row 1: 2 tokens at 1/4 each; row 2: 6 tokens at 1/2 each. Σ nll = 10 ln 2, 8 tokens, 20 bytes.
    scores = [RowScore(1, 4 * math.log(2), 2, 5, 0.5), RowScore(2, 6 * math.log(2), 6, 15, 1.5)]
    summary = summarise(scores)
    assert summary["bits_per_byte"] == pytest.approx(0.5, abs=1e-15)
    assert summary["perplexity"] == pytest.approx(2**1.25, abs=1e-14)
    assert summary["nll"] == pytest.approx(6.931471805599453, abs=1e-15)
    assert (summary["bytes"], summary["tokens"], summary["rows"], summary["eot_nll"]) == (20, 8, 2, 1.0)
    assert list(summary) == ["bits_per_byte", "perplexity", "nll", "bytes", "tokens", "rows", "eot_nll"]


def test_perplexity_weighs_tokens_and_is_no_mean_of_rows_or_batches():
    scores = [RowScore(1, 4 * math.log(2), 2, 5, 0.0), RowScore(2, 6 * math.log(2), 6, 15, 0.0)]
    mean_of_means = (4.0 + 2.0) / 2
    assert summarise(scores)["perplexity"] == pytest.approx(2.378414230005442)
    assert abs(summarise(scores)["perplexity"] - mean_of_means) > 0.6


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="there are no answer tokens to score"):
        summarise([])
