"""The run's page: complete, escaped, the same bytes everywhere, and without Bengali in plots."""

from __future__ import annotations

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
from support.made_up_run import CPU, SAMPLES, Clock, evaluated, fake_run, made_up_config

from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.store import StoreState
from kaggle_lib.report import history, page
from kaggle_lib.runs import events, ledger
from kaggle_lib.runs.folder import RunFolder

BENGALI = re.compile("[\u0980-\u09ff]")


def built(folder, records, **more):
    path = page.build(folder, made_up_config(**more), records)
    assert path == folder.report / "index.html"
    return path.read_text(encoding="utf-8")


class Text(HTMLParser):
    """The page's text by line of sight: no styles, white space joined; and every address and tag in it."""

    VOID = ("meta", "br")

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
        if not {"style", "script"} & set(self.open):
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
        "finished 2026-11-25 10:00 to 2026-11-25 13:00 UTC Bit for bit bengali-demo",
        "The tuned model needs 1.500 bits per byte; lower is better The base model needs 2.000, on the same 22",
        "held-out answers: 25.0 % fewer . This evaluation has no interval.",
        "Bits per byte of the answers' UTF-8; does not depend on the tokenizer 2.000 1.500 −25.0 %",
        "Perplexity per token, weighted by tokens; tokens are parts of letters 20.00 8.000 −60.0 %",
        "The same 22 test rows for both; lower is better",
        "6,001 tokens, 14,012 bytes of answers, after step 180.",
        "new tokens: 7 a word of the reference, at least 64, at most 128.",
        "Answers that this limit ended: base 5, tuned 1 of 5; half a letter was trimmed",
        "Steps 180 of 180",
        "0 → 60",
        "60 → 120",
        "2 launches",
        "paused: session_hours=0.1 are over 1 warning",
        "finished: all steps are done",
        "2 after 94 the worker was killed (SIGKILL); starting again from the last checkpoint.",
        "torch 2.13.0+cpu",
        "27 steps were done more than once, after an end without a save, and gave the same loss",
        "Bit for bit: every session had the same environment on a CPU",
        "learning_rate 0.002 Peak learning rate.",
        "max_steps 60 End after this many optimizer steps instead of epochs .",
        "44 s on laptop evaluation finished: evaluated",
        "No step ran on a GPU, so no GPU's memory was measured.",
    ):
        assert told in text
    for question, answer in SAMPLES:
        assert question in text and answer in text


def test_nothing_is_loaded_from_elsewhere(run):
    html = built(*run)
    parsed = Text(html)
    assert not {"link", "img", "iframe", "object", "base"} & set(parsed.tags)
    assert parsed.tags.count("script") == 1 and "<script>\n// The page reads without this" in html
    addresses = [
        value for name, value in parsed.attributes if name in ("href", "xlink:href", "src", "srcset", "action")
    ]
    assert addresses and all(value.startswith("#") for value in addresses)
    assert "@import" not in html and "url(" not in html and "fetch(" not in html and "import(" not in html
    assert not [value for _, value in parsed.attributes if "://" in (value or "")]
    identifiers = [value for name, value in parsed.attributes if name == "id"]
    assert len(identifiers) == len(set(identifiers))
    assert {address[1:] for address in addresses} <= set(identifiers)


def test_figures_and_tables_say_what_they_are(run):
    html = built(*run)
    parsed = Text(html)
    names = [value for name, value in parsed.attributes if name == "aria-labelledby"]
    assert names == [f"{name}-title {name}-about" for name in ("loss", "validation", "hours", "speed")]
    assert html.count("<table") == html.count("<caption")
    # loss(1) = 1.4 + 3.1 e^(-1/45) + 0.18 sin(12.9898) cos(4.1)
    assert '<desc id="loss-about">First 4.389 at step 1, lowest' in html


def test_text_of_the_data_is_escaped(tmp_path):
    folder, records = fake_run(tmp_path / "r")
    bad = "<script>alert('x')</script>&amp;\x00\x1b"
    evaluated(folder, [(bad, bad)] * 5)
    records[0]["warnings"] = ["<img src=x onerror=alert(1)>"]
    html = built(folder, records, data="<b>.csv")
    assert html.count("<script") == 1 and "<img" not in html and "<b>" not in html
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert html.count("&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;&amp;amp;␀␛") == 10
    assert "\x00" not in html and "\x1b" not in html


def test_bengali_stands_in_html_marked_as_bengali_and_never_in_a_plot(run):
    folder, records = run
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        html = built(folder, records)
    figures = re.findall(r'<div class="panel.*?</div>\n', html, re.DOTALL)
    assert len(figures) == 4
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
    said = "This evaluation is of another adapter, of step 180, than the one here."
    assert said not in built(folder, records)
    (folder.adapter / "adapter_model.safetensors").write_bytes(b"others")
    assert said in built(folder, records)


