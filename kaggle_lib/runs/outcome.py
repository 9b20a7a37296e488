"""What `train`, `evaluate` and the others return, and what `--json` prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Word = Literal["finished", "paused", "stopped", "failed", "not finished"]

EXIT_CODES: dict[str, int] = {"finished": 0, "paused": 75, "not finished": 75, "stopped": 130, "failed": 1}


@dataclass(frozen=True)
class Skipped:
    """A checkpoint that did not verify and was passed over."""

    step: int
    file: str
    reason: str


@dataclass(frozen=True)
class Outcome:
    """How a session ended. A paused run is a normal return; errors are raised."""

    outcome: Word
    run: str
    step: int = 0
    total_steps: int | None = None
    resumed_from: int | None = None
    skipped_checkpoints: list[Skipped] = field(default_factory=list)
    session: str | None = None
    reason: str = ""
    checkpoint: str | None = None
    on_store: bool = False
    adapter_sha256: str | None = None

    @property
    def exit_code(self) -> int:
        """0 only for a finished run whose final state is on the store."""
        if self.outcome == "finished" and not self.on_store:
            return 1
        return EXIT_CODES[self.outcome]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
