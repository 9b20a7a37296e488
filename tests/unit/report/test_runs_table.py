"""Several runs of one store in one table: a sweep's result."""

import json

from support.checkpoint_folders import make_checkpoint, make_events

from kaggle_lib import api
from kaggle_lib.checkpoints.folder_store import FolderStore
from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.config import RunConfig


def store_run(tmp_path, name, rate, step, losses, result=None):
    store = FolderStore(tmp_path / "store", name)
    config = RunConfig.create({"run": name, "base_model": "sample", "data": "sample", "learning_rate": rate})
    frozen = {"config": config.model_dump(mode="json"), "code": "c"}
    claim = store.claim(frozen, Lease.mine("s1"), "a" * 32)
    events = make_events(tmp_path / name / "events", "s1", [])
    lines = [
        {
            "event": "step",
            "time": "2026-11-20T10:00:00.000Z",
            "session": "s1",
            "attempt": 0,
            "step": number,
            "loss": loss,
        }
        | {"samples": [0], "tokens": 1, "seconds": 1.0}
        for number, loss in enumerate(losses, start=1)
    ]
    (events / "s1.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder, _ = make_checkpoint(tmp_path / name, step, total_steps=60)
    record = {"id": "s1", "job": "train", "started": "2026-11-20T10:00:00.000Z", "ended": "2026-11-20T10:01:00.000Z"}
    record |= {
        "from_step": 0,
        "to_step": step,
        "ended_because": "paused: enough",
        "seconds": {"wall": 60.0, "kept": 30.0},
    }
    claim.commit(folder, record, events)
    if result:
        (tmp_path / name / "evaluation").mkdir()
        (tmp_path / name / "evaluation" / "result.json").write_text(json.dumps(result))
        claim.put("evaluation", tmp_path / name / "evaluation")
    claim.release("done", record, events)


def test_a_sweep_is_one_table_of_what_differs_and_what_came_of_it(tmp_path, capsys):
    losses = [9.0] * 5 + [2.0] * 10 + [1.0] * 10  # the last 20: ten of each
    store_run(tmp_path, "lr-1e-4", 1e-4, 60, losses, {"base": {"bits_per_byte": 2.0}, "tuned": {"bits_per_byte": 1.25}})
    store_run(tmp_path, "lr-2e-4", 2e-4, 40, [3.0])
    store = str(tmp_path / "store")
    assert api.status(store=store) == {
        "runs": [
            {
                "run": "lr-1e-4",
                "state": "finished",
                "step": 60,
                "total_steps": 60,
                "loss": 1.5,
                "bits_per_byte": 1.25,
                "settings": {"learning_rate": 1e-4},
            },
            {
                "run": "lr-2e-4",
                "state": "paused",
                "step": 40,
                "total_steps": 60,
                "loss": 3.0,
                "bits_per_byte": None,
                "settings": {"learning_rate": 2e-4},
            },
        ]
    }
    assert capsys.readouterr().out == (
        "run      state     step      learning_rate  loss    bits/byte\n"
        "lr-1e-4  finished  60 of 60  0.0001         1.5000  1.2500\n"
        "lr-2e-4  paused    40 of 60  0.0002         3.0000  -\n"
    )
    assert api.status(store=store, run="lr-1e-4", all=True) == api.status(store=store)
    assert api.status(store=store, run="lr-1e-4")["step"] == 60


def test_an_empty_store_has_no_runs(tmp_path, capsys):
    assert api.status(store=str(tmp_path / "store")) == {"runs": []}
    assert capsys.readouterr().out == f"There is no run in {tmp_path / 'store'}.\n"
