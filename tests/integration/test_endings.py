"""Every way a session can end, with both strategies: its own outcome, its exit code, and the same final bytes."""

import random

import pytest
from support.endings import ACCIDENTS, ENDS, STEPS, can_mount, place_for, session, stored_step

pytestmark = pytest.mark.slow
STRATEGIES = ("peft", "unsloth")
HOURS = {"peft": 0.008, "unsloth": 0.014}  # of a session that ends at its deadline: to load, and to do some steps


@pytest.fixture(scope="module", params=STRATEGIES)
def whole(request, tmp_path_factory):
    """The uninterrupted run."""
    place = place_for(tmp_path_factory.mktemp(f"whole-{request.param}"), request.param)
    assert session(place, "finish", STEPS)["step"] == STEPS
    return place


def test_every_ending_once_in_one_run(whole, tmp_path):
    place = place_for(tmp_path, whole.values["strategy"])
    accidents = [("raise", 2), ("freeze", 3), ("memory", 4), ("block", 6), ("kill", 8)]
    session(place, "interrupt", 9, accidents, slow=0.3)
    session(place, "deadline", 0, slow=1.5, hours=HOURS[whole.values["strategy"]])
    for end in ("twice", "sigterm", "loss", *(["fill"] if can_mount() else []), "killed"):
        stored = stored_step(place)
        at = stored + 3
        said = session(place, end, at, slow=0.5)["said"]
        if end in ("loss", "fill"):  # a save each 5 steps, and the stored one may be of a step between
            assert f"The checkpoint of step {max(stored, (at - 1) // 5 * 5)} is on the store." in said
    assert session(place, "finish", STEPS)["step"] == STEPS
    assert place.final_bytes() == whole.final_bytes()
    assert place.curve() == whole.curve()


def test_one_of_two_processes_runs_out_of_memory_and_one_freezes(tmp_path):
    whole, place = (place_for(tmp_path / name, "peft", processes=2, epochs=1) for name in ("whole", "hurt"))
    session(whole, "finish", 0)
    session(place, "finish", 0, [("memory", 3), ("freeze", 12)])
    assert place.final_bytes() == whole.final_bytes()
    assert place.curve() == whole.curve()


@pytest.mark.soak
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_soak_every_ending_five_times_at_random_moments(strategy, tmp_path):
    chance = random.Random(strategy)
    values = {"epochs": 100}  # 2,000 steps
    whole = place_for(tmp_path / "whole", strategy, **values)
    session(whole, "finish", 0)
    place = place_for(tmp_path / "ended", strategy, **values)
    ends = [end for end in ENDS if end != "finish" and (end != "fill" or can_mount())]
    told = [*(5 * [(end, None) for end in ends]), *(5 * [("sigterm", accident) for accident in ACCIDENTS])]
    chance.shuffle(told)
    for end, accident in told:
        at = (stored_step(place) if place.stored.exists() else 0) + chance.randint(4, 20)
        happens = [(accident, at)] if accident else []
        session(place, end, at + 1 + chance.randint(0, 9), happens, slow=0.1, hours=HOURS[strategy])
    session(place, "finish", 0)
    print(f"\n{strategy}: {len(told)} sessions ended otherwise: {told}")
    assert place.final_bytes() == whole.final_bytes()
    assert place.curve() == whole.curve()
