"""A form of the result beside its adapter, merged weights or GGUF: made, loaded back, and compared with the adapter
before anybody gets it. Imports no torch: a worker does it.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from pathlib import Path
from typing import Any

from kaggle_lib import __version__
from kaggle_lib.data import formats
from kaggle_lib.errors import UserError, WorkerError
from kaggle_lib.files import read_json, sha256_of, write_json
from kaggle_lib.runs import base_model, gguf, rescue
from kaggle_lib.runs.launch import Workers, hang_seconds
from kaggle_lib.runs.opening import Opened
from kaggle_lib.session import machine
from kaggle_lib.session.where import on_scratch

Say = Callable[[str], None]
WORKER = "kaggle_lib.evaluation.exporting"
POLL_SECONDS = 1.0
# A form may lose a tenth of what tuning has gained, in bits per byte over the held-out rows; where it gained little or
# nothing, what rounding at 16 bits is allowed to cost. docs/publishing.md has the reasons.
LOST, ROUNDING = 0.1, 0.002
# Greedy answers part somewhere once weights are rounded. With another template, other stops or ruined weights they
# share next to nothing.
ALIKE = 0.25
BASE_WEIGHTS = "model*.safetensors"
TOKENIZER = ("tokenizer", "chat_template", "special_tokens")
BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Compared:
    """A form beside its adapter on `rows` held-out rows: bits per byte of base, adapter and form, all with the base's
    own weights, and how much of the greedy answers is alike (0 to 1). `trained`: the adapter's as it was evaluated,
    with the base quantised, if so; None where it has not been evaluated."""

    rows: int
    base: float
    adapter: float
    form: float
    alike: float
    trained: float | None = None

    @property
    def bound(self) -> float:
        """The highest bits per byte that the form may have."""
        gain = self.base - self.adapter if math.isfinite(self.base) else 0.0
        return self.adapter + max(ROUNDING * self.adapter, LOST * gain)


@dataclass(frozen=True)
class Export:
    """`folder`: the form's files and nothing else, as they will be published."""

    folder: Path
    compared: Compared


def merged(opened: Opened, adapter: Path, scratch: str | None, say: Say) -> Export:
    """The base model with `adapter` folded in, in 16 bits, under `scratch` or in the run folder.

    One that is there of the very same adapter and base is taken again; of one that failed or was killed nothing is
    left. Raises UserError where memory or disk do not suffice, before a byte is written, where the base model has no
    plain 16-bit weights, or where the form is worse than the adapter by more than the bound; WorkerError.
    """
    place = _place(opened, scratch)
    target, about, making = place / "merged", place / "merged.json", place / ".merged.making"
    made_of = {
        "adapter": sha256_of(adapter / "adapter_model.safetensors"),
        "base": [opened.config.base_model, opened.base_commit, opened.config.seed],
        "fingerprint": opened.fingerprint(),
        "version": __version__,
    }
    if target.is_dir() and about.is_file() and (known := read_json(about))["of"] == made_of:
        say(f"The merged model is there already: {target}.")
        return Export(target, compare(known["measured"], known["measured"]["form"], opened.folder.evaluation))
    for gone in (target, about, making):
        _remove(gone)
    if opened.base_commit:
        base_model.fetch(opened.config, opened.base_commit, say)
    base = _weights(opened)
    check_room(parameters(base), opened.config.precision, place)
    try:
        making.mkdir(parents=True)
        for path in sorted(adapter.iterdir()):
            if path.name.startswith(TOKENIZER):
                shutil.copyfile(path, making / path.name)
        write_json(making / "generation_config.json", generation_config(adapter))
        say(f"Merging the adapter into {opened.config.base_model}, and comparing the two on held-out rows.")
        measured = _run(opened, adapter, making, base=str(base))
        compared = compare(measured, measured["form"], opened.folder.evaluation)
        verify(compared, "merged model", say)
        making.rename(target)
        write_json(about, {"of": made_of, "measured": measured})
    finally:
        _remove(making)
    return Export(target, compared)


