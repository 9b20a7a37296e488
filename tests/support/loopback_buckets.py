"""Storage buckets of the loopback Hub: mutable, no versions, all content in Xet, and no batch is atomic."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from support.loopback_api import owns, page, require_user, routes, writer
from support.loopback_content import content
from support.loopback_http import Refused, Reply, Request, now, stamp
from support.loopback_repo import write_whole
from support.loopback_xet import connection, connection_reply, materialise

if TYPE_CHECKING:
    from support.loopback_hub import LoopbackHub

BUCKET = r"/api/buckets/(?P<id>[^/]+/[^/]+)"
EMPTY = "0" * 64  # the Xet hash of no bytes, which no shard names


@dataclass(frozen=True)
class Entry:
    """`mtime` and `uploaded` in seconds since 1970."""

    xet: str
    size: int
    mtime: float
    uploaded: float


@dataclass
class Bucket:
    folder: Path
    id: str
    private: bool = False
    created: float = field(default_factory=now)
    files: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path) -> Bucket:
        told = json.loads((folder / "bucket.json").read_text())
        told["files"] = {path: Entry(**entry) for path, entry in told["files"].items()}
        return cls(folder, **told)

    def save(self) -> None:
        told = asdict(self)
        del told["folder"]
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / "bucket.json", json.dumps(told).encode())

    def stored_bytes(self) -> int:
        """What the files hold now; of deleted ones nothing is left."""
        return sum(entry.size for entry in self.files.values())

    def xet_hashes(self) -> set[str]:
        return {entry.xet for entry in self.files.values()}

    def take_xet(self, hash: str, size: int, sha256: str | None) -> None:
        """Nothing: an upload becomes a file by the batch that names its hash."""


def bucket_of(hub: LoopbackHub, request: Request, id: str, write: bool = False) -> Bucket:
    """The bucket, where the caller may see it; raises Refused."""
    if id.startswith("me/"):
        id = require_user(request) + id[2:]
    bucket = hub.buckets.get(id)
    if bucket is None or (bucket.private and not owns(request, id)):
        raise Refused(404 if request.user else 401, "Bucket not found", "RepoNotFound")
    if write:
        bucket_writer(request, id)
    return bucket


def bucket_writer(request: Request, id: str) -> None:
    writer(request, id)
    if request.user is None or not request.user.buckets:
        raise Refused(403, "Forbidden: this token has no permission for buckets.")


def shape(path: str, entry: Entry) -> dict[str, Any]:
    told = {"type": "file", "path": path, "size": entry.size, "xetHash": entry.xet}
    return {**told, "mtime": stamp(entry.mtime), "uploadedAt": stamp(entry.uploaded)}


@routes("POST GET DELETE", BUCKET)
def bucket(hub: LoopbackHub, request: Request, id: str) -> Reply:
    if request.method == "POST":
        id = f"{require_user(request)}{id[2:]}" if id.startswith("me/") else id
        bucket_writer(request, id)
        if id in hub.buckets:
            raise Refused(409, "You already created this bucket", url=f"{hub.endpoint}/buckets/{id}")
        hub.create_bucket(id, bool(request.json().get("private")))
        return Reply.json({"url": f"{hub.endpoint}/buckets/{id}", "id": id})
    found = bucket_of(hub, request, id, write=request.method == "DELETE")
    if request.method == "DELETE":
        hub.delete_bucket(found.id)
        return Reply.json({})
    told = {"id": found.id, "private": found.private, "createdAt": stamp(found.created)}
    return Reply.json({**told, "size": found.stored_bytes(), "totalFiles": len(found.files)})


@routes("PUT", BUCKET + "/settings")
def bucket_settings(hub: LoopbackHub, request: Request, id: str) -> Reply:
    found = bucket_of(hub, request, id, write=True)
    found.private = bool(request.json()["private"])
    found.save()
    return Reply.json({"private": found.private})


@routes("GET", BUCKET + "/xet-(?P<mode>read|write)-token")
def bucket_token(hub: LoopbackHub, request: Request, id: str, mode: str) -> Reply:
    found = bucket_of(hub, request, id, write=mode == "write")
    return connection_reply(connection(hub, f"bucket/{found.id}", mode == "write"))


@routes("POST", BUCKET + "/batch")
def batch(hub: LoopbackHub, request: Request, id: str) -> Reply:
    """Each operation for itself: 200 where some were done, 422 where none was."""
    found, failed = bucket_of(hub, request, id, write=True), []
    operations = request.lines()
    for operation in operations:
        try:
            if request.fail and request.fail.search(operation["path"]):
                raise Refused(500, "Internal error")
            _apply(hub, request, found, operation)
        except Refused as refused:
            failed.append({"path": operation["path"], "error": refused.message})
    found.save()
    done = len(operations) - len(failed)
    told = {"success": not failed, "processed": len(operations), "succeeded": done, "failed": failed}
    return Reply.json(told, 422 if failed and not done else 200)


def _apply(hub: LoopbackHub, request: Request, bucket: Bucket, operation: dict[str, Any]) -> None:
    path, kind = operation["path"], operation["type"]
    if kind == "deleteFile":
        if bucket.files.pop(path, None) is None:
            raise Refused(404, "File not found")
        return
    hash = operation["xetHash"]
    if kind == "copyFile":
        source = hub.holder(f"{operation['sourceRepoType']}/{operation['sourceRepoId']}")
        if source is None or hash not in source.xet_hashes() or not owns(request, operation["sourceRepoId"]):
            raise Refused(404, "Source not found")
    size = 0 if hash == EMPTY else hub.cas.file(hash).size
    bucket.files[path] = Entry(hash, size, operation["mtime"] / 1000, now())


@routes("POST", BUCKET + "/paths-info")
def bucket_paths_info(hub: LoopbackHub, request: Request, id: str) -> Reply:
    files = bucket_of(hub, request, id).files
    return Reply.json([shape(path, files[path]) for path in dict.fromkeys(request.json()["paths"]) if path in files])


@routes("GET", BUCKET + r"/tree(?:/{prefix})?")
def bucket_tree(hub: LoopbackHub, request: Request, id: str, prefix: str) -> Reply:
    start = f"{prefix.rstrip('/')}/" if prefix else ""
    told: dict[str, dict[str, Any]] = {}
    for path, entry in sorted(bucket_of(hub, request, id).files.items()):
        if not path.startswith(start) and path != prefix:
            continue
        folder, slash, _ = path[len(start) :].partition("/")
        if slash and not request.flag("recursive"):
            where = {"type": "directory", "path": start + folder, "uploadedAt": stamp(entry.uploaded)}
            told.setdefault(start + folder, where)
        else:
            told[path] = shape(path, entry)
    return page(hub, request, list(told.values()))


@routes("GET HEAD", r"/buckets/(?P<id>[^/]+/[^/]+)/resolve/{path*}")
def bucket_file(hub: LoopbackHub, request: Request, id: str, path: str) -> Reply:
    found = bucket_of(hub, request, id)
    entry = found.files.get(path)
    if entry is None:
        raise Refused(404, f"{path} does not exist", "EntryNotFound")
    if request.method == "GET":
        holder = f"bucket/{found.id}"
        return content(request, materialise(hub, holder, entry.xet, entry.size), f'"{entry.xet}"')
    route = f"{hub.endpoint}/api/buckets/{quote(found.id)}/xet-read-token"
    headers = {"X-Xet-Hash": entry.xet, "X-Xet-Refresh-Route": route, "X-Linked-Size": str(entry.size)}
    return Reply(200, b"", headers)
