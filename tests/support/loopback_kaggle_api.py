"""Kaggle's API for kernels and their sessions, as the real `kaggle` client calls it: JSON to /api/v1/SERVICE/METHOD."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from support.loopback_http import Reply, stamp
from support.loopback_kaggle_faults import QUOTA, SLOTS, Fault, plan, values
from support.loopback_kaggle_image import MACHINES
from support.loopback_kaggle_records import Account, Kernel, Version, slugify
from support.loopback_kaggle_session import Session

if TYPE_CHECKING:
    from support.loopback_kaggle import LoopbackKaggle

MOST_BYTES = 1_000_000  # of a notebook, as it is sent
DENIED = "Permission '{}' was denied"


class Refused(Exception):
    """An HTTP error with Kaggle's word on it."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


Body = dict[str, Any]
Method = Callable[["LoopbackKaggle", Account, Body, list[Fault]], "Body | Reply"]
METHODS: dict[str, Method] = {}


def method(endpoint: Method) -> Method:
    """Register an endpoint under the API's name for it: save_kernel is SaveKernel."""
    METHODS["".join(part.title() for part in endpoint.__name__.split("_"))] = endpoint
    return endpoint


def kernel_of(kaggle: LoopbackKaggle, user: Account, body: Body) -> Kernel:
    """The kernel that a request names. Kaggle tells nobody whether another's, or one that never was, exists."""
    kernel = kaggle.kernels.get(f"{body.get('userName')}/{body.get('kernelSlug')}")
    if kernel is None or not kernel.ref.startswith(f"{user.name}/"):
        raise Refused(403, DENIED.format("kernels.get"))
    return kernel


def session_of(kaggle: LoopbackKaggle, user: Account, body: Body) -> Session | None:
    """The session of the version that a request names, by default of the newest; None: that never ran."""
    kernel = kernel_of(kaggle, user, body)
    label = str(body.get("versionLabel") or "").lower().removeprefix("version").removeprefix("v").strip()
    of_kernel = [one for one in kaggle.sessions if one.kernel == kernel.ref]
    of_version = [one for one in of_kernel if not label or one.version.number == int(label)]
    return of_version[-1] if of_version else None


@method
def save_kernel(kaggle: LoopbackKaggle, user: Account, body: Body, faults: list[Fault]) -> Body:
    """A push. Most refusals are no HTTP errors, and the client ends with exit code 0 after them."""
    owner, _, slug = str(body.get("slug") or "").partition("/")
    known = kaggle.kernels.get(f"{owner}/{slug}")
    if body.get("id"):
        known = next((kernel for kernel in kaggle.kernels.values() if kernel.id == body["id"]), known)
    if owner != user.name and known is None:
        raise Refused(403, DENIED.format("kernels.update"))
    if len(body.get("text", "").encode()) > MOST_BYTES:
        raise Refused(400, "The source of the notebook is too large.")
    given = {kind: list(body.get(f"{kind}DataSources", [])) for kind in ("dataset", "kernel", "model")}
    invalid = {
        kind: [ref for ref in refs if kaggle.source(user.name, kind, ref) is None] for kind, refs in given.items()
    }
    for kind in values(faults, "refuse"):
        invalid[kind.removesuffix("s")] = given[kind.removesuffix("s")]
    for ref in set(given["dataset"]) - set(invalid["dataset"]):
        if kaggle.datasets[ref].processing:
            raise Refused(409, f"Dataset {ref} is still being processed.")
    runs = body.get("kernelExecutionType") != "QUICK_SAVE"
    gpus = machine(body)
    if runs and (error := refused(kaggle, bool(gpus), faults)):
        return {"error": error}  # and no version is made
    kernel = known or new_kernel(kaggle, owner, slug, body)
    kernel.title = body.get("newTitle") or kernel.title
    kept = {f"{kind}DataSources": [ref for ref in refs if ref not in invalid[kind]] for kind, refs in given.items()}
    fields = {name: value for name, value in {**body, **kept}.items() if name != "text"}
    kernel.versions.append(Version(len(kernel.versions) + 1, body.get("text", ""), fields))
    if runs:
        kaggle.run(kernel, plan(faults), gpus, secrets=kaggle.secrets_travel)
    return {
        "ref": f"/code/{kernel.ref}",
        "url": f"https://www.kaggle.com/code/{kernel.ref}",
        "versionNumber": len(kernel.versions),
        "kernelId": kernel.id,
        **{f"invalid{kind.title()}Sources": refs for kind, refs in invalid.items() if refs},
    }


