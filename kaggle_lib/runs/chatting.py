"""Talk to a run's newest checkpoint, from a terminal or a notebook's cell. Imports no torch: a worker answers."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self

from kaggle_lib.errors import UserError, WorkerError
from kaggle_lib.runs import launch
from kaggle_lib.runs.prepare import newest

Say = Callable[[str], None]
Side = Literal["base", "tuned"]
WORKER = "kaggle_lib.evaluation.talking"
TOKENS = 512
HELP = (
    "Write, and the tuned model answers. /both: base and tuned one after the other · /tuned: it alone again · /new: "
    "forget what was said · /system TEXT: another system prompt · /exit, or Ctrl-D. Ctrl-C ends an answer."
)


class Chat:
    """One conversation with the tuned model, and, where asked for, the same one with the base model beside it.

    `chat("…")` prints the answer as it comes and returns it. Each side remembers its own answers; `new()` forgets, and
    `system` is the system prompt from then on. Close it (or use `with`) to give the GPU's memory back.
    Raises NotFinished where there is no checkpoint, UserError where the model cannot be loaded.
    """

    def __init__(
        self, values: Mapping[str, object], *, tokens: int = TOKENS, temperature: float = 0.0, say: Say = print
    ) -> None:
        opened, found = newest(values, say)
        assert found.path is not None
        self.tokens, self.temperature = tokens, temperature
        self.system = opened.config.system_prompt or ""
        self.history: dict[Side, list[tuple[str, str]]] = {"base": [], "tuned": []}
        # The worker keeps the run's own system prompt out of the way: the conversation brings its own.
        config = opened.for_worker().model_copy(update={"system_prompt": None})
        self._answering = False
        self._log = opened.folder.root / "chat.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                launch.tied([sys.executable, "-m", WORKER]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                encoding="utf-8",
                env=launch.environment(1),
                start_new_session=True,
            )
        say(f"Loading run {opened.config.run!r} at step {found.step} …")
        self._send(config=config.model_dump(mode="json"), adapter=str(found.path), cache=str(opened.folder.cache))
        self._receive()

    def __call__(self, text: str, side: Side = "tuned") -> str:
        said = ""
        with self._interrupts_end_the_answer():
            for piece in self.stream(text, side):
                print(piece, end="", flush=True)
                said += piece
            print()
        return said

    def both(self, text: str) -> dict[Side, str]:
        """Base and tuned model on the same words, one after the other."""
        answers: dict[Side, str] = {}
        sides: tuple[Side, Side] = ("base", "tuned")
        for side in sides:
            print(f"[{side}] ", end="", flush=True)
            answers[side] = self(text, side)
        return answers

    def stream(self, text: str, side: Side = "tuned") -> Iterator[str]:
        """The answer in pieces of whole letters; what was not taken of an earlier one is thrown away first."""
        if self._answering:
            self._process.send_signal(signal.SIGINT)
            while "piece" in self._receive():
                pass
        history = self.history[side]
        messages = [*([("system", self.system)] if self.system else []), *history, ("user", text)]
        self._send(messages=messages, side=side, tokens=self.tokens, temperature=self.temperature)
        said, self._answering = "", True
        while "piece" in (reply := self._receive()):
            said += reply["piece"]
            yield reply["piece"]
        self._answering = False
        history += [("user", text), ("assistant", said)]

    @contextmanager
    def _interrupts_end_the_answer(self) -> Iterator[None]:
        """An interrupt goes to the worker, which ends the answer; what was said until then is remembered."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, lambda *_: self._process.send_signal(signal.SIGINT))
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def new(self) -> None:
        """Forget what was said."""
        for history in self.history.values():
            history.clear()

    def close(self) -> None:
        """End the worker."""
        if self._process.stdin and not self._process.stdin.closed:
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _send(self, **values: Any) -> None:
        assert self._process.stdin is not None
        try:
            print(json.dumps(values, ensure_ascii=False), file=self._process.stdin, flush=True)
        except (BrokenPipeError, ValueError):
            raise self._ended() from None

    def _receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise UserError(reply["error"])
        return reply

    def _ended(self) -> WorkerError:
        code = self._process.wait()
        last = launch.last_lines(self._log, 5)
        return WorkerError(f"The chat's worker has ended (exit {code}).", todo=f"The end of {self._log}:\n{last}")


def talk(
    values: Mapping[str, object], *, both: bool = False, tokens: int = TOKENS, temperature: float = 0.0, say: Say
) -> None:
    """A conversation in the terminal, until its input ends."""
    with Chat(values, tokens=tokens, temperature=temperature, say=say) as chat:
        say(HELP)
        while True:
            try:
                text = input("> ").strip()
            except EOFError:
                return
            except KeyboardInterrupt:
                say("\n/exit or Ctrl-D ends the chat.")
                continue
            command, _, rest = text.partition(" ")
            if command == "/exit":
                return
            if command in ("/both", "/tuned"):
                both = command == "/both"
            elif command == "/new":
                chat.new()
            elif command == "/system":
                chat.system = rest.strip()
                chat.new()
            elif command.startswith("/"):
                say(HELP)
            elif text:
                chat.both(text) if both else chat(text)
