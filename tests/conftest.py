"""What all tests share: the clone's packages, and no accelerator or Hub unless a test asks for it."""

import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the supervisor sets it for its workers
# A shell that runs the tests in the background leaves SIGINT ignored, for what the tests start, too.
signal.signal(signal.SIGINT, signal.default_int_handler)
