"""The evaluation session: the finished run's adapter beside its base model, in a worker of its own."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from kaggle_lib.checkpoints.manifest import Manifest
from kaggle_lib.errors import UserError, WorkerError
from kaggle_lib.runs import base_model, best, evaluation_data, events, resume
from kaggle_lib.runs.custody import Custody
from kaggle_lib.runs.launch import Workers, hang_seconds, visible_gpus
from kaggle_lib.runs.opening import Opened, new_session_id, only_session, open_run
from kaggle_lib.runs.outcome import Outcome, Word
from kaggle_lib.runs.prepare import settle_hooks, write_run
from kaggle_lib.runs.rescue import keep
from kaggle_lib.runs.stopping import Stopping
from kaggle_lib.runs.supervise import BEFORE_THE_FIRST_STEP, POLL_SECONDS, WEIGHTS, to_stderr
from kaggle_lib.session.clock import Clock

Say = Callable[[str], None]
WORKER = "kaggle_lib.evaluation.worker"
LAST_SECONDS = 20.0  # a batch that ends, and the upload of what was measured


def evaluate(values: Mapping[str, object], say: Say = to_stderr, adapter: best.Which = "last") -> Outcome:
    """Score base and tuned, by its last or its best `adapter`, on the test split into `evaluation/`, here and on the
    store.

    An unfinished run is no error: the outcome says `not finished`. Asked to end, or at its deadline, the evaluation is
    `paused`, and goes on from there when it is called again. Raises ConfigError for a run that nobody knows,
    LeaseHeld, StoreError, WorkerError.
    """
    opened = open_run(values, begun=True)
    with only_session(opened.folder):
        found = resume.choose(opened.folder, opened.store, opened.state)
        for note in found.notes:
            say(note)
        for skipped in found.skipped:
            say(f"warning: Checkpoint {skipped.step} was passed over: {skipped.file} {skipped.reason}.")
        total = found.manifest.total_steps if found.manifest else None
        if found.kind != "finished" or found.manifest is None:
            reason = f"not finished, skipped: step {found.step} of {total or 'all'} is done; run `train` to go on"
            say(f"Run {opened.config.run!r}: {reason}.")
            return Outcome("not finished", opened.config.run, step=found.step, total_steps=total, reason=reason)
        if changed := settle_hooks(opened, found, say):
            say(f"warning: {changed}")
        return _evaluate(opened, found, *best.adapter(opened, found, adapter), say)


def _evaluate(opened: Opened, found: resume.Resume, manifest: Manifest, adapter: Path, say: Say) -> Outcome:
    """`manifest`: of the checkpoint that the folder `adapter` is of; `found`: the run's end."""
    config, folder, step = opened.config, opened.folder, manifest.step
    log = events.EventLog(folder.events, new_session_id())
    custody = Custody(opened.store, folder, log, say, config.keep, config.keep_best)
    stopping = Stopping(Clock.start(config.session_hours), say)
    processes = config.processes if isinstance(config.processes, int) else max(1, len(visible_gpus()))
    custody.take(opened.frozen(), found.lineage, config.take_over, config.lease_wait_minutes)
    host = socket.gethostname()
    log.write("session", job="evaluate", from_step=step, resumed_from=step, host=host, processes=processes)
    custody.begin(found.manifest if found.stored else None, opened.state.checkpoints)
    say(f"Evaluating run {config.run!r} at step {step}: base and tuned on the same held-out answers.")
    word: Word = "failed"
    ended = "the evaluation was interrupted"
    try:
        with stopping.signals():
            if opened.base_commit:
                base_model.fetch(config, opened.base_commit, say)
            if problem := evaluation_data.fetch(config, folder.cache):
                custody.warn(problem)
            scored = replace(found, step=step, manifest=manifest)
            write_run(opened, scored, job="evaluate", session=log.session, adapter=adapter.name)
            word = _work(custody, config.hang_minutes, processes, stopping)
            custody.check()
            ended = "evaluated" if word == "finished" else stopping.why
            if word == "finished" or folder.evaluation.is_dir():
                custody.claim.put("evaluation", folder.evaluation)
    except UserError as error:
        word, ended = "failed", error.what
        raise
    finally:
        custody.settle(stopping.clock.left() if stopping.why else None, lambda: stopping.at_once)
        custody.end(word, ended, found.step, stopping.clock.left() if stopping.why else None)
    if word == "finished":
        say(f"Evaluated; the numbers are in {keep(folder, say) / 'evaluation' / 'result.json'}.")
    else:
        say(f"{word.capitalize()}: {ended}. What was measured is kept; run `evaluate` again to go on.")
    return Outcome(
        outcome=word,
        run=config.run,
        step=step,
        total_steps=manifest.total_steps,
        resumed_from=step,
        session=log.session,
        reason=ended,
        checkpoint=manifest.nonce,
        on_store=True,
        adapter_sha256=manifest.files[WEIGHTS].sha256,
    )


def _work(custody: Custody, hang_minutes: float, processes: int, stopping: Stopping) -> Word:
    """Run the workers to their end: finished, paused, or stopped. Raises WorkerError where one failed or hung, or was
    killed."""
    workers = Workers(WORKER, custody.folder, processes)
    hung = ""
    try:
        while not hung and not stopping.at_once and not workers.wait(POLL_SECONDS):
            custody.check()
            stopping.watch_the_clock(LAST_SECONDS)
            silent, phase = workers.silent_for()
            if stopping.why:
                if phase in BEFORE_THE_FIRST_STEP or stopping.overdue:
                    break  # nothing is measured yet, or no more time is left for a batch to end
                if not custody.folder.stop_request.exists():
                    custody.folder.request(custody.folder.stop_request)
            if silent > hang_seconds(hang_minutes, phase):
                hung = f"The evaluation hung: no sign of life for {silent:.0f} s in phase {phase}."
    finally:
        workers.end()
    outcome = custody.folder.read_outcome()
    if outcome and outcome["outcome"] == "finished":
        return "finished"
    if outcome and outcome["outcome"] == "failed" and outcome["user"]:
        raise WorkerError(outcome["reason"])
    if stopping.why and (outcome is None or outcome["outcome"] == "paused"):
        return "stopped" if stopping.at_once else "paused"
    what = f"The evaluation raised {outcome['error']}: {outcome['reason']}" if outcome else hung
    raise WorkerError(
        what or f"The evaluation was killed (exit {workers.process.returncode}).",
        kept="The adapter is as it was, and what was measured is kept.",
        todo=f"Run `evaluate` again to go on. The end of {workers.log_path}:\n{workers.last_lines()}",
    )
