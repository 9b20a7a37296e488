"""t4-check without time for a session, and what it makes of sessions' events."""

import json

import pytest

from kaggle_lib.checkpoints.folder_store import FolderStore
from kaggle_lib.errors import UserError
from kaggle_lib.kaggle import t4_check
from kaggle_lib.presets import read_preset
from kaggle_lib.report.status import status


def values(tmp_path, **more):
    small = {"base_model": "sample", "data": "sample", "precision": "fp32", "optim": "adamw_torch"}
    return {**read_preset("t4-check"), **small, "store": tmp_path / "store", "work_dir": tmp_path / "work", **more}


def test_without_time_nothing_is_begun_and_that_is_on_the_store(tmp_path):
    found = t4_check.check(values(tmp_path), lambda _: None, minutes=0)
    compared = {"skipped": "there is no whole run to compare with"}
    parts = {"whole": {"skipped": "0 s of 0 minutes were left"}, "one_gpu": compared, "killed": compared}
    assert found["strategies"] == {"peft": parts, "unsloth": parts}
    store = FolderStore(tmp_path / "store", "t4-check")
    assert store.fetch_kind("report", tmp_path / "report")
    assert json.loads((tmp_path / "report" / "t4-check.json").read_text()) == found
    told = status("t4-check", store.peek())
    assert told["lease"] is None
    assert [session["ended_because"] for session in told["sessions"]] == ["finished: checked"]
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == ["t4-check"]
    assert list(t4_check.check(values(tmp_path, strategy="peft", run="p"), lambda _: None, 0)["strategies"]) == ["peft"]


def test_a_part_that_fails_is_an_error_in_the_end_and_the_others_are_told(tmp_path):
    broken = values(tmp_path, strategy="peft", base_model=str(tmp_path / "nowhere"))
    with pytest.raises(UserError) as error:
        t4_check.check(broken, lambda _: None, minutes=5)
    assert str(error.value).startswith("t4-check: peft, whole: the session ended with 1: ")
    there = json.loads((tmp_path / "work" / "t4-check" / "report" / "t4-check.json").read_text())
    assert there["strategies"]["peft"]["killed"] == {"skipped": "there is no whole run to compare with"}


def test_unequal_bytes_are_a_problem():
    found = {"strategies": {"peft": {"whole": {}, "killed": {"equal": False}}, "unsloth": {"killed": {"equal": True}}}}
    assert list(t4_check._problems(found)) == ["peft: the killed run did not end with the whole one's bytes"]


def test_speed_is_total_tokens_over_total_time():
    steps = [{"tokens": 100, "seconds": 1.0}, {"tokens": 500, "seconds": 2.0}, {"tokens": 300, "seconds": 3.0}]
    assert t4_check._speed(steps) == {"tokens_per_second": 150.0, "seconds_of_a_step": 2.0, "tokens_of_a_step": 300}
