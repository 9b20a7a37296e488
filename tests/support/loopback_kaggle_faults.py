"""Kaggle's lies and failures as a script: which calls of the API they hit, how often, and after how many.

`kaggle.faults.add("lag(2)", call="GetKernelSessionStatus", times=3, after=1)`. As JSON, for other processes: the same
names, posted to /_faults (an object or a list of them); DELETE empties the script, GET tells how often each was hit.

Of any call:
  NUMBER             that HTTP status, with `text` (409: a dataset is still processed; 429: with `retry_after`)
  drop_before        the connection closes, and nothing was done
  drop_reply         it was done, and the connection closes: after a push, the session has started
  lag(seconds)       the reply is late
Of a push, which prints each of these with exit code 0:
  slots              refused: two GPU sessions are running
  quota              refused: the week's hours are used up
  error(text)        refused with that text
  refuse(datasets)   accepted without its datasets (or kernels, or models: those, the client does not even print)
Of a push, for the session that it starts:
  queue(seconds)     no machine comes for so long
  capacity           none comes at all: ERROR
  gpus(names)        the machine has these GPUs, separated by commas; `gpus()` has none
  linger(seconds)    it is said to run, and holds its slot, so long after its end
  end_as(STATUS)     once it has ended by itself, it is told as STATUS
Of a question for a session's status:
  report(STATUS)     it is told as STATUS
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from support.loopback_http import Reply
from support.loopback_kaggle_session import Plan
from support.loopback_script import Script

PUSH, STATUS = "SaveKernel", "GetKernelSessionStatus"
# The call that each action is about, where the script does not say.
ACTIONS = {"status": ".*", "drop_before": ".*", "drop_reply": ".*", "lag": ".*", "report": STATUS}
ACTIONS |= dict.fromkeys(("slots", "quota", "error", "refuse", "queue", "capacity", "gpus", "linger", "end_as"), PUSH)
WITH_ARGUMENT = {"lag", "report", "error", "refuse", "queue", "gpus", "linger", "end_as"}
SLOTS = "Maximum batch GPU session count of {} reached."
QUOTA = "Maximum weekly GPU quota of {:.2f} hours reached."
TEXTS = {
    400: "Invalid request.",
    401: "Unauthenticated",
    403: "Permission 'kernels.get' was denied",
    404: "Not found",
    409: "A dataset source is still being processed. Please try again once it is ready.",
    500: "Internal server error",
}


def refusal(status: int, text: str = "", retry_after: float | None = None) -> Reply:
    """An error as Kaggle sends it: JSON with a code and a message; too busy (429, 502, 503), a page that is no JSON."""
    if status in (429, 502, 503):
        reply = Reply(status, b"<html><title>Error</title></html>", {"Content-Type": "text/html"})
    else:
        reply = Reply.json({"code": status, "message": text or TEXTS.get(status, f"Error {status}")}, status)
    if retry_after is not None:
        reply.headers["Retry-After"] = str(int(retry_after))
    return reply


@dataclass
class Fault:
    """One line of the script. `left` None: for ever; `skip`: calls that go by; `hits`: those it was done to."""

    action: str
    value: str
    call: re.Pattern[str]
    left: int | None
    skip: int
    text: str = ""
    retry_after: float | None = None
    hits: int = 0

    def told(self) -> dict[str, Any]:
        action = f"{self.action}({self.value})" if self.value else self.action
        return {"action": action, "call": self.call.pattern, "times": self.left, "after": self.skip, "hits": self.hits}


class Faults(Script[Fault]):
    """The script of one loopback Kaggle."""

    def add(
        self,
        action: str | int,
        *,
        call: str | None = None,
        times: int | None = 1,
        after: int = 0,
        text: str = "",
        retry_after: float | None = None,
    ) -> Fault:
        """Add a line; `times` None: for ever. Raises ValueError for an action that is none, or lacks its argument."""
        parts = re.fullmatch(r"(\w+)(?:\((.*)\))?", str(action))
        name, value = (parts[1], parts[2]) if parts else (str(action), None)
        if name.isdigit():
            name, value = "status", name
        elif name not in ACTIONS or (name in WITH_ARGUMENT) != (value is not None):
            raise ValueError(f"no action {action}; see {__name__}")
        return self.append(Fault(name, value or "", re.compile(call or ACTIONS[name]), times, after, text, retry_after))

    def take(self, call: str) -> list[Fault]:
        """The faults that hit this call; each is counted."""
        return self.hit(lambda fault: fault.call.fullmatch(call))


def values(faults: list[Fault], action: str) -> list[str]:
    return [fault.value for fault in faults if fault.action == action]


def plan(faults: list[Fault]) -> Plan:
    """What the faults that hit a push do to its session."""
    waits = {name: sum(map(float, values(faults, name))) for name in ("queue", "linger")}
    machine = values(faults, "gpus")
    names = tuple(name.strip() for name in machine[-1].split(",") if name.strip()) if machine else None
    end_as = [*values(faults, "end_as"), ""][0]
    return Plan(**waits, capacity=bool(values(faults, "capacity")), end_as=end_as, gpus=names)
