"""The live view in a notebook's cell: one display, drawn anew as the training goes on. Plain HTML, no widgets."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Self

from kaggle_lib.session.where import where

EVERY_SECONDS = 1.0
POINTS, WIDTH, HEIGHT = 150, 636, 70
GRID = "display:grid;grid-template-columns:repeat(auto-fill,minmax(min(200px,45%),1fr));gap:6px 12px"
BAR = "height:6px;border-radius:3px;background:rgba(128,128,128,.3);margin:6px 0 10px"


class Live:
    """`publish` takes a bundle of MIME types and shows it in the place of the one before."""

    def __init__(self, publish: Callable[[dict[str, str]], None], now: Callable[[], float] = time.monotonic) -> None:
        self.publish, self.now = publish, now
        self.due = 0.0
        self.shown: dict[str, str] = {}

    @classmethod
    def here(cls) -> Self | None:
        """The view of the cell that runs, or None where lines are right: outside notebooks, and where nobody looks."""
        shell = _shell()
        if shell is None or where() == "kaggle-batch":
            return None
        handle: list[Any] = []

        def publish(bundle: dict[str, str]) -> None:
            from IPython.display import display

            if handle:
                handle[0].update(bundle, raw=True)
            else:
                handle.append(display(bundle, raw=True, display_id=True))  # type: ignore[no-untyped-call]

        return cls(publish)

    def update(self, title: str, facts: Mapping[str, str], share: float, losses: Sequence[float]) -> None:
        """Show these facts, unless they are shown already or the last ones are younger than a second."""
        if self.now() < self.due:
            return
        line = "  ".join([title, *(f"{name} {value}" for name, value in facts.items())])
        bundle = {"text/plain": line, "text/html": html(title, facts, share, losses)}
        if bundle != self.shown:
            self.publish(bundle)
            self.shown, self.due = bundle, self.now() + EVERY_SECONDS


def _shell() -> Any:
    """IPython's shell, if a notebook's cell runs in it and a person may be before it.

    A front end with a person allows a cell to ask for input; papermill and nbconvert do not (nbclient, client.py).
    """
    if "IPython" not in sys.modules:
        return None
    from IPython import get_ipython

    shell = get_ipython()
    request = shell.get_parent() if hasattr(shell, "get_parent") else {}
    return shell if request.get("content", {}).get("allow_stdin") else None


def html(title: str, facts: Mapping[str, str], share: float, losses: Sequence[float]) -> str:
    """The view: title, bar, facts, and the session's loss so far. It takes its colours from the page around it."""
    cells = "".join(
        f'<div><div style="opacity:.65;font-size:85%">{escape(name)}</div><div>{escape(value)}</div></div>'
        for name, value in facts.items()
    )
    return (
        '<div style="max-width:640px;margin:8px;font-variant-numeric:tabular-nums;line-height:1.4;'
        'overflow-wrap:anywhere">'
        f"<b>{escape(title)}</b>"
        f'<div style="{BAR}"><div style="width:{100 * share:.1f}%;height:100%;border-radius:3px;background:#3b7dd8">'
        f'</div></div><div style="{GRID}">{cells}</div>{curve(losses)}</div>'
    )


def curve(losses: Sequence[float]) -> str:
    """The losses, averaged down to some 150 points, as a line from the highest to the lowest; "" for fewer than two."""
    size = max(1, len(losses) // POINTS)
    points = [statistics.fmean(losses[k : k + size]) for k in range(0, len(losses), size)]
    if len(points) < 2:
        return ""
    low, high = min(points), max(points)
    across, up = WIDTH / (len(points) - 1), HEIGHT / ((high - low) or 1)
    line = " ".join(f"{across * k:.1f},{(high - loss) * up:.1f}" for k, loss in enumerate(points))
    return (
        f'<div style="opacity:.65;font-size:85%;margin-top:8px">loss in this session, {high:.2f} to {low:.2f}</div>'
        f'<svg width="100%" height="{HEIGHT + 4}" viewBox="-2 -2 {WIDTH + 4} {HEIGHT + 4}" preserveAspectRatio="none">'
        f'<polyline points="{line}" fill="none" stroke="#3b7dd8" stroke-width="1.5" '
        'vector-effect="non-scaling-stroke"/></svg>'
    )
