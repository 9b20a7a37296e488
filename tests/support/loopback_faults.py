"""Faults of the loopback Hub, as a script: which requests, how many of them, from which one on, and what happens.

`hub.faults.add(action="503(1)", method="POST", path="/commit/", times=2, after=1)`: of the POSTs whose unquoted path
has a match, one goes by, the next two get 503 with `Retry-After: 1`. `times=None` is for ever. Where method, path or
times are left out, the action's own apply. As JSON, for other processes: the same names, posted to /_faults (an object
or a list of them) or in the file that $LOOPBACK_FAULTS names. Several may hit one request, in the script's order.

| action | what happens |
|---|---|
| a status, `503`, `"429(5)"`; arguments `retry_after`, `text`, `code` | the request is not carried out |
| `412`, `409` | of a commit: the head has moved; another commit operation is in progress |
| `storage_limit` | 403 for a commit, with the text of a full account |
| `drop_before`, `drop_reply` | the connection closes instead of a reply; `drop_reply` carries the request out |
| `rate_limit(requests)`; argument `seconds` | 429 with Retry-After for what is more than that in any `seconds` (300) |
| `date(seconds)` | the reply's Date is so much later (or earlier) than this machine's |
| `latency(seconds)`, `slow_upload(bytes_per_second)` | the request waits, then is carried out |
| `stall_headers(seconds)`, `stall_body(seconds)` | carried out; the reply comes late, or its second half does |
| `stall_cas(seconds)` | stall_headers of every request to the Xet storage |
| `corrupt_download` | another byte in the content, same size; a path ends in the file's name, by Xet in its hash |
| `should_ignore(pattern)` | preupload tells the client to leave out the files that match |
| `fail_operations(pattern)` | what a bucket's batch does to files that match fails; the rest is done |
| `move_head(file)` | another commit, which writes `file` where one is named, lands before this one is judged |
| `lag_heads(seconds)` | reads see each branch's head as it was so long ago |
| `lose_commit_500` | the commit lands, and the reply says 500 |
| `call(function)` | `function()` is called before the request is carried out (not as JSON) |
"""

from __future__ import annotations

import base64
import math
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from support.loopback_http import Refused, Reply, Request
from support.loopback_script import Script

if TYPE_CHECKING:
    from support.loopback_hub import LoopbackHub

EVER = 3600.0
COMMIT = r"^/api/(models|datasets)/[^/]+/[^/]+/commit/"
CONTENT = r"^/_lfs/|/v1/reconstructions/|/resolve/"
TEXTS = {
    409: "Another commit operation is in progress for this repository. Please try again later.",
    412: "A commit has happened since. Please refresh and try again.",
    429: "Too Many Requests: you have reached your hourly quotas for action: commit.",
    500: "Internal Error - We're working hard to fix this as soon as possible!",
    503: "Service Temporarily Unavailable",
}
STORAGE_LIMIT = (
    "Private repository storage limit reached, please upgrade your plan to increase your private storage limit"
)


@dataclass(frozen=True)
class Action:
    """What a fault does, and to which requests where the script does not say. `times` 0: for ever."""

    argument: str = ""
    default: Any = None
    method: str = ".*"
    path: str = ""
    times: int = 1


ACTIONS = {
    "status": Action("retry_after"),
    "storage_limit": Action(method="POST", path=COMMIT),
    "drop_before": Action(),
    "drop_reply": Action(),
    "rate_limit": Action("requests", 1000, path="^/api/", times=0),
    "date": Action("seconds", 7200.0, times=0),
    "latency": Action("seconds", 1.0, times=0),
    "slow_upload": Action("bytes_per_second", 20e6, method="POST|PUT", times=0),
    "stall_headers": Action("seconds", EVER),
    "stall_body": Action("seconds", EVER),
    "stall_cas": Action("seconds", EVER, path="^/_cas/", times=0),
    "corrupt_download": Action(method="GET", path=CONTENT),
    "should_ignore": Action("pattern", ".", method="POST", path="/preupload/", times=0),
    "fail_operations": Action("pattern", ".", method="POST", path="^/api/buckets/.*/batch$"),
    "move_head": Action("file", method="POST", path=COMMIT),
    "lag_heads": Action("seconds", 20.0, path="^/api/(models|datasets)/[^/]+/|/resolve/", times=0),
    "lose_commit_500": Action(method="POST", path=COMMIT),
    "call": Action("function"),
}


