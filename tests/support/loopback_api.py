"""The Hub's HTTP interface for repos, as the real huggingface_hub client calls it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode

from support.loopback_http import Refused, Reply, Request, Routes, stamp
from support.loopback_repo import Commit, Entry, Repo, pointer_size

if TYPE_CHECKING:
    from support.loopback_hub import LoopbackHub

routes = Routes()
KINDS = {"models": "model", "datasets": "dataset"}
REPO = r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+)"


def require_user(request: Request) -> str:
    if request.user is None:
        raise Refused(401, "Invalid username or password.")
    return request.user.name


def owns(request: Request, id: str) -> bool:
    return request.user is not None and request.user.name == id.split("/")[0]


def writer(request: Request, id: str) -> str:
    """The user's name, who may write to `id`; raises Refused(401) or (403)."""
    name = require_user(request)
    if request.user is None or not request.user.write:
        raise Refused(403, "Forbidden: you must use a write token to upload to a repository.")
    if not owns(request, id):
        raise Refused(403, f"You don't have the required permissions to write to {id}.")
    return name


def repo_of(hub: LoopbackHub, request: Request, kind: str | None, id: str, write: bool = False) -> Repo:
    """The repo, where the caller may see it: to others a private one looks like none."""
    repo = hub.repos.get((KINDS.get((kind or "models").rstrip("/"), "model"), id))
    if repo is None or (repo.private and not owns(request, id)):
        if request.user is None:
            raise Refused(401, "Invalid username or password.", "RepoNotFound")
        raise Refused(404, "Repository not found", "RepoNotFound")
    if write:
        writer(request, id)
    return repo


def shape(path: str, entry: Entry, repo: Repo) -> dict[str, Any]:
    """A file as tree and paths-info tell it."""
    told: dict[str, Any] = {"type": "file", "oid": entry.oid, "size": entry.size, "path": path}
    if entry.lfs:
        told["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": pointer_size(entry)}
        if entry.sha256 in repo.objects and repo.objects[entry.sha256].xet:
            told["xetHash"] = repo.objects[entry.sha256].xet
    return told


def last_commit(repo: Repo, commit: Commit, path: str) -> dict[str, Any]:
    """The newest commit, from `commit` back, that changed `path`."""
    found = commit
    for older in repo.history(commit.id):
        if older.files.get(path) != commit.files.get(path):
            break
        found = older
    return {"id": found.id, "title": found.title, "date": stamp(found.time)}


def page(hub: LoopbackHub, request: Request, items: list[Any]) -> Reply:
    """One page of a listing, with a link to the next."""
    start, size = request.number("cursor", 0), min(request.number("limit", hub.page_size), hub.page_size)
    reply = Reply.json(items[start : start + size])
    if start + size < len(items):
        query = {**{name: values[0] for name, values in request.query.items()}, "cursor": start + size}
        reply.headers["Link"] = f'<{hub.endpoint}{request.path}?{urlencode(query)}>; rel="next"'
    return reply


@routes("GET", "/api/whoami-v2")
def whoami(hub: LoopbackHub, request: Request) -> Reply:
    name = require_user(request)
    role = "write" if request.user and request.user.write else "read"
    access = {"displayName": "loopback", "role": role}
    return Reply.json(
        {"type": "user", "name": name, "orgs": [], "auth": {"type": "access_token", "accessToken": access}}
    )


@routes("POST", "/api/validate-yaml")
def validate_yaml(hub: LoopbackHub, request: Request) -> Reply:
    return Reply.json({"errors": [], "warnings": []})


@routes("POST", "/api/repos/create")
def create(hub: LoopbackHub, request: Request) -> Reply:
    asked = request.json()
    id = f"{asked.get('organization') or require_user(request)}/{asked['name']}"
    author = writer(request, id)
    kind = asked.get("type") or "model"
    url = f"{hub.endpoint}/{'datasets/' if kind == 'dataset' else ''}{id}"
    if (kind, id) in hub.repos:
        raise Refused(409, f"You already created this {kind} repo", url=url)
    hub.create_repo(id, kind, asked.get("visibility") == "private" or bool(asked.get("private")), author)
    return Reply.json({"url": url, "name": id, "id": id})


@routes("DELETE", "/api/repos/delete")
def delete(hub: LoopbackHub, request: Request) -> Reply:
    asked = request.json()
    id = f"{asked.get('organization') or require_user(request)}/{asked['name']}"
    repo_of(hub, request, (asked.get("type") or "model") + "s", id, write=True)
    hub.delete_repo(id, asked.get("type") or "model")
    return Reply.json({})


