"""Xet storage of the loopback Hub: the content-addressed service that the real hf_xet uploads to and downloads from.

A xorb is a row of compressed chunks, each behind a header of 8 bytes; a shard says of which chunks of which xorbs a
file is made, and its sha256. Both are kept as they came. A file is known to the repo whose write token sent its shard.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import struct
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hf_xet
from support.loopback_api import REPO, repo_of, routes
from support.loopback_content import content, damaged
from support.loopback_http import Refused, Reply, Request, now
from support.loopback_repo import write_whole

if TYPE_CHECKING:
    from support.loopback_hub import LoopbackHub

TOKEN_SECONDS = 3600
CHUNK_HEADER, ROW = 8, 48
MOST_CHUNK_BYTES = 1 << 17
WITH_VERIFICATION, WITH_METADATA = 1 << 31, 1 << 30
# The second prefix is for this Hub's own reads, which are neither recorded nor hit by faults.
CAS, INNER = "/_cas", "/_inner"
PREFIX = r"(?P<prefix>/_cas|/_inner)/(?P<tag>[0-9a-f]{8})"


@dataclass(frozen=True)
class Term:
    """Chunks `start` to `end` (exclusive) of a xorb, `size` bytes when unpacked."""

    xorb: str
    start: int
    end: int
    size: int


@dataclass(frozen=True)
class File:
    """A file as a shard tells it; `sha256` is None where the client left it out, as it does for buckets."""

    hash: str
    terms: list[Term]
    sha256: str | None

    @property
    def size(self) -> int:
        return sum(term.size for term in self.terms)


class Cas:
    """The xorbs and files below one folder."""

    def __init__(self, folder: Path):
        self.xorbs, self.files = folder / "xorbs", folder / "files"
        for place in (self.xorbs, self.files):
            place.mkdir(parents=True, exist_ok=True)
        self._ends: dict[str, list[int]] = {}

    def put_xorb(self, hash: str, data: bytes) -> bool:
        """Keep a xorb; whether it is new. Raises Refused(400) where it is no row of chunks."""
        self._ends[hash] = [0, *chunk_ends(data)]
        new = not (self.xorbs / hash).is_file()
        write_whole(self.xorbs / hash, data)
        return new

    def put_shard(self, data: bytes) -> list[File]:
        """Keep the files of a shard; raises Refused(400) where a xorb of theirs was not uploaded."""
        files = list(files_of_shard(data))
        for file in files:
            if absent := sorted({term.xorb for term in file.terms if not (self.xorbs / term.xorb).is_file()}):
                raise Refused(400, f"The shard names xorbs that are not stored: {', '.join(absent)}")
            told = {"sha256": file.sha256, "terms": [list(vars(term).values()) for term in file.terms]}
            write_whole(self.files / file.hash, json.dumps(told).encode())
        return files

    def file(self, hash: str) -> File:
        """Raises Refused(404) where no shard named it."""
        if not (self.files / hash).is_file():
            raise Refused(404, f"No file {hash}")
        told = json.loads((self.files / hash).read_text())
        return File(hash, [Term(*term) for term in told["terms"]], told["sha256"])

    def span(self, term: Term) -> tuple[int, int]:
        """First and last byte of a term's chunks within its xorb."""
        if term.xorb not in self._ends:
            self._ends[term.xorb] = [0, *chunk_ends((self.xorbs / term.xorb).read_bytes())]
        return self._ends[term.xorb][term.start], self._ends[term.xorb][term.end] - 1


def chunk_ends(xorb: bytes) -> Iterator[int]:
    """Where each chunk of a xorb ends; a footer, where there is one, is no chunk."""
    at = 0
    while at < len(xorb) and xorb[at : at + 7] != b"XETBLOB":
        at += CHUNK_HEADER + int.from_bytes(xorb[at + 1 : at + 4], "little")
        if at > len(xorb):
            raise Refused(400, "The xorb ends within a chunk")
        yield at


def files_of_shard(shard: bytes) -> Iterator[File]:
    """The file section of a shard: after the header, rows of 48 bytes until one whose hash is all ones."""
    at = ROW
    while shard[at : at + 32] != b"\xff" * 32:
        hash, flags, count = shard[at : at + 32], *struct.unpack_from("<II", shard, at + 32)
        terms = []
        for row in range(at + ROW, at + ROW * (1 + count), ROW):
            _, size, start, end = struct.unpack_from("<IIII", shard, row + 32)
            terms.append(Term(_hex(shard[row : row + 32]), start, end, size))
        at += ROW * (1 + count * (2 if flags & WITH_VERIFICATION else 1))
        sha256 = None
        if flags & WITH_METADATA:
            sha256 = _hex(shard[at : at + 32])
            at += ROW
        yield File(_hex(hash), terms, sha256)


