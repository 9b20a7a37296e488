"""Both strategies load the same base weights, draw and train the same adapter, and write the same checkpoint."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.sessions import Place

from kaggle_lib.config import RunConfig
from kaggle_lib.errors import UserError

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """What each strategy loads and adapts, by a process of its own in an empty working directory."""
    found = {}
    for strategy in ("peft", "unsloth"):
        folder, cwd = tmp_path_factory.mktemp(strategy), tmp_path_factory.mktemp(f"cwd-{strategy}")
        words = [sys.executable, "-m", "support.strategy_probe", strategy, str(folder)]
        # Not what an earlier test of this process has set for its own run.
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("UNSLOTH")}
        environment = {**inherited, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        ran = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        found[strategy] = {**json.loads(ran.stdout.splitlines()[-1]), "left": [path.name for path in cwd.iterdir()]}
    return found["peft"], found["unsloth"]


SAME = (
    "base",
    "frozen",
    "quantised",
    "dtypes",
    "template",
    "pad",
    "stops",
    "trainable",
    "start",
    "adapter_files",
    "rows",
)


@pytest.mark.parametrize("what", SAME)
def test_both_have_the_same(probed, what):
    peft, unsloth = probed
    assert unsloth[what] == peft[what]


def test_the_base_is_frozen_and_quantised_and_the_adapter_fp32(probed):
    for one in probed:
        assert one["frozen"] is True
        assert one["quantised"] == 28  # seven linear layers in each of four
        assert one["dtypes"] == ["torch.float32", "torch.uint8"]
        assert len(one["trainable"]) == 32
        assert {dtype for _, dtype in one["trainable"].values()} == {"torch.float32"}
        assert all(".lora_" in name for name in one["trainable"])


def test_both_write_an_adapter_that_plain_peft_reads(probed):
    peft, unsloth = (one["adapter_config"] for one in probed)
    for name in ("r", "lora_alpha", "lora_dropout", "target_modules", "bias", "peft_type", "base_model_name_or_path"):
        assert unsloth[name] == peft[name]
    assert unsloth["auto_mapping"] in (None, peft["auto_mapping"])


def test_recomputation_changes_no_bit(probed):
    for one in probed:
        assert one["gradients"][0] == one["gradients"][1] == one["gradients"][2]


def test_the_same_loss_and_answers_to_rounding(probed):
    peft, unsloth = probed
    assert unsloth["gradients"][0][0] == pytest.approx(peft["gradients"][0][0], rel=1e-6)
    assert unsloth["logits"] == pytest.approx(peft["logits"], rel=1e-6)
    assert unsloth["generated"] == peft["generated"]


def test_no_packed_sample_sees_another(probed):
    assert [one["leak"] for one in probed] == [False, False]


def test_no_gradient_and_no_token_passes_between_samples(probed):
    """Of the other sample's loss: a gradient of exactly 0, and the same bits whatever the first sample says."""
    for one in probed:
        for path, (to_the_other, to_itself, same) in one["isolated"].items():
            assert (path, to_the_other, to_itself, same) == (path, 0.0, True, True)
    assert [sorted(one["isolated"]) for one in probed] == [["by positions", "packed", "padded"], ["packed", "padded"]]


def test_what_unsloth_would_load_in_another_way_is_refused(probed):
    first, second, third, windowed, fourth = probed[1]["refusals"]
    asked = "as asked. Nothing has been changed. The worker's log says why; or start another run with strategy=peft."
    loaded = "Unsloth has loaded 'sample' with quantization=nf4 in torch.float32, not with"
    assert first == f"{loaded} quantization=none and precision=fp32 {asked}"
    assert second == f"{loaded} quantization=nf4 and precision=bf16 {asked}"
    assert third.endswith(
        "/other' is of type gemma, and strategy=unsloth trains llama, mistral, qwen2, qwen3 only; set strategy=peft"
    )
    assert windowed.endswith("/windowed' attends to the last 64 tokens only; set max_length=64, or strategy=peft")
    assert fourth == (
        "precision=fp32: on a GPU Unsloth's trainer would compute in bf16 or fp16 all the same. Set precision=fp16 (or "
        "bf16, where the card has it), or strategy=peft."
    )


MIXTURES = """
import sys, types
from kaggle_lib import strategies
from kaggle_lib.config import RunConfig
from kaggle_lib.errors import UserError
values = {"run": "r", "base_model": "b", "data": "sample"}
for strategy, met in (("unsloth", "transformers"), ("peft", "unsloth")):
    sys.modules[met] = types.ModuleType(met)
    try:
        strategies.get(RunConfig.create({**values, "strategy": strategy}))
    except UserError as error:
        print(error)
    del sys.modules[met]
"""


