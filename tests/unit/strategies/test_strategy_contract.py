"""Both strategies load the same base weights, draw and train the same adapter, and write the same checkpoint."""

import json
import os
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
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
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


def test_each_in_a_process_of_its_own_and_nothing_in_the_working_directory(probed):
    peft, unsloth = probed
    assert peft["imported"] == []
    assert unsloth["imported"] == ["unsloth", "unsloth_zoo"]
    assert peft["left"] == unsloth["left"] == []


def test_whole_runs_agree_and_hold_the_same_files(tmp_path):
    places = [Place(tmp_path / name, values={"strategy": name}) for name in ("peft", "unsloth")]
    for place in places:
        assert place.call()["outcome"] == "finished"
    peft, unsloth = places
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
