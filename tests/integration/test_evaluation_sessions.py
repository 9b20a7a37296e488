"""Evaluation by the command line: killed, asked to end, shared by two processes, and in the end the same result."""

import json
import os
import shutil
import signal
import time

import pytest
from support.sessions import Place

pytestmark = pytest.mark.slow
FILES = ("result.json", "answers.jsonl", "scores.jsonl")
# Small batches of long answers, so that there is something left to do whenever it ends.
ASKED = {"answer_batch_size": 2, "answer_rows": 12}


def lines(folder):
    found = [path.read_text(encoding="utf-8") for path in sorted((folder / "parts").glob("*.jsonl"))]
    return [json.loads(line) for text in found for line in text.split("\n")[:-1]]


def started(place, **more):
    """An evaluation that has answered something, and is not done."""
    seen = len(lines(place.folder.evaluation))
    process = place.start("evaluate", **ASKED, **more)
    while process.poll() is None:
        found = lines(place.folder.evaluation)
        if len(found) > seen and any(one["kind"] == "answer" for one in found[seen:]):
            return process
        time.sleep(0.05)
    raise AssertionError(process.communicate())


def test_a_killed_and_a_paused_evaluation_go_on_to_the_result_of_an_undisturbed_one(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torchrun sets it: other threads round otherwise
    place = Place(tmp_path, values={"max_steps": 2, "save_steps": 2})
    place.call()
    evaluation = place.folder.evaluation

    killed = started(place, processes=1)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (evaluation / "result.json").exists()

    interrupted = started(place, processes=1)
    interrupted.send_signal(signal.SIGINT)
    out, _ = interrupted.communicate()
    assert interrupted.returncode == 75
    told = json.loads(out)
    assert (told["outcome"], told["reason"]) == ("paused", "interrupted")
    assert not (evaluation / "result.json").exists()
    done = lines(evaluation)
    assert lines(place.stored / "evaluation") == done  # another machine would go on from there, too

    shutil.rmtree(evaluation)
    finished = place.call("evaluate", processes=2, **ASKED)
    assert (finished["outcome"], finished["reason"], finished["on_store"]) == ("finished", "evaluated", True)
    after = lines(evaluation)
    assert len(after) == len({(one["kind"], one["side"], one["id"]) for one in after}), "nothing is measured twice"
    assert [one for one in done if one not in after] == []
    mixed = {name: (evaluation / name).read_bytes() for name in FILES}

    shutil.rmtree(evaluation)
    shutil.rmtree(place.stored / "evaluation")
    place.call("evaluate", processes=1, **ASKED)
    for name in FILES:
        assert (evaluation / name).read_bytes() == mixed[name], name
        assert (place.stored / "evaluation" / name).read_bytes() == mixed[name], name