@dataclass
class Fault:
    """One line of the script; `hits`: the requests it was done to. `left` None: for ever; `skip`: those that go by."""

    action: str
    arguments: dict[str, Any]
    method: re.Pattern[str]
    path: re.Pattern[str]
    left: int | None
    skip: int
    hits: int = 0
    recent: deque[float] = field(default_factory=deque)

    def before(self, hub: LoopbackHub, request: Request) -> Reply | None:
        """What precedes the request, or a reply instead of carrying it out."""
        if self.action == "status":
            return self._refusal(int(self.arguments["status"]))
        if self.action == "storage_limit":
            return Refused(403, STORAGE_LIMIT).reply()
        if self.action == "rate_limit":
            return self._limited()
        if self.action == "drop_before":
            return Reply(dropped=True)
        if self.action == "latency":
            hub.wait(self.arguments["seconds"])
        elif self.action == "slow_upload":
            with hub.faults.line:
                hub.wait(len(request.body) / self.arguments["bytes_per_second"])
        elif self.action == "should_ignore":
            request.ignore = re.compile(self.arguments["pattern"])
        elif self.action == "fail_operations":
            request.fail = re.compile(self.arguments["pattern"])
        elif self.action == "corrupt_download":
            request.corrupt = True
        elif self.action == "lag_heads":
            request.lag = self.arguments["seconds"]
        elif self.action == "move_head":
            _move_head(hub, request, self.arguments["file"])
        elif self.action == "call":
            self.arguments["function"]()
        return None

    def after(self, reply: Reply) -> Reply:
        """What becomes of the reply."""
        if self.action == "drop_reply":
            reply.dropped = True
        elif self.action in ("stall_headers", "stall_cas"):
            reply.late += self.arguments["seconds"]
        elif self.action == "date":
            reply.headers["Date"] = formatdate(time.time() + self.arguments["seconds"], usegmt=True)
        elif self.action == "stall_body":
            reply.half += self.arguments["seconds"]
        elif self.action == "lose_commit_500" and reply.status == 200:
            return Refused(500, TEXTS[500]).reply()
        return reply

    def told(self) -> dict[str, Any]:
        told = {"action": self.action, "method": self.method.pattern, "path": self.path.pattern}
        arguments = {name: value for name, value in self.arguments.items() if not callable(value)}
        return {**told, "times": self.left, "after": self.skip, "hits": self.hits, "arguments": arguments}

    def _limited(self) -> Reply | None:
        """A refusal of what is too much; what was refused counts, too."""
        now, window = time.monotonic(), self.arguments.get("seconds", 300.0)
        self.recent.append(now)
        while self.recent[0] <= now - window:
            self.recent.popleft()
        if len(self.recent) <= self.arguments["requests"]:
            return None
        reply = Refused(429, TEXTS[429]).reply()
        reply.headers["Retry-After"] = str(math.ceil(window))
        return reply

    def _refusal(self, status: int) -> Reply:
        text = self.arguments.get("text") or TEXTS.get(status, f"Fault {status}")
        reply = Refused(status, text, self.arguments.get("code")).reply()
        if self.arguments.get("retry_after") is not None:
            reply.headers["Retry-After"] = str(int(self.arguments["retry_after"]))
        return reply


class Faults(Script[Fault]):
    """The script of one Hub."""

    def __init__(self) -> None:
        super().__init__()
        self.line = threading.Lock()  # one upload at a time has the slow line
        self.taken = threading.Event()  # some request was hit

    def add(
        self,
        action: str | int,
        *,
        method: str | None = None,
        path: str | None = None,
        times: int | None = -1,
        after: int = 0,
        **arguments: Any,
    ) -> Fault:
        """Add a line to the script. Raises ValueError for an action or an argument that there is not."""
        parts = re.fullmatch(r"(\w+)(?:\((.*)\))?", str(action))
        name, value = (parts[1], parts[2]) if parts else (str(action), None)
        known = ACTIONS.get("status" if name.isdigit() else name)
        if known is None or name == "status":
            raise ValueError(f"no action {action}; there are {', '.join(ACTIONS)}, where status is a number")
        if value:
            arguments[known.argument] = float(value) if re.fullmatch(r"[0-9.e+]+", value) else value
        elif known.argument:
            arguments.setdefault(known.argument, known.default)
        more = {"text", "code"} if name.isdigit() else {"seconds"} if name == "rate_limit" else set()
        allowed = {known.argument} - {""} | more
        if unknown := set(arguments) - allowed:
            raise ValueError(f"{name} has no argument {', '.join(sorted(unknown))}".rstrip())
        if name.isdigit():
            name, arguments = "status", {**arguments, "status": int(name)}
            if arguments["status"] in (409, 412):
                method, path = method or "POST", path or COMMIT
        left = (known.times or None) if times == -1 else times
        where = re.compile(method or known.method), re.compile(path if path is not None else known.path)
        return self.append(Fault(name, arguments, *where, left, after))

    def take(self, request: Request) -> list[Fault]:
        """The faults that hit this request; each is counted."""
        path = unquote(request.path)
        hit = self.hit(lambda fault: fault.method.fullmatch(request.method) and fault.path.search(path))
        if hit:
            self.taken.set()
        return hit


def exchange(hub: LoopbackHub, request: Request, answer: Callable[[Request], Reply]) -> Reply:
    """Answer a request under the script."""
    faults = hub.faults.take(request)
    reply = None
    for fault in faults:
        reply = fault.before(hub, request)
        if reply is not None:
            break
    if reply is None:
        reply = answer(request)
    for fault in faults:
        reply = fault.after(reply)
    reply.faults = tuple(fault.action for fault in faults)
    return reply


def _move_head(hub: LoopbackHub, request: Request, file: str | None) -> None:
    parts = re.match(r"/api/(models|datasets)/([^/]+/[^/]+)/[^/]+/([^/]+)", request.path)
    if parts is None or (repo := hub.repos.get((parts[1][:-1], parts[2]))) is None:
        return
    operations: list[dict[str, Any]] = [{"key": "header", "value": {"summary": "by someone else"}}]
    if file:
        content = base64.b64encode(b"by someone else\n").decode()
        operations.append({"key": "file", "value": {"path": file, "content": content}})
    with hub.lock:
        if (branch := unquote(parts[3])) in repo.branches:
            repo.commit(branch, operations, "someone")
