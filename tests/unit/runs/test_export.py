"""What does not fit is refused before a byte of it is written; what is worse than the adapter never leaves."""

import json
import math
import re
import shutil
import struct
from collections import namedtuple

import pytest
from support.go_template import render

from kaggle_lib.data.formats import FORMATS
from kaggle_lib.errors import ConfigError, UserError
from kaggle_lib.runs import export, gguf

Usage = namedtuple("Usage", "total used free")
GB = 10**9


def header_only(folder, shards=4):
    """Llama-3.1-8B's safetensors without their 16 GB: what a header says of the shapes is there."""
    names = {"model.embed_tokens.weight": [128256, 4096], "lm_head.weight": [128256, 4096], "model.norm.weight": [4096]}
    for layer in range(32):
        shapes = {"self_attn.q_proj": [4096, 4096], "self_attn.k_proj": [1024, 4096], "self_attn.v_proj": [1024, 4096]}
        shapes |= {"self_attn.o_proj": [4096, 4096], "mlp.gate_proj": [14336, 4096], "mlp.up_proj": [14336, 4096]}
        shapes |= {"mlp.down_proj": [4096, 14336], "input_layernorm": [4096], "post_attention_layernorm": [4096]}
        names |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in shapes.items()}
    folder.mkdir()
    for number in range(shards):
        mine = dict(list(names.items())[number::shards])
        about = {name: {"dtype": "BF16", "shape": shape, "data_offsets": [0, 0]} for name, shape in mine.items()}
        content = json.dumps({"__metadata__": {"format": "pt"}, **about}).encode()
        path = folder / f"model-{number + 1:05}-of-{shards:05}.safetensors"
        path.write_bytes(struct.pack("<Q", len(content)) + content)
    return folder


def test_what_an_8b_needs_is_read_from_the_shapes(tmp_path):
    assert export.parameters(header_only(tmp_path / "base")) == 8_030_261_248


def test_nine_free_gigabytes_are_refused_with_a_folder_that_would_do(tmp_path, monkeypatch):
    place, roomy = tmp_path / "work" / "bn" / "export", tmp_path / "roomy"
    roomy.mkdir()
    free = {roomy: 100 * GB}
    usage = lambda path: Usage(200 * GB, 0, free.get(path, 9 * GB))  # noqa: E731
    monkeypatch.setattr(shutil, "disk_usage", usage)
    monkeypatch.setattr(export.tempfile, "gettempdir", lambda: str(roomy))
    count = 4_015_130_624  # half of them, so that this machine's memory suffices
    with pytest.raises(UserError) as caught:
        export.check_room(2 * count, "fp16", place, 2 * 2 * count)
    assert str(caught.value) == (
        f"There is no room for this form: it needs 16.1 GB, and {place} has 9.0 GB. Nothing was written or sent. "
        f"Give a folder that has room: --scratch {roomy} (100.0 GB free)."
    )
    assert not place.exists()
    free[roomy] = 9 * GB
    with pytest.raises(UserError, match=r"Make room there, or give a folder on another disk: --scratch FOLDER\.$"):
        export.check_room(count, "fp16", place, 16 * GB)
    export.check_room(count, "fp16", place)  # 8.2 GB
    with pytest.raises(UserError, match=r"^Merging needs 22000\.0 GB of memory, the GPUs' included, and \d"):
        export.check_room(10**13, "fp16", place)


def test_nothing_is_made_in_what_kaggle_keeps(tmp_path, monkeypatch):
    (tmp_path / "kaggle" / "working").mkdir(parents=True)
    monkeypatch.setenv("KAGGLE_LIB_ROOT", str(tmp_path / "kaggle"))
    opened = type("Opened", (), {"config": type("Config", (), {"run": "bn"})})
    with pytest.raises(UserError, match=rf"--scratch {re.escape(str(tmp_path / 'kaggle' / 'temp'))}\.$"):
        export._place(opened, str(tmp_path / "kaggle" / "working" / "x"))
    assert export._place(opened, "forms") == tmp_path / "kaggle" / "temp" / "forms" / "bn" / "export"


def side(bits, answers=("ক খ গ", "ভালো")):
    return {"bits_per_byte": bits, "rows": [3, 7], "answers": list(answers)}


def told(compared, what="merged model"):
    said = []
    export.verify(compared, what, said.append)
    return said


@pytest.mark.parametrize(
    ("form", "answers", "accepted"),
    [
        (1.000, ("ক খ গ", "ভালো"), True),
        (0.900, ("ক খ গ", "ভালো"), True),  # better than the adapter
        (1.019, ("ক খ গ", "ভালো"), True),  # a tenth of the gain of 0.2
        (1.021, ("ক খ গ", "ভালো"), False),
        (1.200, ("ক খ গ", "ভালো"), False),  # the base model again
        (None, ("ক খ গ", "ভালো"), False),
        (1.000, ("ক খ ঘ", "ভা"), True),
        (1.000, ("x", "y"), False),
    ],
)
def test_a_form_may_lose_a_tenth_of_the_gain(form, answers, accepted, tmp_path):
    compared = export.compare({"base": side(1.2), "adapter": side(1.0)}, side(form, answers), tmp_path)
    assert compared.bound == pytest.approx(1.02)
    if accepted:
        assert told(compared)[0].startswith(f"The merged model has {form:.4f} bits per byte on 2 held-out rows, the ")
    else:
        with pytest.raises(
            UserError, match=r"^The merged model is not what the adapter is: it has .*, and 25% have to"
        ):
            told(compared)


