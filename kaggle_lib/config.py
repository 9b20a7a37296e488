"""The one configuration of a run: typed, frozen, documented field by field.

Values arrive as text (a preset, `--set`, papermill's `-r`) or already typed (a notebook's cell, papermill's `-p`).
Text is read by the field's own type, so `run=007` is the run "007" and `learning_rate=1e-4` a number; every problem
is reported in one message. `POLICY` says of each field what a resumed session may change.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from kaggle_lib.errors import ConfigError, ResumeError
from kaggle_lib.values import as_clause, described, is_hub_id, read

RUN_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
HUB = "hf://"

# May a later session of the same run change it? "same": it must be equal, because the weights depend on it.
# "free": it may change and changes no bit of the weights (`processes`: equal to rounding, which is said).
Policy = Literal["same", "free"]
Tracker = Literal["none", "tensorboard", "trackio", "wandb", "mlflow"]


def option(default: Any, description: str, policy: Policy, **limits: Any) -> Any:
    """A field with its help and its resume policy. `...` as the default means that it has to be given."""
    return Field(default, description=description, json_schema_extra={"policy": policy}, **limits)


class RunConfig(BaseModel):
    """Everything that defines a run. The descriptions below are the help and the documentation."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    run: str = option(..., "The run's name: letters, digits, dot, dash, underscore; at most 64.", "same")
    store: str = option("store", "Where checkpoints outlive the machine: a folder, or `hf://user/repo`.", "free")
    public_store: bool = option(
        False, "Let `hf://user/repo` be a public repo, where everybody can read the run; else refused.", "free"
    )
    payload: Literal["repo", "bucket"] = option(
        "repo", "Where the files of checkpoints go on the Hub: the repo, or a private bucket of its name.", "free"
    )
    work_dir: str = option("work", "Where the run folder lies on this machine; may be lost at any time.", "free")

    strategy: Literal["peft", "unsloth"] = option("peft", "How the model is loaded and adapted.", "same")
    base_model: str = option(
        ..., "The base model: a Hub id, a local folder, or `sample` (tiny, made from the seed).", "same"
    )
    revision: str | None = option(None, "Commit or branch of the base model on the Hub.", "same")
    fork_from: str | None = option(
        None, "Start from the adapter of another run's checkpoint on the same store: `run@step`.", "same"
    )
    quantization: Literal["nf4", "none"] = option(
        "nf4", "How the frozen base weights are kept: nf4 (4 bit, double quantisation) or none.", "same"
    )
    precision: Literal["fp16", "bf16", "fp32"] = option(
        "fp16", "Arithmetic of forward and backward; adapters and optimizer are always fp32.", "same"
    )

    data: str = option(
        ...,
        "The corpus: a CSV, JSONL or Parquet file, a folder with one, a Kaggle dataset `owner/name` that is "
        "attached, or `sample` (ships with the package).",
        "same",
    )
    question_column: str = option("Questions", "Column with what the user says.", "same")
    answer_column: str = option("Answers", "Column with what the assistant answers.", "same")
    system_prompt: str | None = option(None, "System prompt of every example; none unless set.", "same")
    hooks: str | None = option(
        None,
        "A Python file of yours with `format_row`, `adapt` or `callbacks`; its path may change, its content is frozen.",
        "free",
    )
    conversations: Literal["pairs", "dialogues"] = option(
        "pairs",
        "One training example is one question with its answer, or a dialogue with the loss on each of its answers; "
        "what is scored is always one answer, after the dialogue so far.",
        "same",
    )
    rows: int | None = option(
        None,
        "Train on this many curated rows, whole dialogues, each source and length in its share; all unless set.",
        "same",
        ge=1,
    )
    validation_fraction: float = option(
        0.05, "Share of the rows, whole dialogues, for the curve and the best step.", "same", ge=0, lt=1
    )
    test_fraction: float = option(
        0.05, "Share of the rows, whole dialogues, for `evaluate` and the report.", "same", ge=0, lt=1
    )

    train_batch_size: int = option(4, "Samples of one optimizer step, over all processes.", "same", ge=1)
    max_length: int = option(
        4096, "Longest example in tokens; longer ones lose the start of the prompt.", "same", ge=16
    )
    epochs: float = option(2.0, "Passes over the training rows (a fraction is allowed).", "same", gt=0)
    extend_epochs: float = option(
        0.0, "Passes after the run's end, with a new warm-up and decay; 2 after 1 extends it once more.", "free", ge=0
    )
    max_steps: int | None = option(None, "End after this many optimizer steps instead of `epochs`.", "same", ge=1)
    learning_rate: float = option(2e-4, "Peak learning rate.", "same", gt=0)
    lr_scheduler_type: Literal["cosine", "linear", "constant", "constant_with_warmup"] = option(
        "cosine", "Shape of the learning rate after the warm-up.", "same"
    )
    warmup_ratio: float = option(0.03, "Share of all steps in which the learning rate rises.", "same", ge=0, lt=1)
    optim: Literal["adamw_torch", "adamw_8bit"] = option("adamw_8bit", "The optimizer.", "same")
    weight_decay: float = option(0.0, "AdamW's weight decay.", "same", ge=0)
    max_grad_norm: float = option(1.0, "Gradients are clipped to this norm.", "same", gt=0)
    seed: int = option(42, "Seed of the split, the order, the adapter's start and dropout.", "same", ge=0, lt=2**31)

    lora_r: int = option(16, "Rank of the LoRA matrices.", "same", ge=1)
    lora_alpha: int = option(32, "LoRA's scale is alpha / r.", "same", ge=1)
    lora_dropout: float = option(0.05, "Dropout before the LoRA matrices.", "same", ge=0, lt=1)
    lora_bias: Literal["none"] = option("none", "Biases are not trained.", "same")
    lora_target_modules: tuple[str, ...] = option(
        ("q_proj", "k_proj", "v_proj", "o_proj"), "Names of the adapted linear layers.", "same", min_length=1
    )

    recomputation: Literal["auto", "full", "none"] = option(
        "auto",
        "Recompute activations in the backward pass: auto (on a GPU, in as many layers as a micro-batch's length "
        "forces), full, or none, until memory runs out.",
        "free",
    )
    memory_fraction: float = option(
        0.925,
        "Share of the card's memory that recomputation=auto plans with: 13.5 GiB of a T4's 14.6.",
        "free",
        gt=0,
        le=1,
    )
    lean_mlp: bool = option(
        True, "Compute part of each MLP again in the backward pass instead of keeping it; the same bits.", "free"
    )
    deterministic: bool = option(
        False,
        "Take only kernels that give the same bits again: on a GPU attention on long samples does not by itself. What "
        "it costs there is not measured.",
        "same",
    )
    padding_free: bool = option(
        True, "Join a micro-batch's samples in one row without padding; false pads them.", "same"
    )
    token_budget: int | Literal["auto"] = option(
        "auto",
        "Most tokens in a micro-batch of several samples; auto: what the first session's GPU holds without "
        "recomputation (with recomputation=auto, else and on a CPU one sample of max_length).",
        "same",
    )
    min_micro_batches: int = option(
        2,
        "Cut a step into at least this many micro-batches (as far as it has samples), for as many processes to share; "
        "so many samples of like length come into each step together.",
        "same",
        ge=1,
    )
    processes: int | Literal["auto"] = option(
        "auto", "Training processes: auto is one per GPU, or one. Another number: equal to rounding.", "free"
    )

    nodes: int = option(1, "Machines that train together: this one, and those that `join` it.", "free", ge=1)
    rendezvous: str | None = option(None, "`host:port` where this machine waits for the other `nodes`.", "free")

    save_steps: int = option(50, "A checkpoint every so many steps.", "free", ge=1)
    eval_steps: int = option(
        50, "Validation every so many steps; 0: off. Frozen where early stopping counts them.", "free", ge=0
    )
    eval_rows: int = option(64, "Validation rows that are scored each time, always the same ones.", "same", ge=1)
    early_stopping_patience: int = option(
        0, "End after so many validations in a row without a new best bits per byte; 0: off.", "same", ge=0
    )
    answer_rows: int = option(300, "Test rows that base and tuned answer, always the same ones.", "free", ge=1)
    answer_tokens: int | None = option(None, "Most new tokens of an answer; 7 a word unless set.", "free", ge=1)
    answer_batch_size: int = option(16, "Answers that are generated at a time; halved where memory ends.", "free", ge=1)
    answer_prompts: bool = option(True, "Answer the package's crisis, harm and native prompts, too.", "free")
    language: str = option(
        "bn", "Language of the answers; what the evaluation has for Bengali alone is left out for others.", "free"
    )
    retention: str = option("off", "Reading test: `belebele` (of the Hub), a JSONL file like it, or off.", "free")
    similarity_model: str | None = option(None, "Embedding model `name@revision` to compare answers by.", "free")
    logging_steps: int = option(10, "A line of progress every so many steps.", "free", ge=1)
    report_to: Tracker = option("none", "Where else the curve is written: each step once, over all sessions.", "free")
    keep: int = option(2, "Checkpoints that stay in the run folder and on the store.", "free", ge=1)
    keep_best: bool = option(True, "Save at each new best validation, and keep that checkpoint, too.", "free")

    session_hours: float | None = option(
        None, "Hours after which the session saves and pauses; no limit unless set.", "free", gt=0
    )
    hang_minutes: float = option(
        5.0,
        "Minutes without a sign of life in training before the workers are ended and started again; loading, the "
        "first step, a save and an evaluation may take four times as long.",
        "free",
        gt=0,
    )
    lease_wait_minutes: float = option(
        15.0, "Minutes to wait for another session's lease before giving up (exit code 75).", "free", ge=0
    )
    take_over: str | None = option(None, "Id of the session whose lease is taken over.", "free")
    kernel: str | None = option(
        None, "The Kaggle notebook that runs this session, `owner/slug`; `push` writes it into what it pushes.", "free"
    )
    allow_code_change: bool = option(
        False, "Resume though this library's data, strategy or training code has changed.", "free"
    )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The configuration that `run.json` or a store holds: JSON types, checked when it was frozen."""
        return cls.model_validate({name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})

    @classmethod
    def create(cls, values: Mapping[str, object]) -> Self:
        """The configuration of `values` (text or typed); fields that were given are in `model_fields_set`.

        Raises ConfigError with every problem: unknown names with the nearest known one, values of the wrong type,
        values out of range, values that contradict each other.
        """
        return cls._build(*parse(values))

    @classmethod
    def _build(cls, parsed: dict[str, object], problems: list[str]) -> Self:
        broken = {problem.split(":")[0] for problem in problems}
        config: Self | None = None
        try:
            config = cls.model_validate(parsed)
        except ValidationError as error:
            for item in error.errors():
                name = str(item["loc"][0])
                if name in broken:
                    continue
                broken.add(name)
                if item["type"] == "missing":
                    problems.append(f"{name}: missing. {cls.model_fields[name].description}")
                else:
                    problems.append(f"{name}: {as_clause(item['msg'])}, not {item['input']!r}")
        # Contradictions among the values that can be read are told together with those that cannot.
        readable = {name: value for name, value in parsed.items() if name not in broken}
        looked = config or cls.model_construct(None, **{"run": "-", "base_model": "-", "data": "-", **readable})
        problems += [message for names, message in looked._contradictions() if not broken & set(names.split())]
        if problems or config is None:
            raise ConfigError(problems)
        return config

    def _contradictions(self) -> Iterator[tuple[str, str]]:
        """(the fields that it is about, what is wrong)."""
        if not RUN_NAME.fullmatch(self.run) or self.run in (".", ".."):
            yield "run", f"run: {self.run!r} is no run name. Use letters, digits, dot, dash, underscore; at most 64"
        fork = self.fork_from and re.fullmatch(rf"({RUN_NAME.pattern})@[0-9]{{1,8}}", self.fork_from)
        if self.fork_from is not None and (not fork or fork[1] == self.run):
            yield "fork_from", f"fork_from: {self.fork_from!r} names no checkpoint of another run. Write run@step"
        if self.similarity_model is not None and not re.fullmatch(r"[^@\s]+@[^@\s]+", self.similarity_model):
            unfixed = f"{self.similarity_model!r} has no revision. Write name@revision"
            yield "similarity_model", f"similarity_model: {unfixed}"
        if not re.fullmatch(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*", self.language):
            yield "language", f"language: {self.language!r} is no language's tag. Write bn, hi, en or the like"
        if self.retention == "belebele" and self.language != "bn":
            yield "retention language", "retention: belebele is Bengali. Give a JSONL file of that language, or off"
        for name in ("store", "work_dir", "retention", "base_model", "data", "question_column", "answer_column"):
            if not getattr(self, name).strip():
                yield name, f"{name}: should not be empty"
        if self.validation_fraction + self.test_fraction >= 1:
            none_left = "validation_fraction: with test_fraction it leaves no rows to train on"
            yield "validation_fraction test_fraction", none_left
        if self.early_stopping_patience and not (self.eval_steps and self.validation_fraction):
            yield (
                "early_stopping_patience eval_steps validation_fraction",
                "early_stopping_patience: it counts validations; give eval_steps and validation_fraction above 0",
            )
        if isinstance(self.token_budget, int) and self.token_budget < 1:
            yield "token_budget", f"token_budget: should be auto or at least 1, not {self.token_budget}"
        if isinstance(self.processes, int):
            if self.processes < 1:
                yield "processes", f"processes: should be auto or at least 1, not {self.processes}"
            elif (processes := self.processes * self.nodes) > self.train_batch_size:
                shared = f"{processes} processes cannot share a step of {self.train_batch_size} samples"
                yield "processes nodes train_batch_size", f"processes: {shared}"
        if self.nodes > 1 and not re.fullmatch(r"[^:/\s]+:[0-9]{1,5}", self.rendezvous or ""):
            yield "nodes rendezvous", f"rendezvous: should be host:port where nodes is {self.nodes}"
        if self.payload == "bucket" and not self.store.startswith(HUB):
            yield "payload store", "payload: bucket needs store=hf://user/repo"
        if self.store.startswith(HUB):
            if not is_hub_id(self.store.removeprefix(HUB)) or "/" not in self.store.removeprefix(HUB):
                yield "store", f"store: {self.store!r} names no repo of the Hub. Write hf://user/repo"
        elif "://" in self.store or self.store.startswith("hf:"):
            yield "store", f"store: {self.store!r} is neither a folder nor hf://user/repo"
        else:
            store, work = Path(self.store).absolute() / self.run, Path(self.work_dir).absolute() / self.run
            if store == work or store in work.parents or work in store.parents:
                nested = f"{self.store!r} and work_dir {self.work_dir!r} lie in each other; use two folders"
                yield "store work_dir run", f"store: {nested}"

    @property
    def hub_store(self) -> str | None:
        """The repo of `store=hf://user/repo`; None for a folder."""
        return self.store.removeprefix(HUB) if self.store.startswith(HUB) else None

    @property
    def hub_base(self) -> bool:
        """Whether the base model is one of the Hub: neither `sample`, nor a folder, nor anything else."""
        return self.base_model != "sample" and is_hub_id(self.base_model) and not Path(self.base_model).is_dir()

    def frozen(self) -> dict[str, Any]:
        """The values that define the weights, as JSON types: equal in every session of a run."""
        values = self.model_dump(mode="json")
        return {name: values[name] for name in values if self.policy(name) == "same"}

    def policy(self, name: str) -> Policy:
        """A field's policy in this run: early stopping counts validations, so when they are has to stay."""
        return "same" if name == "eval_steps" and self.early_stopping_patience else POLICY[name]

    def given(self) -> dict[str, Any]:
        """Only what was given, as JSON types."""
        return self.model_dump(mode="json", include=self.model_fields_set)