def new_kernel(kaggle: LoopbackKaggle, owner: str, slug: str, body: Body) -> Kernel:
    """Its slug is its title's, whatever the request says: a later question for the other one finds nothing."""
    title = body.get("newTitle") or slug
    ref = f"{owner}/{slugify(title)}"
    return kaggle.kernels.setdefault(ref, Kernel(ref, kaggle.number(), title))


def machine(body: Body) -> tuple[str, ...]:
    """The names of the GPUs that a push gets. Without a machine_shape, `enable_gpu` is still a P100."""
    shape = body.get("machineShape") or ("NvidiaTeslaP100" if body.get("enableGpu") else "None")
    return MACHINES.get(shape, ())


def refused(kaggle: LoopbackKaggle, gpu: bool, faults: list[Fault]) -> str:
    """Why no session is started, in Kaggle's words; empty: one is."""
    if errors := values(faults, "error"):
        return errors[0]
    live = [session for session in kaggle.sessions if session.live and session.gpus]
    if values(faults, "slots") or (gpu and len(live) >= kaggle.slots):
        return SLOTS.format(kaggle.slots)
    if values(faults, "quota") or (gpu and kaggle.gpu_hours_used() >= kaggle.quota_hours):
        return QUOTA.format(kaggle.quota_hours)
    return ""


@method
def get_kernel_session_status(kaggle: LoopbackKaggle, user: Account, body: Body, faults: list[Fault]) -> Body:
    session = session_of(kaggle, user, body)
    if reported := values(faults, "report"):
        return {"status": reported[0]}
    if session is None:
        return {"status": "NEW_SCRIPT"}
    return {"status": session.status} | ({"failureMessage": session.failure} if session.failure else {})


@method
def list_kernel_session_output(kaggle: LoopbackKaggle, user: Account, body: Body, _: list[Fault]) -> Body:
    """The kept files and the log; nothing of a session that still runs."""
    session = session_of(kaggle, user, body)
    if session is None or session.live:
        return {"files": []}
    names = []
    if session.output is not None:
        names = sorted(
            path.relative_to(session.output).as_posix() for path in session.output.rglob("*") if path.is_file()
        )
    start, size = int(body.get("pageToken") or 0), int(body.get("pageSize") or 20)
    files = [
        {"fileName": name, "url": f"{kaggle.endpoint}/_output/{session.id}/{quote(name)}?key={session.secrets_token}"}
        for name in names[start : start + size]
    ]
    more = {"nextPageToken": str(start + size)} if start + size < len(names) else {}
    return {"files": files, "log": session.log, **more}


@method
def get_kernel_session_logs_stream(kaggle: LoopbackKaggle, user: Account, body: Body, _: list[Fault]) -> Reply:
    """The log as it comes, as server-sent events; the whole of it as JSON, once the session has ended."""
    session: Session | None
    if number := body.get("kernelSessionId"):
        session = own_session(kaggle, user, number, "kernels.get")
    else:
        session = session_of(kaggle, user, body)
    if session is None:
        raise Refused(404, "No session has a log")
    if not session.live:
        return Reply(200, (session.log or "[]").encode(), {"Content-Type": "application/json"})
    return Reply(200, headers={"Content-Type": "text/event-stream"}, stream=follow(kaggle, session))


def follow(kaggle: LoopbackKaggle, session: Session) -> Iterator[bytes]:
    sent = 0
    while not kaggle.stopping.is_set():
        with session.changed:
            if len(session.events) == sent and session.live:
                session.changed.wait(0.2)
            new, over = session.events[sent:], not session.live
        sent += len(new)
        yield from (f"data: {json.dumps(event)}\n\n".encode() for event in new)
        if over and not new:
            yield b"data: END_OF_LOG\n\n"
            return


