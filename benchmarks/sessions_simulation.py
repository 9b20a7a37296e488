"""200 sessions of one run on a Hub that fails, most of them killed: what is kept, what it costs, what the Hub sees.

    PYTHONPATH=tests python benchmarks/sessions_simulation.py --sessions 200

The store, the client and the Hub's side (the loopback Hub, LFS) are real: every claim, commit, download and deletion
is made. Time is simulated: a request takes `--latency` seconds, content the bytes of a real checkpoint at `--rate`, a
pause as long as it is asked to be, and training goes on beside all that. A session dies at a random moment, in whatever
it is doing; the next one is another machine, which has to wait until the dead one's lease is over. Prints a table and,
last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import threading
import time
from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from huggingface_hub.utils import _http
from pytest import MonkeyPatch
from support import loopback_hub, loopback_repo
from support.checkpoint_folders import BYTES, FILES, content, make_checkpoint
from support.loopback_http import Reply, Request
from support.loopback_hub import LoopbackHub
from support.trouble import FAULTS, hits

from kaggle_lib.checkpoints import hub_client
from kaggle_lib.checkpoints.hub import HubStore
from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.manifest import folder_name
from kaggle_lib.errors import LeaseHeld, StoreError

REPO, RUN, LINEAGE = "loopback/runs", "simulated", "a" * 32
WEIGHTS = "adapter_model.safetensors"
WINDOW, WINDOW_REQUESTS = 300.0, 1000  # seconds, and what a free account may ask the Hub's API in them


class Killed(BaseException):
    """The session's machine is gone."""


class Clock:
    """Simulated seconds; what the store's client takes for `time`. The session's thread dies when its time has come."""

    def __init__(self) -> None:
        self.now, self.dies = 0.0, float("inf")
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def pass_by(self, seconds: float) -> None:
        with self._lock:
            self.now += seconds

    def monotonic(self) -> float:
        if self.now >= self.dies:
            raise Killed
        return self.now

    def time(self) -> float:
        return 1_764_000_000.0 + self.now

    def sleep(self, seconds: float) -> None:
        self.pass_by(min(seconds, max(0.0, self.dies - self.now)))
        self.monotonic()


class Hub(LoopbackHub):
    """Each request takes simulated time: its way, its content's, and what the faults add."""

    def __init__(self, root: Path, clock: Clock, latency: float, rate: float, scale: float) -> None:
        self.clock, self.latency, self.seconds_a_byte = clock, latency, scale / rate
        self.asked: deque[float] = deque()
        self.busiest = 0
        super().__init__(root, xet=False)

    def wait(self, seconds: float) -> None:
        self.clock.pass_by(seconds)

    def exchange(self, request: Request) -> Reply:
        content = "/_lfs/" in request.path
        if not content:
            self.asked.append(self.clock.now)
            while self.asked[0] <= self.clock.now - WINDOW:
                self.asked.popleft()
            self.busiest = max(self.busiest, len(self.asked))
        reply = super().exchange(request)
        moved = len(request.body) + len(reply.body) if content else 0
        self.clock.pass_by(self.latency + moved * self.seconds_a_byte + reply.late + reply.half)
        reply.late = reply.half = 0.0
        return reply


