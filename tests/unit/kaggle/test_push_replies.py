"""What the real command line prints, as recorded of kaggle 2.2.5, and what push makes of it."""

import json

import pytest

from kaggle_lib.errors import ConfigError, KaggleBusy, KaggleError
from kaggle_lib.kaggle.client import (
    NOT_NOW,
    Client,
    Pulled,
    Quota,
    Reply,
    Said,
    Status,
    read_push,
    read_quota,
    read_status,
)
from kaggle_lib.kaggle.push import Plan, dropped, only_one, open_for_kaggle, problems_of, send, write_mark
from kaggle_lib.kaggle.token_dataset import _state

URL = "https://www.kaggle.com/code/asha/my-run"
PUSHED = f"Kernel version 3 successfully pushed.  Please check progress at {URL}\n"
DENIED = (
    "Cannot access kernel 'asha/my-run' (Permission 'kernels.get' was denied). The most likely cause is a wrong kernel "
    "slug. The benchmark_task_slug returned by get_benchmark_leaderboard differs from the actual kernel slug.\n"
)
HINT_404 = "The resource was not found. Check the spelling of the reference you passed.\n"
SIDE = "This is a problem on Kaggle's side, not with your command. Please try again later.\n"
LOGIN = "Authentication required to call the Kaggle API.\n\nFirst, you will need a Kaggle account. You can sign up at\n"
ABORTED = "('Connection aborted.', RemoteDisconnected('Remote end closed connection without response'))\n"
REFUSED = (
    "HTTPConnectionPool(host='127.0.0.1', port=9): Max retries exceeded with url: http://localhost/api/v1/x (Caused by "
    "NewConnectionError('<urllib3.connection.HTTPConnection object>: Failed to establish a new connection'))\n"
)
TRACEBACK = (
    'Traceback (most recent call last):\n  File "cli.py", line 76, in main\n    api.authenticate()\n'
    "requests.exceptions.HTTPError: 503 Server Error: Service Unavailable for url: http://localhost/api\n"
)
SLOTS = "Maximum batch GPU session count of 2 reached."


@pytest.mark.parametrize(
    ("said", "reply"),
    [
        (Said(0, PUSHED, ""), Reply("pushed", 3, URL)),
        (
            Said(0, f"Kernel version successfully pushed.  Please check progress at {URL}\n", ""),
            Reply("pushed", None, URL),
        ),
        (
            Said(
                0,
                "The following are not valid dataset sources and could not be added to the kernel: ['a/b', 'c/d']\n"
                "The following are not valid kernel sources and could not be added to the kernel: ['e/f']\n" + PUSHED,
                "",
            ),
            Reply("pushed", 3, URL, dropped=("dataset a/b", "dataset c/d", "kernel e/f")),
        ),
        (Said(0, f"Kernel push error: {SLOTS}\n", ""), Reply("full", problem=SLOTS)),
        (
            Said(0, "Kernel push error: Maximum weekly GPU quota of 30.00 hours reached.\n", ""),
            Reply("full", problem="Maximum weekly GPU quota of 30.00 hours reached."),
        ),
        (
            Said(0, "Kernel push error: The kernel is locked.\n", ""),
            Reply("refused", problem="The kernel is locked."),
        ),
        (Said(1, "", "Invalid request.\n"), Reply("refused", problem="Invalid request.")),
        (
            Said(1, "", "Title must be at least five characters\n"),
            Reply("refused", problem="Title must be at least five characters"),
        ),
        (
            Said(1, "", "Dataset asha/x is still being processed.\n"),
            Reply("full", problem="Dataset asha/x is still being processed."),
        ),
        (
            Said(1, "", "429 Client Error: Too Many Requests for url: http://localhost/api/v1/x\n\nYou have been\n"),
            Reply("full", problem="429 Client Error: Too Many Requests for url: http://localhost/api/v1/x"),
        ),
        (Said(1, LOGIN, ""), Reply("refused", problem="Authentication required")),
        (Said(1, "", REFUSED), Reply("full", problem=f"it cannot be reached ({REFUSED.strip()})")),
        (Said(1, "", ABORTED), Reply("lost", problem=ABORTED.strip())),
        (Said(1, "", f"Internal server error\n\n{SIDE}"), Reply("lost", problem="Internal server error")),
        (
            Said(1, "", TRACEBACK),
            Reply(
                "lost",
                problem="requests.exceptions.HTTPError: 503 Server Error: Service Unavailable for url: "
                "http://localhost/api",
            ),
        ),
        (Said(None, "", ""), Reply("lost", problem="it did not answer in time")),
        (Said(0, "", ""), Reply("lost", problem="it said nothing")),
        (Said(0, "Warning: Looks like an outdated version\nOdd.\n", ""), Reply("lost", problem="Odd.")),
    ],
)
def test_a_push_is_what_it_says_not_what_it_exits_with(said, reply):
    assert read_push(said) == reply


