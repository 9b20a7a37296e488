"""A run's state and what `status` says of it."""

from __future__ import annotations

import pytest

from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.manifest import FileEntry, Manifest
from kaggle_lib.checkpoints.store import Stored, StoreState
from kaggle_lib.config import RunConfig
from kaggle_lib.presets import read_preset
from kaggle_lib.report.status import as_text, status

NOW = 1_800_000_000.0
LIVING = "20261125T100000-bbbb2222"


def record(number, **more):
    return {
        "id": f"2026112{number}T100000-aaaa1111",
        "job": "train",
        "started": f"2026-11-2{number}T10:00:00.000Z",
        "ended": f"2026-11-2{number}T10:01:40.000Z",
        "last_event": f"2026-11-2{number}T10:01:40.000Z",
        "from_step": 0,
        "to_step": 30,
        "ended_because": "paused: session_hours=9 are over",
        "seconds": {"wall": 100.0, "kept": 61.0},
        **more,
    }


def stored(step, total=60, problem=None, **more):
    entry = FileEntry(size=4, sha256="0" * 64)
    named = dict.fromkeys(("fingerprint", "lineage", "session", "nonce"), "x")
    manifest = Manifest(
        step=step, total_steps=total, files={"optimizer.pt": entry}, versions={}, cut={}, **named, **more
    )
    return Stored(step=step, id=f"id{step}", bytes=1_234_567, manifest=manifest, problem=problem)


def lease(expires):
    # A machine that is not this one, so that nothing can be proved about its process.
    return Lease(
        session=LIVING,
        host="elsewhere",
        machine="x",
        boot_id="b",
        pid_namespace="p",
        pid=1,
        pid_started=1,
        expires=expires,
    )


def state(**more):
    there = {"config": {"run": "a"}, "ledger": [record(1)], "checkpoints": [stored(30)], "now": NOW}
    return StoreState(**{**there, **more})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (StoreState(), "empty"),
        (state(checkpoints=[], ledger=[]), "paused"),
        (state(), "paused"),
        (state(lease=lease(NOW + 1)), "running"),
        (state(lease=lease(NOW - 1)), "paused"),
        (state(checkpoints=[stored(60), stored(50)]), "finished"),
        (state(checkpoints=[stored(40, stopped_early="early stopping at step 40"), stored(30)]), "finished"),
        (state(ledger=[record(1), record(2, ended_because="failed: The loss of step 7 is nan.")]), "failed"),
        (state(ledger=[record(1, ended_because="failed: x"), record(2)]), "paused"),
        (state(ledger=[record(1, ended=None, ended_because=None)]), "paused"),
    ],
)
def test_state(given, expected):
    assert status("a", given)["state"] == expected


def test_a_holder_of_the_lease_that_is_dead_for_certain_is_not_running():
    mine = Lease.mine("20261125T100000-bbbb2222").model_copy(update={"expires": NOW + 100})
    assert status("a", state(lease=mine))["state"] == "running"
    dead = mine.model_copy(update={"pid_started": mine.pid_started - 1})
    assert status("a", state(lease=dead))["state"] == "paused"


def test_fields_are_those_that_others_rely_on():
    ledger = [record(1), record(2, from_step=30, to_step=40, ended=None, ended_because=None)]
    there = [stored(40, problem=("a", "b")), stored(30)]
    given = state(lease=lease(NOW), ledger=ledger, checkpoints=there, bytes=2_469_200)
    assert status("a", given) == {
        "run": "a",
        "state": "paused",
        "step": 30,
        "total_steps": 60,
        "stopped_early": None,
        "best": None,
        "checkpoint": {"step": 30, "id": "id30", "bytes": 1_234_567},
        "storage": {"checkpoints": 2, "bytes": 2_469_200},
        "lease": {
            "session": "20261125T100000-bbbb2222",
            "host": "elsewhere",
            "expires": "2027-01-15T08:00:00Z",
            "seconds_left": 0,
        },
        "sessions": [
            {
                "id": "20261121T100000-aaaa1111",
                "started": "2026-11-21T10:00:00.000Z",
                "ended": "2026-11-21T10:01:40.000Z",
                "from_step": 0,
                "to_step": 30,
                "ended_because": "paused: session_hours=9 are over",
                "goodput": 0.61,
            },
            {
                "id": "20261122T100000-aaaa1111",
                "started": "2026-11-22T10:00:00.000Z",
                "ended": "2026-11-22T10:01:40.000Z",
                "from_step": 30,
                "to_step": 40,
                "ended_because": "killed",
                "goodput": 0.61,
            },
        ],
        "goodput": 0.61,
        "speed": None,
    }


