"""The curve at each tracker: one row a step over all sessions, with the real packages where they are installed."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from kaggle_lib.config import RunConfig
from kaggle_lib.runs.events import EventLog, read_all
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.trackers import Rows

ROOT = Path(__file__).parents[3]


def loss_of(step: int) -> float:
    return 2.0 / step


class Run:
    """A run folder with sessions as a worker writes them: a validation each five steps."""

    def __init__(self, folder: Path) -> None:
        self.folder = RunFolder(folder)
        self.folder.create()

    def session(self, name: str, first: int, last: int, attempt: int = 0, lineage: str = "a" * 32) -> None:
        config = RunConfig.create({"run": "first", "base_model": "sample", "data": "sample"}).model_dump(mode="json")
        self.folder.run_json.write_text(json.dumps({"config": config, "lineage": lineage, "session": name}))
        log = EventLog(self.folder.events, name, attempt)
        for step in range(first, last + 1):
            about = {"samples": [step], "loss": loss_of(step), "tokens": 100, "seconds": 0.5, "memory": None}
            log.write("step", step=step, lr=1e-4, grad_norm=None if step == 3 else 1.0, **about)
            if step % 5 == 0:
                log.write("evaluation", step=step, bits_per_byte=1.5, seconds=0.1)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "first")


# Rows


def taken(rows: Rows, everything: bool = False) -> list[int]:
    return [step for step, _, _ in rows.take(everything=everything)]


def test_a_row_is_whole_when_a_later_step_has_come_and_has_its_validation(run: Run) -> None:
    rows = Rows(0)
    run.session("s1", 1, 4)
    rows.add(read_all(run.folder.events))
    assert taken(rows) == [1, 2, 3]
    run.session("s1", 5, 6)
    rows.add(read_all(run.folder.events))
    [four, (step, values, _)] = list(rows.take(everything=False))
    assert (four[0], step) == (4, 5)
    assert values == {
        "train/loss": 0.4, "train/learning_rate": 1e-4, "train/grad_norm": 1.0, "train/tokens_per_second": 200.0,
        "eval/bits_per_byte": 1.5,
    }  # fmt: skip
    assert taken(rows, everything=True) == [6]
    assert taken(rows, everything=True) == []


def test_steps_done_again_come_once_and_what_the_tracker_has_not_at_all(run: Run) -> None:
    rows = Rows(2)
    run.session("s1", 1, 7)
    run.session("s1", 5, 9, attempt=1)  # its worker was killed and began again at step 5
    run.session("s2", 9, 12)
    rows.add(read_all(run.folder.events))
    assert taken(rows) == list(range(3, 12))
    run.session("s2", 10, 13, attempt=1)
    rows.add(read_all(run.folder.events))
    assert taken(rows, everything=True) == [12, 13]


# The real packages


def tensorboard_rows(folder: RunFolder) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder.tracking)).Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def trackio_rows(folder: RunFolder) -> dict[str, list[tuple[int, float]]]:
    with sqlite3.connect(folder.tracking / "trackio" / "kaggle_lib.db") as database:
        found = database.execute("select step, metrics from metrics where run_name = 'first-aaaaaaaa' order by id")
        return by_name((step, json.loads(metrics)) for step, metrics in found)


def mlflow_rows(folder: RunFolder) -> dict[str, list[tuple[int, float]]]:
    with sqlite3.connect(folder.tracking / "mlflow.db") as database:
        assert database.execute("select count(*) from runs").fetchone() == (1,)
        found = database.execute("select step, key, value from metrics order by key, step").fetchall()
        return by_name((step, {key: value}) for step, key, value in found)


def wandb_rows(folder: RunFolder) -> dict[str, list[tuple[int, float]]]:
    """The records of the newest offline run: LevelDB's log format, 32 KiB blocks of (checksum, length, kind, bytes)."""
    from wandb.proto.wandb_internal_pb2 import Record

    [*_, newest] = sorted((folder.tracking / "wandb").glob("offline-run-*/*.wandb"))
    content, at, found, part = newest.read_bytes(), 7, [], b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        part, at = part + content[at + 7 : at + 7 + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part of one
            record, part = Record.FromString(part), b""
            if items := record.history.item:
                row = {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in items}
                found.append((row.pop("_step"), row))
    return by_name(found)


def by_name(rows) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for step, values in rows:
        for name, value in values.items():
            found.setdefault(name, []).append((step, value))
    return found


READERS = {"tensorboard": tensorboard_rows, "trackio": trackio_rows, "wandb": wandb_rows, "mlflow": mlflow_rows}


def write(folder: RunFolder, tracker: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline", "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in environment.items() if name not in ("TRACKIO_DIR", "WANDB_DIR")}
    command = [sys.executable, "-m", "kaggle_lib.runs.trackers", str(folder.root), tracker]
    done = subprocess.run(command, env=environment, cwd=folder.root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("tracker", READERS)
def test_one_curve_over_sessions_that_did_steps_again_and_another_one_on_a_bare_machine(
    run: Run, tracker: str, tmp_path: Path
) -> None:
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed")
    run.session("s1", 1, 7)
    write(run.folder, tracker)
    run.session("s2", 6, 12)  # the first one had no checkpoint beyond step 5
    write(run.folder, tracker)
    rows = READERS[tracker](run.folder)
    assert rows["train/loss"] == [(step, pytest.approx(loss_of(step))) for step in range(1, 13)]
    assert [step for step, _ in rows["train/grad_norm"]] == [step for step in range(1, 13) if step != 3]
    assert rows["eval/bits_per_byte"] == [(5, 1.5), (10, 1.5)]
    # The events came back from the store; what the tracker had written here did not.
    there = Run(tmp_path / "bare")
    for path in run.folder.events.iterdir():
        (there.folder.events / path.name).write_bytes(path.read_bytes())
    there.session("s3", 11, 14)
    write(there.folder, tracker)
    assert [step for step, _ in READERS[tracker](there.folder)["train/loss"]] == list(range(1, 15))


@pytest.mark.slow
def test_an_open_tensorboard_has_the_time_of_each_step_and_goes_on_with_the_next_session(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run.session("s1", 1, 3)
    write(run.folder, "tensorboard")
    [path] = run.folder.events.iterdir()
    times = [datetime.fromisoformat(json.loads(line)["time"]).timestamp() for line in path.read_text().splitlines()]
    page = EventAccumulator(str(run.folder.tracking)).Reload()
    assert [one.wall_time for one in page.Scalars("train/loss")] == times
    for name in ("s2", "s3"):
        run.session(name, 3, 5)
        write(run.folder, "tensorboard")
        assert [one.step for one in page.Reload().Scalars("train/loss")] == [1, 2, 3, 4, 5]
    assert len(list(run.folder.tracking.iterdir())) == 2
