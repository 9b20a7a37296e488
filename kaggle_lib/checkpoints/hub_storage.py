"""Giving back what the Hub stores for files that no commit at any head holds: deleting a file alone frees nothing.

Runs share a repo, and content that is the same is stored once. So a run deletes only what came by its own branch and no
head holds; it says first, in a commit, what it is about to delete, and looks at the heads once more after that. A run
that saves content which came by another branch looks, after its commit, whether it is about to go: one of the two
sees the other.
"""

from __future__ import annotations

import re
from contextlib import suppress

from huggingface_hub.hf_api import LFSFileInfo

from kaggle_lib.checkpoints.hub_head import Mark, read_mark
from kaggle_lib.checkpoints.hub_repo import Damaged, Repo

DELETING, CONDEMNED = 30.0, 60.0  # seconds after the commit that says so
MOST = 1000  # at once
SHA256 = re.compile(r"[0-9a-f]{64}")


def unused(repo: Repo, kept: set[str], leaving: set[str]) -> dict[str, LFSFileInfo]:
    """What may be deleted, by sha256: `kept` is what the own branch goes on holding, `leaving` what it lets go of."""
    stored = repo.stored()
    if not leaving | kept or not (leaving | kept) & set(stored):
        return {}  # nothing of ours is listed: the list is not what it is taken for
    live = kept | _live(repo, without=repo.ref)
    found = {
        sha256: one
        for sha256, one in stored.items()
        if SHA256.fullmatch(sha256)
        and not {sha256, one.oid} & live
        and (one.ref in (repo.ref, repo.branch) or (not one.ref and sha256 in leaving))
    }
    return dict(sorted(found.items())[:MOST])


def delete(repo: Repo, found: dict[str, LFSFileInfo], mark: Mark, now: float) -> None:
    """Delete for ever what no head holds now; `mark` has condemned it, a moment ago."""
    live = _live(repo)
    gone = [one for sha256, one in found.items() if sha256 in mark.condemned and not {sha256, one.oid} & live]
    if gone and now < mark.time + DELETING:
        repo.delete(gone)


def condemned_until(repo: Repo, large: set[str], now: float) -> float | None:
    """When what other runs are about to delete of `large` will be gone (seconds since 1970); None: nothing is."""
    stored = repo.stored() if large else {}
    foreign = {sha for sha in large if sha not in stored or stored[sha].ref not in (repo.ref, repo.branch)}
    ends = [0.0]
    if foreign:
        for ref, tree in repo.heads().items():
            if ref.startswith("refs/heads/run/") and ref != repo.ref:
                with suppress(Damaged):  # which is for that run to say
                    mark = read_mark(repo, tree)
                    ends += [mark.time + CONDEMNED] if foreign & set(mark.condemned) else []
    return max(ends) if max(ends) > now else None


def _live(repo: Repo, without: str = "") -> set[str]:
    return {sha256 for ref, tree in repo.heads().items() if ref != without for sha256 in tree.large()}
