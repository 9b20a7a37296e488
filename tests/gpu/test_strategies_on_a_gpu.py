"""The strategies' contract in fp16 and NF4 on a GPU, and a killed run of each that resumes."""

import json
import subprocess
import sys

import pytest
from support.sessions import Place

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def probed(small, tmp_path_factory):
    import os

    found = {}
    for strategy in ("peft", "unsloth"):
        folder = tmp_path_factory.mktemp(strategy)
        words = [sys.executable, "-m", "support.strategy_probe", strategy, str(folder), str(small)]
        path = os.pathsep.join(sys.path)
        ran = subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr[-3000:]
        found[strategy] = json.loads(ran.stdout.splitlines()[-1])
    return found["peft"], found["unsloth"]


@pytest.mark.parametrize(
    "what", ["frozen", "quantised", "template", "pad", "stops", "trainable", "start", "rows", "base"]
)
def test_both_have_the_same(probed, what):
    peft, unsloth = probed
    assert unsloth[what] == peft[what]


def test_the_adapter_is_fp32_and_nothing_else(probed):
    for one in probed:
        assert {dtype for _, dtype in one["trainable"].values()} == {"torch.float32"}
        assert one["dtypes"] == ["torch.float16", "torch.uint8"]


def test_recomputation_changes_no_bit(probed):
    for one in probed:
        assert one["gradients"][0] == one["gradients"][1] == one["gradients"][2]


def test_no_packed_sample_sees_another(probed):
    assert [one["leak"] for one in probed] == [False, False]


def test_no_gradient_and_no_token_passes_between_samples(probed):
    """Of the other sample's loss: a gradient of exactly 0, and the same bits whatever the first sample says."""
    for one in probed:
        for path, (to_the_other, to_itself, same) in one["isolated"].items():
            assert (path, to_the_other, to_itself, same) == (path, 0.0, True, True)
    assert [sorted(one["isolated"]) for one in probed] == [["by positions", "packed", "padded"], ["packed", "padded"]]


def test_the_same_loss_to_half_precision(probed):
    peft, unsloth = probed
    assert unsloth["logits"] == pytest.approx(peft["logits"], rel=2e-3)
    assert len(unsloth["generated"]) == len(peft["generated"])


STRATEGIES = ("peft", "unsloth")


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """Uninterrupted runs: of each strategy with every layer recomputed, and with none."""
    root, places = tmp_path_factory.mktemp("whole"), {}
    for strategy in STRATEGIES:
        for recomputation in ("full", "none"):
            values = {"strategy": strategy, "base_model": small, "precision": "fp16", "optim": "adamw_8bit"}
            values |= {"recomputation": recomputation, "max_length": 512}
            places[strategy, recomputation] = Place(root / f"{strategy}-{recomputation}", values=values)
    for place in places.values():
        assert place.call()["outcome"] == "finished"
    return places


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_trainer_recomputes_what_it_was_told_to(strategy, whole):
    full, none = whole[strategy, "full"], whole[strategy, "none"]
    peaks = [max(step["memory"] for step in place.steps()) for place in (full, none)]
    print(f"\n{strategy}: peak {peaks[0] / 2**20:.0f} MiB with every layer recomputed, {peaks[1] / 2**20:.0f} without")
    assert peaks[0] < 0.95 * peaks[1]
    print(f"{strategy}: equal bytes: {full.final_bytes() == none.final_bytes()}")


def test_both_train_alike(whole):
    for mine, theirs in zip(whole["unsloth", "full"].curve(), whole["peft", "full"].curve(), strict=True):
        assert mine[:2] == theirs[:2]
        assert mine[2] == pytest.approx(theirs[2], rel=1e-2)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_run_goes_on_with_the_same_samples(strategy, whole, tmp_path):
    """Equal bytes are not asserted: not every kernel of a GPU is deterministic."""
    place = Place(tmp_path, values=whole[strategy, "full"].values)
    process = place.start()
    place.wait_for_step(process, 9)
    process.kill()
    process.communicate()
    assert place.call()["resumed_from"] >= 8
    for mine, theirs in zip(place.curve(), whole[strategy, "full"].curve(), strict=True):
        assert mine[:2] == theirs[:2]
        assert mine[2] == pytest.approx(theirs[2], rel=1e-2)
    print(f"\n{strategy}: equal bytes after a kill: {place.final_bytes() == whole[strategy, 'full'].final_bytes()}")
