"""Where a session goes on: the newest checkpoint that verifies, of those in the run folder and those on the store."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from kaggle_lib.checkpoints.manifest import NAME, Manifest, copy, damaged, verify
from kaggle_lib.checkpoints.store import Store, Stored, StoreState
from kaggle_lib.config import RunConfig, code_hash, fingerprint
from kaggle_lib.errors import CheckpointError, ResumeError
from kaggle_lib.files import fsync_directory, set_aside
from kaggle_lib.runs import rescue
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.outcome import Skipped

Source = Literal["none", "local", "store", "attached"]


@dataclass(frozen=True)
class Resume:
    """Where to go on, and all that has to be said about it.

    `path`: the checkpoint in the run folder, wherever it came from (`source`); None: fresh. `stored`: the same
    checkpoint on the store; where it is not there, `to_commit` is its path, for the supervisor to commit first.
    `skipped`: newer ones that were passed over. `why`: one sentence for the user; `notes`: what was moved. `added`:
    epochs that this session adds to a finished run.
    """

    kind: Literal["fresh", "resume", "finished"]
    step: int
    source: Source
    lineage: str
    why: str
    stored: Stored | None = None
    path: Path | None = None
    to_commit: Path | None = None
    manifest: Manifest | None = None
    skipped: list[Skipped] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    added: tuple[float, ...] = ()

    @property
    def extended(self) -> list[float]:
        """The epochs that were added to the run after its end, one number each time."""
        added: list[float] = (self.manifest.model_extra or {}).get("extended", []) if self.manifest else []
        return [*added, *self.added]

    def extend(self, epochs: float) -> Resume:
        """The same, to go on beyond the end until `epochs` were added in all; unchanged where that is done, or before
        the end; nor beyond an early stopping, which a note says then."""
        more = round(epochs - sum(self.extended), 9)
        if self.kind != "finished" or more <= 0:
            return self
        if self.manifest and self.manifest.stopped_early:
            early = f"extend_epochs={epochs:g} adds nothing after {self.manifest.stopped_early}"
            return replace(
                self, notes=[*self.notes, f"{early}. Another run can start there: fork_from=RUN@{self.step}."]
            )
        why = f"Extending the finished run by {more:g} epochs, from step {self.step} on."
        return replace(self, kind="resume", added=(more,), why=why)


def choose(folder: RunFolder, store: Store, state: StoreState) -> Resume:
    """The newest good checkpoint of the run's lineage; a stored one is fetched to `folder.checkpoint(step)`.

    So is one of an earlier session's output that is attached (see rescue.py), after both. At the same step local ones
    come first. Those in the run folder that are passed over are renamed, not removed.
    A store without a run takes the lineage of the newest good local checkpoint, or a new one.

    Raises CheckpointError where checkpoints are there and none verifies (nothing is renamed then), and StoreError.
    """
    return _Choice(folder, store, state).made()


def check_code(stored: str, config: RunConfig, manifest: Manifest | None = None, hooks: str = "") -> str | None:
    """Whether this library's code is the one that trained the run so far; a sentence where it is not, and may be.

    `stored` is the hash frozen with the run; the fingerprint of the checkpoint to go on from (`manifest`) says it
    better, because an earlier session may have been allowed another code; `hooks`: sha256 of the hooks file that it
    carries. Raises ResumeError unless `config.allow_code_change`.
    """
    code = code_hash()
    if manifest.fingerprint == fingerprint(config, code, hooks) if manifest else stored == code:
        return None
    what = "this library's code (data/, strategies/, training/) or its defaults changed since this run's last session"
    if config.allow_code_change:
        return f"{what}; going on with allow_code_change=true, so bit for bit ends here."
    raise ResumeError(
        [
            f"allow_code_change: {what}, so it would not go on bit for bit (code {code[:12]}, the run began with "
            f"{stored[:12]}). Use the version it was trained with, or set allow_code_change=true, or start another "
            "run (run=NAME)"
        ]
    )


class _Choice:
    def __init__(self, folder: RunFolder, store: Store, state: StoreState) -> None:
        self.folder, self.store = folder, store
        self.stored = {stored.step: stored for stored in state.checkpoints}
        self.local = set(folder.checkpoint_steps())
        self.attached = rescue.attached_checkpoints(folder.root.name)
        self.lineage = state.lineage
        self.passed: dict[tuple[int, str, str], list[str]] = {}  # (step, file, reason): the places where it is so
        self.moves: dict[int, str] = {}  # local steps to be renamed, and why
        self.damaged = False  # something is there that should have been gone on from

    def made(self) -> Resume:
        for left in self.folder.checkpoints.glob(".*fetched-*"):
            shutil.rmtree(left)
        for step in sorted(self.local | {*self.stored, *self.attached}, reverse=True):
            if step in self.local and (manifest := self._look(step)):
                return self._resume(manifest, "local")
            if step in self.stored and (manifest := self._fetch(self.stored[step])):
                return self._resume(manifest, "store")
            if step in self.attached and (manifest := self._copy(step)):
                return self._resume(manifest, "attached")
        if self.damaged:
            raise CheckpointError(
                f"Run {self.folder.root.name!r} has checkpoints, but none verifies: {self._told()}.",
                kept="Nothing was removed or renamed.",
                todo="Restore one of them from a copy, or start another run (run=NAME).",
            )
        notes = self._move()
        why = f"Starting at step 0: there is no checkpoint of this run in {self.folder.root} or {self.store.place}"
        lineage = self.lineage or secrets.token_hex(16)
        return Resume("fresh", 0, "none", lineage, self._sentence(why), skipped=self._skipped(), notes=notes)

    def _look(self, step: int) -> Manifest | None:
        """The manifest of a local checkpoint that can be gone on from."""
        path = self.folder.checkpoint(step)
        with _readable(path):
            try:
                manifest = verify(path)
            except CheckpointError as error:
                # Without a manifest it is no damage: the save was cut off, and the one before counts.
                cut_off = path.is_dir() and not (path / NAME).exists()
                self._pass(step, error, "in the run folder", damaged=not cut_off)
                self.moves[step] = "unfinished" if cut_off else "damaged"
                return None
        if self.lineage is None:
            self.lineage = manifest.lineage
        if manifest.lineage != self.lineage:
            self.moves[step] = "foreign"
            self._pass(step, _foreign(path, manifest), "in the run folder", damaged=False)
            return None
        return manifest

    def _fetch(self, stored: Stored) -> Manifest | None:
        """Bring a stored checkpoint here, beside its final name: what bears that name may have to be kept."""
        path = self.folder.checkpoint(stored.step)
        try:
            if stored.problem:
                raise damaged(path, *stored.problem)
            assert stored.manifest is not None
            if stored.manifest.lineage != self.lineage:
                raise _foreign(path, stored.manifest)
            return self.store.fetch(stored, self._fetched(stored.step))
        except CheckpointError as error:
            self._pass(stored.step, error, "on the store")
            return None

    def _copy(self, step: int) -> Manifest | None:
        """Bring a checkpoint of an attached output here, as `_fetch` does."""
        path = self.attached[step]
        with _readable(path):
            try:
                manifest = Manifest.read(path)
                if self.lineage not in (None, manifest.lineage):
                    self._pass(step, _foreign(path, manifest), "in the attached output", damaged=False)
                    return None
                copy(path, self._fetched(step))
                for segment in (path / "events").glob("*.jsonl"):  # the store may not have heard of them
                    if not (self.folder.events / segment.name).exists():
                        shutil.copyfile(segment, self.folder.events / segment.name)
            except CheckpointError as error:
                self._pass(step, error, "in the attached output")
                shutil.rmtree(self._fetched(step), ignore_errors=True)
                return None
        self.lineage = manifest.lineage
        return manifest

    def _fetched(self, step: int) -> Path:
        return self.folder.checkpoints / f".fetched-{step:08d}"

    def _pass(self, step: int, error: CheckpointError, place: str, damaged: bool = True) -> None:
        self.passed.setdefault((step, error.file, error.reason), []).append(place)
        self.damaged |= damaged

    def _skipped(self) -> list[Skipped]:
        return [Skipped(step, file, reason) for step, file, reason in self.passed]

    def _told(self) -> str:
        return ", ".join(
            f"step {step} ({file} {reason}, {' and '.join(places)})"
            for (step, file, reason), places in self.passed.items()
        )

    def _sentence(self, why: str) -> str:
        return f"{why}; passed over: {self._told()}." if self.passed else f"{why}."

    def _move(self) -> list[str]:
        """Give the local ones that are passed over a name of their own, so that no save ever meets them."""
        notes = []
        for step, why in self.moves.items():
            kept = set_aside(self.folder.checkpoint(step), why)
            what = {
                "damaged": f"The checkpoint of step {step} in the run folder is damaged",
                "foreign": f"The checkpoint of step {step} in the run folder is another run's",
                "unfinished": f"The save of step {step} in the run folder was cut off",
            }[why]
            notes.append(f"{what}; it is kept as {kept}.")
        return notes

    def _resume(self, manifest: Manifest, source: Source) -> Resume:
        step, path = manifest.step, self.folder.checkpoint(manifest.step)
        notes = self._move()
        if source == "attached":
            notes.append(f"The checkpoint of step {step} was brought from {self.attached[step].parents[1]}.")
        if source != "local":
            self._fetched(step).rename(path)
            fsync_directory(path.parent)
        best = manifest.best_step
        if best in self.attached and best not in self.stored and not self.folder.checkpoint(best).exists():
            with suppress(CheckpointError):  # the best one is not needed to go on
                copy(self.attached[best], self._fetched(best))
                self._fetched(best).rename(self.folder.checkpoint(best))
        stored = self.stored.get(step)
        if stored and (stored.problem or not stored.manifest or stored.manifest.files != manifest.files):
            stored = None
        places = {"local": self.folder.root, "store": f"the store {self.store.place}"}
        where = f"from {places.get(source) or self.attached[step].parents[1]}"
        if manifest.finished:
            kind: Literal["resume", "finished"] = "finished"
            why = f"Finished: {manifest.end}, {where}"
        else:
            kind = "resume"
            why = f"Resuming at step {step} of {manifest.total_steps}, {where}"
        if not self.stored:
            why += (
                f"; the store {self.store.place} has no checkpoint of this run, so this one goes there first "
                f"(to start anew instead, remove {self.folder.root} or give another run=NAME)"
            )
        elif stored is None:
            why += "; the store lacks this one, so it goes there first"
        assert self.lineage is not None
        return Resume(
            kind,
            step,
            source,
            self.lineage,
            self._sentence(why),
            stored=stored,
            path=path,
            to_commit=path if stored is None else None,
            manifest=manifest,
            skipped=self._skipped(),
            notes=notes,
        )


def _foreign(path: Path, manifest: Manifest) -> CheckpointError:
    return damaged(path, NAME, f"is of another run of this name (lineage {manifest.lineage[:8]})")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """A local checkpoint that may not be read is no damage: going back to an older one would help nobody."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint {path} cannot be read: {error.strerror} ({error.filename}).",
            kept="Nothing was removed or renamed.",
            todo="Put that right and run again.",
        ) from error
