"""A real Chromium for what is looked at in a browser; skips the file that imports this where there is none."""

import os
import shutil
from contextlib import contextmanager

import pytest

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needed = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")


@contextmanager
def chromium():
    with playwright.sync_playwright() as running:
        # The sandbox needs a user of its own; as root Chromium does not start with it.
        without = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = running.chromium.launch(executable_path=CHROMIUM, args=without)
        yield started
        started.close()
