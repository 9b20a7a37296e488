"""The evaluation session: the finished run's adapter beside its base model, in a worker of its own."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping

from kaggle_lib.checkpoints.manifest import Manifest
from kaggle_lib.errors import UserError, WorkerError
from kaggle_lib.runs import base_model, events, resume
from kaggle_lib.runs.custody import Custody
from kaggle_lib.runs.launch import Workers, hang_seconds
from kaggle_lib.runs.opening import Opened, new_session_id, only_session, open_run
from kaggle_lib.runs.outcome import Outcome
from kaggle_lib.runs.prepare import settle_hooks, write_run
from kaggle_lib.runs.rescue import keep
from kaggle_lib.runs.supervise import POLL_SECONDS, WEIGHTS, restore_finished, to_stderr

Say = Callable[[str], None]
WORKER = "kaggle_lib.evaluation.worker"


def evaluate(values: Mapping[str, object], say: Say = to_stderr) -> Outcome:
    """Score base and tuned on the test split into `evaluation/`, here and on the store.

    An unfinished run is no error: the outcome says `not finished`. Raises ConfigError for a run that nobody knows,
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
        restore_finished(opened, found.manifest)
        return _evaluate(opened, found, found.manifest, say)


def _evaluate(opened: Opened, found: resume.Resume, manifest: Manifest, say: Say) -> Outcome:
    config, folder = opened.config, opened.folder
    log = events.EventLog(folder.events, new_session_id())
    custody = Custody(opened.store, folder, log, say, config.keep)
    custody.take(opened.frozen(), found.lineage, config.take_over, config.lease_wait_minutes)
    host = socket.gethostname()
    log.write("session", job="evaluate", from_step=found.step, resumed_from=found.step, host=host, processes=1)
    custody.begin(manifest if found.stored else None)
    say(f"Evaluating run {config.run!r} at step {found.step}: base and tuned on the same held-out answers.")
    ended = "the evaluation was interrupted"
    try:
        if opened.base_commit:
            base_model.fetch(config, opened.base_commit, say)
        write_run(opened, found, job="evaluate", session=log.session)
        _work(custody, config.hang_minutes)
        custody.check()
        custody.claim.put("evaluation", folder.evaluation)
        ended = "evaluated"
    except UserError as error:
        ended = error.what
        raise
    finally:
        word = "finished" if ended == "evaluated" else "failed"
        custody.settle(None)
        custody.end(word, ended, found.step, None)
    say(f"Evaluated; the numbers are in {keep(folder, say) / 'evaluation' / 'result.json'}.")
    return Outcome(
        outcome="finished",
        run=config.run,
        step=found.step,
        total_steps=manifest.total_steps,
        resumed_from=found.step,
        session=log.session,
        reason=ended,
        checkpoint=manifest.nonce,
        on_store=True,
        adapter_sha256=manifest.files[WEIGHTS].sha256,
    )


def _work(custody: Custody, hang_minutes: float) -> None:
    """Run the worker to its end. Raises WorkerError where it failed, was killed or hung."""
    workers = Workers(WORKER, custody.folder, 1)
    hung = ""
    try:
        while not hung and not workers.wait(POLL_SECONDS):
            custody.check()
            silent, phase = workers.silent_for()
            if silent > hang_seconds(hang_minutes, phase):
                hung = f"The evaluation hung: no sign of life for {silent:.0f} s in phase {phase}."
    finally:
        workers.end()
    outcome = custody.folder.read_outcome()
    if outcome and outcome["outcome"] == "finished":
        return
    if outcome and outcome["user"]:
        raise WorkerError(outcome["reason"])
    what = f"The evaluation raised {outcome['error']}: {outcome['reason']}" if outcome else hung
    raise WorkerError(
        what or f"The evaluation was killed (exit {workers.process.returncode}).",
        kept="The adapter is as it was.",
        todo=f"The end of {workers.log_path}:\n{workers.last_lines()}",
    )
