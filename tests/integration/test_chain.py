"""chain, by the real command lines, with sessions that write to a real store: killed anywhere and started again."""

import time

import pytest
from support.loopback_hub import LoopbackHub
from support.quick_sessions import KERNEL, Laptop, kill, quick_kaggle, saves

pytestmark = pytest.mark.slow
QUICK = ("--poll", "0.2")


@pytest.fixture
def hub(tmp_path):
    with LoopbackHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def kaggle(tmp_path, hub):
    with quick_kaggle(tmp_path / "kaggle", hub) as kaggle:
        yield kaggle


def overlaps(kaggle):
    """Sessions that were started while another was live."""
    ends = [session.ended or float("inf") for session in kaggle.sessions]
    return [number for number, one in enumerate(kaggle.sessions[1:]) if one.created < ends[number]]


# Where a chain is killed: after so many further answers of this call.
KILLS = [
    ("GetKernelSessionStatus", 1),  # it has looked, and is about to push
    ("SaveKernel", 1),  # the push is done, and its reply on the way
    ("GetKernel", 1),  # it looks at what it pushed
    ("GetKernelSessionLogsStream", 1),  # it follows the session
    ("GetAcceleratorQuotaStatistics", 1),  # the session has ended, and the next push comes
    ("SaveKernel", 1),
]


def test_a_chain_killed_at_every_point_pushes_none_while_one_is_live_and_none_after_the_end(tmp_path, hub, kaggle):
    laptop = Laptop(tmp_path / "clone", hub, kaggle)
    kaggle.session_environment["QUICK_SECONDS"] = "1"
    for call, number in KILLS:
        chain = laptop.start("chain", *QUICK)
        begun = len(kaggle.calls)
        if call == "SaveKernel":
            kaggle.faults.add("lag(2)", call="SaveKernel")
        while sum(one.call == call for one in kaggle.calls[begun:]) < number and chain.poll() is None:
            time.sleep(0.005)
        assert chain.poll() is None, chain.communicate()
        kill(chain)
    ended = laptop.call("chain", *QUICK)
    assert (ended["outcome"], ended["did"], ended["sessions"]) == ("finished", "done", 3)
    assert (len(kaggle.sessions), overlaps(kaggle)) == (3, [])
    assert [session.wait().status for session in kaggle.sessions] == ["COMPLETE"] * 3
    pushes = len(saves(kaggle))
    assert laptop.call("chain", "--once")["outcome"] == "finished"
    assert laptop.call("push")["outcome"] == "finished"
    assert len(saves(kaggle)) == pushes


def test_a_dead_session_is_taken_over_a_silent_one_cancelled_and_each_step_has_its_exit_code(tmp_path, hub, kaggle):
    laptop = Laptop(tmp_path / "clone", hub, kaggle)
    once = ("--once", "--poll", "0.2", "--hang-minutes", "0")
    kaggle.session_environment["QUICK"] = "die"
    assert laptop.call("chain", *once, code=75)["did"] == "push"
    kaggle.sessions[0].wait_for("claimed", 600)
    kaggle.sessions[0].wait(600)
    held = laptop.call("status")
    assert (held["state"], held["step"]) == ("running", 0)

    kaggle.session_environment["QUICK"] = "silent"
    pushed = laptop.call("chain", *once, "--no-progress", "5", code=75)
    assert (pushed["did"], pushed["reason"]) == ("push", "the last session ended (error)")
    kaggle.sessions[1].wait_for("claimed", 600)
    assert f'take_over = "{held["lease"]["session"]}"' in kaggle.kernels[KERNEL].versions[1].source.replace('\\"', '"')
    time.sleep(1.1)  # its lease ends
    silent = laptop.call("chain", *once, code=75)
    assert silent["did"] == "cancel"
    assert kaggle.sessions[1].wait(600).status == "CANCEL_ACKNOWLEDGED"

    kaggle.gpu_hours = 29.8
    broke = laptop.call("chain", *once, "--no-progress", "5", code=75)
    assert (broke["did"], broke["reason"].partition(" hours")[0]) == ("wait", "0.2 of 30 GPU")
    kaggle.gpu_hours = 0.0
    stopped = laptop.call("chain", *once, code=1)
    assert "2 sessions in a row came to no new step" in stopped["reason"]
    assert (len(kaggle.sessions), overlaps(kaggle)) == (2, [])


def test_sessions_that_never_begin_stop_the_chain_and_no_machine_is_no_failure(tmp_path, hub, kaggle):
    laptop = Laptop(tmp_path / "clone", hub, kaggle)
    kaggle.session_environment["QUICK"] = "fail"
    kaggle.faults.add("slots")
    stopped = laptop.call("chain", *QUICK, code=1)
    assert "Kaggle has no room for a session now: Maximum batch GPU session count of 2 reached." in stopped["stderr"]
    assert "  | no reason to live" in stopped["stderr"]
    assert "Run 'quick-run': 2 sessions in a row came to no new step" in stopped["reason"]
    assert (len(saves(kaggle)), len(kaggle.sessions)) == (3, 2)
    # The next chain knows it, too; one push by hand is what makes it try again.
    assert laptop.call("chain", "--once", "--poll", "0.2", code=1)["reason"] == stopped["reason"]
    kaggle.faults.add("capacity")
    assert laptop.call("push")["outcome"] == "pushed"
    kaggle.sessions[2].wait(600)
    waited = laptop.call("chain", "--once", "--poll", "60", code=75)
    assert (waited["did"], waited["reason"].partition(" (")[0]) == ("wait", "Kaggle had no machine")
    assert (len(kaggle.sessions), overlaps(kaggle)) == (3, [])
