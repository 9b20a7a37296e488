"""One question to the real command line, its one-message answer, and what lies on the disk before and after."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Locks are made by looking; the workers' own output is no state.
NO_STATE = (".lock", "worker.log")
LINES = 6  # more is no message that a person reads


@dataclass(frozen=True)
class Answer:
    """`told`: the one JSON object on standard output."""

    code: int
    told: dict
    err: str

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()


def ask(folder: Path, *words: str, env: dict | None = None, package: Path = ROOT) -> Answer:
    """Run `python -m kaggle_lib WORDS --json` in `folder`, without a terminal; `package`: where kaggle_lib lies.

    Fails where there is a traceback or more or less than one JSON object.
    """
    done = subprocess.run(
        [sys.executable, "-m", "kaggle_lib", *words, "--json"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(package), **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    out, err = done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
    assert "Traceback" not in err, err
    told = json.loads(out)
    assert isinstance(told, dict)
    return Answer(done.returncode, told, err)


def sets(**values: object) -> list[str]:
    return [word for key, value in values.items() for word in ("--set", f"{key}={value}")]


def state(folder: Path) -> dict[str, bytes]:
    """{path: content} of every file in `folder`, and of every symlink its target."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in NO_STATE
    }


def refused(folder: Path, *words: str, code: int, says: str, **more: object) -> Answer:
    """The answer to `words`: exit `code`, one message with `says`, the same one in the JSON, and no file changed."""
    before = state(folder)
    answer = ask(folder, *words, **more)
    assert answer.code == code, answer
    assert says in answer.err, answer.err
    assert answer.told["reason"] == answer.err.rstrip("\n"), answer
    assert 1 <= len(answer.lines) <= LINES, answer.err
    assert state(folder) == before
    return answer


def ask_all(questions: dict[str, tuple], env: dict[str, dict] | None = None) -> dict[str, Answer]:
    """Answers to several (folder, *words), two at a time; `env`: what each has of its own."""

    def answer(name: str) -> Answer:
        return ask(*questions[name], env=(env or {}).get(name))

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(questions, pool.map(answer, questions), strict=True))
