"""Tokens are found where the clients find them, cleaned, and never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from kaggle_lib.session.secrets import hub_token, kaggle_token


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HOME", "HF_TOKEN_PATH", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_a_bare_machine_has_none() -> None:
    assert hub_token() is None
    assert kaggle_token() is None


def test_the_variable_comes_before_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / ".cache/huggingface/token"
    file.parent.mkdir(parents=True)
    file.write_text("from-file\n")
    found = hub_token()
    assert found is not None
    assert (found.place, found.value) == (str(file), "from-file")
    monkeypatch.setenv("HF_TOKEN", ' "from-variable"\n')
    found = hub_token()
    assert found is not None
    assert (found.place, found.value) == ("HF_TOKEN", "from-variable")


@pytest.mark.parametrize("empty", ["", " \n", '""'])
def test_an_empty_token_is_none(empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", empty)
    assert hub_token() is None


def test_kaggles_key_needs_its_user_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_KEY", "key")
    assert kaggle_token() is None
    monkeypatch.setenv("KAGGLE_USERNAME", "name")
    found = kaggle_token()
    assert found is not None
    assert (found.place, found.value) == ("KAGGLE_KEY", "key")


def test_a_token_is_not_in_its_representation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_API_TOKEN", "very-secret")
    assert "very-secret" not in f"{kaggle_token()!r} {kaggle_token()}"
