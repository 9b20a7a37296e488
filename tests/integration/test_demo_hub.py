"""`make demo-hub` says what happens at each step, and ends with a page that tells the whole run."""

import os
import re
import subprocess
import sys

import pytest
from support.sessions import ROOT


@pytest.mark.soak  # a minute and a half; test_hub_sessions.py holds the same for Xet and LFS
def test_the_demo_on_the_hub_goes_on_from_another_machine_and_names_its_report(tmp_path):
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [sys.executable, "-m", "support.demo_hub"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^== (\d)\.", done.stdout, re.MULTILINE) == list("1234567")
    reached = re.search(r"The checkpoint of step (\d+) reached the Hub", done.stdout)[1]
    assert f"Resumed from the checkpoint of step {reached}, finished at step 60." in done.stdout
    assert "Equal, byte for byte." in done.stdout
    page = tmp_path / re.search(r"Open (\S+) in a browser\.\n\Z", done.stdout)[1]
    text = page.read_text(encoding="utf-8")
    assert "killed" in text
    assert "finished: all steps are done" in text
    assert "finished: evaluated" in text
