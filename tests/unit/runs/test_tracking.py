"""`report_to`: what is missing is told before a run begins; one that fails, asks or hangs is a warning, and no more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.sessions import gone

from kaggle_lib.config import RunConfig
from kaggle_lib.errors import ConfigError
from kaggle_lib.runs import tracking
from kaggle_lib.runs.folder import RunFolder
from kaggle_lib.runs.launch import descendants
from kaggle_lib.runs.tracking import Tracking, settings

KEY = "0123456789abcdef" * 3
VARIABLES = (
    *("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "TRACKIO_SPACE_ID", "MLFLOW_TRACKING_URI"),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"),
)


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any key, where packages of these names are installed; `wandb` does what its file says."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stubs"))
    monkeypatch.syspath_prepend(str(tmp_path / "stubs"))
    for name in ("wandb", "trackio", "mlflow"):
        (tmp_path / "stubs" / name).mkdir(parents=True)
        (tmp_path / "stubs" / name / "__init__.py").touch()
    return tmp_path / "stubs" / "wandb" / "__init__.py"


# Before a run begins


def refused(tracker: str) -> str:
    with pytest.raises(ConfigError) as caught:
        settings(tracker)
    return str(caught.value)


def test_what_is_missing_is_told_with_what_to_do(stub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none = "set report_to=none"
    there_is_none = "the package no_such_tracker is not installed here. Install it (pip install no_such_tracker)"
    assert refused("no_such_tracker") == f"report_to: {there_is_none}, or {none}"
    assert refused("wandb") == (
        "report_to: wandb has no key. Put it into WANDB_API_KEY (on Kaggle: a secret), or set WANDB_MODE=offline, "
        f"or {none}"
    )
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/curves")
    assert refused("trackio") == (
        f"report_to: TRACKIO_SPACE_ID needs a Hugging Face token that may write. Put it into HF_TOKEN, or {none}"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://me:{KEY}@example.org")
    message = refused("mlflow")
    assert message == (
        "report_to: MLFLOW_TRACKING_URI has a password in it. Use MLFLOW_TRACKING_USERNAME and "
        f"MLFLOW_TRACKING_PASSWORD, or {none}"
    )


def test_what_is_there_is_passed_on(stub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert settings("trackio") == settings("mlflow") == {}
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert settings("wandb") == {}
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    assert settings("wandb") == {}  # wandb reads it itself
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert settings("wandb") == {"WANDB_API_KEY": KEY}
    monkeypatch.setenv("TRACKIO_SPACE_ID", "somebody/curves")
    monkeypatch.setenv("HF_TOKEN", "hf_abc")
    assert settings("trackio") == {"TRACKIO_SPACE_ID": "somebody/curves", "HF_TOKEN": "hf_abc"}


# While it runs


class Session:
    def __init__(self, folder: Path) -> None:
        self.folder = RunFolder(folder / "work" / "r")
        self.folder.create()
        config = RunConfig.create({"run": "r", "base_model": "sample", "data": "sample"}).model_dump(mode="json")
        run = {"config": config, "lineage": "a" * 32, "session": "s"}
        self.folder.run_json.write_text(json.dumps(run))
        self.warned: list[str] = []
        self.said: list[str] = []
        self.tracking = Tracking(self.folder, self.warned.append, self.said.append)

    def ended(self) -> int:
        assert self.tracking._process is not None
        return self.tracking._process.wait(60)


@pytest.fixture
def session(tmp_path: Path, stub: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    return Session(tmp_path)


def test_one_that_asks_finds_nobody_and_is_one_warning_and_a_last_line(session: Session, stub: Path) -> None:
    stub.write_text(
        "import atexit, os\n"
        "atexit.register(print, 'this is no reason')\n"
        "class Settings:\n    def __init__(self, **more): pass\n"
        "def init(**more):\n    raise RuntimeError(os.environ['WANDB_API_KEY'] + ' is no key\\n' + input('Key: '))\n"
    )
    session.tracking.settle("wandb")
    session.tracking.tend()
    assert session.ended() == 1
    session.tracking.tend()
    why = "wandb does not take the curve (EOFError: EOF when reading a line)."
    assert session.warned == [f"{why} The training goes on, and what is missing is written later."]
    session.tracking.tend()
    assert session.tracking._process is None  # not at once
    session.tracking._due = 0.0
    session.tracking.tend()
    assert session.ended() == 1
    session.tracking.tend()
    session.tracking.close(None)
    again = f"python -m kaggle_lib.runs.trackers {session.folder.root} wandb"
    assert session.said == [f"warning: {why} The next session writes what is missing, or `{again}`."]
    assert len(session.warned) == 1
    session.tracking.tend()
    assert session.tracking._process is None


def test_a_key_in_its_error_is_not_read(session: Session, stub: Path) -> None:
    stub.write_text("import os\ndef Settings(**more):\n    raise ValueError('bad ' + os.environ['WANDB_API_KEY'])\n")
    session.tracking.settle("wandb")
    session.tracking.tend()
    assert session.ended() == 1
    session.tracking.close(None)
    [warning] = session.warned
    assert warning.startswith("wandb does not take the curve (ValueError: bad ***). The next session writes")


def test_one_that_hangs_is_left_behind_with_all_that_it_started(session: Session, stub: Path) -> None:
    stub.write_text(
        "import subprocess, time\n"
        "def Settings(**more):\n    subprocess.Popen(['sleep', '600'], start_new_session=True)\n    time.sleep(600)\n"
    )
    session.tracking.settle("wandb")
    session.tracking.tend()
    process = session.tracking._process
    assert process is not None
    while len(tree := [process.pid, *descendants(process.pid)]) < 2:
        assert process.poll() is None
    session.tracking.close(0.0)
    assert session.warned[0].startswith("wandb did not take the last steps in time. The next session writes")
    assert gone(tree)


def test_none_starts_nothing(session: Session) -> None:
    session.tracking.settle("none")
    session.tracking.tend()
    session.tracking.close(None)
    assert session.tracking._process is None
    assert not session.tracking.log_path.exists()


def test_no_worker_gets_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from kaggle_lib.runs.launch import environment

    secret = [name for names in tracking.SETTINGS.values() for name in names if name.endswith(("KEY", "TOKEN", "WORD"))]
    assert len(secret) == 3
    for name in secret:
        monkeypatch.setenv(name, KEY)
    assert KEY not in environment(2).values()
