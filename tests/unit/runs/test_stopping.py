"""A session asks for its last save while that, and its upload, still fit before the deadline."""

import os
import signal

import pytest

from kaggle_lib.runs.stopping import Stopping
from kaggle_lib.session.clock import Clock, boot_seconds


def asked(hours, left, slowest):
    """What is said with `left` seconds to go, and the seconds that are kept for the end."""
    said = []
    stopping = Stopping(Clock(boot_seconds() + left - 3600 * hours, hours), said.append)
    stopping.watch_the_clock(slowest)
    stopping.watch_the_clock(slowest)
    return said, stopping.reserve


SAID = ["session_hours=10 are over: saving and pausing."]


@pytest.mark.parametrize(
    ("left", "slowest", "reserve", "said"),
    [
        (31, 0.0, 30.0, []),  # nothing is measured yet
        (29, 0.0, 30.0, SAID),
        (605, 200.0, 600.0, []),  # a slow upload: one that is under way, the last, and as much again
        (595, 200.0, 600.0, SAID),
        (7205, 9000.0, 7200.0, []),  # never more than a fifth of the session
        (7195, 9000.0, 7200.0, SAID),
    ],
)
def test_three_times_the_slowest_is_kept_for_the_end(left, slowest, reserve, said):
    assert asked(10, left, slowest) == (said, reserve)


def test_without_a_deadline_nothing_is_asked():
    stopping = Stopping(Clock(0.0, None), print)
    stopping.watch_the_clock(1e9)
    assert (stopping.why, stopping.overdue) == ("", False)


def test_a_signal_in_the_middle_of_a_line_ends_nothing_and_is_told_a_moment_later():
    """Python refuses to write into a stream that it is writing to: what the handler says waits."""
    told: list[str] = []
    busy = [True]

    def say(line: str) -> None:
        if busy.pop() if busy else False:
            raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stdout>'>")
        told.append(line)

    stopping = Stopping(Clock.start(None), say)
    with stopping.signals():
        os.kill(os.getpid(), signal.SIGINT)
    assert (stopping.why, told) == ("interrupted", [])
    stopping.watch_the_clock(0.0)
    stopping.watch_the_clock(0.0)
    assert told == ["Interrupted: saving and pausing. Once more stops at once, without saving."]
