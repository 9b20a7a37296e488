"""`doctor --hub-selftest` and the loopback Hub: what is found, how each fault shows, and that nothing stays there."""

import json
import re

import pytest
from support.loopback_http import User
from support.loopback_hub import OWNER, LoopbackHub

from kaggle_lib import api
from kaggle_lib.errors import ConfigError, UserError
from kaggle_lib.report import hub_scratch
from kaggle_lib.report.hub_selftest import selftest

TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh"
QUESTIONS = [
    *("token", "scratch repo", "clock", "small commits", "stale parent", "two commits at once", "lag", "upload"),
    *("download", "listing of content", "giving back", "content once more", "squash", "bucket", "bucket's rate"),
    "scratch removed",
]
COMMIT = "/commit/"


@pytest.fixture(params=["xet"])
def hub(request, tmp_path, monkeypatch):
    users = {TOKEN: User(OWNER), "hf_repos": User(OWNER, buckets=False), "hf_reads": User(OWNER, write=False)}
    with LoopbackHub(tmp_path / "hub", xet=request.param == "xet", users=users) as hub:
        hub.lead_client(monkeypatch)
        monkeypatch.setattr(hub_scratch, "LARGE", 100_000)
        hub.create_repo(f"{OWNER}/mine")
        hub.create_bucket(f"{OWNER}/mine")
        yield hub
        assert set(hub.repos) == {("model", f"{OWNER}/mine")}
        assert set(hub.buckets) == {f"{OWNER}/mine"}


def asked(hub, seconds=5.0, **values):
    lines = []
    found = selftest(values, lines.append, seconds)
    assert lines == [str(answer) for answer in found.answers]
    assert not any(token in json.dumps(found.to_json()) + "\n".join(lines) for token in hub.users)
    return {answer.question: answer for answer in found.answers}, found


@pytest.mark.parametrize("hub", ["xet", "lfs"], indirect=True)
def test_a_hub_as_the_store_takes_it_to_be(hub):
    answers, found = asked(hub)
    assert list(answers) == QUESTIONS
    assert {question: answer.state for question, answer in answers.items() if answer.state != "ok"} == {}
    assert found.exit_code == 0
    assert re.fullmatch(r"loopback/kaggle-lib-selftest-[0-9a-f]{16}", found.repo)
    way = "Xet" if hub.xet else "LFS"
    values = {question: answer.values for question, answer in answers.items()}
    assert values["token"] == {"user": OWNER, "role": "write"}
    assert values["scratch repo"] == {"private": True, "without_token": 401}
    assert abs(values["clock"]["ahead_seconds"]) <= 1
    assert len(values["small commits"]["seconds"]) == 3
    assert values["stale parent"] == {"status": 412}
    assert values["two commits at once"] == {"status": [200, 412]}
    assert (values["lag"]["head"], values["lag"]["paths-info"]) == (0, 0)
    assert values["upload"]["way"] == way and values["upload"]["bytes_per_second"] > 0
    assert values["listing of content"] == {"listed": True, "ref": "refs/heads/run/selftest"}
    given = values["giving back"]
    assert (given["listed_after_commit"], given["listed"], given["head_moved"]) == (True, False, False)
    assert given["used_before"] - given["used_after"] == 100_000
    assert values["squash"] == {"commits": 1, "same_files": True, "stale_parent": 412}
    assert values["bucket's rate"]["bytes_after_delete"] == 0
    assert str(answers["stale parent"]) == "ok       stale parent: refused with 412"
    assert answers["scratch removed"].text == "repo and bucket are gone"
    told = found.to_json()
    assert told["ok"] is True and [answer["question"] for answer in told["answers"]] == QUESTIONS


FAULTS = {
    "small commits": {"action": "503", "method": "POST", "path": COMMIT},
    "clock": {"action": "date(7200)", "path": "^/api/models/"},
    "lag": {"action": "lag_heads(1.2)", "path": "^/api/models/", "times": None},
    "download": {"action": "corrupt_download", "times": None},
    "giving back": {"action": "403", "path": "/lfs-files/batch$"},
    "listing of content": {"action": "400", "method": "GET", "path": "/lfs-files$", "text": "no such thing"},
    "squash": {"action": "stall_headers(600)", "path": "/super-squash/"},
    "bucket": {"action": "fail_operations", "path": "^/api/buckets/", "times": None},
}
SHOWN = {
    "small commits": ("failed", "the Hub answers 503."),
    "clock": ("ok", None),
    "lag": ("note", None),
    "download": ("failed", "its file large.bin has another hash than the Hub says"),
    "giving back": ("differs", "permanently_delete_lfs_files is refused (403): old checkpoints go on counting"),
    "listing of content": ("failed", "BadRequestError: no such thing."),
    "squash": ("failed", "the Hub cannot be reached (ReadTimeout)."),
    "bucket": ("note", None),
}


