"""Tests of what only a CUDA GPU does; skipped where torch sees none. No network is needed: the weights are random."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def pytest_collection_modifyitems(items):
    import torch

    if not torch.cuda.is_available():
        for item in items:  # of the whole session, not of this folder alone
            if item.path.parent == Path(__file__).parent:
                item.add_marker(pytest.mark.skip(reason="no CUDA GPU that torch can use"))


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """The folder of a base model of Llama-3.1's architecture, small, with random weights."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import shapes

    return shapes.make_base("small", tmp_path_factory.mktemp("base") / "small")


@pytest.fixture
def environment():
    """For a process that finds the package, its test support, and whatever this one finds."""
    found = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(found), "HF_HUB_OFFLINE": "1"}
