"""A run, as its store knows it: for a program (`status --json`) and for a person."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.store import StoreState
from kaggle_lib.config import RunConfig
from kaggle_lib.report.speed import expected as expected_speed
from kaggle_lib.report.speed import shape_of
from kaggle_lib.runs.ledger import closed, goodput


def status(run: str, store_state: StoreState) -> dict[str, Any]:
    """What `status --json` prints: `run`, `state` (empty, running, paused, finished, failed), `step`, `total_steps`,
    `stopped_early`, `best` {`step`, `bits_per_byte`}, `checkpoint` {`step`, `id`, `bytes`}, `storage` {`checkpoints`,
    `bytes`}, `lease` {`session`, `host`, `expires`, `seconds_left`}, `sessions`, `goodput` and `speed`
    {`tokens_per_second`, `planned`, `how`}.

    `stopped_early` is why the run has ended before its last step, or null; `best` its best validation. `step` is the
    newest good checkpoint's (0: none); `storage` counts what is damaged, too. `total_steps`, `best`, `checkpoint`,
    `lease`, `goodput` and `speed` are null where they are not known. The lease is judged by the store's clock;
    `speed` is the last training session's, beside what `plan` expects of its GPUs.
    """
    good = next((stored for stored in store_state.checkpoints if stored.problem is None and stored.manifest), None)
    manifest = good.manifest if good else None
    lease = store_state.lease
    holder = store_state.holder()
    ledger = closed(store_state.ledger, holder)
    return {
        "run": run,
        "state": _state(store_state, manifest is not None and manifest.finished, holder),
        "step": manifest.step if manifest else 0,
        "total_steps": manifest.total_steps if manifest else None,
        "stopped_early": manifest.stopped_early if manifest else None,
        "best": manifest.best if manifest else None,
        "checkpoint": {"step": good.step, "id": good.id, "bytes": good.bytes} if good else None,
        "storage": storage(store_state),
        "lease": _lease(lease, store_state.now) if lease else None,
        "sessions": [
            {
                **{name: record[name] for name in ("id", "started", "ended", "from_step", "to_step", "ended_because")},
                "goodput": goodput([record]),
            }
            for record in ledger
        ],
        "goodput": goodput(ledger),
        "speed": _speed(store_state.config, ledger),
    }


def _speed(frozen: dict[str, Any] | None, records: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The tokens/s of the last session that trained, and what `plan` expects of its GPUs; null where it cannot."""
    trained = [one for one in records if one.get("tokens") and one["to_step"] > one["from_step"]]
    if not trained:
        return None
    last, expected = trained[-1], {"tokens_per_second": None, "how": "unknown"}
    try:
        config = RunConfig.from_json((frozen or {})["config"])
    except (KeyError, ValueError):
        config = None
    if config and (shape := shape_of(config)):
        per_step = last["tokens"] / (last["to_step"] - last["from_step"])
        expected = expected_speed(shape, config, per_step, last["processes"], last["versions"].get("gpu", ""))
    fact = round(last["tokens"] / last["seconds"]["training"], 1)
    return {"tokens_per_second": fact, "planned": expected["tokens_per_second"], "how": expected["how"]}


def _lease(lease: Lease, now: float) -> dict[str, Any]:
    left = max(0, round(lease.expires - now))
    return {"session": lease.session, "host": lease.host, "expires": _iso(lease.expires), "seconds_left": left}


def _state(store_state: StoreState, finished: bool, holder: str | None) -> str:
    if store_state.config is None:
        return "empty"
    if finished:
        return "finished"
    if holder:
        return "running"
    because = store_state.ledger[-1]["ended_because"] if store_state.ledger else None
    return "failed" if because and because.split(":")[0] == "failed" else "paused"


def as_text(status: dict[str, Any], others: str = "") -> str:
    """The same for a person, lines without an end of line at the end; `others` is said of an empty one."""
    run, state = status["run"], status["state"]
    if state == "empty":
        return f"Run {run}: nothing is on the store yet{others}."
    total = f" of {status['total_steps']}" if status["total_steps"] else ""
    early = f" ({status['stopped_early']})" if status["stopped_early"] else ""
    lines = [f"Run {run}: {state}, step {status['step']}{total}{early}"]
    if checkpoint := status["checkpoint"]:
        lines.append(
            f"Checkpoint: step {checkpoint['step']}, {checkpoint['bytes'] / 1e6:.1f} MB, id {checkpoint['id']}"
        )
    else:
        lines.append("Checkpoint: none yet")
    if best := status["best"]:
        lines.append(f"Best validation: {best['bits_per_byte']:.4f} bits per byte at step {best['step']:.0f}")
    lines.append(f"Storage: {storage_as_text(status['storage'])}")
    if lease := status["lease"]:
        left = f"{lease['seconds_left'] / 60:.0f} min left" if lease["seconds_left"] else "over"
        lines.append(f"Lease: session {lease['session']} on {lease['host']}, until {lease['expires']} ({left})")
    lines.append(f"Goodput: {percent(status['goodput'])} of the paid time is in kept training steps")
    if speed := status["speed"]:
        planned = f", {speed['planned']:,.0f} planned ({speed['how']})" if speed["planned"] else ""
        lines.append(f"Tokens/s: {speed['tokens_per_second']:,.0f} in the last session{planned}")
    lines.append("Sessions:" if status["sessions"] else "Sessions: none yet")
    for session in status["sessions"]:
        lines.append(
            f"  {session['id']}  {session['started']}  steps {session['from_step']} to {session['to_step']}, "
            f"goodput {percent(session['goodput'])}, {session['ended_because'] or 'no end recorded'}"
        )
    return "\n".join(lines)


def storage(store_state: StoreState) -> dict[str, int]:
    """What the store holds of the run: `checkpoints`, how many, and the `bytes` of everything."""
    return {"checkpoints": len(store_state.checkpoints), "bytes": store_state.bytes}


def storage_as_text(counted: dict[str, int]) -> str:
    """`2 checkpoints, 12.3 MB in all`."""
    number = counted["checkpoints"]
    return f"{number} {'checkpoint' if number == 1 else 'checkpoints'}, {counted['bytes'] / 1e6:.1f} MB in all"


def percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.0f} %"


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
