"""Qwen 2 and 3, Gemma 2 and 3, Mistral: a tiny model of each is packed, trained, resumed, asked and loaded back."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.families import DEFAULT, FAMILIES, make

from kaggle_lib.config import RunConfig
from kaggle_lib.data import chat
from kaggle_lib.data.read import Message
from kaggle_lib.errors import ConfigError
from kaggle_lib.presets import read_preset

pytestmark = pytest.mark.slow

SYSTEM, QUESTION, ANSWER, AGAIN, LAST = "শুধু শোনো।", "আমি ভালো নেই।\n\nকী করি?", "কী হয়েছে?", "জানি না – 23", "বলুন। 😀"
THOUGHT = "<think>\n\n</think>\n\n"
# What stands before a question without a system prompt, with one, around its text, before and behind an answer.
WRITTEN = {
    "qwen2": (
        "",
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n",
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    ),
    "qwen3": (
        *("", f"<|im_start|>system\n{SYSTEM}<|im_end|>\n"),
        f"<|im_start|>user\n{{}}<|im_end|>\n<|im_start|>assistant\n{THOUGHT}",
    ),
    "gemma2": (*("<bos>", "<bos>"), "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"),
    "mistral": (*("<s>", "<s>"), "[INST]{}[/INST]"),
}
WRITTEN["gemma3"] = WRITTEN["gemma2"]
ENDS = {"qwen2": "<|im_end|>", "qwen3": "<|im_end|>", "gemma2": "<end_of_turn>", "gemma3": "<end_of_turn>"}
ENDS["mistral"] = "</s>"
BETWEEN = {"mistral": ""}
STOPS = {"qwen": ["<|im_end|>", "<|endoftext|>"], "gemma": ["<end_of_turn>", "<eos>"], "mistr": ["</s>"]}


def config_of(base, **values):
    given = {**read_preset("tiny-cpu"), "base_model": base, "quantization": "none", "max_length": 512, **values}
    return RunConfig.create(given)


@pytest.fixture(scope="module", params=FAMILIES)
def one(request, tmp_path_factory):
    """A family's tiny model as strategy `peft` loads it, with an adapter that does something."""
    from kaggle_lib.strategies import peft

    base = make(request.param, tmp_path_factory.mktemp(request.param) / "base")
    config = config_of(base)
    model, tokenizer = peft.load(config, torch.device("cpu"), base / "cache")
    model = peft.adapt(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return SimpleNamespace(name=request.param, base=base, config=config, model=model.eval(), tokenizer=tokenizer)


def talk(*texts, system=None):
    roles = ("user", "assistant")
    turns = [Message(roles[n % 2], text) for n, text in enumerate(texts)]
    return ([Message("system", system)] if system is not None else []) + turns


def learned(one, made):
    """The learned stretches as text."""
    runs, last = [], chat.IGNORED
    for label in made.labels:
        if label != chat.IGNORED:
            runs = [*runs[:-1], [*runs[-1], label]] if last != chat.IGNORED else [*runs, [label]]
        last = label
    return [one.tokenizer.decode(ids) for ids in runs]


def test_only_the_answer_and_the_token_that_ends_it_are_learned(one):
    bare, _, around = WRITTEN[one.name]
    made = chat.encode(talk(QUESTION, ANSWER), one.tokenizer, one.config)
    text = bare + around.format(QUESTION) + ANSWER + ENDS[one.name]
    assert one.tokenizer.decode(made.input_ids) == text
    assert learned(one, made) == [ANSWER + ENDS[one.name]]
    assert made.answer_bytes == len(ANSWER.encode("utf-8"))
    assert made.input_ids == one.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_each_answer_of_a_dialogue_is_learned(one):
    made = chat.encode(talk(QUESTION, ANSWER, AGAIN, LAST), one.tokenizer, one.config, every=True)
    assert learned(one, made) == [ANSWER + ENDS[one.name], LAST + ENDS[one.name]]
    bare, _, around = WRITTEN[one.name]
    end = ENDS[one.name] + BETWEEN.get(one.name, "\n")
    text = bare + around.format(QUESTION) + ANSWER + end + around.format(AGAIN) + LAST + ENDS[one.name]
    assert one.tokenizer.decode(made.input_ids) == text


def test_a_system_prompt_is_there_once_and_stays_whatever_is_cut(one):
    _, with_system, around = WRITTEN[one.name]
    joined = "" if one.name.startswith("qwen") else f"{SYSTEM}\n\n"
    made = chat.encode(talk(QUESTION, ANSWER, AGAIN, LAST, system=SYSTEM), one.tokenizer, one.config)
    text = one.tokenizer.decode(made.input_ids)
    assert text.startswith(with_system + around.format(joined + QUESTION))
    assert text.count(SYSTEM) == 1
    prompt = chat.prompt_ids(talk(AGAIN, system=SYSTEM), one.tokenizer, one.config)
    assert one.tokenizer.decode(prompt) == with_system + around.format(joined + AGAIN)
    # At every length down to where there is no room: the system prompt and the answer are whole.
    whole = len(made.input_ids)
    kept = set()
    for length in range(whole, 15, -1):
        config = config_of(one.base, max_length=length)
        try:
            cut = chat.encode(talk(QUESTION, ANSWER, AGAIN, LAST, system=SYSTEM), one.tokenizer, config)
        except ConfigError as error:
            assert "leaves no room for an answer" in str(error)
            break
        text = one.tokenizer.decode(cut.input_ids)
        assert len(cut.input_ids) <= length
        assert text.count(SYSTEM) == 1
        assert text.startswith(with_system) and text.endswith(ENDS[one.name])
        assert "\ufffd" not in text
        kept.add(cut.cut)
        if cut.cut == "prompt":
            assert learned(one, cut) == [LAST + ENDS[one.name]]
    assert kept == {"", "prompt", "answer"}


def test_the_template_that_is_saved_renders_what_is_trained(one):
    for messages in (talk(QUESTION), talk(QUESTION, ANSWER, AGAIN), talk(QUESTION, ANSWER, AGAIN, system=SYSTEM)):
        texts = [vars(message) for message in messages]
        ids = one.tokenizer.apply_chat_template(texts, add_generation_prompt=True, return_dict=False)
        assert ids == chat.prompt_ids(messages, one.tokenizer, one.config)


def test_it_is_what_the_familys_own_template_writes(one):
    """Exactly, but for Qwen 2.5's default system prompt, Qwen 3's earlier thoughts, where Mistral puts the system's."""
    from transformers import AutoTokenizer

    own = AutoTokenizer.from_pretrained(one.base)
    system = [] if one.name in ("gemma2", "mistral") else [{"role": "system", "content": SYSTEM}]
    texts = [*system, {"role": "user", "content": QUESTION}]
    ids = own.apply_chat_template(texts, add_generation_prompt=True, return_dict=False, enable_thinking=False)
    assert ids == chat.prompt_ids([Message(**text) for text in texts], one.tokenizer, one.config)
    if one.name == "qwen2":
        bare = own.apply_chat_template(texts[1:], tokenize=False, add_generation_prompt=True)
        assert bare == f"<|im_start|>system\n{DEFAULT}<|im_end|>\n" + WRITTEN["qwen2"][2].format(QUESTION)


def test_control_tokens_in_the_data_are_ordinary_text(one):
    names = "".join([*one.tokenizer.all_special_tokens, "<start_of_turn>", "[INST]", "<|im_start|>"])
    made = chat.encode(talk(f"ক {names}", f"খ {names}"), one.tokenizer, one.config)
    control = set(one.tokenizer.convert_tokens_to_ids(one.tokenizer.all_special_tokens))
    plain = chat.encode(talk("ক", "খ"), one.tokenizer, one.config)
    assert [i for i in made.input_ids if i in control] == [i for i in plain.input_ids if i in control]
    assert learned(one, made) == [f"খ {names}{ENDS[one.name]}"]


def rows_of(one, *texts):
    made = [chat.encode(talk(*pair), one.tokenizer, one.config) for pair in texts]
    return [{"input_ids": row.input_ids, "labels": row.labels} for row in made]


def test_no_packed_sample_sees_another(one):
    from kaggle_lib.training import batch

    before, row = rows_of(one, (QUESTION * 2, ANSWER), (AGAIN + QUESTION, LAST * 3))
    length = len(before["input_ids"])
    assert min(length, len(row["input_ids"])) > 2 * 12  # the windows
    found = {}

    def embedded(_module, _inputs, output):
        found["embeddings"] = output.requires_grad_(True)

    def loss_behind(first):
        packed = batch.padding_free([{**first, "labels": [chat.IGNORED] * length}, row])
        hook = one.model.get_input_embeddings().register_forward_hook(embedded)
        found["embeddings"] = None
        loss = one.model(**packed, use_cache=False).loss
        hook.remove()
        found["embeddings"].retain_grad()
        loss.backward()
        return loss.item(), found["embeddings"].grad[0]

    loss, gradient = loss_behind(before)
    assert not gradient[:length].any()
    assert gradient[length:].any(1)[-20:-1].all()  # the last token predicts nothing; windows end somewhere
    other = {**before, "input_ids": before["input_ids"][::-1]}
    assert loss_behind(other)[0] == loss
    alone = {key: value[:, length:] if torch.is_tensor(value) else value[1:] for key, value in
             batch.padding_free([before, row]).items()}  # fmt: skip
    assert one.model(**alone, use_cache=False).loss.item() == pytest.approx(loss, rel=1e-6)


def test_packed_padded_and_stock_attention_agree(one):
    from transformers import AutoModelForCausalLM

    from kaggle_lib.training import batch, kernels

    rows = rows_of(one, (QUESTION * 2, ANSWER), (AGAIN, LAST), (QUESTION, LAST * 2))
    stock, ours = (
        AutoModelForCausalLM.from_pretrained(one.base, attn_implementation=attention, dtype=torch.float64)
        for attention in ("eager", kernels.ATTENTION)
    )
    with torch.no_grad():
        wanted = torch.cat([stock(torch.tensor([row["input_ids"]]), use_cache=False).logits[0] for row in rows])
        packed = {key: value for key, value in batch.padding_free(rows).items() if key != "labels"}
        torch.testing.assert_close(ours(**packed, use_cache=False).logits[0], wanted, rtol=1e-4, atol=1e-5)
        padded = batch.padded(rows, one.tokenizer.pad_token_id)
        del padded["labels"]
        real = padded["attention_mask"].bool()
        torch.testing.assert_close(ours(**padded, use_cache=False).logits[real], wanted, rtol=1e-4, atol=1e-5)


def test_answers_in_a_batch_are_those_of_stock_attention_and_stop_at_the_familys_stops(one):
    from transformers import AutoModelForCausalLM

    from kaggle_lib.evaluation import generation

    stops = STOPS[one.name[:5].rstrip("23")]
    ids = one.tokenizer.convert_tokens_to_ids(stops)
    assert chat.stop_ids(one.tokenizer) == ids
    assert one.model.generation_config.eos_token_id == ids
    assert chat.pad_id(one.tokenizer) == one.tokenizer.pad_token_id != chat.eot_id(one.tokenizer)

    stock = AutoModelForCausalLM.from_pretrained(one.base, attn_implementation="eager", dtype=torch.float32)
    prompts = [chat.prompt_ids(talk(text), one.tokenizer, one.config) for text in (QUESTION, AGAIN, QUESTION * 2)]
    with one.model.disable_adapter():
        together = generation.answers(one.model, one.tokenizer, prompts, [20] * 3)
        alone = [generation.answer(one.model, one.tokenizer, prompt, 20) for prompt in prompts]
    assert together == alone == [generation.answer(stock, one.tokenizer, prompt, 20) for prompt in prompts]

    for name in stops:
        said = [*one.tokenizer("হ্যাঁ", add_special_tokens=False)["input_ids"], one.tokenizer.convert_tokens_to_ids(name)]
        forward = stock.forward

        def scripted(*args, wanted=said, own=forward, **kwargs):
            output = own(*args, **kwargs)
            output.logits[:, -1] = 0.0
            output.logits[:, -1, wanted[(output.past_key_values.get_seq_length() - len(prompts[1])) % len(wanted)]] = (
                9.0
            )
            return output

        stock.forward = scripted
        answer = generation.answer(stock, one.tokenizer, prompts[1], 64)
        stock.forward = forward
        assert answer == generation.Answer(text="হ্যাঁ", tokens=len(said), ended=True, letter_cut=False)


CORPUS = [(f"আমি ভালো নেই {n}। কী করি {n * 7}?", f"কী হয়েছে {n}? বলুন।") for n in range(12)]


def test_it_trains_resumes_byte_for_byte_and_loads_in_plain_peft(one, tmp_path, monkeypatch):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    import kaggle_lib as kl
    from kaggle_lib.runs import events
    from kaggle_lib.runs.folder import RunFolder
    from kaggle_lib.training import worker

    monkeypatch.delenv("KAGGLE_LIB_SUPERVISED", raising=False)
    lines = [json.dumps({"Questions": question, "Answers": answer}) for question, answer in CORPUS]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines), encoding="utf-8")
    values = {
        "base_model": one.base,
        "data": tmp_path / "rows.jsonl",
        "store": tmp_path / "store",
        "quantization": "none",
        "max_steps": 4,
        "save_steps": 2,
        "eval_steps": 2,
        "eval_rows": 2,
        "max_length": 128,
        "recomputation": "full",
        "system_prompt": SYSTEM,
        "lora_target_modules": "q_proj,v_proj,gate_proj",
        "learning_rate": "1e-2",
    }
    first = RunFolder(Path(kl.prepare(preset="tiny-cpu", run=one.name, work_dir=tmp_path / "work", **values)))
    assert worker.main(first.root)["outcome"] == "finished"
    whole = first.checkpoint(4)
    final = {
        name: (whole / name).read_bytes() for name in ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt")
    }
    losses = [(step["step"], step["samples"], step["loss"]) for step in events.curve(events.read_all(first.events))]
    assert [number for number, *_ in losses] == [1, 2, 3, 4]
    # The same from the checkpoint of step 2: what a kill behind it leaves.
    shutil.rmtree(whole)
    assert worker.main(first.root)["outcome"] == "finished"
    assert {name: (whole / name).read_bytes() for name in final} == final
    again = [(step["step"], step["samples"], step["loss"]) for step in events.curve(events.read_all(first.events))]
    assert again == losses

    # transformers' default attention leaves Gemma 2's caps out.
    base = AutoModelForCausalLM.from_pretrained(one.base, dtype=torch.float32, attn_implementation="eager")
    plain = PeftModel.from_pretrained(base, whole).eval()
    tokenizer = AutoTokenizer.from_pretrained(whole)
    assert tokenizer.chat_template == chat.template(one.tokenizer)
    config = config_of(one.base, system_prompt=SYSTEM)
    row = torch.tensor([chat.encode(talk(QUESTION, ANSWER), tokenizer, config).input_ids])
    assert row[0].tolist() == chat.encode(talk(QUESTION, ANSWER), one.tokenizer, config).input_ids
    with torch.no_grad():
        tuned = plain(row).logits
        with plain.disable_adapter():
            assert not torch.equal(plain(row).logits, tuned)
        from kaggle_lib import strategies

        mine, _ = strategies.tuned(
            config.model_copy(update={"lora_target_modules": ("q_proj", "v_proj", "gate_proj")}), whole, tmp_path
        )
        torch.testing.assert_close(mine(row).logits, tuned, rtol=1e-4, atol=1e-4)