@routes("PUT", REPO + "/settings")
def settings(hub: LoopbackHub, request: Request, kind: str, id: str) -> Reply:
    asked = request.json()
    private = asked["visibility"] == "private" if "visibility" in asked else bool(asked.get("private"))
    repo_of(hub, request, kind, id, write=True).set_private(private)
    return Reply.json({"private": private})


@routes("GET", REPO + r"(?:/revision/{revision})?")
def info(hub: LoopbackHub, request: Request, kind: str, id: str, revision: str) -> Reply:
    repo = repo_of(hub, request, kind, id)
    commit = repo.resolve(revision or "main", request.lag)
    siblings: list[dict[str, Any]] = []
    for path, entry in commit.files.items():
        sibling: dict[str, Any] = {"rfilename": path}
        if request.flag("blobs"):
            sibling |= {"size": entry.size, "blobId": entry.oid}
            if entry.lfs:
                sibling["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": pointer_size(entry)}
        siblings.append(sibling)
    told = {"_id": id, "id": id, "modelId": id, "author": id.split("/")[0], "sha": commit.id, "private": repo.private}
    told |= {"gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings}
    times = {"createdAt": stamp(repo.created), "lastModified": stamp(commit.time)}
    return Reply.json({**told, **times, "usedStorage": repo.stored_bytes()})


@routes("GET", REPO + "/auth-check")
def auth_check(hub: LoopbackHub, request: Request, kind: str, id: str) -> Reply:
    repo_of(hub, request, kind, id)
    return Reply.json({})


@routes("GET", REPO + "/refs")
def refs(hub: LoopbackHub, request: Request, kind: str, id: str) -> Reply:
    repo = repo_of(hub, request, kind, id)
    heads = {name: repo.head(name, request.lag) for name in sorted(repo.branches)}
    branches = [{"name": n, "ref": f"refs/heads/{n}", "targetCommit": commit} for n, commit in heads.items()]
    tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": commit} for n, commit in sorted(repo.tags.items())]
    return Reply.json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


@routes("POST DELETE", REPO + "/branch/{name}")
def branch(hub: LoopbackHub, request: Request, kind: str, id: str, name: str) -> Reply:
    repo = repo_of(hub, request, kind, id, write=True)
    if request.method == "POST":
        repo.add_ref(repo.branches, name, request.json().get("startingPoint") or "main")
    elif name == "main":
        raise Refused(403, "The main branch cannot be deleted")
    else:
        repo.delete_ref(repo.branches, name)
    return Reply.json({})


@routes("POST DELETE", REPO + "/tag/{name}")
def tag(hub: LoopbackHub, request: Request, kind: str, id: str, name: str) -> Reply:
    """POST: `name` is the revision, and the tag's name is in the body."""
    repo = repo_of(hub, request, kind, id, write=True)
    if request.method == "POST":
        repo.add_ref(repo.tags, request.json()["tag"], name)
    else:
        repo.delete_ref(repo.tags, name)
    return Reply.json({})


@routes("GET", REPO + "/commits/{revision}")
def commits(hub: LoopbackHub, request: Request, kind: str, id: str, revision: str) -> Reply:
    told = [
        {"id": c.id, "title": c.title, "message": c.message, "authors": [{"user": c.author}], "date": stamp(c.time)}
        for c in repo_of(hub, request, kind, id).history(revision, request.lag)
    ]
    return page(hub, request, told)


@routes("GET", REPO + r"/tree/{revision}(?:/{path*})?")
def tree(hub: LoopbackHub, request: Request, kind: str, id: str, revision: str, path: str) -> Reply:
    repo = repo_of(hub, request, kind, id)
    commit = repo.resolve(revision, request.lag)
    prefix = f"{path.rstrip('/')}/" if path else ""
    told: dict[str, dict[str, Any]] = {}
    for name, entry in commit.files.items():
        if not name.startswith(prefix):
            continue
        inside = name[len(prefix) :].split("/")
        depth = len(inside) if request.flag("recursive") else 1
        for parts in range(1, min(depth, len(inside) - 1) + 1):
            folder = prefix + "/".join(inside[:parts])
            told.setdefault(folder, {"type": "directory", "oid": commit.id, "size": 0, "path": folder})
        if depth >= len(inside):
            told[name] = shape(name, entry, repo)
            if request.flag("expand"):
                told[name]["lastCommit"] = last_commit(repo, commit, name)
    if path and not told:
        raise Refused(404, f"{path} does not exist on {revision}", "EntryNotFound")
    return page(hub, request, [told[name] for name in sorted(told)])


@routes("POST", REPO + "/paths-info/{revision}")
def paths_info(hub: LoopbackHub, request: Request, kind: str, id: str, revision: str) -> Reply:
    repo = repo_of(hub, request, kind, id)
    commit = repo.resolve(revision, request.lag)
    is_json = "json" in request.headers.get("Content-Type", "")
    asked = request.json()["paths"] if is_json else parse_qs(request.body.decode()).get("paths", [])
    told: list[dict[str, Any]] = []
    for path in dict.fromkeys(asked):
        if path in commit.files:
            told.append(shape(path, commit.files[path], repo))
        elif any(name.startswith(f"{path}/") for name in commit.files):
            told.append({"type": "directory", "oid": commit.id, "size": 0, "path": path})
    return Reply.json(told)


@routes("POST", REPO + "/preupload/{revision}")
def preupload(hub: LoopbackHub, request: Request, kind: str, id: str, revision: str) -> Reply:
    repo = repo_of(hub, request, kind, id, write=True)
    commit = repo.resolve(revision)
    told = []
    for file in request.json()["files"]:
        path = file["path"]
        mode = repo.upload_mode(path, file["size"], base64.b64decode(file["sample"]))
        ignored = bool(request.ignore and request.ignore.search(path))
        answer = {"path": path, "uploadMode": mode, "shouldIgnore": ignored}
        if entry := commit.files.get(path):
            answer["oid"] = entry.sha256 if entry.lfs else entry.oid
        told.append(answer)
    return Reply.json({"files": told, "commitOid": commit.id})


@routes("POST", REPO + "/commit/{revision}")
def commit(hub: LoopbackHub, request: Request, kind: str, id: str, revision: str) -> Reply:
    repo = repo_of(hub, request, kind, id, write=True)
    operations = request.lines()
    for operation in operations[1:]:
        content = base64.b64decode(operation["value"].get("content", ""))
        if any(token.encode() in content for token in hub.users):
            path = operation["value"]["path"]
            raise Refused(400, f"Your push was rejected because {path} contains a live Hugging Face token. Remove it.")
    made = repo.commit(revision, operations, require_user(request))
    url = f"{hub.endpoint}/{'datasets/' if kind == 'datasets' else ''}{id}/commit/{made.id}"
    return Reply.json({"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""})


@routes("POST", REPO + "/super-squash/{name}")
def super_squash(hub: LoopbackHub, request: Request, kind: str, id: str, name: str) -> Reply:
    repo = repo_of(hub, request, kind, id, write=True)
    repo.squash(name, request.json().get("message") or "Super-squash", require_user(request))
    return Reply.json({})


@routes("GET", REPO + "/lfs-files")
def lfs_files(hub: LoopbackHub, request: Request, kind: str, id: str) -> Reply:
    repo = repo_of(hub, request, kind, id, write=True)
    committed = [(sha, stored) for sha, stored in repo.objects.items() if stored.ref]
    committed.sort(key=lambda pair: -pair[1].pushed)
    told = [
        {"fileOid": sha, "oid": sha, "filename": stored.filename, "size": stored.size}
        | {"ref": stored.ref, "pushedAt": stamp(stored.pushed), "xetHash": stored.xet}
        for sha, stored in committed
    ]
    return page(hub, request, told)


@routes("POST", REPO + "/lfs-files/batch")
def delete_lfs_files(hub: LoopbackHub, request: Request, kind: str, id: str) -> Reply:
    asked = request.json()["deletions"]
    repo_of(hub, request, kind, id, write=True).delete_objects(asked["sha"], asked.get("rewriteHistory", True))
    return Reply.json({})


@routes("POST", REPO + "/lfs-files/duplicate")
def duplicate_lfs_files(hub: LoopbackHub, request: Request, kind: str, id: str) -> Reply:
    """To another repo, by reference; only what lies in Xet can be."""
    source, asked = repo_of(hub, request, kind, id), request.json()
    target = repo_of(hub, request, asked["target"]["type"] + "s", asked["target"]["name"], write=True)
    failed = []
    for file in asked["files"]:
        stored = source.objects.get(file["sha256"])
        if stored is None or stored.xet is None:
            failed.append({"sha256": file["sha256"], "error": "not in Xet storage"})
        else:
            target.add_object(file["sha256"], type(stored)(stored.size, stored.pushed, stored.xet))
    return Reply.json({"failed": failed})