POLICY: dict[str, Policy] = {
    name: typing.cast(dict[str, Policy], field.json_schema_extra)["policy"]
    for name, field in RunConfig.model_fields.items()
}

# What a session records of its machine; a change is noted and ends the bit-for-bit claim from there.
RECORDED = ("torch", "cuda", "gpu", "python", "transformers", "peft", "trl", "bitsandbytes", "unsloth", "unsloth_zoo")


def parse(values: Mapping[str, object]) -> tuple[dict[str, object], list[str]]:
    """The typed values, and a line for each that cannot be read."""
    parsed: dict[str, object] = {}
    problems = []
    for name, value in values.items():
        field = RunConfig.model_fields.get(name)
        if field is None:
            problems.append(f"{name}: there is no such key{nearest(name)}")
            continue
        try:
            parsed[name] = read(name, field.annotation, value)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    return parsed, problems


def nearest(name: str) -> str:
    """`; did you mean …?` for a misspelt key, or nothing."""
    close = difflib.get_close_matches(name.lower(), RunConfig.model_fields, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def merge(frozen: RunConfig, given: Mapping[str, object]) -> RunConfig:
    """The configuration of a session that resumes: the run's own, and on top what may change and was given.

    Raises ResumeError naming every given value that contradicts the frozen one, with both.
    """
    parsed, problems = parse(given)
    if problems:
        raise ConfigError(problems)
    was = frozen.model_dump()
    contradictions = [
        f"{name}: this run has {was[name]!r}, you gave {value!r}"
        for name, value in parsed.items()
        if frozen.policy(name) == "same" and value != was[name]
    ]
    if contradictions:
        raise ResumeError(
            [f"{line}. Leave it out to go on, or start another run (run=NAME)" for line in contradictions],
            title=f"run {frozen.run!r} has begun with other values",
        )
    free = {name: value for name, value in parsed.items() if frozen.policy(name) == "free"}
    return RunConfig._build({**was, **free}, [])


def fingerprint(config: RunConfig, code: str, hooks: str = "") -> str:
    """sha256 over all that decides the weights: the frozen values, the hash of our code and that of a hooks file."""
    decides = {"config": config.frozen(), "code": code, **({"hooks": hooks} if hooks else {})}
    text = json.dumps(decides, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def code_hash() -> str:
    """sha256 over this library's code that decides the weights: `data/`, `strategies/`, `training/`."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for room in ("data", "strategies", "training"):
        for path in sorted((root / room).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def describe() -> list[tuple[str, str, str, str]]:
    """(name, values it takes, default, description) of every field: the help and the docs print this."""
    return described(RunConfig.model_fields)
