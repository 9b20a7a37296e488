"""What an evaluation fetches of the Hub: where that cannot be done it is said, and nothing is skipped in silence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from kaggle_lib.config import RunConfig
from kaggle_lib.presets import read_preset
from kaggle_lib.runs import evaluation_data

ROOT = Path(__file__).parents[3]
FETCH = """
import sys
from pathlib import Path
from kaggle_lib.config import RunConfig
from kaggle_lib.presets import read_preset
from kaggle_lib.runs import evaluation_data

config = RunConfig.create({**read_preset("tiny-cpu"), "retention": "belebele", "similarity_model": "org/model@abc"})
print(evaluation_data.fetch(config, Path(sys.argv[1])))
"""


def config(**more):
    return RunConfig.create({**read_preset("tiny-cpu"), **more})


def test_what_cannot_be_fetched_is_said_with_the_reason(tmp_path):
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", FETCH, str(tmp_path / "cache")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(
        "Retention will not be measured: Belebele could not be fetched (LocalEntryNotFoundError:"
    )
    assert "The embedding model org/model could not be fetched (LocalEntryNotFoundError:" in done.stdout
    assert not (tmp_path / "cache").exists()


def test_nothing_is_asked_of_the_hub_where_nothing_is_wanted_or_all_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.hf_hub_download", None)
    assert evaluation_data.fetch(config(), tmp_path) == ""
    (tmp_path / "belebele-ben_Beng.jsonl").write_text("{}\n")
    assert evaluation_data.fetch(config(retention="belebele"), tmp_path) == ""
