"""Content over plain HTTP: uploads by LFS, and downloads of files at a revision, as the real client calls them."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from support.loopback_api import KINDS, repo_of, routes
from support.loopback_http import Refused, Reply, Request
from support.loopback_repo import Commit, Entry, Repo

if TYPE_CHECKING:
    from support.loopback_hub import LoopbackHub

FILES = r"/(?P<kind>datasets/)?(?P<id>[^/]+/[^/]+)"


@routes("POST", FILES + r"\.git/info/lfs/objects/batch")
def lfs_batch(hub: LoopbackHub, request: Request, kind: str, id: str) -> Reply:
    repo = repo_of(hub, request, kind, id, write=True)
    told = []
    for asked in request.json()["objects"]:
        sha, answer = asked["oid"], {"oid": asked["oid"], "size": asked["size"]}
        if sha not in repo.objects:
            path = f"/_lfs/{repo.kind}s/{id}/{sha}"
            verify = {"href": f"{hub.endpoint}{path}/verify"}
            answer["actions"] = {"upload": {"href": hub.signed(path)}, "verify": verify}
        told.append(answer)
    return Reply.json({"transfer": "basic", "objects": told})


# A download's address ends in the file's name, an upload's in nothing.
LFS = r"/_lfs/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)/(?P<sha>[0-9a-f]{64})"


@routes("PUT GET HEAD", LFS + r"(?:/{name*})?")
def lfs_content(hub: LoopbackHub, request: Request, kind: str, id: str, sha: str, name: str) -> Reply:
    """Where signed addresses lead: no token, as at the CDN."""
    if request.query.get("key") != [hub.key(request.path)]:
        raise Refused(403, "Bad signature")
    repo = hub.repos.get((KINDS[kind], id))
    if repo is None:
        raise Refused(404, "Repository not found", "RepoNotFound")
    if request.method == "PUT":
        repo.put_object(sha, request.body)
        return Reply()
    if sha not in repo.objects:
        raise Refused(404, "The content of this file was deleted", "EntryNotFound")
    return content(request, hub.object_content(repo, sha), f'"{sha}"')


@routes("POST", LFS + "/verify")
def lfs_verify(hub: LoopbackHub, request: Request, kind: str, id: str, sha: str) -> Reply:
    repo = repo_of(hub, request, kind, id, write=True)
    if sha not in repo.objects or repo.objects[sha].size != request.json()["size"]:
        raise Refused(400, "The uploaded object has another size")
    return Reply.json({})


@routes("GET HEAD", FILES + "/resolve/{revision}/{path*}")
def resolve(hub: LoopbackHub, request: Request, kind: str, id: str, revision: str, path: str) -> Reply:
    repo = repo_of(hub, request, kind, id)
    commit = repo.resolve(revision, request.lag)
    entry = commit.files.get(path)
    try:
        if entry is None:
            raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
        if not entry.lfs:
            reply = content(request, repo.read(entry) or b"", f'"{entry.oid}"')
        elif entry.sha256 not in repo.objects:
            raise Refused(404, "The content of this file was deleted", "EntryNotFound")
        else:
            reply = _linked(hub, repo, commit, entry, path)
    except Refused as refused:
        reply = refused.reply()
    reply.headers["X-Repo-Commit"] = commit.id
    return reply


def _linked(hub: LoopbackHub, repo: Repo, commit: Commit, entry: Entry, path: str) -> Reply:
    """A redirect to an LFS object's content, and where Xet has it."""
    location = hub.signed(f"/_lfs/{repo.kind}s/{repo.id}/{entry.sha256}/{quote(path)}")
    headers = {"Location": location, "ETag": f'"{entry.oid}"'}
    headers |= {"X-Linked-ETag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
    if xet := repo.objects[entry.sha256].xet:
        route = f"{hub.endpoint}/api/{repo.kind}s/{repo.id}/xet-read-token/{quote(commit.id)}"
        headers |= {"X-Xet-Hash": xet, "X-Xet-Refresh-Route": route}
    return Reply(302, b"", headers)


def content(request: Request, body: bytes, etag: str) -> Reply:
    """A file's bytes, or the range of them that was asked for."""
    headers = {"ETag": etag, "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if request.method == "HEAD":
        return Reply(200, b"", {**headers, "Content-Length": str(len(body))})
    if request.corrupt:
        body = damaged(body)
    if asked is None:
        return Reply(200, body, headers)
    first, last = int(asked[1]), min(int(asked[2] or len(body) - 1), len(body) - 1)
    if first > last:
        return Reply(416, json.dumps({"error": "Range"}).encode(), {"Content-Range": f"bytes */{len(body)}"})
    return Reply(206, body[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(body)}"})


def damaged(body: bytes) -> bytes:
    """The same with another byte in the middle."""
    middle = len(body) // 2
    return body[:middle] + bytes(byte ^ 0xFF for byte in body[middle : middle + 1]) + body[middle + 1 :]
