"""What passes between a loopback service and its clients: requests, replies, and a threaded server on 127.0.0.1.

A reply also says how it is delivered (late, in two halves, or not at all): that is how faults reach the wire.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass(frozen=True)
class User:
    """The owner of a token. `write`: the token may change what the user owns. `buckets`: it reaches buckets, too."""

    name: str
    write: bool = True
    buckets: bool = True


@dataclass
class Request:
    """`path` is as sent, quoted. Set by faults: `lag` (seconds), `ignore` and `fail` (patterns), `corrupt`."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Message
    body: bytes
    user: User | None = None
    lag: float = 0.0
    ignore: re.Pattern[str] | None = None
    fail: re.Pattern[str] | None = None
    corrupt: bool = False

    @property
    def token(self) -> str | None:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        return token if kind == "Bearer" and token else None

    def json(self) -> Any:
        return json.loads(self.body or b"{}")

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines() if line.strip()]

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("true", "1")

    def number(self, name: str, default: int) -> int:
        return int(self.query.get(name, [str(default)])[0])


@dataclass
class Reply:
    """`dropped`: the connection closes instead. `late`, `half`: seconds before the headers, and within the body.

    `stream` is a body that is still being made: its pieces are sent as they come.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    dropped: bool = False
    late: float = 0.0
    half: float = 0.0
    faults: tuple[str, ...] = ()
    stream: Iterator[bytes] | None = None

    @classmethod
    def json(cls, value: Any, status: int = 200, **headers: str) -> Reply:
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=utf-8", **named})


class Refused(Exception):
    """An error as the Hub sends it: status, `X-Error-Message`, and `X-Error-Code` where clients look at it."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any):
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more

    def reply(self) -> Reply:
        reply = Reply.json({"error": self.message, **self.more}, self.status)
        reply.headers["X-Error-Message"] = self.message
        if self.code:
            reply.headers["X-Error-Code"] = self.code
        return reply


@dataclass(frozen=True)
class Record:
    """A request that was answered; `time` in seconds since 1970, `status` 0 where the connection was dropped."""

    method: str
    path: str
    status: int
    time: float
    faults: tuple[str, ...] = ()


Exchange = Callable[[Request], Reply]


class Server(ThreadingHTTPServer):
    """Serves `exchange` from a thread of its own until `stop`, which also ends every stall and open connection."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, exchange: Exchange):
        super().__init__(("127.0.0.1", port), _Handler)
        self.exchange = exchange
        self.stopping = threading.Event()
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True, name="loopback-hub")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()
        for connection in list(self._open):
            close(connection)
        self._thread.join()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news; anything else is a fault of this server."""
        if not isinstance(sys.exception(), ConnectionError) and not self.stopping.is_set():
            super().handle_error(request, client_address)


def close(connection: socket.socket) -> None:
    """End a connection in both directions; it may be closed already."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # one segment for headers and body
    server: Server

    def _exchange(self) -> None:
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        request = Request(self.command, parts.path, query, self.headers, self._body())
        reply = self.server.exchange(request)
        if reply.late:
            self.server.stopping.wait(reply.late)
        if reply.dropped or self.server.stopping.is_set():
            self.close_connection = True
            close(self.connection)
            return
        self.send_response_only(reply.status)
        always = {"Date": self.date_time_string(), "X-Request-Id": uuid.uuid4().hex}
        always |= {"Transfer-Encoding": "chunked"} if reply.stream else {"Content-Length": str(len(reply.body))}
        for name, value in {**always, **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if reply.stream:
            for piece in reply.stream:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
            return
        middle = len(reply.body) // 2 if reply.half else len(reply.body)
        self.wfile.write(reply.body[:middle])
        if reply.half:
            self.wfile.flush()
            self.server.stopping.wait(reply.half)
            if self.server.stopping.is_set():
                self.close_connection = True
                close(self.connection)
                return
            self.wfile.write(reply.body[middle:])

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = _exchange  # noqa: N815

    def _body(self) -> bytes:
        """Raises ConnectionError for one whose client went away in the middle: it is not carried out."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._whole(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0] or b"-1", 16):
            pieces.append(self._whole(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def _whole(self, size: int) -> bytes:
        content = self.rfile.read(size) if size >= 0 else b""
        if len(content) != size:
            raise ConnectionError("the client went away in the middle of its request")
        return content

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are kept as records; nothing is printed."""


Endpoint = Callable[..., Reply]


class Routes:
    """Endpoints by method and path. A pattern's `{name}` is one quoted part of the path, `{name*}` is all the rest."""

    def __init__(self) -> None:
        self._routes: list[tuple[set[str], re.Pattern[str], Endpoint]] = []

    def __call__(self, methods: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
        shape = re.sub(r"\{([a-z_]+)\*\}", r"(?P<\1>.+)", re.sub(r"\{([a-z_]+)\}", r"(?P<\1>[^/]+)", pattern))

        def register(endpoint: Endpoint) -> Endpoint:
            self._routes.append((set(methods.split()), re.compile(shape), endpoint))
            return endpoint

        return register

    def find(self, request: Request) -> tuple[Endpoint, dict[str, str]]:
        """Raises Refused(404) where no endpoint has that path."""
        for methods, pattern, endpoint in self._routes:
            if request.method in methods and (found := pattern.fullmatch(request.path)):
                return endpoint, {name: unquote(part or "") for name, part in found.groupdict().items()}
        raise Refused(404, f"The loopback Hub has no {request.method} {request.path}")


def now() -> float:
    """Seconds since 1970, by this server's clock."""
    return time.time()


def stamp(seconds: float) -> str:
    """A time as the Hub writes it."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"
