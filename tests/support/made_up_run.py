"""A run that never was, for pages: its events, ledger and evaluation, with numbers that a test can compute."""

from __future__ import annotations

import hashlib
import json
import math

from kaggle_lib.config import RunConfig
from kaggle_lib.presets import read_preset
from kaggle_lib.runs import events, ledger
from kaggle_lib.runs.folder import RunFolder

CPU = {"kaggle_lib": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu", "cuda": "none", "gpu": "none", "trl": "1.14.2"}
SAMPLES = [
    ("পরীক্ষার আগের রাতে আমার একদম ঘুম আসে না।", "এটা খুব স্বাভাবিক। কী নিয়ে সবচেয়ে বেশি ভাবছেন?"),
    ("আমার কুকুরটা গত সপ্তাহে মারা গেছে।", "শুনে খুব খারাপ লাগছে। ও কত বছর আপনার সঙ্গে ছিল?"),
    ("নতুন চাকরিটা পেয়ে গেছি!", "অভিনন্দন! কবে থেকে শুরু করছেন?"),
    ("বন্ধুরা আমাকে না জানিয়েই বেড়াতে চলে গেল।", "একা লাগাটাই স্বাভাবিক। ওদের সঙ্গে কি এ নিয়ে কথা হয়েছে?"),
    ("মা কাল হাসপাতাল থেকে বাড়ি ফিরছেন।", "কী স্বস্তির খবর! এখন উনি কেমন আছেন?"),
]


def made_up_config(**more):
    return RunConfig.create({**read_preset("tiny-cpu"), "run": "bengali-demo", **more})


def loss_of(step):
    return 1.4 + 3.1 * math.exp(-step / 45) + 0.18 * math.sin(step * 12.9898) * math.cos(step * 4.1)


class Clock:
    """Writes a session's events with times of its own."""

    def __init__(self, folder, number):
        self.session = f"20261125T{9 + number:02d}0000-{number:08x}"
        self.path = folder.events / f"{self.session}.jsonl"
        self.hour, self.second, self.attempt = 9 + number, 0.0, 0

    def write(self, kind, after, **fields):
        self.second += after
        minutes, seconds = divmod(self.second, 60)
        time = f"2026-11-25T{self.hour:02d}:{int(minutes):02d}:{seconds:06.3f}Z"
        line = {"event": kind, "time": time, "session": self.session, "attempt": self.attempt, **fields}
        events.append_line(self.path, json.dumps(line, ensure_ascii=False))

    def begin(self, from_step, versions=CPU, processes=1):
        resumed = from_step or None
        self.write("session", 0, from_step=from_step, resumed_from=resumed, host="laptop", processes=processes)
        self.write("phase", 4, phase="load", versions=versions)
        self.write("phase", 9, phase="train")

    def steps(self, first, last, total=180, save=20):
        for step in range(first, last + 1):
            loss = loss_of(step)
            seconds = 1.6 + 0.2 * math.sin(step)
            self.write(
                "step",
                seconds,
                step=step,
                total_steps=total,
                epoch=step / 100,
                samples=[step * 4, step * 4 + 1],
                loss=loss,
                lr=1e-3,
                grad_norm=0.7,
                tokens=420 + step % 7,
                seconds=round(seconds, 4),
                memory=None,
            )
            if step % save == 0:
                bits = 0.62 + 0.9 * math.exp(-step / 60) + 0.04 * max(0, step - 140) / 40
                numbers = {"bits_per_byte": bits, "nll": 9000.0, "bytes": 14000, "tokens": 6000, "rows": 16}
                self.write("evaluation", 2.5, step=step, best_step=step, seconds=2.5, **numbers)
                self.write("save", 0.8, step=step, seconds=0.8, bytes=1_900_000)

    def end(self, outcome, reason, step):
        self.write("end", 1.5, outcome=outcome, reason=reason, step=step, on_store=step)


def fake_run(root):
    """Three sessions: killed at 73 with 60 saved, a crash and a pause at 120, the end at 180. Returns the ledger."""
    folder = RunFolder(root)
    folder.create()
    one, two, three = (Clock(folder, number) for number in (1, 2, 3))
    one.begin(0)
    one.steps(1, 73)
    two.begin(60)
    two.steps(61, 94)
    two.write("warning", 40, message="the worker was killed (SIGKILL); starting again from the last checkpoint.")
    two.attempt = 1
    two.write("phase", 4, phase="load", versions=CPU)
    two.write("phase", 9, phase="train")
    two.steps(81, 120)
    two.end("paused", "session_hours=0.1 are over", 120)
    three.begin(120)
    three.steps(121, 180)
    three.end("finished", "all steps are done", 180)
    four = Clock(folder, 4)
    four.write("session", 0, job="evaluate", from_step=180, resumed_from=180, host="laptop", processes=1)
    four.write("phase", 4, phase="load", versions={**CPU, "torch": "2.14.0"})
    four.write("phase", 9, phase="evaluate")
    four.write("end", 31, outcome="finished", reason="evaluated", step=180, on_store=180)
    records = [ledger.record(list(events.read(clock.path))) for clock in (one, two, three, four)]
    records[0] = ledger.close_killed(records[0], records[0]["last_event"])
    return folder, records


def evaluated(folder, answers=None):
    folder.adapter.mkdir(exist_ok=True)
    (folder.adapter / "adapter_model.safetensors").write_bytes(b"weights")
    folder.evaluation.mkdir(exist_ok=True)
    answers = answers or [(f"{question.split()[0]} " * 9, answer) for question, answer in SAMPLES]
    result = {
        "run": "bengali-demo",
        "step": 180,
        "base": {
            "bits_per_byte": 2.0,
            "perplexity": 20.0,
            "nll": 2800.0,
            "bytes": 14012,
            "tokens": 6001,
            "rows": 22,
            "eot_nll": 4.0,
        },
        "tuned": {
            "bits_per_byte": 1.5,
            "perplexity": 8.0,
            "nll": 2100.0,
            "bytes": 14012,
            "tokens": 6001,
            "rows": 22,
            "eot_nll": 0.5,
        },
        "decoding": {
            "max_new_tokens": "7 a word of the reference, at least 64, at most 128",
            "ended_by_budget": {"base": 5, "tuned": 1},
            "letters_trimmed": {"base": 3, "tuned": 0},
        },
        "samples": [
            {"id": 31 + 7 * number, "question": question, "reference": reference, "base": base, "tuned": tuned}
            for number, ((question, reference), (base, tuned)) in enumerate(zip(SAMPLES, answers, strict=True))
        ],
        "adapter_sha256": hashlib.sha256(b"weights").hexdigest(),
        "note": "",
    }
    (folder.evaluation / "result.json").write_text(json.dumps(result, ensure_ascii=False), encoding="utf-8")