@method
def cancel_kernel_session(kaggle: LoopbackKaggle, user: Account, body: Body, _: list[Fault]) -> Body:
    own_session(kaggle, user, body.get("kernelSessionId"), "kernelSessions.cancel").cancel()
    return {}


def own_session(kaggle: LoopbackKaggle, user: Account, number: Any, permission: str) -> Session:
    found = next((one for one in kaggle.sessions if one.id == number and one.kernel.startswith(f"{user.name}/")), None)
    if found is None:
        raise Refused(403, DENIED.format(permission))
    return found


@method
def get_kernel(kaggle: LoopbackKaggle, user: Account, body: Body, _: list[Fault]) -> Body:
    kernel = kernel_of(kaggle, user, body)
    label = str(body.get("versionLabel") or len(kernel.versions)).lower().removeprefix("version").removeprefix("v")
    version = kernel.versions[int(label) - 1]
    language, kind = version.fields.get("language", "python"), version.fields.get("kernelType", "notebook")
    blob = {"source": version.source, "language": language, "kernelType": kind, "slug": kernel.slug}
    image = {"dockerImage": "gcr.io/kaggle-gpu-images/python@sha256:" + 64 * "0"}
    return {"metadata": {**metadata(kaggle, kernel), **image}, "blob": blob}


def metadata(kaggle: LoopbackKaggle, kernel: Kernel) -> Body:
    """A kernel as it is listed."""
    fields = kernel.versions[-1].fields
    names = ("language", "kernelType", "isPrivate", "enableGpu", "enableTpu", "enableInternet", "machineShape")
    names += ("categoryIds", "datasetDataSources", "kernelDataSources", "modelDataSources")
    ran = [one.created for one in kaggle.sessions if one.kernel == kernel.ref]
    return {
        "id": kernel.id,
        "ref": kernel.ref,
        "title": kernel.title,
        "slug": kernel.slug,
        "author": kernel.ref.partition("/")[0],
        "currentVersionNumber": len(kernel.versions),
        **{name: fields[name] for name in names if name in fields},
        **({"lastRunTime": stamp(ran[-1])} if ran else {}),
    }


@method
def list_kernels(kaggle: LoopbackKaggle, user: Account, body: Body, _: list[Fault]) -> Body:
    """The caller's own, newest first; others' are private."""
    own = [kernel for kernel in kaggle.kernels.values() if kernel.ref.startswith(f"{user.name}/")]
    found = [kernel for kernel in own if body.get("search", "") in kernel.ref + kernel.title]
    start, size = int(body.get("pageToken") or 0), int(body.get("pageSize") or 20)
    if body.get("page"):
        start = (int(body["page"]) - 1) * size
    more = {"nextPageToken": str(start + size)} if start + size < len(found) else {}
    return {"kernels": [metadata(kaggle, kernel) for kernel in found[::-1][start : start + size]], **more}


@method
def delete_kernel(kaggle: LoopbackKaggle, user: Account, body: Body, _: list[Fault]) -> Body:
    """Ends its sessions and their billing."""
    kernel = kernel_of(kaggle, user, body)
    for session in kaggle.sessions:
        if session.kernel == kernel.ref:
            session.cancel()
    del kaggle.kernels[kernel.ref]
    return {}


@method
def get_accelerator_quota_statistics(kaggle: LoopbackKaggle, user: Account, body: Body, _: list[Fault]) -> Body:
    gpu = {
        "timeUsed": f"{3600 * kaggle.gpu_hours_used():.0f}s",
        "totalTimeAllowed": f"{3600 * kaggle.quota_hours:.0f}s",
    }
    tpu = {"timeUsed": "0s", "totalTimeAllowed": "72000s"}
    return {"quotaRefreshTime": stamp(kaggle.quota_refresh), "gpuQuota": gpu, "tpuQuota": tpu}


@method
def introspect_token(kaggle: LoopbackKaggle, user: Account | None, body: Body, _: list[Fault]) -> Body:
    """Whose token it is: the one call that needs no credentials."""
    owner = next((one for one in kaggle.accounts if one.token == body.get("token")), None)
    return {"active": owner is not None} | ({"username": owner.name} if owner else {})
