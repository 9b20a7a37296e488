"""The process that writes a run's curve to TensorBoard, trackio, wandb or mlflow: each step once, over all sessions.

It reads the events, which come back from the store on any machine, asks the tracker for the last step that it has, and
writes what comes after it, until its standard input ends; so whatever ended the process before, a curve has no gap and
no step twice. Started by hand it writes what is missing and ends:
`python -m kaggle_lib.runs.trackers RUN_FOLDER [TRACKER]`.
"""

from __future__ import annotations

import os
import select
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from kaggle_lib.config import RunConfig
from kaggle_lib.runs import events
from kaggle_lib.runs.folder import RunFolder

POLL_SECONDS = 1.0
PROJECT, LOSS = "kaggle_lib", "train/loss"
Run = dict[str, Any]
Values = dict[str, float]
# The last step that a tracker has, how it takes another one (step, values, seconds since 1970), how it is closed.
Tracker = tuple[int, Callable[[int, Values, float], object], Callable[[], object]]


def tensorboard(run: Run, folder: RunFolder) -> Tracker:
    """A local file with the whole curve, each time; what TensorBoard has read of the one before it drops."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for old in sorted(folder.tracking.glob("events.out.tfevents.*"))[:-1]:  # an open page goes on from the newest
        old.unlink()
    writer = EventFileWriter(str(folder.tracking), flush_secs=10)
    writer.add_event(Event(step=1, session_log=SessionLog(status=SessionLog.START)))

    def write(step: int, values: Values, time: float) -> None:
        items = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        writer.add_event(Event(step=step, wall_time=time, summary=Summary(value=items)))

    return 0, write, writer.close


def trackio(run: Run, folder: RunFolder) -> Tracker:
    """In a folder, or in the private Space that TRACKIO_SPACE_ID names. Its errors are warnings: the first is raised.

    Raises ValueError for a Space that is there already and public: trackio would write into it.
    """
    os.environ.setdefault("TRACKIO_DIR", str(folder.tracking / "trackio"))
    import trackio
    from huggingface_hub import HfApi

    said: list[str] = []
    warnings.showwarning = lambda message, *_, **__: said.append(str(message))
    space, hub = os.environ.get("TRACKIO_SPACE_ID"), HfApi()
    if space and hub.repo_exists(space, repo_type="space") and not hub.space_info(space).private:
        raise ValueError(f"the Space {space} is public; make it private, or name another one in TRACKIO_SPACE_ID")
    name, quiet = f"{run['config']['run']}-{run['lineage'][:8]}", {"auto_log_gpu": False, "auto_log_cpu": False}
    one = trackio.init(PROJECT, name, resume="allow", private=True, embed=False, config=described(run), **quiet)

    def close() -> None:
        one.finish()
        if told := [message for message in said if "trackio" in message.lower()]:
            raise RuntimeError(told[0])

    return one._next_step - 1, lambda step, values, time: one.log(values, step=step), close


def wandb(run: Run, folder: RunFolder) -> Tracker:
    """Online; with WANDB_MODE=offline a folder a session, each with the whole curve: `wandb sync` the newest."""
    import wandb

    off = ("disable_git", "disable_code", "x_disable_stats", "x_disable_machine_info")
    settings = wandb.Settings(console="off", x_save_requirements=False, **dict.fromkeys(off, True))
    project = os.environ.get("WANDB_PROJECT", PROJECT)
    who = {"id": run["lineage"], "name": run["config"]["run"], "resume": "allow", "config": described(run)}
    one = wandb.init(project=project, dir=folder.tracking, settings=settings, **who)
    return one.starting_step - 1, lambda step, values, time: one.log(values, step=step), one.finish


def mlflow(run: Run, folder: RunFolder) -> Tracker:
    """At MLFLOW_TRACKING_URI, or in a file. A run is known by its lineage: another of the same name is not it."""
    import mlflow

    here = f"sqlite:///{folder.tracking.absolute()}/mlflow.db"
    client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or here)
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    found = client.get_experiment_by_name(name)
    experiment = found.experiment_id if found else client.create_experiment(name)
    there = client.search_runs([experiment], f"tags.lineage = '{run['lineage']}'", max_results=1)
    tags = {"lineage": run["lineage"]}
    one = (there or [client.create_run(experiment, run_name=run["config"]["run"], tags=tags)])[0].info.run_id
    client.update_run(one, "RUNNING")
    for key, value in ({} if there else described(run)).items():
        client.log_param(one, key, str(value)[:500])
    last = max((metric.step for metric in client.get_metric_history(one, LOSS)), default=0)

    def write(step: int, values: Values, time: float) -> None:
        metrics = [mlflow.entities.Metric(name, value, int(1000 * time), step) for name, value in values.items()]
        client.log_batch(one, metrics)

    return last, write, lambda: client.set_terminated(one)


def described(run: Run) -> dict[str, Any]:
    """What a tracker is told of the run: the values that define the weights."""
    return RunConfig.from_json(run["config"]).frozen()


def values_of(event: events.Event) -> Values:
    """The numbers of a step or a validation, under Trainer's names where it has one."""
    if event["event"] == "evaluation":
        return {"eval/bits_per_byte": event["bits_per_byte"]}
    found = {LOSS: event["loss"], "train/learning_rate": event.get("lr"), "train/grad_norm": event.get("grad_norm")}
    found["train/tokens_per_second"] = event["tokens"] / max(event["seconds"], 1e-9)
    found["train/memory_gib"] = event["memory"] / 2**30 if event.get("memory") else None
    return {name: value for name, value in found.items() if value is not None}


