"""The run's curves as values for `plots.html`, which sets them as SVG: one drawing for every width, scheme and print.

Places are percent of the plot's area, so that lines and letters keep their size while the area does not. No text of
the data enters a plot.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]  # step and value
COLUMNS = 400  # parts of the step axis that a thinned line is drawn by
SMOOTH_FROM = 100  # fewer raw points than this show their course by themselves
NAMED_BORDERS = 10
DOTS = 80  # more values than this are a line without dots


@dataclass(frozen=True)
class Axis:
    """`ticks`: (place in percent from the low end, text, whether a narrow page leaves it out)."""

    low: float
    high: float
    ticks: list[tuple[float, str, bool]]

    def place(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.high - self.low), 2)


@dataclass(frozen=True)
class Panel:
    """One plot. `lines`: (class, the points of an SVG polyline, 0 to 1000 both ways); `dots` and `marks`: (x, y, text)
    in percent; `borders`: (x, text, whether it is named); `bars`: (x, width, [(class, y, height, text)]);
    `level`: (y, text) of a dashed line across; `drawn`: how many points stand for how many, where it is fewer."""

    name: str
    title: str
    about: str
    x: Axis
    y: Axis
    height: int = 200
    unit: str = "step"
    lines: list[tuple[str, str]] = field(default_factory=list)
    dots: list[tuple[float, float, str]] = field(default_factory=list)
    marks: list[tuple[float, str]] = field(default_factory=list)
    borders: list[tuple[float, str, bool]] = field(default_factory=list)
    bars: list[tuple[float, float, list[tuple[str, float, float, str]]]] = field(default_factory=list)
    level: tuple[float, str] | None = None
    drawn: tuple[int, int] | None = None


def thin(points: Sequence[Point], columns: int = COLUMNS) -> list[Point]:
    """Of each of `columns` equal parts of the x axis the first, lowest, highest and last point; all where that is no
    fewer. `points`: in the order of x."""
    if len(points) <= 4 * columns:
        return list(points)
    first, last = points[0][0], points[-1][0]
    parts: dict[int, list[Point]] = {}
    for point in points:
        parts.setdefault(min(columns - 1, int((point[0] - first) / (last - first) * columns)), []).append(point)
    kept = []
    for part in parts.values():
        chosen = {part[0], min(part, key=lambda one: one[1]), max(part, key=lambda one: one[1]), part[-1]}
        kept += sorted(chosen)
    return kept


def smooth(values: Sequence[float], window: int) -> list[float]:
    """The mean of the last `window` values at each place (of fewer at the start)."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(sums[end] - sums[max(0, end - window)]) / min(window, end) for end in range(1, len(sums))]


def axis(low: float, high: float, count: int, whole: bool = False) -> Axis:
    """From `low` to `high` with about `count` ticks at multiples of 1, 2, 2.5 or 5 times a power of ten."""
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if (high - low) / (power * factor) <= count)
    step = max(1, round(step)) if whole else step
    digits = next(digits for digits in range(20) if math.isclose(round(step, digits), step))
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    made = Axis(low, high, [])
    made.ticks.extend(
        (made.place(one * step), f"{one * step:,.{digits}f}", place % 2 == 1) for place, one in enumerate(numbers)
    )
    return made


def steps_axis(last: int) -> Axis:
    """The axis of all plots over steps."""
    return axis(0, max(1, last), 8, whole=True)


def borders(sessions: Sequence[tuple[int, int]], x: Axis) -> list[tuple[float, str, bool]]:
    """Where each later session began: `sessions` are (its number, the step before it). Of many only some are named."""
    every = 1 + (len(sessions) - 1) // NAMED_BORDERS
    short = len(sessions) > 2
    return [
        (x.place(step + 0.5), f"s{number}" if short else f"session {number}", place % every == 0)
        for place, (number, step) in enumerate(sessions)
    ]


