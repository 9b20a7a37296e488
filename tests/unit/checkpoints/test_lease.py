"""A lease is a promise with an end, and only proof of death ends it earlier."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kaggle_lib.checkpoints.lease import Lease

ROOT = Path(__file__).parents[3]


@pytest.fixture
def mine():
    return Lease.mine("20260101T000000-0001")


def test_the_promise_is_30_minutes_until_an_interval_is_measured_and_then_three_of_it_but_10_minutes_at_least(mine):
    assert mine.duration == 1800.0
    assert mine.renewed(1000.0).expires == 2800.0
    assert mine.renewed(1000.0, 1.0).expires == 1600.0
    assert mine.renewed(1000.0, 200.0).expires == 1600.0
    assert mine.renewed(1000.0, 300.0).expires == 1900.0
    assert mine.renewed(1000.0, 300.0).renewed(2000.0).expires == 2900.0  # the measure stays
    assert mine.renewed(1000.0, 300.0).renewed(2000.0, -0.1).save_interval == 300.0
    assert mine.renewed(1000.0, -0.1).save_interval is None


def test_it_is_due_when_a_third_is_left_and_expired_at_its_end(mine):
    lease = mine.renewed(0.0, 300.0)
    assert [lease.due(now) for now in (0.0, 599.9, 600.0, 900.0)] == [False, False, True, True]
    assert [lease.expired(now) for now in (899.9, 900.0)] == [False, True]


def test_a_living_process_is_not_dead(mine):
    assert mine.pid == os.getpid()
    assert not mine.provably_dead()


def test_a_process_id_used_again_by_a_later_process_is_dead(mine):
    assert mine.model_copy(update={"pid_started": mine.pid_started - 1}).provably_dead()


def child_lease(process):
    return Lease.model_validate_json(process.stdout.readline())


@pytest.fixture
def child():
    code = (
        "import sys; from kaggle_lib.checkpoints.lease import Lease\n"
        "print(Lease.mine('child').model_dump_json(), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_a_killed_process_is_dead_even_while_it_is_a_zombie_and_when_it_is_gone(child):
    lease = child_lease(child)
    assert not lease.provably_dead()
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet reaped
    assert Path(f"/proc/{child.pid}").exists()
    assert lease.provably_dead()
    child.wait()
    assert not Path(f"/proc/{child.pid}").exists()
    assert lease.provably_dead()


def test_a_process_whose_name_holds_brackets_and_blanks_is_read_right(tmp_path):
    odd = tmp_path / "a) Z 1 (b"
    odd.symlink_to("/bin/sleep")
    process = subprocess.Popen([odd, "60"])
    try:
        started = int(Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()[19])
        lease = Lease.mine("odd").model_copy(update={"pid": process.pid, "pid_started": started})
        assert not lease.provably_dead()
    finally:
        process.kill()
        process.wait()


def test_a_reboot_of_this_machine_is_death_and_of_an_unnamed_one_is_no_proof(mine):
    rebooted = mine.model_copy(update={"boot_id": "another", "machine": "m"})
    assert Lease.provably_dead(rebooted) is (mine.machine == "m")
    if mine.machine:
        assert mine.model_copy(update={"boot_id": "another"}).provably_dead()
    assert not mine.model_copy(update={"boot_id": "another", "machine": ""}).provably_dead()


@pytest.mark.parametrize(
    "change",
    [{"host": "elsewhere"}, {"machine": "0" * 16}, {"pid_namespace": "pid:[1]"}],
    ids=["host", "machine", "ns"],
)
def test_nothing_is_proved_about_a_process_of_another_machine_or_container(mine, change):
    gone = {"pid": 2**22 - 1, "pid_started": 1}
    assert mine.model_copy(update=gone).provably_dead()
    assert not mine.model_copy(update={**gone, **change}).provably_dead()


def test_it_survives_its_own_json(mine):
    lease = mine.renewed(1764000000.25, 412.5)
    assert Lease.model_validate_json(lease.model_dump_json()) == lease
