"""A session's clock counts from the container's start on Kaggle, and from now anywhere else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kaggle_lib.session import clock
from kaggle_lib.session.clock import Clock


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "boot_seconds", lambda: 1_000_000.0)


@pytest.mark.usefixtures("now")
def test_what_is_left_is_the_limit_less_what_has_passed() -> None:
    running = Clock(began=1_000_000.0 - 1800, hours=1.5)
    assert running.elapsed() == 1800.0
    assert running.left() == 3600.0
    assert [running.due(reserve) for reserve in (3599.9, 3600.0, 4000.0)] == [False, True, True]


@pytest.mark.usefixtures("now")
def test_an_overrun_is_negative_and_due_with_no_reserve() -> None:
    over = Clock(began=1_000_000.0 - 3700, hours=1)
    assert over.left() == -100.0
    assert over.due(0)


@pytest.mark.usefixtures("now")
def test_without_a_limit_nothing_is_ever_due() -> None:
    endless = Clock(began=0.0, hours=None)
    assert endless.left() is None
    assert not endless.due(1e9)


def test_a_local_session_begins_now(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KAGGLE_LIB_ROOT", str(tmp_path))
    before = clock.boot_seconds()
    assert before <= Clock.start(1).began <= clock.boot_seconds()


def test_a_kaggle_session_began_with_its_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAGGLE_LIB_ROOT", raising=False)
    monkeypatch.setattr(clock, "where", lambda: "kaggle-batch")
    assert Clock.start(1).began == clock.process_start(1)
    assert Clock.start(None).hours == 11.5


def test_with_a_stand_in_for_kaggles_folder_it_began_with_the_oldest_process_that_was_started_with_it(
    tmp_path: Path,
) -> None:
    (tmp_path / "working").mkdir()
    ask = "from kaggle_lib.session.clock import Clock; print(Clock.start(1).began)"
    nested = f"import subprocess, sys, time; time.sleep(0.1); subprocess.run([sys.executable, '-c', {ask!r}])"
    environment = {**os.environ, "KAGGLE_LIB_ROOT": str(tmp_path)}
    with subprocess.Popen([sys.executable, "-c", nested], env=environment, stdout=subprocess.PIPE) as first:
        began = clock.process_start(first.pid)
        assert first.stdout is not None
        assert float(first.stdout.read()) == began


def test_a_process_start_is_read_past_a_name_with_brackets() -> None:
    code = "open('/proc/self/comm', 'w').write('a) b (c'); print(flush=True); input()"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert "(a) b (c)" in Path(f"/proc/{child.pid}/stat").read_text()
        began, own = clock.process_start(child.pid), clock.process_start(os.getpid())
        assert began is not None
        assert own is not None
        assert own <= began <= clock.boot_seconds()
        child.kill()


def test_a_process_that_is_not_there_has_no_start() -> None:
    assert clock.process_start(2**30) is None