def course(
    name: str,
    title: str,
    points: Sequence[Point],
    x: Axis,
    *,
    form: str = ".3f",
    smoothed: bool = True,
    from_zero: bool = False,
    level: tuple[float, str] | None = None,
    best: float | None = None,
    height: int = 130,
    borders: Sequence[tuple[float, str, bool]] = (),
    marks: Sequence[tuple[float, str]] = (),
) -> Panel:
    """A value over the steps; from `SMOOTH_FROM` points on with the mean of a fortieth of them in bold.

    `points`: (step, value), finite, in order, not none. `form`: how a value is written. `level`: a value drawn across.
    `best`: the step of a point that gets a ring; with it the points are dots.
    """
    values = [value for _, value in points]
    low, high = min(values), max([*values, *([level[0]] if level else [])])
    room = 0.06 * (high - low)
    y = axis(0.0 if from_zero else low - room, high + room, height // 30)
    drawn = thin(points)
    dense = smoothed and len(points) >= SMOOTH_FROM
    lines = [("raw" if dense else "only", _polyline(drawn, x, y))]
    if dense:
        window = len(points) // 40
        means = list(zip((step for step, _ in points), smooth(values, window), strict=True))
        lines.append(("bold", _polyline(thin(means), x, y)))
        title += f"; bold: mean of {window} steps"
    dots = []
    if len(points) == 1 or (best is not None and len(points) <= DOTS):
        dots = [(x.place(step), y.place(value), f"step {step:g}: {value:{form}}") for step, value in points]
    ring = [(x.place(step), y.place(value), "best") for step, value in points if step == best]
    least, most = (pick(points, key=lambda one: one[1]) for pick in (min, max))
    about = ", ".join(
        f"{word} {value:{form}} at step {step:,.0f}"
        for word, (step, value) in (("first", points[0]), ("lowest", least), ("highest", most), ("last", points[-1]))
    )
    return Panel(
        *(name, title, f"{about[0].upper()}{about[1:]}.", x, y, height),
        lines=lines,
        dots=[*dots, *ring],
        marks=list(marks),
        borders=list(borders),
        level=(y.place(level[0]), level[1]) if level else None,
        drawn=(len(drawn), len(points)) if len(drawn) < len(points) else None,
    )


def stack(title: str, sessions: Sequence[tuple[int, Mapping[str, float]]], names: Mapping[str, str]) -> Panel:
    """A bar a session, of the seconds of its parts. `sessions`: (its number, the parts); `names`: of parts in words."""
    most = max(sum(parts.values()) for _, parts in sessions)
    unit, seconds = ("hours", 3600) if most >= 3600 else ("minutes", 60) if most >= 60 else ("seconds", 1)
    y = axis(0.0, 1.04 * most / seconds or 1.0, 5)
    width = 100 / len(sessions)
    bars = []
    for place, (number, parts) in enumerate(sessions):
        pieces, below = [], 0.0
        for name, value in parts.items():
            bottom, top = y.place(below / seconds), y.place((below + value) / seconds)
            text = f"session {number}, {names[name]}: {value / seconds:.2f} {unit}"
            pieces.append((name, round(100 - top, 2), round(top - bottom, 2), text))
            below += value
        bars.append((round((place + 0.12) * width, 2), round(0.76 * width, 2), [one for one in pieces if one[2]]))
    every = 1 + (len(sessions) - 1) // 12
    ticks = [
        (round((place + 0.5) * width, 2), str(number), place // every % 2 == 1)
        for place, (number, _) in enumerate(sessions)
        if place % every == 0
    ]
    about = f"{len(sessions)} sessions, the longest {most / seconds:.1f} {unit}. The table below has each number."
    return Panel("hours", f"{title}, {unit}", about, Axis(0, 1, ticks), y, unit="session", bars=bars)


def _polyline(points: Sequence[Point], x: Axis, y: Axis) -> str:
    return " ".join(f"{10 * x.place(step):g},{1000 - 10 * y.place(value):g}" for step, value in points)