def test_the_two_do_not_meet_in_one_process():
    ran = subprocess.run([sys.executable, "-c", MIXTURES], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stdout.splitlines() == [
        "strategy=unsloth: this process has imported transformers already, and Unsloth has to come first. Run it in a "
        "process of its own; in a notebook, restart the kernel.",
        "strategy=peft: this process has imported Unsloth, which has replaced parts of transformers, PEFT and TRL. Run "
        "it in a process of its own; in a notebook, restart the kernel.",
    ], ran.stderr


def test_each_in_a_process_of_its_own_and_nothing_in_the_working_directory(probed):
    peft, unsloth = probed
    assert unsloth["compiled"].endswith("/.cache/unsloth")
    assert Path(unsloth["compiled"]).parents[1].name.startswith("unsloth")  # the folder that `work_dir` names
    assert peft["imported"] == []
    assert unsloth["imported"] == ["unsloth", "unsloth_zoo"]
    assert peft["left"] == unsloth["left"] == []


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The uninterrupted run of each strategy."""
    root = tmp_path_factory.mktemp("whole")
    places = [Place(root / name, values={"strategy": name}) for name in ("peft", "unsloth")]
    for place in places:
        assert place.call()["outcome"] == "finished"
    return places


def test_whole_runs_agree_and_hold_the_same_files(whole):
    peft, unsloth = places = whole
    finals = [place.folder.checkpoint(24) for place in places]
    files = [
        sorted(path.relative_to(final).as_posix() for path in final.rglob("*") if path.is_file()) for final in finals
    ]
    assert [name for name in files[0] if "events/" not in name] == [name for name in files[1] if "events/" not in name]
    for mine, theirs in zip(unsloth.curve(), peft.curve(), strict=True):
        assert mine[:2] == theirs[:2]
        assert mine[2] == pytest.approx(theirs[2], rel=1e-5)
    assert [mine[2] for mine in unsloth.curve()[:2]] == [theirs[2] for theirs in peft.curve()[:2]]
    # Another strategy would go on otherwise, and is refused.
    said = peft.call(code=2, strategy="unsloth")
    assert "strategy: this run has 'peft', you gave 'unsloth'" in said["reason"]


def test_unsloth_killed_in_the_second_epoch_goes_on_bit_for_bit(whole, tmp_path):
    place = Place(tmp_path, values={"strategy": "unsloth"})
    process = place.start()
    place.wait_for_step(process, 14)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert place.call()["resumed_from"] >= 12
    assert place.final_bytes() == whole[1].final_bytes()
    assert place.curve() == whole[1].curve()


def test_a_missing_package_is_one_message_and_no_switch(tmp_path):
    hiding = tmp_path / "hiding"
    hiding.mkdir()
    (hiding / "unsloth.py").write_text("raise ModuleNotFoundError(\"No module named 'unsloth'\", name='unsloth')")
    place = Place(tmp_path, values={"strategy": "unsloth"})
    words = place.command("train")
    environment = {**os.environ, "PYTHONPATH": f"{hiding}:{ROOT}"}
    # The workers look in the package's own folder first, then there.
    ran = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert (
        "strategy=unsloth needs the package unsloth, which cannot be imported here "
        "(ModuleNotFoundError: No module named 'unsloth'). Nothing has been loaded or changed. Install "
    ) in ran.stderr
    assert "Traceback" not in ran.stderr
    assert not list((tmp_path / "work").glob("**/sample-model*"))


CARDS = [
    # name, capability, what torch was built for, whether it runs
    ("Tesla T4", (7, 5), ["sm_70", "sm_75", "sm_80", "sm_90", "compute_90"], True),
    ("Tesla P100", (6, 0), ["sm_70", "sm_75", "sm_80", "sm_90"], False),
    ("A10", (8, 6), ["sm_75", "sm_80", "sm_90"], True),
    ("H100", (9, 0), ["sm_75", "sm_80"], False),
    ("later", (12, 0), ["sm_75", "sm_90", "compute_90"], True),
    ("H100", (9, 0), ["sm_90a"], True),
]


@pytest.mark.parametrize(("name", "capability", "built", "runs"), CARDS)
def test_a_card_that_torch_has_no_code_for(name, capability, built, runs):
    from kaggle_lib.strategies import common

    config = RunConfig.create({"run": "r", "base_model": "b", "data": "sample", "precision": "fp16"})
    if runs:
        return common._check_card(config, name, capability, built)
    with pytest.raises(UserError, match=f"has no code for {name}, compute capability {capability[0]}.{capability[1]}"):
        common._check_card(config, name, capability, built)
    return None


def test_bf16_is_refused_where_it_is_emulated():
    from kaggle_lib.strategies import common

    config = RunConfig.create({"run": "r", "base_model": "b", "data": "sample", "precision": "bf16"})
    common._check_card(config, "A10", (8, 6), ["sm_80"])
    with pytest.raises(UserError, match=r"precision=bf16: Tesla T4 only emulates bf16\. Set precision=fp16\."):
        common._check_card(config, "Tesla T4", (7, 5), ["sm_75"])