def test_tokens_per_second_of_the_last_session_stand_beside_what_was_planned():
    config = RunConfig.create({**read_preset("bengali-8b-t4"), "run": "a"})
    trained = {"seconds": {"wall": 100.0, "kept": 61.0, "training": 60.0}, "tokens": 30_000, "processes": 2}
    ledger = [record(1, **trained, versions={"gpu": "Tesla T4"}), record(2, job="evaluate", from_step=30)]
    given = state(ledger=ledger, config={"config": config.model_dump(mode="json")})
    told = status("a", given)
    # 1,000 tokens a step, all layers recomputed, two micro-batches that two GPUs share almost equally: by the formula
    # in report/speed.py
    seconds = 1000 * 6 * 8_030_261_248 / (22.5e12 * 0.75) + 2 * 3 * 2.5 * 8_030_261_248 / 275e9
    assert told["speed"] == {
        "tokens_per_second": 500.0,
        "planned": pytest.approx(1000 / seconds * 2 * 0.97, rel=0.005),
        "how": "projection",
    }
    assert "Tokens/s: 500 in the last session, 589 planned (projection)\n" in as_text(told)
    ledger[0]["versions"]["gpu"] = "some other"
    assert status("a", given)["speed"] == {"tokens_per_second": 500.0, "planned": None, "how": "unknown"}


def test_empty():
    assert status("a", StoreState()) == {
        "run": "a",
        "state": "empty",
        "step": 0,
        "total_steps": None,
        "stopped_early": None,
        "best": None,
        "checkpoint": None,
        "storage": {"checkpoints": 0, "bytes": 0},
        "lease": None,
        "sessions": [],
        "goodput": None,
        "speed": None,
    }
    empty = status("a", StoreState())
    assert as_text(empty) == "Run a: nothing is on the store yet."
    assert as_text(empty, "; there are b, c") == "Run a: nothing is on the store yet; there are b, c."


def test_an_end_before_the_last_step_and_the_best_step_are_told():
    early = "early stopping at step 40: no improvement since step 20"
    best = {"step": 20, "bits_per_byte": 0.81236}
    told = status("a", state(checkpoints=[stored(40, stopped_early=early, best=best)]))
    assert (told["stopped_early"], told["best"]) == (early, best)
    lines = as_text(told).splitlines()
    assert lines[0] == f"Run a: finished, step 40 of 60 ({early})"
    assert lines[2] == "Best validation: 0.8124 bits per byte at step 20"


def test_text():
    given = state(
        lease=lease(NOW + 90),
        ledger=[record(1), record(2, id=LIVING, from_step=30, ended=None, ended_because=None)],
        bytes=1_300_000,
    )
    assert as_text(status("a", given)) == (
        "Run a: running, step 30 of 60\n"
        "Checkpoint: step 30, 1.2 MB, id id30\n"
        "Storage: 1 checkpoint, 1.3 MB in all\n"
        "Lease: session 20261125T100000-bbbb2222 on elsewhere, until 2027-01-15T08:01:30Z (2 min left)\n"
        "Goodput: 30 % of the paid time is in kept training steps\n"
        "Sessions:\n"
        "  20261121T100000-aaaa1111  2026-11-21T10:00:00.000Z  steps 0 to 30, goodput 61 %, "
        "paused: session_hours=9 are over\n"
        "  20261125T100000-bbbb2222  2026-11-22T10:00:00.000Z  steps 30 to 30, goodput 0 %, no end recorded"
    )