class Rows:
    """What is to be written, one row a step. A step is whole when a later one has come: its validation follows it."""

    def __init__(self, last: int) -> None:
        self.last = last
        self._waiting: dict[int, tuple[Values, float]] = {}

    def add(self, found: Iterable[events.Event]) -> None:
        """A step that is done again replaces the earlier one, and is left out where that has been written."""
        for event in found:
            if event["event"] in ("step", "evaluation") and event["step"] > self.last:
                values, _ = self._waiting.get(event["step"], ({}, 0.0))
                time = datetime.fromisoformat(event["time"]).timestamp()
                self._waiting[event["step"]] = ({**values, **values_of(event)}, time)

    def take(self, *, everything: bool) -> Iterator[tuple[int, Values, float]]:
        """The whole rows in order, or `everything` where nothing more comes."""
        for step in sorted(self._waiting)[: None if everything else -1]:
            self.last = step
            yield step, *self._waiting.pop(step)


def follow(folder: RunFolder, name: str, end: int | None) -> None:
    """Write until the file descriptor `end` is at its end, or, without one, what there is."""
    run = folder.read_run()
    folder.tracking.mkdir(exist_ok=True)
    last, write, close = TRACKERS[name](run, folder)
    rows = Rows(last)
    rows.add(events.read_all(folder.events))
    tail = events.Tail(folder.events / f"{run['session']}.jsonl")
    ended = False
    while not ended:
        ended = end is None or bool(select.select([end], [], [], POLL_SECONDS)[0])
        rows.add(tail.new())
        for row in rows.take(everything=ended):
            write(*row)
    close()


TRACKERS = {one.__name__: one for one in (tensorboard, trackio, wandb, mlflow)}


def main(words: list[str]) -> None:
    """Ends with 1 and one line where the tracker fails. Nothing that it imports finds a person at standard input."""
    end = os.dup(0) if "KAGGLE_LIB_SUPERVISED" in os.environ else None
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    try:
        follow(RunFolder(Path(words[0])), words[1], end)
    except (Exception, SystemExit) as error:
        print(f"\n{type(error).__name__}: {' '.join(str(error).split())[:400]}", file=sys.stderr, flush=True)
        os._exit(1)  # what libraries do or say at an exit would come after it


if __name__ == "__main__":
    main(sys.argv[1:])
