"""The training session: keep the workers alive, bring each checkpoint to the store, say how it ended.

Lives in the notebook's or the command's own process and imports no torch.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import shutil
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from kaggle_lib.checkpoints.manifest import Manifest
from kaggle_lib.data.check import check
from kaggle_lib.errors import LeaseLost, StoreError, UserError, WorkerError
from kaggle_lib.runs import base_model, events, resume
from kaggle_lib.runs.custody import Custody
from kaggle_lib.runs.launch import Meeting, Workers, hang_seconds, visible_gpus
from kaggle_lib.runs.live import Live
from kaggle_lib.runs.machines import Others
from kaggle_lib.runs.opening import Opened, new_session_id, only_session, open_run
from kaggle_lib.runs.outcome import Outcome, Skipped, Word
from kaggle_lib.runs.prepare import settle_code, settle_start, write_run
from kaggle_lib.runs.progress import Progress
from kaggle_lib.runs.rescue import Rescue, keep
from kaggle_lib.runs.stopping import Stopping
from kaggle_lib.runs.tracking import Tracking
from kaggle_lib.runs.upload import beside
from kaggle_lib.session.clock import Clock
from kaggle_lib.session.where import kaggle_session

Say = Callable[[str], None]
WORKER = "kaggle_lib.training.worker"
WEIGHTS = "adapter_model.safetensors"
ADAPTER_FILES = (WEIGHTS, "adapter_config.json")
LAUNCHES_WITHOUT_PROGRESS = 3
POLL_SECONDS = 0.2
LAST_WORDS_SECONDS = 3.0  # of another machine, whose workers' end was the end of this one's
BEFORE_THE_FIRST_STEP = ("start", "load", "calibration")
FULL_BYTES = 2**20
RUN_ATTACHED = "attach this notebook's output as an input and run it again"


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _unbreakable(say: Say) -> Say:
    """A terminal that was closed, or a pipe that nobody reads any more, ends no training."""

    def speak(line: str) -> None:
        with contextlib.suppress(OSError):
            say(line)

    return speak


def train(values: Mapping[str, object], say: Say = to_stderr) -> Outcome:
    """Train the run that `values` name: fresh, resumed, or finished already. Returns how the session ended.

    Raises ConfigError and ResumeError before anything is touched, LeaseHeld where another session holds the run,
    CheckpointError where checkpoints are there and none verifies, StoreError, LeaseLost, WorkerError.
    """
    opened = open_run(values)
    with only_session(opened.folder):
        return Session(opened, say).run()


class Session:
    """One supervisor's lifetime inside a run."""

    def __init__(self, opened: Opened, say: Say) -> None:
        self.opened, self.say = opened, _unbreakable(say)
        self.config, self.folder = opened.config, opened.folder
        self.id = new_session_id()
        self.clock = Clock.start(self.config.session_hours)
        self.log = events.EventLog(self.folder.events, self.id)
        self.stopping = Stopping(self.clock, self.say)
        self.custody = Custody(opened.store, self.folder, self.log, self.say, self.config.keep, self.config.keep_best)
        self.progress = Progress(
            self.log.path, self.config, self.say, self.clock.left, lambda: self.custody.stored_step, Live.here(),
            self.custody.warn,
        )  # fmt: skip
        self.tracking = Tracking(self.folder, self.custody.warn, self.say)
        self.processes = training_processes(self.config.processes, self.config.train_batch_size)
        self.rescue = Rescue(self.folder, self.say)
        self.others = Others(self.config, self.folder, self.say)
        self.attempt = 0
        self.resumed_from: int | None = None
        self.skipped: list[Skipped] = []
        self.recompute_all = False

    def run(self) -> Outcome:
        """The whole session, from where to go on to the lease's release."""
        found = self._choose()
        if found.kind == "finished" and found.to_commit is None:
            return self._already_finished(found)
        code_changed = settle_code(self.opened, found, self.say)
        self.config = config = self.opened.config
        self.tracking.settle(config.report_to)
        if found.kind == "fresh":  # what cannot be used shows before anything is claimed or loaded
            self.say(f"Data: {check(config, self.folder.cache)}.")
        settle_start(self.opened, found, self.say)
        self.custody.take(self.opened.frozen(), found.lineage, config.take_over, config.lease_wait_minutes)
        with self.stopping.signals():
            try:
                # The session that held the lease may have gone on after the first look.
                found = self._choose()
                self._begin(found, code_changed)
                return self._train(found)
            except LeaseLost:
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
                    self._end("failed", f"{error.strerror} in {self.folder.root}")
                    raise self.folder.unusable(error) from error
                self._end("failed", error.what if isinstance(error, UserError) else repr(error))
                raise
            finally:
                self.tracking.close(0.0)
                self.custody.close()
                self.progress.close()
                self.others.close()

    def _choose(self) -> resume.Resume:
        try:
            self.opened.state = self.opened.store.peek()
        except StoreError:
            # Between two launches the store need not answer: no other session has changed it.
            if not self.attempt:
                raise
        found = resume.choose(self.folder, self.opened.store, self.opened.state).extend(self.config.extend_epochs)
        self.skipped += [skipped for skipped in found.skipped if skipped not in self.skipped]
        for note in found.notes:
            self.say(note)
        return found

    def _already_finished(self, found: resume.Resume) -> Outcome:
        """Nothing to train: bring back what is gone from this machine, and say so."""
        assert found.manifest is not None
        restore_finished(self.opened, found.manifest)
        self.say(f"Run {self.config.run!r} is finished: {found.manifest.end}, nothing to train.")
        keep(self.folder, self.say)
        return self._outcome("finished", "the run was finished already", found.manifest, on_store=True)

    def _begin(self, found: resume.Resume, code_changed: str | None) -> None:
        self.opened.store.fetch_events(self.folder.events)
        self.progress.recall(events.curve(events.read_all(self.folder.events)))
        self.resumed_from = None if found.kind == "fresh" else found.step
        self.log.write(
            "session",
            job="train",
            from_step=found.step,
            resumed_from=self.resumed_from,
            forked_from=self.config.fork_from,
            extended=found.extended,
            host=socket.gethostname(),
            kernel=self.config.kernel,
            kaggle_session=kaggle_session(),
            processes=self.processes * self.config.nodes,
        )
        self.say(found.why)
        for skipped in self.skipped:
            self.custody.warn(f"Checkpoint {skipped.step} was passed over: {skipped.file} {skipped.reason}.")
        if code_changed:
            self.custody.warn(code_changed[0].upper() + code_changed[1:])
        self.custody.begin(found.manifest if found.stored else None, self.opened.state.checkpoints)

    def _train(self, found: resume.Resume) -> Outcome:
        """Launch the workers until they are done, asked to stop, or die without getting further."""
        in_vain = 0
        if found.kind != "finished" and (commit := self.opened.base_commit):
            fetch = functools.partial(base_model.fetch, self.config, commit, self.say)
            if not beside(fetch, self._asked_to_end):
                return self._end("paused", f"{self.stopping.why}, before the base model was here")
        while True:
            self.custody.check()
            if found.kind == "finished":
                return self._finish(found)
            self._write(found)
            meeting = self.others.gather(self.processes, self._asked_to_end)
            if meeting is None and self.config.nodes > 1:
                return self._end("paused", f"{self.stopping.why}, before all machines were here")
            workers, how = self._launch(meeting)
            self.custody.check()
            outcome = self.folder.read_outcome() or {"outcome": "none"}
            if self.stopping.at_once:
                return self._end("stopped", "stopped at once by the second interrupt")
            if outcome["outcome"] == "paused":
                return self._end("paused", self.stopping.why or outcome["reason"])
            if outcome["outcome"] == "failed" and outcome["user"]:
                raise WorkerError(outcome["reason"], kept=self.custody.kept())
            if outcome["outcome"] != "finished":
                if outcome["outcome"] == "failed":
                    how = f"the worker raised {outcome['error']}: {outcome['reason']}"
                    self.recompute_all = self.recompute_all or outcome["error"] == "OutOfMemoryError"
                # A rank that dies of its peer's death is not the cause.
                how = self.others.lost(LAST_WORDS_SECONDS) or how
                if self.stopping.why:
                    return self._end("paused", f"{self.stopping.why}, and {how}, so no last save was made")
                self._check_disk()
                what, lines = f"{how[0].upper()}{how[1:]}", workers.last_lines()
                in_vain = 0 if (self.custody.newest_local() or 0) > found.step else in_vain + 1
                if in_vain >= LAUNCHES_WITHOUT_PROGRESS:
                    raise WorkerError(
                        f"{what}; {in_vain} launches in a row came to no new checkpoint.",
                        kept=self.custody.kept(),
                        todo=f"The end of {workers.log_path}:\n{lines}",
                    )
                self.custody.warn(f"{what}. Starting again from the last checkpoint.")
                if lines:
                    self.say(f"The end of {workers.log_path}:\n{lines}")
            self.attempt += 1
            self.log.attempt = self.attempt
            found = self._choose()

    def _asked_to_end(self) -> bool:
        self.custody.check()
        self.stopping.watch_the_clock(0.0)
        return bool(self.stopping.why)

    def _write(self, found: resume.Resume) -> None:
        # After an out-of-memory error that was in no step: the load, or the optimizer.
        config = self.config.model_copy(update={"recomputation": "full"} if self.recompute_all else {})
        write_run(self.opened, found, job="train", session=self.id, attempt=self.attempt, config=config)

    def _launch(self, meeting: Meeting | None) -> tuple[Workers, str]:
        """One attempt; how its workers ended, in words."""
        workers = Workers(WORKER, self.folder, self.processes, meeting)
        try:
            return workers, self._watch(workers)
        finally:
            workers.end()
            self.progress.show()

    def _watch(self, workers: Workers) -> str:
        while not workers.wait(POLL_SECONDS):
            self.progress.show()
            self.tracking.tend()
            self.custody.check()
            if self.custody.uploads.problem:
                self._rescue()
            # Room for the last step and its save, by the slowest of each so far, and for its upload.
            slowest = [self.progress.slowest.get(kind, 0.0) for kind in ("step", "save")]
            self.stopping.watch_the_clock(sum(slowest) + self.custody.uploads.seconds_for_the_next())
            if self.stopping.at_once:
                break
            if lost := self.others.lost():
                return lost
            silent, phase = workers.silent_for()
            if self.stopping.why:
                if phase in BEFORE_THE_FIRST_STEP:
                    return "the workers had not begun to train"
                if self.stopping.overdue:
                    return "the last save took too long"
                if not self.folder.stop_request.exists():
                    self.folder.request(self.folder.stop_request)
            if silent > hang_seconds(self.config.hang_minutes, phase):
                return f"the workers hung: no sign of life for {silent:.0f} s in phase {phase}"
        return workers.how_ended()

    def _check_disk(self) -> None:
        """Raises WorkerError where a full disk is what ended the workers: they had no room to say so."""
        free = shutil.disk_usage(self.folder.root).free
        if free < FULL_BYTES:
            raise WorkerError(
                f"The disk of {self.folder.root} is full: {free} bytes are free.",
                kept=self.custody.kept(),
                todo="Make room there, or set work_dir to another disk, and run again.",
            )

    def _finish(self, found: resume.Resume) -> Outcome:
        assert found.manifest is not None and found.path is not None
        put_adapter(found.path, found.manifest, self.folder.adapter)
        return self._end("finished", found.manifest.stopped_early or "all steps are done")

    def _end(self, word: Word, reason: str) -> Outcome:
        """Wait for the last upload, write the ledger, let go of the lease, and say what is where."""
        self.custody.settle(self.clock.left(), lambda: self.stopping.at_once)
        self.tracking.close(0.0 if self.stopping.at_once else self.clock.left())
        newest = self.custody.newest_local()
        manifest = Manifest.read(self.folder.checkpoint(newest)) if newest is not None else None
        kept, stored = self.custody.kept(), self.custody.uploads.stored
        on_store = manifest is not None and stored is not None and stored.nonce == manifest.nonce
        if on_store:
            self.rescue.clear()
        else:
            self._rescue()
        keep(self.folder, self.say)
        self.custody.end(word, reason, newest or 0, self.clock.left())
        if manifest is not None:
            self.say(self._what_next(word, manifest, on_store))
        self.say(f"{word[0].upper()}{word[1:]}: {reason.rstrip('.')}. {kept}")
        outcome = self._outcome(word, reason, manifest, on_store=on_store)
        self.others.end(outcome=outcome.to_json())
        return outcome

    def _rescue(self) -> None:
        if (step := self.custody.newest_local()) is not None:
            self.rescue.put(step)

    def _what_next(self, word: Word, manifest: Manifest, on_store: bool) -> str:
        """Where the run stands, here and on the store, and what comes next."""
        there = self.custody.stored_step
        stands = f"Step {manifest.step} of {manifest.total_steps}, on the store: {there or 'none'}."
        if not on_store:
            again = "run it again on this machine" if self.rescue.place is None else RUN_ATTACHED
            return f"{stands} Next: {again}, and it goes to the store first."
        if manifest.finished:
            return f"{stands} Next: evaluate it."
        done, left = manifest.step - (self.resumed_from or 0), manifest.total_steps - manifest.step
        more = f"; {math.ceil(left / done)} more like this one" if done > 0 and word == "paused" else ""
        return f"{stands} Next: run it again, here or on another machine{more}."

    def _outcome(self, word: Word, reason: str, manifest: Manifest | None, on_store: bool) -> Outcome:
        return Outcome(
            outcome=word,
            run=self.config.run,
            step=manifest.step if manifest else 0,
            total_steps=manifest.total_steps if manifest else None,
            resumed_from=self.resumed_from,
            skipped_checkpoints=self.skipped,
            session=self.id,
            reason=reason,
            checkpoint=manifest.nonce if manifest else None,
            on_store=on_store,
            adapter_sha256=manifest.files[WEIGHTS].sha256 if manifest and word == "finished" else None,
        )


def training_processes(asked: int | str, train_batch_size: int) -> int:
    """`auto`: one per GPU, or one; never more than a step has samples."""
    if isinstance(asked, int):
        return asked
    return max(1, min(len(visible_gpus()), train_batch_size))


def put_adapter(source: Path, manifest: Manifest, target: Path) -> None:
    """Put the adapter of the checkpoint `source` at `target`, with its tokenizer, as plain PEFT reads it."""
    aside = target.with_name(f".{target.name}.new")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for name in manifest.files:
        if name in ADAPTER_FILES or name.startswith(("tokenizer", "chat_template", "special_tokens")):
            shutil.copyfile(source / name, aside / name)
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)


def restore_finished(opened: Opened, manifest: Manifest) -> None:
    """Bring back what a finished run leaves on a machine: adapter, evaluation, events."""
    put_adapter(opened.folder.checkpoint(manifest.step), manifest, opened.folder.adapter)
    if not opened.folder.evaluation.exists():
        opened.store.fetch_kind("evaluation", opened.folder.evaluation)
    opened.store.fetch_events(opened.folder.events)
