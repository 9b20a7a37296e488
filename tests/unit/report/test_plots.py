"""What a plot draws: ticks, thinning that keeps extremes, smoothing, borders, stacked hours."""

import re

import pytest

from kaggle_lib.report import plots


def places(panel, kind):
    (points,) = [text for name, text in panel.lines if name == kind]
    return [tuple(map(float, one.split(","))) for one in points.split(" ")]


@pytest.mark.parametrize(
    ("low", "high", "count", "whole", "texts"),
    [
        (0, 20_000, 8, True, ["0", "2,500", "5,000", "7,500", "10,000", "12,500", "15,000", "17,500", "20,000"]),
        (0, 1, 8, True, ["0", "1"]),
        (0.68, 2.41, 5, False, ["1.0", "1.5", "2.0"]),
        (0.4121, 0.4198, 5, False, ["0.414", "0.416", "0.418"]),
        (3.0, 3.0, 4, False, ["2", "3", "4"]),
    ],
)
def test_ticks_are_round_numbers_inside_the_axis(low, high, count, whole, texts):
    axis = plots.axis(low, high, count, whole)
    assert [text for _, text, _ in axis.ticks] == texts
    assert all(0 <= place <= 100 for place, _, _ in axis.ticks)


def test_a_place_is_percent_of_the_axis():
    axis = plots.axis(10, 20, 5)
    assert (axis.place(10), axis.place(12.5), axis.place(20)) == (0, 25, 100)


def test_a_thinned_line_keeps_the_ends_and_every_extreme():
    points = [(step, float(step % 7)) for step in range(1, 20_001)]
    points[12_344] = (12_345, 99.0)
    points[4_999] = (5_000, -99.0)
    kept = plots.thin(points, 100)
    assert len(kept) <= 400
    assert kept == sorted(kept) and set(kept) <= set(points)
    assert {points[0], points[-1], (12_345, 99.0), (5_000, -99.0)} <= set(kept)
    for first in range(0, 20_000, 1000):  # of any stretch the lowest and the highest stay
        low, high = min(points[first : first + 1000], key=lambda one: one[1]), 6.0
        stretch = [value for step, value in kept if first < step <= first + 1000]
        assert min(stretch) == low[1] and max(stretch) >= high
    assert plots.thin(points[:400], 100) == points[:400]


def test_smoothing_is_the_mean_of_the_last_values():
    assert plots.smooth([1.0, 2.0, 3.0, 6.0], 2) == [1.0, 1.5, 2.5, 4.5]


def test_a_course_has_its_points_where_they_belong_and_says_its_extremes():
    x = plots.steps_axis(4)
    panel = plots.course("loss", "Loss", [(1, 4.0), (2, 2.0), (4, 3.0)], x, from_zero=True)
    assert (
        panel.about == "First 4.000 at step 1, lowest 2.000 at step 2, highest 4.000 at step 1, last 3.000 at step 4."
    )
    assert panel.y.high == pytest.approx(4.12)
    assert [x for x, _ in places(panel, "only")] == [250, 500, 1000]
    assert [y for _, y in places(panel, "only")] == pytest.approx([29.1, 514.6, 271.8], abs=0.1)  # 1000 (1 − y ÷ 4.12)
    assert (panel.dots, panel.drawn) == ([], None)


def test_one_point_is_a_dot_and_the_best_has_a_ring():
    assert len(plots.course("a", "A", [(1, 4.0)], plots.steps_axis(1)).dots) == 1
    panel = plots.course("a", "A", [(10, 2.0), (20, 1.0)], plots.steps_axis(20), best=20)
    assert [(x, text) for x, _, text in panel.dots] == [(50, "step 10: 2.000"), (100, "step 20: 1.000"), (100, "best")]
    many = [(step, 1.0 / step) for step in range(1, 102)]
    assert [text for _, _, text in plots.course("a", "A", many, plots.steps_axis(101), best=101).dots] == ["best"]


def test_many_points_have_a_bold_mean_beside_them():
    points = [(step, float(step % 2)) for step in range(1, 401)]
    panel = plots.course("loss", "Loss", points, plots.steps_axis(400))
    assert panel.title == "Loss; bold: mean of 10 steps"
    assert len(places(panel, "raw")) == len(places(panel, "bold")) == 400
    assert places(panel, "bold")[-1][1] == pytest.approx(500, abs=1)


def test_a_level_above_all_points_is_inside_the_plot():
    panel = plots.course("m", "M", [(1, 9.0), (2, 9.0)], plots.steps_axis(2), from_zero=True, level=(14.56, "all"))
    assert 90 < panel.level[0] < 100


def test_a_border_lies_between_two_steps_and_of_many_some_are_named():
    x = plots.steps_axis(100)
    assert plots.borders([(2, 40), (3, 70)], x) == [(40.5, "session 2", True), (70.5, "session 3", True)]
    assert [text for _, text, _ in plots.borders([(2, 40), (3, 70), (4, 90)], x)] == ["s2", "s3", "s4"]
    many = plots.borders([(number + 1, number) for number in range(1, 100)], x)
    assert len(many) == 99
    assert [text for _, text, named in many if named] == [f"s{number}" for number in range(2, 101, 10)]
    assert plots.borders([], x) == []


def test_the_parts_of_a_bar_stand_on_each_other_and_fill_its_height():
    names = {"kept": "training", "idle": "idle"}
    panel = plots.stack("Time", [(1, {"kept": 5400.0, "idle": 1800.0}), (2, {"kept": 3600.0, "idle": 0.0})], names)
    assert panel.title == "Time, hours"
    assert panel.y.high == pytest.approx(2.08)
    (_, width, first), (_, _, second) = panel.bars
    assert width == 38
    (_, top, height, text), (_, above, rest, _) = first
    assert text == "session 1, training: 1.50 hours"
    assert top + height == pytest.approx(100, abs=0.02) and above + rest == pytest.approx(top, abs=0.02)
    assert height + rest == pytest.approx(100 * 2 / 2.08, abs=0.02)
    assert [name for name, _, _, _ in second] == ["kept"]
    assert plots.stack("Time", [(1, {"kept": 0.0, "idle": 0.0})], names).bars[0][2] == []
    assert re.fullmatch(r"2 sessions, the longest 2\.0 hours\. .*", panel.about)
