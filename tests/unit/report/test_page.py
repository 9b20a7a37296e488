"""The run's page: complete, escaped, the same bytes everywhere, and without Bengali in plots."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import subprocess
import sys
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.store import StoreState
from kaggle_lib.config import RunConfig
from kaggle_lib.presets import read_preset
from kaggle_lib.report import page, plots
from kaggle_lib.runs import events, ledger
from kaggle_lib.runs.folder import RunFolder

CPU = {"kaggle_lib": "0.1.0", "python": "3.11.7", "torch": "2.13.0+cpu", "cuda": "none", "gpu": "none", "trl": "1.14.2"}
BENGALI = re.compile("[\u0980-\u09ff]")
SAMPLES = [
    ("পরীক্ষার আগের রাতে আমার একদম ঘুম আসে না।", "এটা খুব স্বাভাবিক। কী নিয়ে সবচেয়ে বেশি ভাবছেন?"),
    ("আমার কুকুরটা গত সপ্তাহে মারা গেছে।", "শুনে খুব খারাপ লাগছে। ও কত বছর আপনার সঙ্গে ছিল?"),
    ("নতুন চাকরিটা পেয়ে গেছি!", "অভিনন্দন! কবে থেকে শুরু করছেন?"),
    ("বন্ধুরা আমাকে না জানিয়েই বেড়াতে চলে গেল।", "একা লাগাটাই স্বাভাবিক। ওদের সঙ্গে কি এ নিয়ে কথা হয়েছে?"),
    ("মা কাল হাসপাতাল থেকে বাড়ি ফিরছেন।", "কী স্বস্তির খবর! এখন উনি কেমন আছেন?"),
]


def config(**more):
    return RunConfig.create({**read_preset("tiny-cpu"), "run": "bengali-demo", **more})


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
            loss = 1.4 + 3.1 * math.exp(-step / 45) + 0.18 * math.sin(step * 12.9898) * math.cos(step * 4.1)
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


def fake_run(root, run_config=None):
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


def built(folder, records, **more):
    path = page.build(folder, config(**more), records)
    assert path == folder.report / "index.html"
    return path.read_text(encoding="utf-8")


class Text(HTMLParser):
    """The page's text by line of sight: no styles, white space joined; and every address and tag in it."""

    VOID = ("meta", "br", "path", "use", "rect")

    def __init__(self, html):
        super().__init__()
        self.text, self.tags, self.open, self.attributes = [], [], [], []
        self.feed(html)
        assert self.open == [], "every element is closed"
        self.text = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder, records = fake_run(tmp_path_factory.mktemp("work") / "bengali-demo")
    evaluated(folder)
    return folder, records


def test_page_tells_the_whole_run(run):
    folder, records = run
    text = Text(built(folder, records)).text
    for told in (
        "the tuned model needs 1.500 bits per byte , the base model 2.000: 25.0 % fewer .",
        "Bits per byte of the answers' UTF-8; does not depend on the tokenizer 2.000 1.500 −25.0 %",
        "Perplexity per token, weighted by tokens; tokens are parts of letters 20.000 8.000 −60.0 %",
        "The same 22 test rows for both, 6,001 tokens, 14,012 bytes of answers, after step 180.",
        "new tokens: 7 a word of the reference, at least 64, at most 128.",
        "Answers that this limit ended: base 5, tuned 1 of 5; half a letter was trimmed",
        "Steps 180 of 180",
        "0 → 60",
        "60 → 120",
        "2 launches",
        "paused: session_hours=0.1 are over",
        "finished: all steps are done",
        "the worker was killed (SIGKILL); starting again from the last checkpoint.",
        "torch 2.13.0+cpu",
        "27 steps were done more than once, after an end without a save, and gave the same loss",
        "Bit for bit: every session had the same environment on a CPU",
        "learning_rate 0.002 Peak learning rate.",
        "max_steps 60 End after this many optimizer steps instead of epochs .",
        "44 s on laptop evaluation finished: evaluated",
    ):
        assert told in text
    for question, answer in SAMPLES:
        assert question in text and answer in text


