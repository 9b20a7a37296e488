"""huggingface_hub with an end to every wait, on the Hub's clock, and its failures as one sentence.

The client has no timeout of its own for most calls, sleeps as long as a Retry-After says, and streams for as long as
bytes trickle in. So its HTTP client gets hooks: each request ends with the operation that it is part of (`within`).
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from email.utils import parsedate_to_datetime

import httpx
from huggingface_hub import set_client_factory
from huggingface_hub.errors import (
    BucketBatchError,
    BucketNotFoundError,
    EntryNotFoundError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http
from huggingface_hub.utils._xet import abort_xet_session
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars

from kaggle_lib.errors import StoreError

IDLE = 30.0  # seconds without a byte
LONGEST_RETRY_AFTER = 10
PASSING = {408, 409, 412, 425, 429, 500, 502, 503, 504}
# hf_xet's own: a dead server would cost half an hour. Read when it begins its first transfer; a bare number is ignored.
XET = {"CONNECT_TIMEOUT": "15s", "READ_TIMEOUT": "30s", "RETRY_MAX_ATTEMPTS": "3"}
KEPT = "Everything committed before is kept."


class OutOfTime(Exception):
    """The operation has used up its time. Not one of httpx's errors, which the client would try again. Its argument is
    the status of the answer after which there was no time left to wait, where there was one."""


# What the client is known to raise. KeyError and ValueError: a reply that is none of the Hub's.
Failures = (OSError, httpx.HTTPError, httpx.StreamError, RuntimeError, ValueError, KeyError, OutOfTime)

_end: ContextVar[float | None] = ContextVar("end", default=None)
_ends: dict[object, float] = {}
_clock: list[float] = []  # [the Hub's seconds since 1970 less time.monotonic()]


def now() -> float:
    """Seconds since 1970 by the Hub's clock, as its last answer told it; by this machine's before the first."""
    return time.monotonic() + _clock[0] if _clock else time.time()


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Whatever this thread asks of the Hub inside ends by then: OutOfTime, or a transfer by Xet that is cancelled."""
    outer = _end.get()
    end = time.monotonic() + seconds
    end, key = end if outer is None else min(end, outer), object()
    token, _ends[key] = _end.set(end), end
    try:
        yield
    finally:
        del _ends[key]
        _end.reset(token)


def left() -> float:
    """Seconds to the end of this thread's operation."""
    end = _end.get()
    return math.inf if end is None else end - time.monotonic()


def rest(seconds: float, failed: BaseException | None = None) -> None:
    """Sleep. Raises `failed`, or OutOfTime, at once where the operation would be over by then."""
    if left() <= seconds:
        raise failed or OutOfTime
    time.sleep(seconds)


@contextmanager
def xet_abort() -> Iterator[None]:
    """Cancel the Xet transfers of this process at the operation's end: hf_xet has calls without any timeout.

    They show no progress bars, and none are shown from then on.
    """
    if not are_progress_bars_disabled():
        disable_progress_bars()
    timer = threading.Timer(min(max(left(), 0.0), threading.TIMEOUT_MAX), abort_xet_session)
    timer.daemon = True
    timer.start()
    try:
        yield
    except KeyboardInterrupt as error:
        if error.args:  # now and then that is what hf_xet makes of an abort; a real one has no words
            raise OutOfTime from None
        raise
    finally:
        timer.cancel()


def connect() -> None:
    """Give the client its hooks, once a process; whatever factory the user has set makes the client still.

    Its warnings of each try are left out, unless HF_HUB_VERBOSITY asks for them: what fails in the end, we say.
    """
    for name, value in XET.items():
        os.environ.setdefault(f"HF_XET_CLIENT_{name}", value)
    if "HF_HUB_VERBOSITY" not in os.environ:
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    inner = _http._GLOBAL_CLIENT_FACTORY
    if getattr(inner, "ends", False):
        return

    def factory() -> httpx.Client:
        client = inner()
        hooks = client.event_hooks
        client.event_hooks = {"request": [*hooks["request"], _before], "response": [*hooks["response"], _after]}
        return client

    factory.ends = True  # type: ignore[attr-defined]
    set_client_factory(factory)


class _Stream(httpx.SyncByteStream):
    def __init__(self, inner: httpx.SyncByteStream, end: float) -> None:
        self._inner, self._until = inner, end

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._inner:
            if time.monotonic() > self._until:
                raise OutOfTime
            yield piece

    def close(self) -> None:
        self._inner.close()


