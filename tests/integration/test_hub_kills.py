"""Kills at any moment while the Hub fails in every way: no run is lost, none begins anew, the last bytes are equal."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest
from support.loopback_hub import LoopbackHub
from support.saver import WEIGHTS, expected
from support.sessions import ROOT, Place, train_under_fire
from support.trouble import disturb, hits

from kaggle_lib.checkpoints.hub import HubStore

KILLS = int(os.environ.get("SOAK_KILLS", "200"))
TRAINING_KILLS = int(os.environ.get("SOAK_TRAINING_KILLS", "30"))
REPO = "loopback/runs"
MOST_IN_A_ROW = 8
# Why a session may end with 1: its workers were killed too often, or the Hub failed for longer than it is waited for.
SAYS = r"launches in a row came to no new checkpoint|The store hf://\S+ cannot be |only; the store has "


class Fire:
    """Sessions without training on one Hub, killed again and again, `first` requests or more after each began.

    `lose`: how often the work folder is gone then.
    """

    def __init__(self, hub, folder, seed, steps, first=0, lose=0.5):
        self.hub, self.folder, self.chance = hub, folder, random.Random(seed)
        self.steps, self.first, self.lose = steps, first, lose
        self.done, self.hits, self.most = Counter(), Counter(), 0

    def session(self, run, kill):
        """One session, under faults; `kill` it at a random moment or request. Its exit code, and where it went on."""
        words = [sys.executable, "-m", "support.saver", "--repo", REPO, "--run", run]
        words += ["--work", str(self.folder / "work"), "--steps", str(self.steps)]
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        environment = {**os.environ, **self.hub.environment(), "PYTHONPATH": path}
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        disturb(self.hub, self.chance, 40)
        timer = threading.Timer(self.chance.uniform(0, 5), process.kill)
        if kill:  # at a request, which is carried out all the same, or some time after one
            at_once, after = self.chance.random() < 0.6, self.first + self.chance.randrange(80)
            end = process.kill if at_once else timer.start
            self.hub.faults.add("call", after=after if at_once else self.first, times=1, function=end)
        out, err = process.communicate()
        timer.cancel()
        self.hits += hits(self.hub)
        assert process.returncode in (0, 1, -signal.SIGKILL), (process.returncode, err)
        assert "Traceback" not in err, err
        self.done[{0: "finished", 1: "failed"}.get(process.returncode, "killed")] += 1
        return process.returncode, json.loads(out.splitlines()[0])["from"] if out else None

    def run(self, name, kills):
        """One run to its end under so many kills at most; what the store has is looked at after each session."""
        best, sessions, lineage = 0, 0, None
        store = HubStore(REPO, name, self.hub.token)
        for number in range(4 * kills + 20):
            code, began = self.session(name, kill=self.done["killed"] < kills)
            state = store.peek()
            good = [stored.step for stored in state.checkpoints if stored.problem is None]
            newest = max(good, default=0)
            assert began is None or began >= best, f"session {number} went on at {began}, the store had {best}"
            assert newest >= best, f"the store had step {best}, and now has {good}"
            assert len(state.ledger) >= sessions
            assert lineage in (None, state.lineage)
            self.most = max(self.most, len(state.checkpoints))
            best, sessions, lineage = newest, len(state.ledger), state.lineage
            if code == 0:
                break
            if self.chance.random() < self.lose:
                shutil.rmtree(self.folder / "work", ignore_errors=True)
                self.done["emptied"] += 1
        assert (best, state.holder()) == (self.steps, None)
        # Each session that is killed between its first save and what it frees leaves one; the next one frees them all.
        assert self.most <= 2 + MOST_IN_A_ROW, self.most
        into = self.folder / "fetched" / name
        assert store.fetch(state.checkpoints[0], into).finished
        assert (into / WEIGHTS).read_bytes() == expected(self.steps)
        self.done["runs"] += 1


def under_fire(folder, monkeypatch, xet, kills, seed, steps=24, **more):
    with LoopbackHub(folder / "hub", xet=xet) as hub:
        hub.lead_client(monkeypatch)
        fire = Fire(hub, folder, seed, steps, **more)
        while fire.done["killed"] < kills:
            fire.run(f"r{fire.done['runs']}", kills)
        what = f"{'Xet' if xet else 'LFS'}, seed {seed}: {dict(fire.done)}, {fire.most} checkpoints at most"
        print(f"\n{what}; faults that hit: {dict(fire.hits)}", flush=True)


@pytest.mark.slow
@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_three_kills_beside_faults(xet, tmp_path, monkeypatch):
    under_fire(tmp_path, monkeypatch, xet, kills=3, seed=11 + xet, steps=12, first=40, lose=1.0)


@pytest.mark.soak
@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_soak_kills_beside_faults(xet, tmp_path, monkeypatch):
    under_fire(tmp_path, monkeypatch, xet, kills=KILLS, seed=int(os.environ.get("SOAK_SEED", "0")))


class HubPlace(Place):
    """The run's store is the Hub."""

    def command(self, name, **more):
        return super().command(name, **{"store": f"hf://{REPO}", **more})


@pytest.mark.soak
@pytest.mark.parametrize("xet", [True, False], ids=["xet", "lfs"])
def test_soak_trainings_killed_beside_faults(xet, tmp_path, monkeypatch):
    """Real trainings: as many runs as it takes for SOAK_TRAINING_KILLS kills of any process, five a run."""
    seed, done, hit = int(os.environ.get("SOAK_SEED", "0")), Counter(), Counter()
    whole = Place(tmp_path / "whole")
    assert whole.call()["outcome"] == "finished"
    with LoopbackHub(tmp_path / "hub", xet=xet) as hub:
        hub.lead_client(monkeypatch)

        def faults(chance):
            hit.update(hits(hub))
            disturb(hub, chance, 30)

        while done["kills"] < TRAINING_KILLS:
            number = done["runs"]
            place = HubPlace(tmp_path / f"r{number}", run=f"r{number}")
            told = train_under_fire(place, 5, seed + 1000 * number, lose_work=0.5, disturb=faults, says=SAYS)
            done.update({name: told[name] for name in ("kills", "sessions", "errors", "lost")}, runs=1)
            assert place.final_bytes() == whole.final_bytes()
            assert place.curve() == whole.curve()
            ledger = HubStore(REPO, place.run, hub.token).peek().ledger
            saved = 0
            for record in ledger:
                assert record["from_step"] >= saved, ledger
                saved = max(saved, record["from_step"])
            hit.update(hits(hub))
            print(f"\n{'Xet' if xet else 'LFS'}, seed {seed}: {dict(done)}; faults that hit: {dict(hit)}", flush=True)