@pytest.mark.parametrize("question", FAULTS)
def test_each_fault_shows_in_its_answer_and_hides_no_other(hub, monkeypatch, question):
    monkeypatch.setattr("kaggle_lib.checkpoints.hub_repo.PAUSES", (0.1,))
    hub.faults.add(**FAULTS[question])
    answers, found = asked(hub, seconds=3.0 if question == "squash" else 20.0)
    state, text = SHOWN[question]
    assert list(answers) == QUESTIONS
    assert answers[question].state == state
    assert text in (None, answers[question].text)
    assert answers["scratch removed"].state == "ok"
    others = {name: answer.state for name, answer in answers.items() if name != question and answer.state == "ok"}
    # What comes damaged does so in the bucket and the second time, too.
    assert len(others) >= len(QUESTIONS) - (4 if question == "download" else 2), answers
    assert found.exit_code == int(state in ("failed", "differs"))
    if question == "clock":
        assert 7190 < answers["clock"].values["ahead_seconds"] <= 7200
    if question == "lag":
        assert answers["lag"].values["head"] in (1, 2, 3)
        assert re.fullmatch(r"[123] old answers of head, [01] old answers of paths-info", answers["lag"].text)


def test_a_stale_parent_that_is_taken_is_what_the_store_cannot_live_with(hub, monkeypatch):
    monkeypatch.setattr(hub_scratch.Scratch, "questions", lambda self: iter([("stale parent", self.stale_parent)]))
    monkeypatch.setattr(hub_scratch.Scratch, "_refusal", lambda self, head: None)
    answers, found = asked(hub)
    assert str(answers["stale parent"]) == "differs  stale parent: a commit on a head that had moved was taken"
    assert found.exit_code == 1


def test_a_token_that_only_reads_gets_no_further_than_the_repo(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_reads")
    answers, found = asked(hub)
    assert [str(answer) for answer in answers.values()] == [
        "note     token: of loopback, its role is read",
        "failed   scratch repo: the token may not do that (403).",
        "ok       scratch removed: repo and bucket are gone",
    ]
    assert found.exit_code == 1


def test_a_token_without_buckets_is_a_note(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_repos")
    answers, found = asked(hub)
    assert answers["bucket"].text == "payload=bucket would mean the repo: the token may not do that (403)."
    assert {answers["bucket"].state, answers["bucket's rate"].state} == {"note"}
    assert found.exit_code == 0


def test_what_could_not_be_removed_is_named(hub, monkeypatch):
    monkeypatch.setattr("kaggle_lib.checkpoints.hub_repo.PAUSES", (0.1,))
    monkeypatch.setattr(hub_scratch.Scratch, "questions", lambda self: iter(()))
    hub.faults.add("503", path="/api/repos/delete", times=None)
    answers, found = asked(hub)
    assert str(answers["scratch removed"]) == f"failed   scratch removed: delete it by hand: repo {found.repo}"
    assert (answers["scratch removed"].values, found.exit_code) == ({"left": [f"repo {found.repo}"]}, 1)
    hub.faults.clear()
    hub.delete_repo(found.repo)


def test_an_interrupt_leaves_nothing_behind(hub, monkeypatch):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(hub_scratch.Scratch, "lag", interrupt)
    with pytest.raises(KeyboardInterrupt):
        selftest({}, lambda line: None)


def test_it_is_asked_for_by_doctor_and_belongs_to_the_owner_of_the_store(hub, monkeypatch, capsys):
    monkeypatch.setattr(hub_scratch.Scratch, "questions", lambda self: iter([("stale parent", self.stale_parent)]))
    hub.users[TOKEN] = User("somebody")
    found = api.doctor(store="hf://somebody/runs", hub_selftest=True)
    assert found.repo.startswith("somebody/kaggle-lib-selftest-")
    assert capsys.readouterr().out.splitlines()[2] == "ok       stale parent: refused with 412"


def test_wrong_values_and_no_token_are_one_line_before_anything_is_asked(hub, monkeypatch):
    before = len(hub.requests)
    with pytest.raises(ConfigError, match=r"^store: 'hf://runs' names no repo of the Hub\. Write hf://user/repo$"):
        selftest({"store": "hf://runs"}, print)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"^There is no Hugging Face token\. Set HF_TOKEN, or run `hf auth login`\.$"):
        selftest({}, print)
    assert len(hub.requests) == before
