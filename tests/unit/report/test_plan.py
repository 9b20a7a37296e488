"""What `plan` says before anything is spent, each number by hand, and how it says where each comes from."""

import pytest

from kaggle_lib.config import RunConfig
from kaggle_lib.data import chat, curate, read
from kaggle_lib.errors import ConfigError
from kaggle_lib.presets import read_preset
from kaggle_lib.report import speed
from kaggle_lib.report.plan import as_text, checkpoint_bytes, count, interval, plan
from kaggle_lib.report.speed import Shape, expected, projected, shape_of

FULL = read_preset("bengali-8b-t4-full")
PARAMETERS, LORA = 8_030_261_248, 13_631_488  # of Llama 3.1 8B; of r = 16 on q, k, v, o


def config(**more):
    return RunConfig.create({**FULL, **more})


def test_the_8b_shape_has_its_parameters_and_its_checkpoint_their_bytes():
    shape = shape_of(config())
    assert shape.parameters == PARAMETERS
    assert shape.lora_parameters(config()) == LORA
    assert checkpoint_bytes(shape, config(optim="adamw_torch")) == 12 * LORA + 25_000_000
    assert checkpoint_bytes(shape, config()) == 4 * LORA + 2 * LORA + LORA // 32 + 25_000_000


def test_a_tied_model_with_heads_of_their_own_size_is_counted():
    small = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = Shape.read(
        {**small, "num_key_value_heads": 1, "head_dim": 6, "vocab_size": 10, "tie_word_embeddings": True}
    )
    # q and o 8 x 12, k and v 8 x 6, three of 8 x 16, two norms; one table, the last norm
    assert shape.parameters == 2 * 96 + 2 * 48 + 3 * 128 + 2 * 8 + 80 + 8
    assert Shape.read({**small, "vocab_size": 10}).head_dim == 4
    with pytest.raises(KeyError):
        Shape.read({"d_model": 8})


def test_the_projection_is_its_formula():
    """Rows longer than `max_length` are all as long as it: every step is then the same, and can be computed by hand."""
    shape, compute, weights = shape_of(config()), PARAMETERS / (22.5e12 * 0.75), 2.5 * PARAMETERS / 275e9

    def speed_of(length, gpus=1, card=speed.T4, **values):
        return projected(shape, config(max_length=length, **values), 10**6, gpus, card)

    # A micro-batch holds one row of max_length: four of them, two for each of two cards.
    full = 4 * 512 / (4 * (512 * 6 * compute + 3 * weights))
    none = 4 * 512 / (4 * (512 * 4 * compute + 2 * weights))
    assert speed_of(512, recomputation="full") == pytest.approx(full)
    assert speed_of(512, recomputation="none") == pytest.approx(none)
    assert speed_of(512, 2, recomputation="none") == pytest.approx(2 * none)
    assert speed_of(512, quantization="none", recomputation="full") == pytest.approx(1 / (6 * compute))
    # auto: of 0.925 of 14.56 GiB, 5.83 are the model's, and a token costs 91 KiB and 136 in each of 32 layers: 1,792
    # tokens. So two micro-batches of two rows of 512; and a row of 4,096 alone, with 19 layers recomputed.
    assert speed_of(512) == pytest.approx(4 * 512 / (2 * (1024 * 4 * compute + 2 * weights)))
    cut, recomputed = speed.planned(shape, config())
    assert (cut.token_budget, recomputed(1792), recomputed(4096)) == (1792, 0, 19 / 32)
    long = 4096 * (4 + 2 * 19 / 32) * compute + (2 + 19 / 32) * weights
    assert speed_of(4096) == pytest.approx(4096 / long)
    assert projected(shape, config(), 1844, 1, "some other card") is None
    assert projected(shape_of(config(base_model="sample")), config(), 1844, 1) is None


def test_two_cards_share_the_mixture_nearly_equally():
    shape = shape_of(config())
    one, two = (projected(shape, config(), 1844, gpus) for gpus in (1, 2))
    assert 1.85 < two / one < 2


def test_what_was_measured_on_another_card_is_moved_by_both_rates():
    shape = shape_of(config())
    # Three passes over the weights take 3 · 20.08 GB ÷ 144 GB/s of the 2 s there.
    unpacked = 3 * 2.5 * PARAMETERS
    by_hand = (2 - unpacked / 144e9) * 55.5 / 22.5 + unpacked / 275e9
    assert speed.moved(2, 3, shape, speed.PROXY) == pytest.approx(by_hand)
    assert speed.moved(2, 3, shape, speed.T4) == pytest.approx(2)