def test_nothing_is_loaded_from_elsewhere(run):
    html = built(*run)
    parsed = Text(html)
    assert not {"script", "link", "img", "iframe", "object"} & set(parsed.tags)
    addresses = [value for name, value in parsed.attributes if name in ("href", "xlink:href", "src", "srcset")]
    assert addresses and all(value.startswith("#") for value in addresses)
    assert "@import" not in html and not re.search(r"url\((?!#)", html)
    assert {value for name, value in parsed.attributes if "://" in (value or "")} == {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }  # names of XML's vocabularies, which no browser fetches
    identifiers = [value for name, value in parsed.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))


def test_text_of_the_data_is_escaped(tmp_path):
    folder, records = fake_run(tmp_path / "r")
    bad = "<script>alert('x')</script>&amp;\x00\x1b"
    evaluated(folder, [(bad, bad)] * 5)
    records[0]["warnings"] = ["<img src=x onerror=alert(1)>"]
    html = built(folder, records, data="<b>.csv")
    assert "<script" not in html and "<img" not in html and "<b>" not in html
    assert html.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;amp;␀␛") == 10
    assert "\x00" not in html and "\x1b" not in html


def test_bengali_stands_in_html_marked_as_bengali_and_never_in_a_plot(run):
    folder, records = run
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        html = built(folder, records)
    figures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(figures) == 2
    assert not any(BENGALI.search(figure) for figure in figures)
    assert not BENGALI.search(re.sub(r'<p lang="bn">.*?</p>', "", html, flags=re.DOTALL))
    assert html.count('<p lang="bn">') == 20


def test_empty_answers_are_said(tmp_path):
    folder, records = fake_run(tmp_path / "r")
    evaluated(folder, [("", " \n")] * 5)
    assert built(folder, records).count("an empty answer") == 10


def test_an_evaluation_of_another_adapter_is_said(tmp_path):
    folder, records = fake_run(tmp_path / "r")
    evaluated(folder)
    said = "This evaluation is of an earlier adapter"
    assert said not in built(folder, records)
    (folder.adapter / "adapter_model.safetensors").write_bytes(b"others")
    assert said in built(folder, records)


def test_a_run_without_evaluation_or_steps_has_a_page(tmp_path):
    folder, records = fake_run(tmp_path / "a")
    text = Text(built(folder, records)).text
    assert "All 180 steps are done. The run is not evaluated yet." in text
    assert "Not evaluated yet." in text
    empty = RunFolder(tmp_path / "b")
    empty.create()
    text = Text(built(empty, [])).text
    for told in (
        "No step has been taken yet.",
        "There is no step to draw yet.",
        "No session is in the ledger yet.",
        "No session has loaded the model yet, so there is nothing to claim.",
    ):
        assert told in text


def test_a_run_of_one_step_and_a_session_killed_while_loading(tmp_path):
    folder = RunFolder(tmp_path / "a")
    folder.create()
    one = Clock(folder, 1)
    one.begin(0)
    one.steps(1, 1)
    two = Clock(folder, 2)
    two.write("session", 0, from_step=0, resumed_from=None, host="laptop", processes=1)
    records = [ledger.record(list(events.read(clock.path))) for clock in (one, two)]
    text = Text(built(folder, records)).text
    assert "Step 1 of 180. The run is not finished, so there is no evaluation yet." in text
    assert "never loaded" in text and "no end recorded" in text


def record(from_step, versions=CPU, processes=1, job="train"):
    return {"job": job, "from_step": from_step, "versions": versions, "processes": processes}


