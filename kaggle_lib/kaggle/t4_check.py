"""What this machine's GPUs do with a run of these settings: speed, memory, a second GPU, kill and resume, upload.

Every number comes from real sessions of the command line, each a few steps long:

| part | sessions | what it tells |
|---|---|---|
| whole | all steps, all GPUs, on the store | tokens/s, peak memory, seconds to the first step, upload rate |
| one GPU | the second half of them again, by one process | the ratio; the largest difference of a loss |
| killed | all steps, SIGKILL for the session in the second half, then another session | equal bytes at the end |

The result is `t4-check.json`, put on the store as the run's report after every part; what there was no time for is
named in it. `strategy=unsloth` checks both strategies, `strategy=peft` that one alone.
"""

from __future__ import annotations

import secrets
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kaggle_lib import __version__
from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.errors import UserError
from kaggle_lib.files import sha256_of, write_json
from kaggle_lib.report.speed import shape_of
from kaggle_lib.runs import base_model, events, ledger, rescue
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.launch import tied
from kaggle_lib.runs.opening import Opened, new_session_id, open_run
from kaggle_lib.session.machine import find_gpus

Say = Callable[[str], None]
MINUTES = 20.0
NAME = "t4-check.json"
FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt")
POLL_SECONDS = 0.05
PARTS = ("whole", "one_gpu", "killed")


def check(values: Mapping[str, object], say: Say, minutes: float = MINUTES) -> dict[str, Any]:
    """The result, which `t4-check.json` in the run's report has, too; no part is begun that would end after `minutes`.

    Raises ConfigError, StoreError, LeaseHeld; and UserError in the end where a part has failed: the others went on.
    """
    opened = open_run(values)
    opened.folder.create()
    log = events.EventLog(opened.folder.events, new_session_id())
    log.write("session", job="check", host=socket.gethostname())
    asked = opened.config.strategy
    checks = [Check(opened, strategy, say) for strategy in dict.fromkeys(("peft", asked))]
    found: dict[str, Any] = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "kaggle_lib": __version__,
        "gpus": find_gpus(),
        "base_model": opened.config.base_model,
        "data": opened.config.data,
        "steps": checks[0].steps,
        "strategies": {one.strategy: one.found for one in checks},
        "speed": [],
    }
    began, longest = time.monotonic(), 0.0
    if opened.config.hub_base:  # once, before any part is timed
        base_model.fetch(opened.config, opened.base_commit or base_model.commit_of(opened.config), say)
    for part in PARTS:
        for one in checks:
            left = 60 * minutes - (time.monotonic() - began)
            sessions = 2 if part == "killed" else 1
            if part != "whole" and "processes" not in one.found["whole"]:
                one.found[part] = {"skipped": "there is no whole run to compare with"}
            elif sessions * longest > left:
                one.found[part] = {"skipped": f"{max(0.0, left):.0f} s of {minutes:g} minutes were left"}
            else:
                say(f"t4-check: {one.strategy}, {part}")
                start = time.monotonic()
                try:
                    one.found[part] = getattr(one, part)()
                except UserError as error:
                    one.found[part] = {"error": str(error)}
                longest = max(longest, (time.monotonic() - start) / sessions)
            say(f"t4-check: {one.strategy}, {part}: {one.found[part]}")
        found["speed"] = [row for one in checks for row in one.rows(found["gpus"])]
        put(opened, log, found, say)
    if problems := list(_problems(found)):
        raise UserError(
            f"t4-check: {'; '.join(problems)}.", kept=f"The whole result is {NAME}, the run's report on the store."
        )
    return found


def _problems(found: dict[str, Any]) -> Iterator[str]:
    for strategy, parts in found["strategies"].items():
        for part, told in parts.items():
            if "error" in told:
                yield f"{strategy}, {part}: {told['error']}"
            elif told.get("equal") is False:
                yield f"{strategy}: the killed run did not end with the whole one's bytes"