def _hex(hash: bytes) -> str:
    """Xet writes a hash as four little-endian numbers of 64 bits."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", hash))


def connection(hub: LoopbackHub, holder: str, write: bool, prefix: str = CAS) -> dict[str, Any]:
    """Address and token of the CAS for a repo or bucket, `holder` (kind/id)."""
    expires = int(now()) + TOKEN_SECONDS
    told = base64.urlsafe_b64encode(json.dumps([holder, write, expires]).encode()).decode().rstrip("=")
    return {"casUrl": f"{hub.endpoint}{prefix}/{hub.tag}", "accessToken": f"{told}.{hub.key(told)}", "exp": expires}


def connection_reply(told: dict[str, Any]) -> Reply:
    """The Python side reads the headers, hf_xet the body."""
    headers = {"X-Xet-Cas-Url": told["casUrl"], "X-Xet-Access-Token": told["accessToken"]}
    return Reply.json(told, **headers, X_Xet_Token_Expiration=str(told["exp"]))


def holder_of(hub: LoopbackHub, request: Request, write: bool) -> str:
    """Whose token this is; raises Refused(401) or (403)."""
    told, _, signature = (request.token or "").partition(".")
    if not signature or signature != hub.key(told):
        raise Refused(401, "Unauthorized")
    holder, may_write, expires = json.loads(base64.urlsafe_b64decode(told + "=" * (-len(told) % 4)))
    if expires < now():
        raise Refused(401, "The token has expired")
    if write and not may_write:
        raise Refused(403, "The token only reads")
    return str(holder)


@routes("GET", REPO + "/xet-(?P<mode>read|write)-token/{revision}")
def repo_token(hub: LoopbackHub, request: Request, kind: str, id: str, mode: str, revision: str) -> Reply:
    if not hub.xet:
        raise Refused(404, "Xet is not enabled for this repo")
    repo = repo_of(hub, request, kind, id, write=mode == "write")
    repo.resolve(revision)
    return connection_reply(connection(hub, f"{repo.kind}/{id}", mode == "write"))


@routes("POST", PREFIX + "/v1/xorbs/default/(?P<hash>[0-9a-f]{64})")
def put_xorb(hub: LoopbackHub, request: Request, prefix: str, tag: str, hash: str) -> Reply:
    holder_of(hub, request, write=True)
    return Reply.json({"was_inserted": hub.cas.put_xorb(hash, request.body)})


@routes("POST", PREFIX + "/v1/shards")
def put_shard(hub: LoopbackHub, request: Request, prefix: str, tag: str) -> Reply:
    holder = hub.holder(holder_of(hub, request, write=True))
    for file in hub.cas.put_shard(request.body):
        if holder is not None:
            holder.take_xet(file.hash, file.size, file.sha256)
    return Reply.json({"result": 1})


@routes("GET", PREFIX + "/v1/reconstructions/(?P<hash>[0-9a-f]{64})")
def reconstruction(hub: LoopbackHub, request: Request, prefix: str, tag: str, hash: str) -> Reply:
    """Which chunks make up a file, or the range of it that was asked for, and where they are."""
    name, file = holder_of(hub, request, write=False), hub.cas.file(hash)
    holder = hub.holder(name)
    if holder is None or hash not in holder.xet_hashes():
        raise Refused(404, f"No file {hash}")
    if request.corrupt:
        file = damaged_copy(hub, name, file)
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    first = int(asked[1]) if asked else 0
    last = min(int(asked[2]), file.size - 1) if asked and asked[2] else file.size - 1
    if first > last:
        raise Refused(416, "The file ends before this range")
    terms, fetch, at, offset = [], {}, 0, 0
    for term in file.terms:
        if at + term.size > first and at <= last:
            offset = first - at if not terms else offset
            chunks = {"start": term.start, "end": term.end}
            terms.append({"hash": term.xorb, "unpacked_length": term.size, "range": chunks})
            start, end = hub.cas.span(term)
            url = hub.signed(f"{prefix}/{tag}/xorbs/{term.xorb}")
            found = {"range": chunks, "url": url, "url_range": {"start": start, "end": end}}
            if found not in fetch.setdefault(term.xorb, []):
                fetch[term.xorb].append(found)
        at += term.size
    return Reply.json({"offset_into_first_range": offset, "terms": terms, "fetch_info": fetch})


@routes("GET", PREFIX + "/xorbs/(?P<hash>[0-9a-f]{64})")
def xorb(hub: LoopbackHub, request: Request, prefix: str, tag: str, hash: str) -> Reply:
    if request.query.get("key") != [hub.key(request.path)]:
        raise Refused(403, "Bad signature")
    return content(request, (hub.cas.xorbs / hash).read_bytes(), f'"{hash}"')


def materialise(hub: LoopbackHub, holder: str, hash: str, size: int) -> bytes:
    """A Xet file's content, for a client that downloads without Xet; by hf_xet itself."""
    told = connection(hub, holder, write=False, prefix=INNER)
    with tempfile.TemporaryDirectory(dir=hub.root) as folder:
        with hf_xet.XetSession().new_file_download_group(
            endpoint=told["casUrl"],
            token=told["accessToken"],
            token_expiry_unix_secs=told["exp"],
            token_refresh_url=None,
            token_refresh_headers=None,
            custom_headers={},
            progress_callback=None,
        ) as group:
            group.start_download_file(hf_xet.XetFileInfo(hash, size), f"{folder}/file")
        return Path(folder, "file").read_bytes()


def damaged_copy(hub: LoopbackHub, holder: str, file: File) -> File:
    """A file of the same size with another byte, in a xorb of its own. hf_xet would notice a damaged compressed chunk
    and ask again; chunks that are stored as they are it believes."""
    content = damaged(materialise(hub, holder, file.hash, file.size))
    chunks = [content[at : at + MOST_CHUNK_BYTES] for at in range(0, len(content), MOST_CHUNK_BYTES)]
    length = [len(chunk).to_bytes(3, "little") for chunk in chunks]
    xorb = b"".join(b"\0" + size + b"\0" + size + chunk for size, chunk in zip(length, chunks, strict=True))
    name = hashlib.sha256(xorb).hexdigest()
    hub.cas.put_xorb(name, xorb)
    return File(file.hash, [Term(name, 0, len(chunks), len(content))], None)
