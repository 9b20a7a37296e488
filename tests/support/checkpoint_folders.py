"""Checkpoint folders with the files of a real one, made without the training stack: content by step and name."""

import hashlib
import json

from kaggle_lib.checkpoints.lease import Lease
from kaggle_lib.checkpoints.manifest import Manifest, folder_name

FILES = {
    "adapter_model.safetensors": 3000,
    "adapter_config.json": 200,
    "optimizer.pt": 5000,
    "scheduler.pt": 120,
    "trainer_state.json": 300,
    "tokenizer.json": 900,
    "events/s1.jsonl": 250,
}
BYTES = sum(FILES.values())
LINEAGE = "a" * 32


def content(step, name, size, salt=""):
    return hashlib.shake_256(f"{step} {name} {salt}".encode()).digest(size)


def make_checkpoint(parent, step, *, lineage=LINEAGE, total_steps=60, salt="", fingerprint="f" * 64, best=None, **more):
    """`parent/step-…` with its manifest; returns (folder, manifest). `salt` makes another content; `best`: a step."""
    folder = parent / folder_name(step)
    for name, size in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content(step, name, size, salt))
    manifest = Manifest.write(
        folder,
        step=step,
        total_steps=total_steps,
        fingerprint=fingerprint,
        lineage=lineage,
        session="s1",
        versions={"torch": "2.13.0"},
        cut={"token_budget": 512, "min_micro_batches": 2},
        best=None if best is None else {"step": best, "bits_per_byte": 5 - best / 100},
        **more,
    )
    return folder, manifest


def make_events(folder, session, steps):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"event": "step", "session": session, "step": step}) + "\n" for step in steps]
    (folder / f"{session}.jsonl").write_text("".join(lines))
    return folder


def dead_lease(session):
    """The lease of a process of this machine that is gone: this process's id with an earlier start."""
    mine = Lease.mine(session)
    return mine.model_copy(update={"pid_started": mine.pid_started - 1})


def tree(folder):
    """{relative path: bytes} of every file in `folder`."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
