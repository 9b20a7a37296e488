"""Tokens are found where the clients find them, cleaned, and never shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kaggle_lib.errors import UserError
from kaggle_lib.session.secrets import hub_token, kaggle_token, setting


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HOME", "HF_TOKEN_PATH", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("KAGGLE_LIB_ROOT", str(tmp_path / "kaggle"))
    yield
    sys.modules.pop("kaggle_secrets", None)  # no other test, of any file, has this one's secrets


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
    monkeypatch.setenv("HF_TOKEN", " from-variable\n")
    found = hub_token()
    assert found is not None
    assert (found.place, found.value) == ("HF_TOKEN", "from-variable")


# What Kaggle's image has: a client that asks for a secret of the notebook, and raises where none is attached.
KAGGLE_SECRETS = """
class BackendError(Exception):
    pass


class UserSecretsClient:
    def get_secret(self, label):
        if label not in SECRETS:
            raise BackendError("Unexpected response from the service. No user secrets exist for kernel id 1.")
        return SECRETS[label]
"""


def attach(monkeypatch: pytest.MonkeyPatch, folder: Path, **secrets: str) -> None:
    (folder / "kaggle_secrets.py").write_text(f"SECRETS = {secrets!r}\n{KAGGLE_SECRETS}", encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "kaggle_secrets", raising=False)


def test_kaggles_secret_comes_after_the_variable_and_before_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("from-file")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    attach(monkeypatch, tmp_path)
    found = hub_token()
    assert found is not None
    assert found.value == "from-file"
    attach(monkeypatch, tmp_path, HF_TOKEN="from-secret\n")
    found = hub_token()
    assert found is not None
    assert (found.place, found.value) == ("the Kaggle secret HF_TOKEN", "from-secret")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "from-variable")
    found = hub_token()
    assert found is not None
    assert (found.place, found.value) == ("HUGGING_FACE_HUB_TOKEN", "from-variable")


def dataset(folder: Path, place: str, value: bytes) -> Path:
    path = folder / "kaggle/input" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(value)
    return path


@pytest.mark.parametrize(
    "place", ["keys/HF_TOKEN", "keys/hf_token.txt", "datasets/me/keys/HF_TOKEN.txt", "d/me/keys/hf_token"]
)
def test_an_attached_datasets_file_comes_after_kaggles_secret_and_before_the_machines_login(
    place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("from-login")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    path = dataset(tmp_path, place, b"from-dataset\r\n")
    found = hub_token()
    assert found is not None
    assert (found.place, found.value) == (str(path), "from-dataset")
    attach(monkeypatch, tmp_path, HF_TOKEN="from-secret")
    found = hub_token()
    assert found is not None
    assert found.value == "from-secret"


WRONG = {
    "": "is empty",
    "  \n": "holds only spaces",
    '"hf_secret"': "has quotes around it",
    "'hf_secret'\n": "has quotes around it",
    "hf_secret\u200b": "has a character that is in no token, U+200B, at place 10",
    "\ufeffhf_secret": "has a character that is in no token, U+FEFF, at place 1",
    "\u201chf_secret\u201d": "has a character that is in no token, U+201C, at place 1",
    "hf_se cret": "has a space or an end of line inside",
    "hf_se\ncret": "has a space or an end of line inside",
    "HF_TOKEN: hf_secret": "has a character that is in no token, U+003A, at place 9",
}
TODO = "Store it anew, from https://huggingface.co/settings/tokens, or remove it there."


@pytest.mark.parametrize("value", WRONG)
@pytest.mark.parametrize("place", ["HF_TOKEN", "the Kaggle secret HF_TOKEN", "an attached dataset"])
def test_what_cannot_be_a_token_is_refused_in_a_line_without_its_value(
    value: str, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if place == "HF_TOKEN":
        monkeypatch.setenv("HF_TOKEN", value)
    elif place == "the Kaggle secret HF_TOKEN":
        attach(monkeypatch, tmp_path, HF_TOKEN=value)
    else:
        place = str(dataset(tmp_path, "keys/HF_TOKEN", value.encode()))
    with pytest.raises(UserError) as caught:
        hub_token()
    assert str(caught.value) == f"The Hugging Face token in {place} {WRONG[value]}. {TODO}"


def test_an_empty_file_is_none_and_an_empty_variable_of_kaggles_client_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("\n")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("KAGGLE_API_TOKEN", " ")
    assert hub_token() is None
    assert kaggle_token() is None


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


def test_a_setting_is_a_variable_or_a_secret_of_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert setting("WANDB_API_KEY") is None
    attach(monkeypatch, tmp_path, WANDB_API_KEY="from-secret")
    assert setting("WANDB_API_KEY") == "from-secret"
    assert setting("MLFLOW_TRACKING_URI") is None
    monkeypatch.setenv("WANDB_API_KEY", "from-variable")
    assert setting("WANDB_API_KEY") == "from-variable"