def test_a_run_that_was_stopped_early_is_finished(tmp_path):
    folder, records = fake_run(tmp_path / "a")
    early = "early stopping at step 180: no improvement since step 120"
    log = events.EventLog(folder.events, records[-1]["id"])
    numbers = {"bits_per_byte": 9.0, "nll": 1.0, "bytes": 1, "tokens": 1, "rows": 1, "seconds": 1.0}
    log.write("step", step=180, samples=[1], loss=1.0, lr=0.1, tokens=1, seconds=1.0, total_steps=500)
    log.write("evaluation", step=180, stopped_early=early, **numbers)
    text = Text(built(folder, records)).text
    assert f"Finished by {early}, of at most 500 steps. The run is not evaluated yet." in text
    assert "is not finished" not in text


def test_a_run_without_evaluation_or_steps_has_a_page(tmp_path):
    folder, records = fake_run(tmp_path / "a")
    text = Text(built(folder, records)).text
    assert "All 180 steps are done. The run is not evaluated yet." in text
    assert "The best validation has 0.703 bits per byte; lower is better" in text
    assert "Not evaluated yet: python -m kaggle_lib evaluate does it" in text
    empty = RunFolder(tmp_path / "b")
    empty.create()
    text = Text(built(empty, [])).text
    for told in (
        "No step is done yet.",
        "There is no step to draw yet.",
        "not started",
        "No session is in the ledger yet, so no time was paid for.",
        "No session warned of anything.",
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
    assert "No step is done yet." in text  # the later session began before it
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
    assert history.repeated(happened) == {"steps": 2, "differed": [3]}
    assert history.repeated([step(1, 0.1), step(1, 0.1, (1, 3))]) == {"steps": 1, "differed": [1]}
    assert history.repeated([step(1, 0.1)]) == {"steps": 0, "differed": []}


def test_what_the_store_holds_and_who_may_be_writing_is_said(tmp_path):
    folder, records = fake_run(tmp_path)
    mine = Lease.mine("20261125T100000-bbbb2222").model_copy(update={"expires": 100.0})
    state = StoreState(config={}, bytes=1_300_000, lease=mine, now=99.0)
    said = "On the store: 0 checkpoints, 1.3 MB in all"
    html = page.build(folder, made_up_config(), records, state).read_text(encoding="utf-8")
    assert f"{said}; session {mine.session} on {mine.host} may be writing." in html
    html = page.build(folder, made_up_config(), records, replace(state, now=100.0)).read_text(encoding="utf-8")
    assert f"{said}.</p>" in html
    assert "On the store" not in page.build(folder, made_up_config(), records).read_text(encoding="utf-8")


def test_a_failed_session_and_a_killed_one_say_so_first(tmp_path):
    folder, records = fake_run(tmp_path / "r")
    for record in records[1:]:
        (folder.events / f"{record['id']}.jsonl").unlink()
    killed = Text(built(folder, records[:1])).text
    assert "killed 2026-11-25 10:00" in killed and "Step 73 of 180" in killed
    assert "The last session was killed; step 60 is saved." in killed
    failed = {**records[0], "ended_because": "failed: Out of memory in step 74, with <b>"}
    assert "The last session failed: Out of memory in step 74, with &lt;b&gt;; step 60 is saved." in built(
        folder, [failed]
    )


def test_a_killed_session_that_sent_less_than_it_did_is_shown_whole(tmp_path):
    folder, records = fake_run(tmp_path / "r")
    whole = built(folder, records)
    own = list(events.read(folder.events / f"{records[0]['id']}.jsonl"))
    saved = next(place for place, event in enumerate(own) if event["event"] == "save" and event["step"] == 60)
    sent = ledger.record(own[: saved + 1])
    assert sent["seconds"]["training"] < records[0]["seconds"]["training"]
    assert built(folder, [ledger.close_killed(sent, sent["last_event"]), *records[1:]]) == whole


def at(second):
    return f"2026-11-25T10:{second // 60:02d}:{second % 60:02d}.000Z"


def test_a_long_run_of_many_sessions_is_a_small_page_that_keeps_its_extremes(tmp_path):
    folder = RunFolder(tmp_path / "r")
    folder.create()
    records, count = [], 200
    for number in range(100):
        session, first = f"20261125T{number:06d}-{number:08x}", number * count
        common = {"session": session, "attempt": 0}
        lines = [{"event": "session", "time": at(0), **common, "from_step": first, "job": "train"}]
        lines += [{"event": "phase", "time": at(9), **common, "phase": phase} for phase in ("load", "train")]
        for step in range(first + 1, first + count + 1):
            loss = 77.5 if step == 12_345 else 1 + math.sin(step) / 10
            about = {"step": step, "total_steps": 20_000, "samples": [step], "loss": loss, "tokens": 500}
            lines.append({"event": "step", "time": at(10 + step - first), **common, **about, "seconds": 1.0})
        lines += [{"event": "warning", "time": at(300), **common, "message": f"warning {n}"} for n in range(3)]
        bits = {"step": first + count, "bits_per_byte": 0.5, "rows": 8, "seconds": 1.0}
        lines.append({"event": "evaluation", "time": at(301), **common, **bits})
        lines.append({"event": "save", "time": at(302), **common, "step": first + count, "seconds": 1.0, "bytes": 9})
        lines.append({"event": "end", "time": at(330), **common, "outcome": "paused", "reason": "the deadline"})
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder.events / f"{session}.jsonl").write_text(text, encoding="utf-8")
        records.append(ledger.record(lines))
    html = built(folder, records)
    assert len(html.encode("utf-8")) < 1_000_000
    assert html.count("<") < 12_000  # elements, which is what a browser's time goes to
    text = Text(html).text
    drawn = re.search(r"20,000 steps are drawn by ([0-9,]+) points: of each four hundredth of the axis its first", text)
    assert 800 <= int(drawn[1].replace(",", "")) <= 1600
    assert "highest 77.500 at step 12,345" in html
    # Its own place in the line: 0.06 of the height from the top, where the axis has that room.
    y = re.search(r'class="raw" points="[^"]* 617\.3,([0-9.]+) ', html)[1]
    assert float(y) == pytest.approx(1000 * 0.06 / 1.12, abs=0.5)
    assert "All 100 sessions together" in text and "training, kept 5 h 33 min 60.6 %" in text
    assert text.count("the deadline") == 101
    assert text.count(" warning 1 ") == 67 and "100 more are in events/ ." in text