def test_a_measured_speed_comes_before_the_projection_and_is_moved_to_another_length(monkeypatch):
    row = {"gpu": "Tesla T4", "gpus": 2, "strategy": "peft", "recomputation": "auto", "parameters": PARAMETERS}
    row |= {"tokens_of_a_step": 1844, "tokens_per_second": 700.0, "source": "t4-check, 2026-12-01"}
    there = {**speed.known(), "measured": [row]}
    monkeypatch.setattr(speed, "known", lambda: there)
    shape = shape_of(config())
    assert expected(shape, config(), 1844, 2) == {
        "tokens_per_second": 700.0,
        "how": "measured",
        "source": "t4-check, 2026-12-01",
    }
    longer = expected(shape, config(), 4000, 2)["tokens_per_second"]
    assert longer == pytest.approx(700 * projected(shape, config(), 4000, 2) / projected(shape, config(), 1844, 2))
    for other in ({"strategy": "unsloth"}, {"recomputation": "none"}):
        assert expected(shape, config(**other), 1844, 2)["how"] == "projection"
    assert expected(shape, config(), 1844, 1)["how"] == "projection"


def test_the_interval_is_dalys_and_close_to_youngs():
    # sqrt(2 * 3 * 43200) = 509.117, times 1 + sqrt(3 / 86400) / 3 + 3 / 86400 / 9, less 3
    assert interval(3, 43_200) == pytest.approx(507.119, abs=1e-3)
    assert interval(100, 40) == 40


def test_tokens_are_counted_as_training_counts_them():
    from transformers import AutoTokenizer

    given = RunConfig.create({**read_preset("tiny-cpu"), "max_length": 64, "system_prompt": "ভালো থেকো <|eot_id|>"})
    tokenizer = AutoTokenizer.from_pretrained(read.__file__.replace("read.py", "sample"))
    rows = curate.curate(read.read(given), given).train
    lengths = [len(chat.encode(row.messages, tokenizer, given).input_ids) for row in rows]
    assert count(given) == {
        "rows": len(rows),
        "mean_tokens": round(sum(lengths) / len(lengths), 1),
        "how": f"counted with the base model's tokenizer, in {len(rows)} of {len(rows)} rows",
    }


def test_without_the_tokenizer_or_the_file_it_says_what_it_took_instead(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_LIB_ROOT", str(tmp_path))
    path = tmp_path / "rows.csv"
    answers = [f"উত্তর নম্বর {number} অনেক কথা বলে" for number in range(40)]
    path.write_text("Questions,Answers\n" + "".join(f"প্রশ্ন {n} কী,{a}\n" for n, a in enumerate(answers)), "utf-8")
    estimated = count(config(data=str(path), base_model=str(tmp_path)))
    assert estimated["how"] == "rows counted, tokens estimated: 0.81 letters each, as Bengali has with Llama 3.1"
    letters = [len(message.content) for row in curate.curate(
        read.read(config(data=str(path))), config(data=str(path))).train for message in row.messages]  # fmt: skip
    assert estimated["mean_tokens"] == pytest.approx(sum(letters) / 0.81 / estimated["rows"] + 40, abs=0.06)
    assert count(config()) == {
        "rows": 34_389,  # 38,210 less a tenth
        "mean_tokens": 461,
        "how": "the file is not here: rows with question and answer of the published file; the mean length is assumed",
    }
    assert count(config(data="nobody/nothing"))["rows"] is None


def test_the_whole_plan_of_the_full_recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("KAGGLE_LIB_ROOT", str(tmp_path))
    found = plan(FULL)
    assert (found["steps"], found["tokens"]) == (17_195, 17_195 * 4 * 461)
    rate = found["speed"]["tokens_per_second"]
    assert rate == projected(shape_of(config()), config(), 1844, 2)
    assert found["hours"] == round(17_195 * 1844 / rate / 3600, 1) == 9.8
    assert (found["sessions"], found["weeks"]) == (1, 0.3)  # of 11.5 h less 12 minutes; of 30 h
    assert [row["mean_tokens"] for row in found["by_mean_tokens"]] == [200, 300, 461, 700, 1000, 2000]
    assert found["by_mean_tokens"][2]["hours"] == 9.8
    assert found["checkpoint"]["on_the_store"] == 4 * found["checkpoint"]["bytes"]
    assert found["memory_gib"] == 13.4
    text = as_text(found)
    assert "Tokens/s on 2 × Tesla T4: 897 (projection: " in text
    assert "Time: 9.8 h of training, 1 session, 0.3 weeks of a quota of 30 h (assumed: 12 minutes to start" in text
    assert f"save_steps=50; least is lost with about {found['checkpoint']['best_save_steps']} (Daly 2006; " in text
    assert plan({**FULL, "max_steps": "100", "processes": "1"})["hours"] == round(
        184_400 / projected(shape_of(config()), config(), 1844, 1) / 3600, 1
    )


def test_what_cannot_be_known_is_null_and_a_wrong_value_is_refused():
    tiny = plan(read_preset("tiny-cpu"))
    assert (tiny["hours"], tiny["speed"]["how"]) == (None, "unknown")
    assert "Tokens/s on 2 × Tesla T4: unknown (unknown: too small a model for the formula)\nTime: unknown\n" in as_text(
        tiny
    )
    with pytest.raises(ConfigError):
        plan({**FULL, "epochs": "-1"})