def test_where_the_environment_changed_the_claim_ends():
    other = {**CPU, "torch": "2.14.0", "python": "3.12.1"}
    records = [record(0), record(40, {}), record(50), record(80, other), record(120, other, 2)]
    records.insert(3, record(60, {**CPU, "gpu": "T4"}, 4, job="evaluate"))
    assert page.changes(records) == [
        {"session": 5, "step": 80, "kind": "environment", "what": "torch 2.13.0+cpu → 2.14.0, python 3.11.7 → 3.12.1"},
        {"session": 6, "step": 120, "kind": "processes", "what": "1 → 2 processes"},
    ]
    assert page.claim(records) == (
        "Bit for bit up to step 80, on a CPU. After step 80 the environment is another one: the run went on, and the "
        "bit-for-bit claim ends there. After step 120 the number of processes is another one: the same samples, cuts "
        "and dropout in every step, equal to rounding."
    )
    assert page.claim([record(0, {**CPU, "gpu": "Tesla T4"})]) == (
        "On a GPU every step has the samples, the cut and the dropout of an uninterrupted run; equal bytes are not "
        "claimed there, because not every kernel is deterministic."
    )


def test_steps_done_again_are_compared_to_the_last_bit():
    def step(number, loss, samples=(1, 2)):
        return {"event": "step", "step": number, "loss": loss, "samples": list(samples)}

    happened = [step(1, 0.1), step(2, 0.2), step(3, 0.3), step(2, 0.2), step(3, 0.30000000000000004), step(3, 0.3)]
    assert page.repeated(happened) == {"steps": 2, "differed": [3]}
    assert page.repeated([step(1, 0.1), step(1, 0.1, (1, 3))]) == {"steps": 1, "differed": [1]}
    assert page.repeated([step(1, 0.1)]) == {"steps": 0, "differed": []}


def test_what_the_store_holds_and_who_may_be_writing_is_said(tmp_path):
    folder, records = fake_run(tmp_path)
    mine = Lease.mine("20261125T100000-bbbb2222").model_copy(update={"expires": 100.0})
    state = StoreState(config={}, bytes=1_300_000, lease=mine, now=99.0)
    said = "On the store: 0 checkpoints, 1.3 MB in all"
    html = page.build(folder, config(), records, state).read_text(encoding="utf-8")
    assert f"{said}; session {mine.session} on {mine.host} may be writing." in html
    html = page.build(folder, config(), records, replace(state, now=100.0)).read_text(encoding="utf-8")
    assert f"{said}.</p>" in html
    assert "On the store" not in page.build(folder, config(), records).read_text(encoding="utf-8")


def test_smoothing_is_the_mean_of_the_last_values():
    assert plots.smooth([1.0, 2.0, 3.0, 6.0], 2) == [1.0, 1.5, 2.5, 4.5]


def test_a_session_border_lies_between_two_steps_and_many_are_thinned():
    steps = [{"step": step, "loss": 1.0} for step in range(1, 101)]
    figure = plots.curve(steps, [], [(2, 40), (3, 70), (4, 90)], "wide")
    assert [name for name in (">s2<", ">s3<", ">s4<") if name in figure] == [">s2<", ">s3<", ">s4<"]
    many = plots.curve(steps, [], [(number + 1, number) for number in range(1, 31)], "wide")
    assert len(re.findall(r">s\d+<", many)) == 10
    assert many.count("stroke-dasharray") == 30


BUILD = """
import sys
from pathlib import Path
from kaggle_lib.report import page
from kaggle_lib.runs.folder import RunFolder
import json, test_page
folder = RunFolder(Path(sys.argv[1]))
path = page.build(folder, test_page.config(), json.loads(Path(sys.argv[2]).read_bytes()))
print(path.name)
"""


@pytest.mark.parametrize(
    "environment",
    [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "cp1252"}, {"LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "7"}],
)
def test_the_same_bytes_under_any_locale(run, tmp_path, environment):
    folder, records = run
    expected = built(folder, records).encode("utf-8")
    (folder.report / "index.html").unlink()
    (tmp_path / "ledger.json").write_text(json.dumps(records), encoding="utf-8")
    root = Path(page.__file__).parents[2]
    path = os.pathsep.join([str(root), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder.root), str(tmp_path / "ledger.json")],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": path, **environment},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.decode()) == (0, b"index.html\n", "")
    assert (folder.report / "index.html").read_bytes() == expected
