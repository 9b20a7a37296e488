"""Which adapter of a finished run: that of its last step, or that of the step with the best validation."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal, get_args

from kaggle_lib.checkpoints.manifest import Manifest, verify
from kaggle_lib.errors import CheckpointError, ConfigError, UserError
from kaggle_lib.runs.opening import Opened
from kaggle_lib.runs.resume import Resume
from kaggle_lib.runs.supervise import put_adapter, restore_finished

Which = Literal["last", "best"]


def adapter(opened: Opened, found: Resume, which: Which) -> tuple[Manifest, Path]:
    """The manifest of the checkpoint, and the folder that its adapter lies in, as plain PEFT reads it, with its
    tokenizer: `adapter/` for the last one, `best/` for the best one, which is verified, and fetched from the store
    where it is not here. `found`: the finished run's end; what such a run leaves on a machine is restored, too.

    Raises ConfigError for another word, UserError where the run had no validation, CheckpointError where the best
    checkpoint is nowhere, StoreError.
    """
    if which not in get_args(Which):
        raise ConfigError([f"adapter: should be last or best, not {which!r}"])
    last, target = found.manifest, opened.folder.best
    assert last is not None
    restore_finished(opened, last)
    if which == "last":
        return last, opened.folder.adapter
    if last.best is None:
        raise UserError(
            f"Run {opened.config.run!r} has had no validation (eval_steps=0?), so none of its checkpoints is the best.",
            todo="Take the last one: --adapter last.",
        )
    fetched = opened.folder.root / ".best.fetched"
    shutil.rmtree(fetched, ignore_errors=True)
    try:
        source, manifest = _source(opened, last, fetched)
        put_adapter(source, manifest, target)
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    return manifest, target


def _source(opened: Opened, last: Manifest, fetched: Path) -> tuple[Path, Manifest]:
    """The best checkpoint, in the run folder or fetched. Another one of that step has another validation."""
    assert last.best is not None
    here = opened.folder.checkpoint(last.best_step or 0)
    reason = "it was not kept (keep_best=false), or has been removed"
    try:
        manifest = verify(here)
        if (manifest.lineage, manifest.best) == (last.lineage, last.best):
            return here, manifest
    except CheckpointError as error:
        reason = error.reason if here.exists() else reason
    for stored in opened.state.checkpoints:
        known = stored.manifest
        if stored.step == last.best_step and known and (known.lineage, known.best) == (last.lineage, last.best):
            try:
                return fetched, opened.store.fetch(stored, fetched)
            except CheckpointError as error:
                reason = f"{error.file} {error.reason}"
    raise CheckpointError(
        f"The checkpoint of the best validation, step {last.best_step} with {last.best['bits_per_byte']:.4f} bits per "
        f"byte, can be had neither from {opened.folder.checkpoints} nor from the store {opened.store.place}: {reason}.",
        kept=f"The last one, step {last.step}, is there.",
        todo="Take that one: --adapter last.",
    )