def test_an_evaluation_with_an_interval_has_it_in_the_first_screen(tmp_path):
    folder, records = fake_run(tmp_path / "r")
    evaluated(folder)
    path = folder.evaluation / "result.json"
    about = {"group": "likelihood", "title": "bits", "better": "lower", "rows": 22, "floor": None, "signature": None}
    measure = {"name": "bits_per_byte", "base": 2.0, "tuned": 1.5, "difference": -0.5, "interval": [-0.6125, -0.4]}
    skipped = {"skipped": "Not measured"}
    more = {
        "measures": [{**about, **measure}],
        "groups": [],
        "retention": skipped,
        "safety": {**skipped, "corpus": {"rows": 0, "of": 9, "by_kind": {}, "by_split": {"train": 0}}},
        "native": skipped,
        "examples": {"best": [], "worst": []},
        "bootstrap": {"resamples": 9},
        "worth": "",
    }
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **more}), encoding="utf-8")
    html = built(folder, records)
    assert "25.0 % fewer . Difference −0.500, 95 % interval −0.613 to −0.400." in Text(html).text
    # In the table it is drawn from worse to better, by its largest end: 50 + 48 (0.4, 0.5 and 0.6125) / 0.6125.
    assert '<line class="range" x1="81.3%" x2="98.0%" y1="50%" y2="50%"/><circle cx="89.2%"' in html


def luminance(color):
    parts = [int(color[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    red, green, blue = (one / 12.92 if one <= 0.03928 else ((one + 0.055) / 1.055) ** 2.4 for one in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    """By WCAG 2: 4.5 for text and 3 for graphics is enough."""
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_and_figures_stand_out_in_every_scheme():
    css = Path(page.__file__).with_name("page.css").read_text(encoding="utf-8")
    schemes = re.findall(r":root {(.*?)}", css, re.DOTALL)
    assert len(schemes) == 3  # light, dark, print
    for scheme in schemes:
        full = {name: value * (6 // len(value)) for name, value in re.findall(r"--([a-z-]+): #([0-9a-f]+)", scheme)}
        for text in ("ink", "muted", "link", "good", "bad"):
            assert min(contrast(full[text], full[ground]) for ground in ("paper", "card", "accent")) >= 4.5, text
        assert contrast(full["warn-ink"], full["warn"]) >= 4.5
        for drawn in ("training", "validation", "speed", "memory", "kept", "lost", "loading", "saving", "evaluation"):
            assert contrast(full[drawn], full["card"]) >= 3, drawn


BUILD = """
import sys
from pathlib import Path
from kaggle_lib.report import page
from kaggle_lib.runs.folder import RunFolder
import json
from support import made_up_run
folder = RunFolder(Path(sys.argv[1]))
path = page.build(folder, made_up_run.made_up_config(), json.loads(Path(sys.argv[2]).read_bytes()))
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
    path = os.pathsep.join([str(root), str(root / "tests")])
    done = subprocess.run(
        [sys.executable, "-c", BUILD, str(folder.root), str(tmp_path / "ledger.json")],
        env={"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": path, **environment},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr.decode()) == (0, b"index.html\n", "")
    assert (folder.report / "index.html").read_bytes() == expected