def _before(request: httpx.Request) -> None:
    end = _end.get()
    if end is None and request.method in ("PUT", "POST"):  # by a thread of the client's own, which uploads a file
        end = max(_ends.values(), default=None)
    if end is None:
        end = math.inf
    if (remaining := end - time.monotonic()) <= 0:
        raise OutOfTime
    limits = request.extensions.get("timeout", {})
    names = ("connect", "read", "write", "pool")
    bounded = {name: min(IDLE if limits.get(name) is None else limits[name], remaining) for name in names}
    request.extensions = {**request.extensions, "timeout": bounded, "end": end}
    assert isinstance(request.stream, httpx.SyncByteStream)
    request.stream = _Stream(request.stream, end)


def _after(response: httpx.Response) -> None:
    date = response.headers.get("date")
    if date and "/api/" in response.request.url.path and "age" not in response.headers:  # of the Hub, not of a cache
        with suppress(ValueError):
            _clock[:] = [parsedate_to_datetime(date).timestamp() - time.monotonic()]
    end = response.request.extensions["end"]
    if response.status_code >= 400:  # how long the client would sleep: these two say it
        response.headers.pop("ratelimit", None)
        if (asked := response.headers.get("retry-after", "")).isdigit():
            pause = min(int(asked), LONGEST_RETRY_AFTER)
            if time.monotonic() + pause > end:
                raise OutOfTime(response.status_code)
            response.headers["retry-after"] = str(pause)
    assert isinstance(response.stream, httpx.SyncByteStream)
    response.stream = _Stream(response.stream, end)


def _cause(error: BaseException) -> BaseException:
    """What the client has wrapped in an error of its own."""
    return error if error.__cause__ is None or isinstance(error, httpx.HTTPError) else _cause(error.__cause__)


def status(error: BaseException) -> int | None:
    """The HTTP status behind an error."""
    cause = _cause(error)
    return cause.response.status_code if isinstance(cause, HfHubHTTPError) else None


def passing(error: BaseException) -> bool:
    """Whether the same call may succeed a little later, or has done so without our hearing of it."""
    return isinstance(_cause(error), (httpx.TransportError, BucketBatchError)) or status(error) in PASSING


def is_missing(error: BaseException) -> bool:
    """A repo or a branch that is not there, by the Hub's own word; without a valid token it says so of private ones."""
    return isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError)) and status(error) == 404


def explain(error: BaseException, place: str, doing: str, token: str | None) -> StoreError:
    """ "The store … cannot be `doing`: why", and what to do about it. `token` is taken out of what the client says."""
    error = _cause(error)
    number = next(iter(error.args), None) if isinstance(error, OutOfTime) else status(error)
    text = " ".join(str(getattr(error, "server_message", None) or error).split())
    todo = "Try again."
    if (isinstance(error, OutOfTime) and number is None) or "Operation cancelled" in text:
        problem = "the Hub did not answer in time"
    elif isinstance(error, OfflineModeIsEnabled):
        problem, todo = "huggingface_hub is offline (HF_HUB_OFFLINE)", "Unset HF_HUB_OFFLINE."
    elif isinstance(error, BucketNotFoundError):
        problem = f"the bucket of its files is gone, or the token may not see it ({number})"
        todo = "Set HF_TOKEN to a token that may read it; if it is gone, remove the checkpoints that name it."
    elif number == 401 or isinstance(error, RepositoryNotFoundError):
        what = "the token is not valid, or may not see that repo" if token else "it is private, and there is no token"
        problem, todo = f"{what} ({number})", "Check the repo's name, and set HF_TOKEN to a token that may write to it."
    elif number == 403 and "storage" in text.lower():
        problem = "the account's private storage is full (403)"
        todo = "Free space on https://huggingface.co/settings/billing, or lower keep, and run again."
    elif number == 403:
        problem = "the token may not do that (403)"
        todo = "Set HF_TOKEN to a token with the right to write to that repo."
    elif number == 429:
        problem, todo = "the Hub's limit of requests or commits is used up for now (429)", "Try again in an hour."
    elif number is not None and (number >= 500 or number in PASSING):
        problem = f"the Hub answers {number}"
    elif isinstance(error, httpx.TransportError):
        problem = f"the Hub cannot be reached ({type(error).__name__})"
    elif isinstance(error, EntryNotFoundError):
        problem = "a file that it lists is not there"
    else:
        problem = f"{type(error).__name__}: {text}"
    if token:
        problem = problem.replace(token, "(the token)")
    return StoreError(f"The store {place} cannot be {doing}: {problem}.", kept=KEPT, todo=todo)