def put(opened: Opened, log: events.EventLog, found: dict[str, Any], say: Say) -> None:
    """Leave the result in the run folder, in Kaggle's output and on the store."""
    opened.folder.report.mkdir(exist_ok=True)
    write_json(opened.folder.report / NAME, found)
    rescue.keep(opened.folder, say)
    lineage = opened.store.peek().lineage or secrets.token_hex(16)
    claim = opened.store.claim(opened.frozen(), Lease.mine(log.session), lineage, opened.config.take_over)
    claim.put("report", opened.folder.report)
    log.write("end", outcome="finished", reason="checked")
    claim.release("checked", ledger.record([*events.read(log.path)]), opened.folder.events)


class Check:
    """One strategy's parts, each a run of its own below the work folder; `found`: what they have told so far."""

    def __init__(self, opened: Opened, strategy: str, say: Say) -> None:
        self.config, self.strategy, self.say = opened.config, strategy, say
        self.run = f"{opened.config.run[:40]}-{strategy}-{datetime.now(UTC):%m%dT%H%M%S}"
        self.place = Path(opened.config.work_dir).absolute() / f"{self.run}.parts"
        self.steps, self.half = opened.config.max_steps or 12, opened.config.save_steps
        self.found: dict[str, Any] = {}

    def whole(self) -> dict[str, Any]:
        self._train("whole", store=self.config.store)
        log = self._log("whole")
        steps = events.curve(log)
        upload = next((event for event in reversed(log) if event["event"] == "upload"), None)
        return {
            **_speed(steps[1:]),
            "processes": next(event["processes"] for event in log if event["event"] == "session"),
            "versions": next(event["versions"] for event in log if "versions" in event),
            "peak_bytes": max((event.get("memory") or 0 for event in steps), default=0) or None,
            "seconds_to_first_step": events.seconds_between(log[0]["time"], steps[0]["time"]),
            "save_seconds": next(event["seconds"] for event in log if event["event"] == "save"),
            "upload": upload and {"bytes": upload["bytes"], "bytes_per_second": upload["bytes"] / upload["seconds"]},
        }

    def one_gpu(self) -> dict[str, Any]:
        """By one process, from the whole run's middle on: the same samples in the same cut."""
        if self.found["whole"]["processes"] == 1:
            return {"skipped": "the whole run had one process"}
        source, target = self._folder("whole"), self._folder("one_gpu")
        shutil.copytree(source.checkpoint(self.half), target.checkpoint(self.half))
        shutil.copyfile(source.run_json, target.run_json)
        self._train("one_gpu", processes=1)
        alone, shared = ({event["step"]: event for event in self._steps(part)} for part in ("one_gpu", "whole"))
        both = sorted(step for step in alone if step in shared and step > self.half)
        timed = both[1:] or both  # the first after a load is slow
        speed = _speed([alone[step] for step in timed])
        ratio = _speed([shared[step] for step in timed])["tokens_per_second"] / speed["tokens_per_second"]
        differences = [abs(alone[step]["loss"] - shared[step]["loss"]) for step in both]
        return {**speed, "ratio": ratio, "largest_loss_difference": max(differences)}

    def killed(self) -> dict[str, Any]:
        self._train("killed", kill_after=self.half + 1)
        if self._folder("killed").checkpoint(self.steps).exists():
            raise UserError("the session was over before it could be killed: more max_steps than twice save_steps help")
        self._train("killed")
        whole, killed = (self._folder(part).checkpoint(self.steps) for part in ("whole", "killed"))
        sessions = [event for event in self._log("killed") if event["event"] == "session"]
        equal = {name: sha256_of(whole / name) == sha256_of(killed / name) for name in FILES}
        return {"resumed_from": sessions[-1]["resumed_from"], "equal": all(equal.values()), "files": equal}

    def rows(self, gpus: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The speeds as `kaggle_lib/report/known.json` takes them."""
        shape = shape_of(self.config)
        for part, processes in (("whole", self.found.get("whole", {}).get("processes")), ("one_gpu", 1)):
            found = self.found.get(part, {})
            if gpus and shape and "tokens_per_second" in found:
                yield {
                    "gpu": gpus[0]["name"],
                    "gpus": processes,
                    "strategy": self.strategy,
                    "recomputation": self.config.recomputation,
                    "parameters": shape.parameters,
                    "tokens_of_a_step": found["tokens_of_a_step"],
                    "tokens_per_second": round(found["tokens_per_second"], 1),
                    "source": f"t4-check, {datetime.now(UTC):%Y-%m-%d}",
                }

    def _folder(self, part: str) -> RunFolder:
        return RunFolder(self.place / part / self.run)

    def _log(self, part: str) -> list[events.Event]:
        return events.read_all(self._folder(part).events)

    def _steps(self, part: str) -> list[events.Event]:
        return events.curve(self._log(part))

    def _train(self, part: str, kill_after: int | None = None, **changed: object) -> None:
        """One session of `part`; with `kill_after` it is killed when that step is done. Raises UserError where it ends
        otherwise than that, or than finished."""
        values = {
            **self.config.model_dump(),
            "run": self.run,
            "strategy": self.strategy,
            "work_dir": str(self.place / part),
            "store": str(self.place / f"store-{part}"),
            "max_steps": self.steps,
            "eval_steps": 0,
            "logging_steps": 1,
            **changed,
        }
        words = [word for name, value in values.items() for word in ("--set", f"{name}={_text(value)}")]
        self.place.mkdir(parents=True, exist_ok=True)
        path = self.place / f"{part}.log"
        with path.open("ab") as log:
            start = log.tell()
            command = [sys.executable, "-m", "kaggle_lib", "train", *words]
            session = subprocess.Popen(tied(command), stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            while session.poll() is None:
                time.sleep(POLL_SECONDS)
                if kill_after and any(event["step"] >= kill_after for event in self._steps(part)):
                    session.kill()
                start = self._show(path, start)
        except BaseException:
            session.kill()
            raise
        self._show(path, start, all_of_it=True)
        if session.returncode != (-signal.SIGKILL if kill_after else 0):
            last = path.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
            raise UserError(f"the session ended with {session.returncode}: {last}")

    def _show(self, path: Path, start: int, all_of_it: bool = False) -> int:
        """Say the whole lines that the file has got since byte `start`; returns where to go on."""
        with path.open("rb") as log:
            log.seek(start)
            new = log.read()
        new = new if all_of_it else new[: new.rfind(b"\n") + 1]
        for line in new.decode("utf-8", "replace").splitlines():
            self.say(f"  {line}")
        return start + len(new)


def _speed(steps: list[events.Event]) -> dict[str, Any]:
    """Total tokens over total time."""
    tokens, seconds = sum(event["tokens"] for event in steps), sum(event["seconds"] for event in steps)
    return {
        "tokens_per_second": tokens / seconds,
        "seconds_of_a_step": statistics.median(event["seconds"] for event in steps),
        "tokens_of_a_step": round(tokens / len(steps)),
    }


def _text(value: object) -> str:
    """A value as `--set` takes it."""
    if value is None:
        return ""
    return ",".join(value) if isinstance(value, tuple) else str(value)


def as_text(found: dict[str, Any]) -> str:
    """The result for a person."""
    lines = [f"{', '.join(gpu['name'] for gpu in found['gpus']) or 'no GPU'}; {found['base_model']}"]
    for strategy, parts in found["strategies"].items():
        for part, told in parts.items():
            problem = told.get("error") or told.get("skipped")
            shown = {name: value for name, value in told.items() if isinstance(value, (int, float))}
            facts = ", ".join(f"{name} {value:,.4g}" for name, value in shown.items())
            lines.append(f"  {strategy:8} {part:8} {problem or facts}")
    return "\n".join([*lines, f"All of it: {NAME}, the run's report on the store"])
