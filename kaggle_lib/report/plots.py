"""The run's curve as SVG that stands in the page itself: the same bytes for the same events, in the page's colours.

No text of the data enters a plot: matplotlib sets Bengali vowel signs on the wrong letter, whatever the font.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

from matplotlib import style
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kaggle_lib.runs.events import Event

# Drawn in these colours, then replaced by the page's variables, so that one drawing serves light and dark.
INK, MUTED, LINE, TRAINING, VALIDATION = "#101010", "#707070", "#d0d0d0", "#2070d0", "#c05010"
VARIABLES = {INK: "--ink", MUTED: "--muted", LINE: "--line", TRAINING: "--training", VALIDATION: "--validation"}
# Inches at 72 points each: one form for a desk, one for a phone, whose letters stay as large.
SIZES = {"wide": (11.0, 5.6), "narrow": (4.6, 5.4)}
# Fewer raw points than this show their course by themselves.
SMOOTH_FROM = 100


def curve(steps: Sequence[Event], validation: Sequence[Event], borders: Sequence[tuple[int, int]], size: str) -> str:
    """An `<svg>`: loss over steps, below it validation where there was one, a line where each later session began.

    `steps` and `validation`: events, one a step, in order. `borders`: the number of each training session after
    the first and the step after which it began. `size`: wide or narrow.
    """
    settings = {"svg.fonttype": "none", "svg.hashsalt": f"kaggle_lib {size}", "font.size": 11.0}
    with style.context(settings, after_reset=True):
        figure = Figure(figsize=SIZES[size], layout="constrained")
        ratios = [3, 2] if validation else [1]
        panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, height_ratios=ratios)[:, 0]
        _training(panels[0], steps)
        if validation:
            _validation(panels[1], validation)
        for panel in panels:
            _frame(panel)
            for _, step in borders:
                panel.axvline(step + 0.5, color=MUTED, linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        _name_borders(panels[0], borders)
        panels[-1].set_xlim(0, max(event["step"] for event in steps) * 1.02)
        panels[-1].set_xlabel("step", color=INK)
        panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8 if size == "wide" else 5))
        return _svg(figure)


def smooth(losses: Sequence[float], window: int) -> list[float]:
    """The mean of the last `window` values at each place (of fewer at the start)."""
    return [
        sum(losses[max(0, place + 1 - window) : place + 1]) / min(window, place + 1) for place in range(len(losses))
    ]


def _training(panel: Any, steps: Sequence[Event]) -> None:
    numbers, losses = [event["step"] for event in steps], [event["loss"] for event in steps]
    dense = len(steps) >= SMOOTH_FROM
    # One step alone is a dot: a line needs two.
    panel.plot(
        numbers,
        losses,
        color=TRAINING,
        linewidth=0.8 if dense else 1.6,
        alpha=0.35 if dense else 1.0,
        marker="o" if len(steps) == 1 else None,
        markersize=4,
    )
    title = "Training loss, nats per answer token"
    if dense:
        window = len(steps) // 40
        panel.plot(numbers, smooth(losses, window), color=TRAINING, linewidth=1.8)
        title += f" (bold: mean of {window} steps)"
    _title(panel, title)


def _validation(panel: Any, events: Sequence[Event]) -> None:
    numbers, bits = [event["step"] for event in events], [event["bits_per_byte"] for event in events]
    panel.plot(numbers, bits, color=VALIDATION, linewidth=1.6, marker="o", markersize=3.5)
    place = min(range(len(bits)), key=bits.__getitem__)
    panel.plot([numbers[place]], [bits[place]], color=VALIDATION, marker="o", markersize=8, markerfacecolor="none")
    _title(panel, f"Validation, bits per byte (best: {bits[place]:.3f} at step {numbers[place]})")


def _title(panel: Any, text: str) -> None:
    panel.set_title(text, loc="left", fontsize=11, color=INK, pad=18 if "Training" in text else 8, wrap=False)


def _frame(panel: Any) -> None:
    panel.set_facecolor("none")
    panel.grid(axis="y", color=LINE, linewidth=0.8)
    panel.set_axisbelow(True)
    panel.tick_params(colors=MUTED, length=0)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color(LINE)


def _name_borders(panel: Any, borders: Sequence[tuple[int, int]]) -> None:
    """Each later session's number over its line; of many sessions only every so many."""
    every = 1 + len(borders) // 12
    for place, (number, step) in enumerate(borders):
        if place % every == 0:
            panel.annotate(
                f"session {number}" if len(borders) <= 2 else f"s{number}",
                (step + 0.5, 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="center",
                fontsize=9,
                color=MUTED,
            )


def _svg(figure: Figure) -> str:
    """The figure without what only a file of its own needs, in the page's colours."""
    figure.patch.set_alpha(0)
    buffer = io.BytesIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode("utf-8")
    text = re.sub(r" *<metadata>.*?</metadata>\n", "", text[text.index("<svg") :], flags=re.DOTALL)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    # The page sets typeface, joins and width; names are kept only where something refers to them.
    text = re.sub(r" *<style.*?</style>\n", "", text, flags=re.DOTALL)
    text = re.sub(r" font-family: [^;]*;", "", text)
    used = set(re.findall(r"#([^)\"]+)[)\"]", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    return re.sub(r'(<svg[^>]*?) width="[^"]*" height="[^"]*"', r"\1", text, count=1)