@pytest.mark.parametrize(
    ("said", "status"),
    [
        *[
            (Said(0, f'asha/my-run has status "KernelWorkerStatus.{word}"\n', ""), Status(state))
            for word, state in [
                ("QUEUED", "queued"),
                ("RUNNING", "running"),
                ("COMPLETE", "complete"),
                ("ERROR", "error"),
                ("CANCEL_REQUESTED", "cancelling"),
                ("CANCEL_ACKNOWLEDGED", "cancelled"),
                ("NEW_SCRIPT", "new"),
                ("SOMETHING_NEW", "unknown"),
            ]
        ],
        (
            Said(0, 'asha/my-run has status "KernelWorkerStatus.ERROR"\nFailure message: "No capacity."\n', ""),
            Status("error", "No capacity."),
        ),
        (Said(1, "", DENIED), Status("none")),
        (Said(1, "", f"Not found\n\n{HINT_404}"), Status("none")),
        (Said(1, "", ABORTED), Status("unknown", ABORTED.strip())),
        (Said(None, "", ""), Status("unknown", "it did not answer in time")),
        (Said(1, LOGIN, ""), Status("unknown", "Authentication required")),
    ],
)
def test_a_status_is_read_and_no_answer_is_not_an_ended_session(said, status):
    assert read_status(said) == status


def test_live_are_queued_running_and_cancelling_only():
    states = ("none", "new", "queued", "running", "cancelling", "complete", "error", "cancelled", "unknown")
    assert [state for state in states if Status(state).live] == ["queued", "running", "cancelling"]


def test_only_words_about_gpus_and_slots_mean_not_now():
    assert NOT_NOW.search("Maximum weekly GPU quota of 30.00 hours reached.")
    assert not NOT_NOW.search("OSError: [Errno 122] Disk quota exceeded")
    assert not NOT_NOW.search("Your notebook tried to allocate more memory than is available.")


def test_nobody_logged_in_is_said_with_what_to_do(monkeypatch):
    client = Client()
    monkeypatch.setattr(client, "_run", lambda words: Said(1, LOGIN, ""))
    with pytest.raises(KaggleError, match=r"^Kaggle does not know who you are: no credentials, .* KAGGLE_API_TOKEN"):
        client.status("asha/my-run")
    monkeypatch.setattr(client, "_run", lambda words: Said(1, "", TRACEBACK))
    with pytest.raises(KaggleBusy, match=r"^Kaggle does not say who you are \(requests.*503 Server Error"):
        client.user()


def test_the_quota_is_the_gpu_row():
    out = (
        "resource,used,remaining,total,refreshAt\nGPU,27.50h,2.50h,30.00h,2026-11-28T00:00:00+00:00\nTPU,0h,20h,20h,\n"
    )
    assert read_quota(Said(0, out, "")) == Quota(2.5, 30.0, "2026-11-28T00:00:00+00:00")
    assert read_quota(Said(0, "No quota information available\n", "")) is None
    assert read_quota(Said(1, "", ABORTED)) is None
    assert read_quota(Said(0, "resource,used\nGPU,1h\n", "")) is None


METADATA = {"id": "asha/my-run", "title": "my-run", "dataset_sources": ["raj/corpus"]}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({}, None),
        ({"title": "My run"}, None),
        (
            {"id": "YOUR-NAME/my-run"},
            "id: 'YOUR-NAME/my-run' is no kernel's. Write owner/slug: a-z, 0-9 and -, at most 50",
        ),
        ({"id": "my-run"}, "id: 'my-run' is no kernel's. Write owner/slug: a-z, 0-9 and -, at most 50"),
        ({"id": "asha/My_Run"}, "id: 'asha/My_Run' is no kernel's. Write owner/slug: a-z, 0-9 and -, at most 50"),
        ({"id": "asha/run1", "title": "run1"}, "title: 'run1' has 4 characters, and Kaggle wants 5 to 50"),
        (
            {"title": "My other run"},
            "title: 'My other run' gives the slug 'my-other-run', not 'my-run': Kaggle would push to another kernel",
        ),
        ({"dataset_sources": ["corpus"]}, "dataset_sources: 'corpus' is not owner/name"),
        (
            {"model_sources": ["meta/llama/transformers/8b"]},
            "model_sources: 'meta/llama/transformers/8b' is not owner/model/framework/variation/version",
        ),
        ({"kernel_sources": ["asha/my-run", "asha/my-run/3"]}, None),
    ],
)
def test_names_and_sources_are_checked_before_anything_is_sent(change, problem):
    assert problems_of(METADATA | change) == ([problem] if problem else [])


def test_a_source_that_push_is_silent_about_is_seen_in_what_was_pushed():
    sent = {
        "dataset_sources": ["Raj/Corpus", "raj/corp"],
        "model_sources": ["m/l/t/8b/1"],
        "kernel_sources": ["asha/my-run"],
    }
    there = {"dataset_sources": ["raj/corpus"], "model_sources": [], "kernel_sources": ["asha/my-run/2"]}
    assert dropped(Reply("pushed"), sent, Pulled(there)) == ["dataset raj/corp", "model m/l/t/8b/1"]
    assert dropped(Reply("pushed"), sent, None) == []
    twice = Reply("pushed", dropped=("model m/l/t/8b/1",))
    assert dropped(twice, sent, Pulled(there)) == ["model m/l/t/8b/1", "dataset raj/corp"]