@pytest.mark.parametrize("base", [0.9, None])
def test_where_tuning_gained_nothing_rounding_is_all_that_is_accepted(base, tmp_path):
    pair = {"base": side(base), "adapter": side(1.0)}
    assert export.compare(pair, side(1.0), tmp_path).bound == pytest.approx(1.002)


def test_what_was_evaluated_with_a_quantised_base_stands_beside_it(tmp_path):
    bits = {3: 8, 5: 99, 7: 9}
    lines = [{"id": number, "bytes": 10, "tuned": {"nll": math.log(2) * nll}} for number, nll in bits.items()]
    (tmp_path / "scores.jsonl").write_text("\n".join(map(json.dumps, lines)))
    pair = {"base": side(1.2), "adapter": side(1.0)}
    compared = export.compare(pair, side(1.0), tmp_path)
    assert compared.trained == pytest.approx(17 / 20)
    assert "0.8500: load it so" in told(compared)[1]
    assert export.compare(pair, {**side(1.0), "rows": [3, 8]}, tmp_path).trained is None


DIALOGUES = [
    [("user", "কেমন আছেন?")],
    [("system", "Answer in Bengali."), ("user", "How are you?")],
    [("user", "এক\nদুই"), ("assistant", "তিন “চার”"), ("user", "{{ .System }}")],
    [("system", "ক"), ("user", "খ"), ("assistant", "গ"), ("user", "ঘ"), ("assistant", "ঙ"), ("user", "চ")],
    [("user", "a  b"), ("assistant", ""), ("user", "<b>&amp;\"'")],
]


LLAMA = FORMATS[0]


@pytest.mark.parametrize("form", [one for one in FORMATS if one.preamble is not None], ids=lambda one: one.family)
@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_the_modelfile_renders_what_was_trained_on(form, dialogue):
    from jinja2 import Environment

    messages = [{"role": role, "content": content} for role, content in dialogue]
    text = gguf.modelfile("x-q8_0.gguf", form, None)
    template = re.search(r'^TEMPLATE """(.*?)"""$', text, re.DOTALL | re.MULTILINE)[1]
    system = next((content for role, content in dialogue if role == "system"), "")
    told = [{"Role": one["role"], "Content": one["content"]} for one in messages]
    wanted = Environment().from_string(form.template).render(messages=messages, add_generation_prompt=True)
    # llama.cpp puts the begin-of-text token in front of it.
    assert form.begin + render(template, {"System": system, "Messages": told}) == wanted


def test_the_modelfile_names_the_file_both_stops_and_the_runs_system_prompt():
    lines = gguf.modelfile("bn-q8_0.gguf", LLAMA, " ভালো থাকুন ").splitlines()
    assert lines[0] == "FROM ./bn-q8_0.gguf"
    assert 'SYSTEM """ভালো থাকুন"""' in lines
    assert lines[-3:] == [
        'PARAMETER stop "<|eot_id|>"',
        'PARAMETER stop "<|end_of_text|>"',
        "PARAMETER temperature 0",
    ]
    assert not [line for line in gguf.modelfile("x", LLAMA, None).splitlines() if line.startswith("SYSTEM")]
    with pytest.raises(ConfigError, match=r'^system_prompt: it holds """, which a Modelfile cannot$'):
        gguf.modelfile("x", LLAMA, 'a"""b')
    with pytest.raises(ConfigError, match=r"^--form: a Modelfile cannot say where Gemma has its system prompt; take "):
        gguf.modelfile("x", next(one for one in FORMATS if one.family == "Gemma"), None)


def test_a_quantisation_that_is_none_and_missing_tools_are_named(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"^--quantization: 'q4km' is none of f16, .*; did you mean 'q4_k_m'\?$"):
        gguf.check("q4km")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^A GGUF file cannot be made here: llama\.cpp's converter .* is missing\. "):
        gguf.find(str(tmp_path), "q8_0")
    (tmp_path / "convert_hf_to_gguf.py").write_text("")
    (tmp_path / "convert_hf_to_gguf.py").write_text("import sentencepieces")
    with pytest.raises(
        UserError, match=r"itself needs \(ModuleNotFoundError: No module named 'sentencepieces'\) is miss"
    ):
        gguf.find(str(tmp_path), "q8_0")
    (tmp_path / "convert_hf_to_gguf.py").write_text("")
    assert gguf.find(str(tmp_path), "q8_0") == gguf.Tools(tmp_path / "convert_hf_to_gguf.py", None)
    with pytest.raises(UserError, match=r"llama-quantize, which makes q4_k_m, is missing\. .*, or take q8_0\.$"):
        gguf.find(str(tmp_path), "q4_k_m")
    (tmp_path / "llama-quantize").write_text("")
    assert gguf.find(str(tmp_path), "q4_k_m").quantizer == tmp_path / "llama-quantize"
