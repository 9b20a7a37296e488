"""Kaggle is told from a laptop that merely talks to it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kaggle_lib.session.where import kaggle_session, root, where


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("KAGGLE_LIB_ROOT", str(tmp_path / "kaggle"))
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE", raising=False)


def test_the_clients_own_variables_do_not_mean_kaggle(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_API_TOKEN", "KAGGLE_URL_BASE"):
        monkeypatch.setenv(name, "x")
    assert where() == "local"


@pytest.mark.parametrize(
    ("run_type", "expected"),
    [("Batch", "kaggle-batch"), ("Interactive", "kaggle-interactive"), (None, "kaggle-interactive")],
)
def test_the_run_type_tells_batch_from_interactive(
    run_type: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root() / "working").mkdir(parents=True)
    if run_type:
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", run_type)
    assert where() == expected


def test_the_run_type_without_the_folders_is_not_kaggle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Batch")
    assert where() == "local"


def test_kaggles_own_folder_unless_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KAGGLE_LIB_ROOT")
    assert root() == Path("/kaggle")


def test_the_number_of_a_kaggle_session_is_in_its_containers_name(monkeypatch):
    monkeypatch.delenv("KAGGLE_CONTAINER_NAME", raising=False)
    assert kaggle_session() is None
    for name, number in [("kaggle_8Zx-3-100000017-webtier", 100000017), ("kaggle_x-webtier", None), ("box-7", None)]:
        monkeypatch.setenv("KAGGLE_CONTAINER_NAME", name)
        assert kaggle_session() == number, name