class Simulation:
    def __init__(self, given: argparse.Namespace, folder: Path, patch: MonkeyPatch) -> None:
        self.given, self.folder, self.chance = given, folder, random.Random(given.seed)
        self.clock, self.told, self.hit = Clock(), Counter[str](), Counter[str]()
        self.scale = given.checkpoint_mb * 1e6 / BYTES
        self.hub = Hub(folder / "hub", self.clock, given.latency, given.rate * 1e6, self.scale)
        self.hub.lead_client(patch)
        for module in (hub_client, _http):
            patch.setattr(module, "time", self.clock)
        for module in (loopback_repo, loopback_hub):
            patch.setattr(module, "now", self.clock.time)
        self.step = 0.0
        self.known: set[int] = set()
        self.most_bytes = self.most_commits = self.most_checkpoints = 0

    def store(self) -> HubStore:
        return HubStore(REPO, RUN, self.hub.token, clock=self.clock.time)

    def run(self) -> dict[str, Any]:
        with self.hub:
            for number in range(self.given.sessions):
                self.session(number)
                self.clock.pass_by(self.chance.expovariate(1 / self.given.gap))
                if number % 20 == 19:
                    print(f"{number + 1} sessions, {self.clock.now / 86400:.1f} days, step {self.newest()}", flush=True)
            newest = self.newest()
            back = self.store()
            back.fetch(back.peek().checkpoints[0], self.folder / "back")
            assert (self.folder / "back" / WEIGHTS).read_bytes() == content(newest, WEIGHTS, FILES[WEIGHTS])
        told, hours = self.told, self.told["paid"] / 3600
        kept = newest * self.given.step_seconds
        parts = ("loading", "waiting for a lease", "saving")
        return {
            "sessions": {name: told[name] for name in ("killed", "paused", "held", "failed")},
            "paid_hours": round(hours, 1),
            "goodput": round(kept / told["paid"], 4),
            "lost_steps": told["trained"] - newest,
            "trained_steps": told["trained"],
            "shares": {name: round(told[name] / told["paid"], 4) for name in parts}
            | {"training that was lost": round((told["trained"] * self.given.step_seconds - kept) / told["paid"], 4)},
            "saves": told["saves"],
            "failed_saves": told["failed saves"],
            "requests_an_hour": round(len(self.hub.requests) / hours),
            "most_requests_in_5_minutes": self.hub.busiest,
            "most_stored_mb": round(self.most_bytes * self.scale / 1e6),
            "most_checkpoints": self.most_checkpoints,
            "most_commits": self.most_commits,
            "faults": dict(self.hit),
        }

    def newest(self) -> int:
        """What the store holds, seen without asking it."""
        names = self.hub.repo(REPO).files(f"run/{RUN}") if ("model", REPO) in self.hub.repos else {}
        return max((int(name.split("/")[1][5:]) for name in names if name.endswith("/manifest.json")), default=0)

    def session(self, number: int) -> None:
        clock, given = self.clock, self.given
        began, before = clock.now, self.newest()
        clock.dies = began + self.chance.expovariate(1 / (3600 * given.mtbf))
        deadline, ended = began + 3600 * given.hours, "killed"
        try:
            clock.sleep(given.load)
            store = self.store()
            claim = self.claim(store, number)
            if claim is None:
                ended = "held"
            else:
                self.train(store, claim, deadline, before)
                ended = "paused"
        except Killed:
            pass
        except StoreError:
            ended = "failed"
        finally:
            clock.now, clock.dies = min(clock.now, clock.dies), float("inf")
            self.hit += hits(self.hub)
            self.told[ended] += 1
            self.told["paid"] += round(clock.now - began)
            self.told["loading"] += round(min(clock.now - began, given.load))
            assert self.newest() >= before, (number, before, self.newest())

    def claim(self, store: HubStore, number: int) -> Any:
        """None: another session's promise is not over within the wait."""
        session, began = f"s{number:04d}", self.clock.now
        lease = Lease.mine(session).model_copy(update={"host": f"machine-{number}", "machine": session})
        try:
            while True:
                try:
                    return store.claim({"config": {}, "code": ""}, lease, LINEAGE)
                except LeaseHeld as held:
                    if self.clock.now - began > 60 * self.given.lease_wait:
                        return None
                    self.clock.sleep(min(60.0, max(1.0, held.seconds_left or 1.0)))
        finally:
            self.told["waiting for a lease"] += round(self.clock.now - began)

    def train(self, store: HubStore, claim: Any, deadline: float, before: int) -> None:
        """Train, save and upload until the deadline."""
        clock, given, work = self.clock, self.given, self.folder / "work"
        shutil.rmtree(work, ignore_errors=True)
        state = store.peek()
        start = next((one.step for one in state.checkpoints if one.problem is None), 0)
        assert start == before, (start, before)
        if start:
            store.fetch(state.checkpoints[0], work / "from" / folder_name(start))
        origin = clock.now
        cost = given.step_seconds + given.blocking / given.save_steps

        def done() -> int:
            return int((min(clock.now, clock.dies) - origin) / cost)

        events = work / "events"
        events.mkdir(parents=True, exist_ok=True)
        last = int((deadline - origin - given.reserve) / cost)  # the last save, planned before the deadline
        sent = 0
        try:
            while sent < last:
                due = min(sent + given.save_steps, last)
                if (late := done() - done() % given.save_steps) > due:
                    due = min(late, last)  # the newest wins
                clock.sleep(max(0.0, origin + due * cost - clock.now))
                if claim.due():
                    claim.renew(self.record(claim, start, start + sent), events)
                self.save(
                    claim, make_checkpoint(work, start + due, lineage=LINEAGE, total_steps=10**7)[0], events, start
                )
                sent = due
            claim.release("paused", self.record(claim, start, start + last), events)
        finally:
            trained = min(done(), last)
            self.told["trained"] += trained
            self.told["saving"] += round(trained // given.save_steps * given.blocking)

    def save(self, claim: Any, checkpoint: Path, events: Path, start: int) -> None:
        """One upload, tried again later as a session does, beside one or two faults now and then."""
        if self.chance.random() < self.given.faults:
            for action, where in self.chance.sample(FAULTS, self.chance.choice([1, 1, 2])):
                self.hub.faults.add(action, after=self.chance.randrange(25), **where)
        step, pause = int(checkpoint.name[5:]), 5.0
        (events / f"{claim.lease.session}.jsonl").write_text(json.dumps({"event": "save", "step": step}) + "\n")
        for work in (
            lambda: claim.commit(checkpoint, self.record(claim, start, step), events),
            lambda: claim.free(2),
        ):
            while True:
                try:
                    work()
                    self.look()
                    break
                except StoreError:
                    self.told["failed saves"] += 1
                    self.clock.sleep(pause)
                    pause = min(2 * pause, 60.0)
        self.told["saves"] += 1
        self.hit += hits(self.hub)

    def look(self) -> None:
        """At what the Hub stores now, without asking it."""
        repo = self.hub.repo(REPO)
        self.most_bytes = max(self.most_bytes, repo.stored_bytes())
        self.most_commits = max(self.most_commits, len(repo.commits(f"run/{RUN}")))
        names = repo.files(f"run/{RUN}")
        self.most_checkpoints = max(self.most_checkpoints, sum(name.endswith("/manifest.json") for name in names))

    def record(self, claim: Any, start: int, step: int) -> dict[str, Any]:
        """As long as a real one."""
        return {"id": claim.lease.session, "from_step": start, "to_step": step, "padding": "x" * 900}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    more = SimpleNamespace(
        add=lambda name, value, text: parser.add_argument(name, type=type(value), default=value, help=text)
    )
    more.add("--sessions", 200, "how many")
    more.add("--seed", 0, "of everything that is random")
    more.add("--hours", 11.5, "a session's length, if nothing kills it")
    more.add("--mtbf", 3.0, "mean hours until a kill (exponential)")
    more.add("--gap", 600.0, "mean seconds until the next session begins (exponential)")
    more.add("--load", 420.0, "seconds until a session asks the store: install, download and load the model")
    more.add("--step-seconds", 20.0, "of one step")
    more.add("--save-steps", 50, "steps from save to save")
    more.add("--blocking", 1.5, "seconds that a save stops the training")
    more.add("--reserve", 120.0, "seconds kept for the last save and its upload")
    more.add("--checkpoint-mb", 85.0, "bytes of a checkpoint: LoRA r 16 of an 8B, fp32, with 8-bit AdamW")
    more.add("--latency", 2.0, "seconds a request")
    more.add("--rate", 20.0, "MB/s to and from the Hub")
    more.add("--lease-wait", 15.0, "minutes that a session waits for another's lease")
    more.add("--faults", 0.3, "share of the saves beside which one or two faults happen")
    given = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, MonkeyPatch.context() as patch:
        told = Simulation(given, Path(folder), patch).run()
    for name, value in told.items():
        print(f"| {name.replace('_', ' ')} | {value} |")
    print(f"{time.monotonic() - began:.0f} s of real time")
    print(json.dumps({"given": vars(given), **told}))


if __name__ == "__main__":
    main()
