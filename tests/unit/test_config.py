"""The configuration: what is accepted, how each mistake is told, what a resumed session may change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from kaggle_lib.config import POLICY, RunConfig, describe, fingerprint, merge
from kaggle_lib.errors import ConfigError, ResumeError
from kaggle_lib.presets import preset_names, read_assignments, read_file, read_preset

LEAST: dict[str, object] = {"run": "r", "base_model": "sample", "data": "sample"}


def create(**values: object) -> RunConfig:
    return RunConfig.create({**LEAST, **values})


def refused(**values: object) -> str:
    with pytest.raises(ConfigError) as caught:
        create(**values)
    assert caught.value.exit_code == 2
    return str(caught.value)


NO_RUN_NAME = "is no run name. Use letters, digits, dot, dash, underscore; at most 64"
SPELLING = "so its spelling may be lost; quote it in a notebook, and with papermill use"

BAD: list[tuple[str, object, str]] = [
    ("learning_rates", "1e-4", "learning_rates: there is no such key; did you mean learning_rate?"),
    ("LORA_R", "8", "LORA_R: there is no such key; did you mean lora_r?"),
    ("zzz", "1", "zzz: there is no such key"),
    ("run", 7, f'run: is text, and 7 came as int, {SPELLING} `-r run "7"` instead of -p'),
    ("run", True, f'run: is text, and True came as bool, {SPELLING} `-r run "True"` instead of -p'),
    ("revision", 1.5, f'revision: is text, and 1.5 came as float, {SPELLING} `-r revision "1.5"` instead of -p'),
    ("run", None, "run: should be text, not None"),
    ("run", "a/b", f"run: 'a/b' {NO_RUN_NAME}"),
    ("run", "", f"run: '' {NO_RUN_NAME}"),
    ("run", "..", f"run: '..' {NO_RUN_NAME}"),
    ("run", "x" * 65, f"run: '{'x' * 65}' {NO_RUN_NAME}"),
    ("run", "প্রথম", f"run: 'প্রথম' {NO_RUN_NAME}"),
    ("seed", "forty", "seed: should be a whole number, not 'forty'"),
    ("seed", "4.0", "seed: should be a whole number, not '4.0'"),
    ("seed", 4.0, "seed: should be a whole number, not 4.0"),
    ("seed", True, "seed: should be a whole number, not True"),
    ("seed", "", "seed: should be a whole number, not ''"),
    ("seed", -1, "seed: input should be greater than or equal to 0, not -1"),
    ("seed", 2**31, "seed: input should be less than 2147483648, not 2147483648"),
    ("rows", "all", "rows: should be a whole number or empty, not 'all'"),
    ("rows", "0", "rows: input should be greater than or equal to 1, not 0"),
    ("learning_rate", "fast", "learning_rate: should be a number, not 'fast'"),
    ("learning_rate", "nan", "learning_rate: should be a number, not 'nan'"),
    ("learning_rate", float("nan"), "learning_rate: should be a finite number, not nan"),
    ("learning_rate", "1e999", "learning_rate: should be a finite number, not inf"),
    ("learning_rate", float("inf"), "learning_rate: should be a finite number, not inf"),
    ("learning_rate", 10**400, "learning_rate: should be a finite number, not one of so many digits"),
    ("learning_rate", False, "learning_rate: should be a number, not False"),
    ("learning_rate", 0, "learning_rate: input should be greater than 0, not 0.0"),
    ("lora_dropout", "1", "lora_dropout: input should be less than 1, not 1.0"),
    ("session_hours", "12:30", "session_hours: should be a number or empty, not '12:30'"),
    ("padding_free", "maybe", "padding_free: should be true or false, not 'maybe'"),
    ("padding_free", 1, "padding_free: should be true or false, not 1"),
    ("allow_code_change", "1", "allow_code_change: should be true or false, not '1'"),
    ("precision", "fp8", "precision: should be 'fp16' or 'bf16' or 'fp32', not 'fp8'"),
    ("precision", 16, "precision: should be 'fp16' or 'bf16' or 'fp32', not 16"),
    ("strategy", "unslot", "strategy: should be 'peft' or 'unsloth', not 'unslot'"),
    ("token_budget", "much", "token_budget: should be 'auto' or a whole number, not 'much'"),
    ("token_budget", 0, "token_budget: should be auto or at least 1, not 0"),
    ("processes", "0", "processes: should be auto or at least 1, not 0"),
    ("processes", 8, "processes: 8 processes cannot share a step of 4 samples"),
    ("lora_target_modules", {"q": 1}, "lora_target_modules: should be a list of names, not {'q': 1}"),
    ("lora_target_modules", [1], "lora_target_modules: input should be a valid string, not 1"),
    ("data", ["a.csv"], "data: should be text, not ['a.csv']"),
    ("data", " ", "data: should not be empty"),
    ("store", "", "store: should not be empty"),
    ("store", "s3://bucket", "store: 's3://bucket' is neither a folder nor hf://user/repo"),
    ("store", "hf:/user/repo", "store: 'hf:/user/repo' is neither a folder nor hf://user/repo"),
    *(
        ("fork_from", value, f"fork_from: {value!r} names no checkpoint of another run. Write run@step")
        for value in ("other", "other@", "@50", "other@-1", "other@last", "r@50", "a b@1")
    ),
    ("store", "work", "store: 'work' and work_dir 'work' lie in each other; use two folders"),
    ("store", "work/r", "store: 'work/r' and work_dir 'work' lie in each other; use two folders"),
    ("validation_fraction", 0.95, "validation_fraction: with test_fraction it leaves no rows to train on"),
    *(
        ("store", f"hf://{repo}", f"store: 'hf://{repo}' names no repo of the Hub. Write hf://user/repo")
        for repo in (
            "",
            "user",
            "user/",
            "datasets/user/repo",
            "user/re po",
            "user/a--b",
            "user/a.git",
            "u/" + 95 * "a",
        )
    ),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD, ids=[f"{name}={value!r:.20}" for name, value, _ in BAD])
def test_a_bad_value_gets_one_clear_line(name: str, value: object, message: str) -> None:
    assert refused(**{name: value}) == message


def test_an_empty_list_is_refused() -> None:
    assert refused(lora_target_modules="").startswith("lora_target_modules: tuple should have at least 1 item")


def test_all_problems_come_in_one_message() -> None:
    values = {"run": "a b", "learning_rates": 1, "seed": "x", "rows": 0, "store": "work", "processes": "9"}
    assert refused(**values).splitlines() == [
        "the configuration is not usable, 6 problems:",
        "  learning_rates: there is no such key; did you mean learning_rate?",
        "  seed: should be a whole number, not 'x'",
        "  rows: input should be greater than or equal to 1, not 0",
        f"  run: 'a b' {NO_RUN_NAME}",
        "  processes: 9 processes cannot share a step of 4 samples",
        "  store: 'work' and work_dir 'work' lie in each other; use two folders",
    ]


def test_no_contradiction_is_made_up_from_a_value_that_cannot_be_read() -> None:
    assert refused(processes=9, train_batch_size="many") == "train_batch_size: should be a whole number, not 'many'"


def test_what_has_to_be_given_is_named_with_its_help() -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.create({})
    assert [line.split(":")[0] for line in caught.value.problems] == ["run", "base_model", "data"]
    assert caught.value.problems[0] == (
        "run: missing. The run's name: letters, digits, dot, dash, underscore; at most 64."
    )


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("run", "007", "007"),
        ("run", "1e-4", "1e-4"),
        ("run", "off", "off"),
        ("revision", "null", "null"),
        ("revision", "", None),
        ("system_prompt", " কথা বলো ", " কথা বলো "),
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", "5", 5.0),
        ("learning_rate", 1, 1.0),
        ("seed", " 007 ", 7),
        ("rows", "", None),
        ("rows", None, None),
        ("padding_free", "false", False),
        ("padding_free", "Off", False),
        ("padding_free", "yes", True),
        ("allow_code_change", True, True),
        ("token_budget", "auto", "auto"),
        ("token_budget", "512", 512),
        ("lora_target_modules", "q_proj, v_proj", ("q_proj", "v_proj")),
        ("lora_target_modules", ["q_proj"], ("q_proj",)),
        ("data", Path("a/b.csv"), "a/b.csv"),
        ("session_hours", ".5", 0.5),
    ],
)
def test_text_is_read_by_the_fields_own_type(name: str, text: object, value: object) -> None:
    read = getattr(create(**{name: text}), name)
    assert (read, type(read)) == (value, type(value))


def test_the_configuration_is_frozen_and_knows_what_was_given() -> None:
    config = create(seed="1")
    assert config.given() == {"run": "r", "base_model": "sample", "data": "sample", "seed": 1}
    with pytest.raises(ValidationError):
        config.seed = 2  # type: ignore[misc]


# Files and words


def test_yaml_is_read_without_implicit_types(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("run: 007\nlearning_rate: 1e-4\npadding_free: off\nsystem_prompt: 12:30\nrows:\n", encoding="utf-8")
    values = read_file(path)
    assert values == {
        "run": "007",
        "learning_rate": "1e-4",
        "padding_free": "off",
        "system_prompt": "12:30",
        "rows": "",
    }
    config = RunConfig.create({**LEAST, **values})
    assert (config.run, config.learning_rate, config.padding_free) == ("007", 1e-4, False)
    assert (config.system_prompt, config.rows) == ("12:30", None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"seed: 1\nrun: a\nseed: 2\n", "line 3: 'seed' stands there twice"),
        (b"? [a, b]\n: 1\n", "line 1: a key should be a name"),
        (b"- a\n- b\n", "should hold `key: value` lines"),
        (b"run: \xff\n", "is not UTF-8 text"),
        (b"just words", "should hold `key: value` lines"),
    ],
)
def test_a_file_that_is_no_list_of_values_is_refused_by_name(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_file(path)
    assert str(caught.value) == f"{path}: {message}"


def test_broken_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("run: [a\nseed: 1\n")
    with pytest.raises(ConfigError, match=r"run\.yaml: is not YAML \(.*line 2, column 5"):
        read_file(path)


def test_a_missing_file_and_an_unknown_preset_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read_file(tmp_path / "no.yaml")
    assert str(caught.value) == f"{tmp_path / 'no.yaml'}: cannot be read (No such file or directory)"
    with pytest.raises(ConfigError) as caught:
        read_preset("../tiny-cpu")
    known = "bengali-8b-t4, bengali-8b-t4-full, t4-check, tiny-cpu"
    assert str(caught.value) == f"preset: '../tiny-cpu' is not one of {known}"


def test_an_empty_file_holds_no_values(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing\n")
    assert read_file(tmp_path / "run.yaml") == {}


def test_words_are_split_at_the_first_equals_sign() -> None:
    assert read_assignments(["run=007", "system_prompt=a=b", "rows="]) == {
        "run": "007",
        "system_prompt": "a=b",
        "rows": "",
    }
    with pytest.raises(ConfigError) as caught:
        read_assignments(["seed", "run=a", "run=b"])
    assert caught.value.problems == ["--set seed: should be key=value", "--set run=b: run is given twice"]


# Presets


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_writes_every_field_out(name: str) -> None:
    config = RunConfig.create(read_preset(name))
    assert config.model_fields_set == set(RunConfig.model_fields)
    assert config.run == name


def test_the_original_recipe_value_by_value() -> None:
    config = RunConfig.create(read_preset("bengali-8b-t4"))
    recipe = {
        "base_model": "meta-llama/Llama-3.1-8B-Instruct",
        "quantization": "nf4",
        "precision": "fp16",
        "data": "raseluddin/bengali-empathetic-conversations-corpus",
        "question_column": "Questions",
        "answer_column": "Answers",
        "system_prompt": None,
        "rows": 6000,
        "train_batch_size": 4,
        "max_length": 4096,
        "epochs": 2.0,
        "max_steps": None,
        "lora_r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "lora_bias": "none",
        "lora_target_modules": ("q_proj", "k_proj", "v_proj", "o_proj"),
        "recomputation": "full",
    }
    assert {name: getattr(config, name) for name in recipe} == recipe


def test_what_the_original_did_not_state_is_marked() -> None:
    path = Path(__file__).parents[2] / "kaggle_lib/presets/bengali-8b-t4.yaml"
    chosen = {line.split(":")[0] for line in path.read_text(encoding="utf-8").splitlines() if "# our choice" in line}
    assert {"learning_rate", "lr_scheduler_type", "warmup_ratio", "optim", "seed", "weight_decay"} <= chosen
    stated = {"base_model", "precision", "rows", "train_batch_size", "max_length", "epochs", "lora_r", "lora_alpha"}
    assert not stated & chosen


def test_the_full_preset_differs_by_its_rows_and_by_what_changes_no_bit() -> None:
    small, full = (RunConfig.create(read_preset(name)).model_dump() for name in ("bengali-8b-t4", "bengali-8b-t4-full"))
    assert {name: (small[name], full[name]) for name in small if small[name] != full[name]} == {
        "run": ("bengali-8b-t4", "bengali-8b-t4-full"),
        "rows": (6000, None),
        "recomputation": ("full", "auto"),
    }


def test_what_is_on_the_hub() -> None:
    config = RunConfig.create({**LEAST, "store": "hf://user/a.repo_1", "base_model": "meta-llama/Llama-3.2-1B"})
    assert (config.hub_store, config.hub_base) == ("user/a.repo_1", True)
    for base_model in ("sample", "./sample", "a/b/c", "/tmp", "x" * 97):
        config = RunConfig.create({**LEAST, "base_model": base_model})
        assert (config.hub_store, config.hub_base) == (None, False), base_model


# Resuming

OTHER: dict[str, Any] = {
    "run": "another",
    "store": "elsewhere",
    "public_store": True,
    "payload": None,  # with a store on the Hub only
    "work_dir": "scratch",
    "strategy": None,  # one choice only
    "base_model": "other/model",
    "revision": "abc",
    "fork_from": "other@50",
    "quantization": "none",
    "precision": "fp32",
    "data": "other.csv",
    "question_column": "q",
    "answer_column": "a",
    "system_prompt": "Be kind.",
    "hooks": "hooks.py",
    "conversations": None,
    "rows": 10,
    "validation_fraction": 0.1,
    "test_fraction": 0.1,
    "train_batch_size": 8,
    "max_length": 512,
    "epochs": 3.0,
    "extend_epochs": 1.0,
    "max_steps": 9,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.1,
    "optim": "adamw_torch",
    "weight_decay": 0.1,
    "max_grad_norm": 0.5,
    "seed": 1,
    "lora_r": 8,
    "lora_alpha": 16,
    "lora_dropout": 0.0,
    "lora_bias": None,
    "lora_target_modules": ("q_proj",),
    "recomputation": "full",
    "memory_fraction": 0.5,
    "lean_mlp": False,
    "deterministic": True,
    "padding_free": False,
    "token_budget": 512,
    "min_micro_batches": 1,
    "processes": 2,
    "nodes": None,  # more than one needs `rendezvous`, too
    "rendezvous": "10.0.0.5:29400",
    "save_steps": 7,
    "eval_steps": 0,
    "eval_rows": 8,
    "early_stopping_patience": 3,
    "answer_rows": 9,
    "answer_tokens": 40,
    "answer_batch_size": 4,
    "answer_prompts": False,
    "language": "hi",
    "retention": "questions.jsonl",
    "similarity_model": "org/model@abc",
    "logging_steps": 1,
    "report_to": "tensorboard",
    "keep": 5,
    "keep_best": False,
    "session_hours": 1.5,
    "hang_minutes": 1.0,
    "lease_wait_minutes": 0.0,
    "take_over": "20260101T000000-aa",
    "kernel": "user/runs",
    "allow_code_change": True,
}
FREE = {
    *(
        "answer_rows",
        "answer_tokens",
        "answer_batch_size",
        "answer_prompts",
        "language",
        "retention",
        "similarity_model",
    ),
    *(
        "store",
        "public_store",
        "payload",
        "work_dir",
        "recomputation",
        "memory_fraction",
        "lean_mlp",
        "processes",
        "nodes",
        "rendezvous",
        "save_steps",
        "eval_steps",
        "logging_steps",
        "report_to",
    ),
    *(
        "hooks",
        "keep",
        "keep_best",
        "extend_epochs",
        "session_hours",
        "hang_minutes",
        "lease_wait_minutes",
        "take_over",
        "kernel",
        "allow_code_change",
    ),
}


def test_the_policy_names_every_field_and_what_is_free_is_this() -> None:
    assert set(OTHER) == set(RunConfig.model_fields)
    assert {name for name, policy in POLICY.items() if policy == "free"} == FREE


@pytest.mark.parametrize("name", sorted(name for name, value in OTHER.items() if value is not None))
def test_a_resumed_session_takes_what_is_free_and_refuses_the_rest(name: str) -> None:
    frozen, value = create(), OTHER[name]
    if name in FREE:
        merged = merge(frozen, {name: value})
        assert merged.model_dump() == {**frozen.model_dump(), name: value}
        return
    with pytest.raises(ResumeError) as caught:
        merge(frozen, {name: value})
    assert str(caught.value) == (
        f"{name}: this run has {getattr(frozen, name)!r}, you gave {value!r}. "
        "Leave it out to go on, or start another run (run=NAME)"
    )
    assert caught.value.exit_code == 2


def test_checkpoints_may_go_to_a_bucket_from_any_session_on_where_the_store_is_the_hub() -> None:
    here, bucket = create(store="hf://user/runs"), {"store": "hf://user/runs", "payload": "bucket"}
    merged = merge(here, {"payload": "bucket"})
    assert merged.payload == "bucket"
    assert fingerprint(merged, "code") == fingerprint(here, "code")
    assert merge(create(**bucket), {"payload": "repo"}) == here
    with pytest.raises(ConfigError, match=r"^payload: bucket needs store=hf://user/repo$"):
        merge(create(**bucket), {"store": "store"})


def test_giving_the_frozen_values_again_changes_nothing() -> None:
    frozen = create(rows="10")
    assert merge(frozen, {**LEAST, "rows": "10", "epochs": "2"}) == frozen


def test_early_stopping_freezes_when_it_looks_and_needs_something_to_look_at() -> None:
    patient = create(early_stopping_patience=2, eval_steps=10)
    with pytest.raises(ResumeError, match=r"^eval_steps: this run has 10, you gave 5\. Leave it out"):
        merge(patient, {"eval_steps": "5"})
    assert merge(patient, {"eval_steps": "10", "keep": "3"}).keep == 3
    assert fingerprint(patient, "code") != fingerprint(create(early_stopping_patience=2, eval_steps=5), "code")
    needs = "early_stopping_patience: it counts validations; give eval_steps and validation_fraction above 0"
    assert refused(early_stopping_patience=1, eval_steps=0) == needs
    assert refused(early_stopping_patience=1, validation_fraction=0) == needs


def test_every_contradiction_is_told_at_once() -> None:
    with pytest.raises(ResumeError) as caught:
        merge(create(), {"seed": "1", "keep": "3", "lora_r": "8"})
    assert str(caught.value).splitlines() == [
        "run 'r' has begun with other values, 2 problems:",
        "  seed: this run has 42, you gave 1. Leave it out to go on, or start another run (run=NAME)",
        "  lora_r: this run has 16, you gave 8. Leave it out to go on, or start another run (run=NAME)",
    ]


def test_a_free_value_is_checked_against_the_frozen_ones() -> None:
    with pytest.raises(ConfigError) as caught:
        merge(create(), {"processes": "9"})
    assert str(caught.value) == "processes: 9 processes cannot share a step of 4 samples"
    with pytest.raises(ConfigError) as caught:
        merge(create(), {"keeps": "9"})
    assert str(caught.value) == "keeps: there is no such key; did you mean keep?"


def test_the_fingerprint_follows_what_decides_the_weights_and_nothing_else() -> None:
    base = fingerprint(create(), "code")
    assert len(base) == 64
    assert fingerprint(create(), "other code") != base
    for name, value in OTHER.items():
        if value is not None:
            changed = fingerprint(create(**{name: value}), "code")
            assert (changed == base) == (name in FREE), name


def test_the_fingerprint_is_the_same_however_the_values_came() -> None:
    assert fingerprint(create(seed="042", epochs="2"), "code") == fingerprint(create(), "code")


# The help


def test_the_help_describes_every_field() -> None:
    rows = {name: (takes, default, text) for name, takes, default, text in describe()}
    assert list(rows) == list(RunConfig.model_fields)
    assert all(takes and text.endswith(".") for takes, _, text in rows.values())
    assert rows["run"][:2] == ("text", "required")
    assert rows["rows"][:2] == ("a whole number from 1 or empty", "empty")
    assert rows["lora_dropout"][:2] == ("a number from 0 below 1", "0.05")
    assert rows["precision"][:2] == ("fp16 or bf16 or fp32", "fp16")
    assert rows["padding_free"][:2] == ("true or false", "true")
    assert rows["token_budget"][:2] == ("auto or a whole number", "auto")
    assert rows["lora_target_modules"][:2] == ("a list of names", "q_proj,k_proj,v_proj,o_proj")
