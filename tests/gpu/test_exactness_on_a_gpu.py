"""Whole runs in `deterministic` mode on a GPU, with long rows: killed, recomputed otherwise, out of memory.

What is asserted here is what `deterministic=true` is for. Where one of these fails, the run differs, and the README
must not say otherwise.
"""

import pytest
from support.sessions import Place

from kaggle_lib.runs import events

pytestmark = pytest.mark.slow
STRATEGIES = ("peft", "unsloth")
OUT_OF_MEMORY = """
import torch

met = []


def adapt(model, config):
    def fail(gradient):
        raise torch.OutOfMemoryError("CUDA out of memory: injected.")

    def watch(module, inputs, output):
        if output.requires_grad:
            met.append(1)
            if len(met) == 24:
                output.register_hook(fail)

    model.get_base_model().model.layers[0].register_forward_hook(watch)
    return model
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """A corpus of the mixture of lengths, up to 4,096 tokens."""
    import shapes  # found by the fixture `small`

    from kaggle_lib.data.mixture import mixture

    return shapes.make_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl", mixture(80))


@pytest.fixture(scope="module")
def values(small, rows):
    given = {"base_model": small, "data": rows, "precision": "fp16", "optim": "adamw_8bit", "max_length": 4096}
    given |= {"recomputation": "auto", "deterministic": True, "max_steps": 14, "save_steps": 4, "eval_steps": 0}
    return given | {"validation_fraction": 0, "test_fraction": 0}


@pytest.fixture(scope="module")
def whole(values, tmp_path_factory):
    places = {}
    for strategy in STRATEGIES:
        places[strategy] = Place(tmp_path_factory.mktemp(strategy), values={**values, "strategy": strategy})
        assert places[strategy].call()["outcome"] == "finished"
    return places


def changed(place, tmp_path, **more):
    return Place(tmp_path, values={**place.values, **more})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_second_run_and_a_killed_one_end_with_the_same_bytes(strategy, whole, tmp_path):
    place = changed(whole[strategy], tmp_path)
    process = place.start()
    place.wait_for_step(process, 6)
    process.kill()
    process.communicate()
    assert place.call()["resumed_from"] >= 4
    assert place.curve() == whole[strategy].curve()
    assert place.final_bytes() == whole[strategy].final_bytes()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_is_recomputed_and_an_mlp_that_keeps_more_change_no_bit(strategy, whole, tmp_path):
    budget = calibrated(whole[strategy])["token_budget"]
    for number, more in enumerate(({"recomputation": "full"}, {"recomputation": "none"}, {"lean_mlp": False})):
        # Without calibration the budget has to be given, for the cut decides the bits.
        (folder := tmp_path / str(number)).mkdir()
        place = changed(whole[strategy], folder, token_budget=budget, **more)
        assert place.call()["outcome"] == "finished"
        assert place.curve() == whole[strategy].curve(), more
        assert place.final_bytes() == whole[strategy].final_bytes(), more


def calibrated(place):
    return next(event for event in events.read_all(place.folder.events) if event["event"] == "calibration")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_out_of_memory_error_in_a_backward_pass_changes_no_bit(strategy, whole, tmp_path):
    hooks = tmp_path / "hooks.py"
    hooks.write_text(OUT_OF_MEMORY)
    place = changed(whole[strategy], tmp_path, hooks=hooks)
    assert place.call()["outcome"] == "finished"
    warnings = [event["message"] for event in events.read_all(place.folder.events) if event["event"] == "warning"]
    assert any(message.startswith("Out of memory in step") for message in warnings)
    assert place.curve() == whole[strategy].curve()
    assert place.final_bytes() == whole[strategy].final_bytes()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_calibrate_to_the_same_budget(strategy, whole, tmp_path):
    place = changed(whole[strategy], tmp_path, max_steps=1)
    assert place.call()["outcome"] == "finished"
    mine, theirs = calibrated(place), calibrated(whole[strategy])
    print(f"\n{strategy}: {theirs}")
    assert {key: mine[key] for key in ("base", "fixed", "layer", "token_budget")} == {
        key: theirs[key] for key in ("base", "fixed", "layer", "token_budget")
    }


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_peaks_stay_under_the_plan(strategy, whole, tmp_path):
    found = calibrated(whole[strategy])
    room = 1.1 * (found["base"] + 1024 * (found["fixed"] + found["layers"] * found["layer"]))
    import torch

    total = torch.cuda.get_device_properties(0).total_memory
    place = changed(whole[strategy], tmp_path, memory_fraction=room / total)
    assert place.call()["outcome"] == "finished"
    assert calibrated(place)["token_budget"] < found["token_budget"]
    peak = max(step["memory"] for step in place.steps())
    print(f"\n{strategy}: planned {room / 2**20:.0f} MiB, peak {peak / 2**20:.0f} MiB")
    assert peak < 1.05 * room


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_gpus_are_one_to_rounding(strategy, whole, tmp_path):
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU")
    place = changed(whole[strategy], tmp_path, processes=2)
    assert place.call()["outcome"] == "finished"
    for mine, theirs in zip(place.curve(), whole[strategy].curve(), strict=True):
        assert mine[:2] == theirs[:2]
        assert mine[2] == pytest.approx(theirs[2], rel=2e-3)