class Kaggle:
    """A client's answers, one after another."""

    def __init__(self, reply, pulls=(), statuses=()):
        self.reply, self.pulls, self.statuses, self.pushes = reply, list(pulls), list(statuses), 0

    def push(self, folder):
        self.pushes += 1
        return self.reply

    def pull(self, kernel):
        return self.pulls.pop(0) if self.pulls else None

    def status(self, kernel):
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]


QUICK = Plan(confirm=0.0, poll=0.0)
OURS, OLD = Pulled({}, {"push": "n1"}), Pulled({}, {"push": "n0"})


def test_a_lost_reply_is_settled_by_what_kaggle_shows_and_never_sent_again(tmp_path):
    lost = Reply("lost", problem="it broke")
    by_mark = Kaggle(lost, [OURS], [Status("complete")])
    assert send(by_mark, tmp_path, "asha/my-run", "n1", QUICK) == (Reply("pushed", problem="it broke"), OURS)
    by_status = Kaggle(lost, [OLD], [Status("queued")])
    assert send(by_status, tmp_path, "asha/my-run", "n1", QUICK)[0].kind == "pushed"
    later = Kaggle(lost, [OLD, None, OURS], [Status("complete"), Status("unknown"), Status("complete")])
    assert send(later, tmp_path, "asha/my-run", "n1", Plan(confirm=60.0, poll=0.0))[1] == OURS
    for status, what in [("complete", "no session has started"), ("unknown", "Kaggle does not say whether a session")]:
        not_there = Kaggle(lost, [OLD], [Status(status)])
        with pytest.raises(
            KaggleBusy, match=rf"^The reply to the push of asha/my-run was lost \(it broke\), and {what}"
        ):
            send(not_there, tmp_path, "asha/my-run", "n1", QUICK)
        assert not_there.pushes == 1
    assert [by_mark.pushes, by_status.pushes, later.pushes] == [1, 1, 1]


def test_not_now_and_never_are_told_apart(tmp_path):
    with pytest.raises(KaggleBusy, match=rf"^Kaggle has no room for a session now: {SLOTS}") as full:
        send(Kaggle(Reply("full", problem=SLOTS)), tmp_path, "asha/my-run", "n1", QUICK)
    assert full.value.exit_code == 75
    with pytest.raises(KaggleError, match=r"^Kaggle refused the kernel asha/my-run: Invalid request\.") as refused:
        send(Kaggle(Reply("refused", problem="Invalid request.")), tmp_path, "asha/my-run", "n1", QUICK)
    assert refused.value.exit_code == 1
    elsewhere = Reply("pushed", 1, "https://www.kaggle.com/code/asha/my-other-run")
    with pytest.raises(KaggleError, match=r"^Kaggle pushed to another kernel than asha/my-run: https"):
        send(Kaggle(elsewhere), tmp_path, "asha/my-run", "n1", QUICK)


@pytest.mark.parametrize("values", [{}, {"store": "store"}, {"store": "/kaggle/working/store"}])
def test_a_folder_as_store_is_refused_because_it_would_be_lost(values):
    with pytest.raises(
        ConfigError, match=r"^store: .* would be lost with Kaggle's machine. Give store=hf://user/repo$"
    ):
        open_for_kaggle({"run": "r", **values})


def test_one_push_or_chain_at_a_time(tmp_path):
    second = pytest.raises(KaggleBusy, match=r"^Another push or chain works in ")
    with only_one(tmp_path / "r"), second, only_one(tmp_path / "r"):
        pass
    with only_one(tmp_path / "r"):
        pass


def test_the_mark_is_metadata_of_a_notebook_whose_cells_stay_as_they_are(tmp_path):
    cells = [{"cell_type": "code", "source": "print('বাংলা')", "metadata": {"tags": ["parameters"]}, "outputs": []}]
    path = tmp_path / "train.ipynb"
    path.write_text(json.dumps({"cells": cells, "metadata": {"kernelspec": {"name": "python3"}}, "nbformat": 4}))
    write_mark(path, {"push": "n1", "run": "r"})
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["cells"] == cells
    assert found["metadata"] == {"kernelspec": {"name": "python3"}, "kaggle_lib": {"push": "n1", "run": "r"}}
    assert "বাংলা" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (Said(0, "ready\n", ""), "ready"),
        (Said(0, "blobs_received\n", ""), "blobs_received"),
        (Said(1, "", "Permission 'datasets.get' was denied\n\nYou don't have access to this resource.\n"), "missing"),
        (Said(1, "", f"Not found\n\n{HINT_404}"), "missing"),
    ],
)
def test_the_state_of_the_tokens_dataset(said, word):
    assert _state(said) == word


def test_no_answer_is_not_a_missing_dataset():
    with pytest.raises(KaggleBusy, match=r"^Kaggle does not say whether the token's dataset is there"):
        _state(Said(1, "", ABORTED))
