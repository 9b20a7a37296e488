"""How the loopback Kaggle answers a request: who asks, what the script of faults does to it, and what is recorded."""

from __future__ import annotations

import base64
import http.client
import time
import traceback
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlencode

from support.loopback_http import Reply, Request
from support.loopback_kaggle_api import METHODS, Refused
from support.loopback_kaggle_faults import Fault, refusal, values
from support.loopback_kaggle_records import Account, Call

if TYPE_CHECKING:
    from support.loopback_kaggle import LoopbackKaggle


def exchange(kaggle: LoopbackKaggle, request: Request) -> Reply:
    """Answer one request under the script of faults, and keep a record of it."""
    host = request.headers.get("Host", "")
    if host not in ("localhost", "localhost:80", "", kaggle.endpoint.removeprefix("http://")):
        return forward(request, host)
    call = unquote(request.path).rpartition("/")[2] if request.path.startswith("/api/") else unquote(request.path)
    if request.path.startswith("/api/v1/kernels/logs/stream/"):
        call = "GetKernelSessionLogsStream"
    faults = kaggle.faults.take(call)
    user = _user(kaggle, request)
    try:
        body = _body(request)
        reply = _answer(kaggle, request, call, user, body, faults)
    except Refused as refused:
        reply = refusal(refused.status, refused.message)
    except Exception:
        traceback.print_exc()
        reply = refusal(500)
    reply.late = sum(map(float, values(faults, "lag")))
    reply.dropped = any(fault.action in ("drop_before", "drop_reply") for fault in faults)
    named = tuple(fault.action for fault in faults)
    status = 0 if reply.dropped else reply.status
    kaggle.calls.append(Call(call, user and user.name, body, status, time.time(), named))
    return reply


def _body(request: Request) -> dict[str, Any]:
    if request.path.startswith("/api/v1/kernels/logs/stream/"):
        owner, slug = unquote(request.path).split("/")[-2:]
        return {"userName": owner, "kernelSlug": slug, "versionLabel": request.query.get("versionLabel", [""])[0]}
    known = request.path.startswith(("/api/", "/requests/"))
    return dict(request.json()) if known else {}


def _user(kaggle: LoopbackKaggle, request: Request) -> Account | None:
    kind, _, value = request.headers.get("Authorization", "").partition(" ")
    if kind == "Bearer":
        return next((one for one in kaggle.accounts if one.token == value), None)
    if kind == "Basic":
        name, _, key = base64.b64decode(value).decode("utf-8", "replace").partition(":")
        return next((one for one in kaggle.accounts if (one.name, one.key) == (name, key)), None)
    return None


def _answer(
    kaggle: LoopbackKaggle, request: Request, call: str, user: Account | None, body: dict[str, Any], faults: list[Fault]
) -> Reply:
    for fault in faults:
        if fault.action == "status":
            return refusal(int(fault.value), fault.text, fault.retry_after)
        if fault.action == "drop_before":
            return Reply()
    if request.path == "/requests/GetUserSecretByLabelRequest":
        return _secret(kaggle, request, body["Label"])
    if request.path.startswith("/_output/"):
        return _file(kaggle, request)
    if request.path.startswith("/_upload/"):
        (kaggle.root / "blobs" / call.rpartition("/")[2]).write_bytes(request.body)
        return Reply(201)
    endpoint = METHODS.get(call)
    if endpoint is None:
        raise Refused(404, f"The loopback Kaggle has no {request.method} {request.path}")
    if user is None and call != "IntrospectToken":
        raise Refused(401, "Unauthenticated")
    with kaggle.lock:
        told = endpoint(kaggle, user, body, faults)  # type: ignore[arg-type]  # one call needs no user
    return told if isinstance(told, Reply) else Reply.json(told)


def _secret(kaggle: LoopbackKaggle, request: Request, label: str) -> Reply:
    kind, _, token = request.headers.get("X-Kaggle-Authorization", "").partition(" ")
    session = next((one for one in kaggle.sessions if kind == "Bearer" and one.secrets_token == token), None)
    if session is None or not session.live:
        raise Refused(401, "Unauthenticated")
    if label not in session.secrets:
        kernel = kaggle.kernels.get(session.kernel)
        text = f"No user secrets exist for kernel id {kernel.id if kernel else 0} and label {label}."
        return Reply.json({"errors": [text], "error": {"code": 5, "details": []}, "wasSuccessful": False})
    return Reply.json({"result": {"secret": session.secrets[label], "label": label}, "wasSuccessful": True})


def _file(kaggle: LoopbackKaggle, request: Request) -> Reply:
    number, _, name = unquote(request.path).removeprefix("/_output/").partition("/")
    session = next((one for one in kaggle.sessions if str(one.id) == number), None)
    if session is None or session.output is None or request.query.get("key") != [session.secrets_token]:
        raise Refused(403, "The address has expired.")
    path = (session.output / name).resolve()
    if not path.is_relative_to(session.output.resolve()) or not path.is_file():
        raise Refused(404, "Not found")
    return Reply(200, path.read_bytes(), {"Content-Type": "application/octet-stream"})


def forward(request: Request, host: str) -> Reply:
    """Pass a request on to another port of this machine, as the proxy that clients take this server for."""
    name, _, port = host.partition(":")
    if name not in ("localhost", "127.0.0.1") or not port.isdigit():
        return Reply(502, f"The loopback Kaggle leads to this machine only, not to {host}\n".encode())
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=600)
    try:
        path = request.path + ("?" + urlencode(request.query, doseq=True) if request.query else "")
        hop = ("connection", "proxy-connection", "transfer-encoding", "content-length", "keep-alive")
        headers = {key: value for key, value in request.headers.items() if key.lower() not in hop}
        connection.request(request.method, path, request.body or None, headers)
        reply = connection.getresponse()
        told = {key: value for key, value in reply.getheaders() if key.lower() not in hop[:3]}
        return Reply(reply.status, reply.read(), told)
    except (OSError, http.client.HTTPException):
        return Reply(dropped=True)
    finally:
        connection.close()
