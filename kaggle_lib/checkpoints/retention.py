"""Which checkpoints stay: the newest ones, the best ones that these name, and each end that the run has reached.

Every checkpoint that a run may go on from names the best validation up to it, and that one has to be there, too. Since
a new best is saved at once, it is one more at a time, as a rule.
"""

from __future__ import annotations

from collections.abc import Sequence

from kaggle_lib.checkpoints.manifest import Manifest
from kaggle_lib.checkpoints.store import Stored


def good(stored: Sequence[Stored], lineage: str | None) -> list[Manifest]:
    """Of a store's checkpoints, newest first, those that count: a damaged one does not, nor another run's."""
    return [one.manifest for one in stored if one.manifest and not one.problem and one.manifest.lineage == lineage]


def superfluous(manifests: Sequence[Manifest], keep: int, best: bool) -> list[int]:
    """The steps that may go of these good checkpoints, newest first. `best`: those of the best validations stay."""
    assert keep >= 1
    named = {manifest.best_step for manifest in manifests[:keep]} if best else set()
    return [one.step for one in manifests[keep:] if not one.finished and one.step not in named]