def quantised(
    opened: Opened, adapter: Path, scratch: str | None, kind: str, llama_cpp: str | None, name: str, say: Say
) -> Export:
    """The merged model as `<name>-<kind>.gguf`, with the Modelfile that Ollama reads.

    Raises what `merged` raises, and before anything is fetched or made UserError where the tools are missing.
    """
    tools, file = gguf.find(llama_cpp, kind), f"{name}-{kind}.gguf"
    modelfile = gguf.modelfile(file, format_of(adapter), opened.config.system_prompt)
    source = merged(opened, adapter, scratch, say).folder
    place = source.parent
    target, making = place / f"gguf-{kind}", place / ".gguf.making"
    for gone in (target, making):
        _remove(gone)
    count = parameters(source)
    check_room(count, opened.config.precision, place, gguf.most_bytes(count, kind))
    try:
        making.mkdir()
        say(f"Converting to {file} with {tools.converter}.")
        gguf.convert(tools, source, making / file, kind, opened.folder.root / "worker.log")
        (making / "Modelfile").write_text(modelfile, encoding="utf-8")
        found = _run(opened, adapter, making, gguf=file)
        compared = compare(read_json(place / "merged.json")["measured"], found["form"], opened.folder.evaluation)
        verify(compared, f"GGUF file ({kind})", say)
        making.rename(target)
    finally:
        _remove(making)
    return Export(target, compared)


def _place(opened: Opened, scratch: str | None) -> Path:
    """Where forms are made. Raises UserError where Kaggle would keep it as the notebook's output."""
    place = (on_scratch(scratch).absolute() / opened.config.run if scratch else opened.folder.root) / "export"
    if (kept := rescue.output()) and place.resolve().is_relative_to(kept.resolve()):
        raise UserError(
            f"{place} is in what Kaggle keeps as the notebook's output, which takes 20 GB at most.",
            kept="Nothing was written or sent.",
            todo=f"Give another folder: --scratch {kept.parent / 'temp'}.",
        )
    return place


def _weights(opened: Opened) -> Path:
    """The folder of the base model's own weights. Raises UserError where nothing can be merged into them."""
    config = opened.config
    if config.base_model == "sample":  # which training has left there
        folder = opened.folder.cache / f"sample-model-{config.seed}"
    else:
        folder = base_model.cached(config, opened.base_commit) if opened.base_commit else Path(config.base_model)
    why = ""
    if not folder.is_dir():
        why = f"it is not on this machine ({folder}); `evaluate` makes the sample model"
    elif not list(folder.glob(BASE_WEIGHTS)):
        why = "its weights are no safetensors"
    elif "quantization_config" in read_json(folder / "config.json"):
        why = "its weights are quantised themselves"
    if why:
        raise UserError(
            f"Nothing can be merged into {config.base_model!r}: {why}.",
            kept="Nothing was written or sent.",
            todo="Publish the adapter, which needs no merged weights.",
        )
    return folder


def parameters(folder: Path) -> int:
    """How many numbers a folder's safetensors hold, by the shapes in their headers; nothing else is read."""
    count = 0
    for path in sorted(folder.glob(BASE_WEIGHTS)):
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        count += sum(math.prod(one["shape"]) for name, one in header.items() if name != "__metadata__")
    return count


def check_room(count: int, precision: str, place: Path, disk: int | None = None) -> None:
    """Raises UserError unless `count` parameters can be merged and loaded back here, with `place` on disk.

    `disk`: bytes to be written, two for each parameter unless given. In memory a model is in the run's precision, on
    the GPUs and beside them, with a tenth more for what it computes.
    """
    wanted = int(count * BYTES[precision] * 1.1)
    have = machine.memory()["available"] + sum(gpu["memory"] or 0 for gpu in machine.find_gpus())
    if have < wanted:
        raise UserError(
            f"Merging needs {_gb(wanted)} of memory, the GPUs' included, and {_gb(have)} are free on this machine.",
            kept="Nothing was written or sent.",
            todo="Use a larger machine, or publish the adapter, which needs none of it.",
        )
    needed = int(1.01 * count * 2 if disk is None else disk) + 50 * 10**6  # tokenizer, configuration
    free = machine.disk(place)["free"]
    if free < needed:
        raise UserError(
            f"There is no room for this form: it needs {_gb(needed)}, and {place} has {_gb(free)}.",
            kept="Nothing was written or sent.",
            todo=_instead(needed),
        )


def _instead(needed: int) -> str:
    """A folder with so much room, outside of what Kaggle keeps."""
    kept = rescue.output()
    for folder in (on_scratch("."), Path(tempfile.gettempdir()), Path.home(), Path("/mnt")):
        place = folder.absolute()
        if not place.is_dir() or not os.access(place, os.W_OK) or (kept and place.is_relative_to(kept)):
            continue
        if (free := machine.disk(place)["free"]) >= needed:
            return f"Give a folder that has room: --scratch {place} ({_gb(free)} free)."
    return "Make room there, or give a folder on another disk: --scratch FOLDER."


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 10**8 else f"{size / 1e6:.1f} MB"


