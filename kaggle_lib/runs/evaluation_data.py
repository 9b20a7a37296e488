"""What an evaluation needs of the Hub beside the base model, fetched before the workers start, which are offline."""

from __future__ import annotations

from pathlib import Path

from kaggle_lib.config import RunConfig
from kaggle_lib.files import write_bytes
from kaggle_lib.session.secrets import hub_token

# CC-BY-SA-4.0 (Bandarkar et al. 2024). The commit that later evaluations are compared by.
BELEBELE, REVISION, FILE = "facebook/belebele", "75b399394a9803252cfec289d103de462763db7c", "data/ben_Beng.jsonl"


def fetch(config: RunConfig, cache: Path) -> str:
    """Bring Belebele's Bengali part to `cache`, and an embedding model to huggingface_hub's, where they are asked for.

    Returns what could not be fetched and why, or nothing: an evaluation goes on without, and its result says so.
    """
    from httpx import HTTPError
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    found = hub_token()
    token = found.value if found else False
    problems = []
    kinds = (OSError, HTTPError, HfHubHTTPError, LocalEntryNotFoundError, ValueError)
    target = cache / "belebele-ben_Beng.jsonl"
    if config.retention == "belebele" and not target.exists():
        try:
            path = hf_hub_download(BELEBELE, FILE, repo_type="dataset", revision=REVISION, token=token)
            cache.mkdir(parents=True, exist_ok=True)
            write_bytes(target, Path(path).read_bytes())
        except kinds as error:
            problems.append(f"Retention will not be measured: Belebele could not be fetched ({_brief(error)}).")
    if config.similarity_model:
        model, revision = config.similarity_model.split("@")
        try:
            snapshot_download(model, revision=revision, token=token)
        except kinds as error:
            problems.append(f"The embedding model {model} could not be fetched ({_brief(error)}).")
    return " ".join(problems)


def _brief(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