def format_of(folder: Path) -> formats.Format:
    """The chat format of the tokenizer in `folder`, which training left there."""
    template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    return next(one for one in formats.FORMATS if one.template == template)


def generation_config(folder: Path) -> dict[str, Any]:
    """The stops and the pad of the tokenizer in `folder`, so that an answer ends for whoever loads it."""
    added = {one["content"]: one["id"] for one in read_json(folder / "tokenizer.json").get("added_tokens", [])}
    form = format_of(folder)
    return {
        "do_sample": False,
        "eos_token_id": [added[name] for name in form.stops if name in added],
        "pad_token_id": next((added[name] for name in form.pads if name in added), None),
    }


def compare(measured: Mapping[str, Any], form: Mapping[str, Any], evaluation: Path) -> Compared:
    """What a worker has measured, beside each other; a number that is not finite is infinite."""
    adapter = measured["adapter"]
    pairs = zip(adapter["answers"], form["answers"], strict=True)
    alike = [len(commonprefix(pair)) / max(map(len, pair)) for pair in pairs if any(pair)]
    base, tuned, own = (
        math.inf if one["bits_per_byte"] is None else float(one["bits_per_byte"])
        for one in (measured["base"], adapter, form)
    )
    trained = _trained(evaluation / "scores.jsonl", form["rows"])
    return Compared(len(form["rows"]), base, tuned, own, sum(alike) / len(alike) if alike else 1.0, trained)


def _trained(scores: Path, rows: Sequence[int]) -> float | None:
    """Bits per byte of the same rows in the evaluation, which has the base as it was trained on."""
    lines = scores.read_text(encoding="utf-8").splitlines() if scores.is_file() else []
    found = [one for one in map(json.loads, lines) if one["id"] in rows]
    if len(found) < len(rows):
        return None
    return float(sum(one["tuned"]["nll"] for one in found) / math.log(2) / sum(one["bytes"] for one in found))


def verify(compared: Compared, what: str, say: Say) -> None:
    """Raises UserError where the form is worse than the adapter by more than the bound. Says so where both are worse
    than what was evaluated."""
    figures = f"{compared.form:.4f} bits per byte on {compared.rows} held-out rows, the adapter {compared.adapter:.4f}"
    if not (math.isfinite(compared.form) and compared.form <= compared.bound and compared.alike >= ALIKE):
        raise UserError(
            f"The {what} is not what the adapter is: it has {figures}, the base model {compared.base:.4f}, and at most "
            f"{compared.bound:.4f} is accepted; {compared.alike:.0%} of the answers are alike, and {ALIKE:.0%} have to "
            "be.",
            kept="It was removed, and nothing was sent.",
            todo="Publish the adapter.",
        )
    say(f"The {what} has {figures}; {compared.alike:.0%} of the answers are alike.")
    if compared.trained is not None and compared.form > 1.01 * compared.trained:
        say(
            f"warning: With the base model in 4 bits, as it was trained and evaluated, the adapter has "
            f"{compared.trained:.4f}: load it so, or expect the difference."
        )


def _run(opened: Opened, adapter: Path, form: Path, **more: str) -> dict[str, Any]:
    """The worker to its end; what it has measured. Raises UserError for what it says, WorkerError where it died."""
    into = opened.folder.root / "export.measured.json"
    into.unlink(missing_ok=True)
    job = {"adapter": str(adapter), "form": str(form), "into": str(into), **more}
    write_json(opened.folder.root / "export.json", job)
    workers = Workers(WORKER, opened.folder, 1, every_gpu=True)
    hung = ""
    try:
        while not hung and not workers.wait(POLL_SECONDS):
            silent, phase = workers.silent_for()
            if silent > hang_seconds(opened.config.hang_minutes, phase):
                hung = f"The export hung: no sign of life for {silent:.0f} s in phase {phase}."
    finally:
        workers.end()
    outcome = opened.folder.read_outcome()
    if outcome and outcome["outcome"] == "finished":
        return dict(read_json(into))
    if outcome and outcome["user"]:
        raise UserError(outcome["reason"])
    what = f"The export raised {outcome['error']}: {outcome['reason']}" if outcome else hung
    raise WorkerError(
        what or f"The export was killed (exit {workers.process.returncode}).",
        kept="The adapter is as it was, no part of the form is left, and nothing was sent.",
        todo=f"Publish again. The end of {workers.log_path}:\n{workers.last_lines()}",
    )


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
