"""Where dots lie on their axis."""

import pytest

from loco_det.ranking.comparisons import Entry
from loco_det.ranking.dots import axis_of, dot
from loco_det.ranking.evaluation import Row


def entry(*values, published=None):
    return Entry(Row("a", folder=None), dict(enumerate(values)), {}, published)


@pytest.mark.parametrize(
    ("entries", "end", "labels"),
    [
        ([], 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([entry(0.001)], 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([entry(7.3)], 8, ["0", "2", "4", "6", "8"]),
        ([entry(34.5), entry(41.0)], 50, ["0", "10", "20", "30", "40", "50"]),
        ([entry(4.0, published=12.1)], 12.5, ["0", "2.5", "5", "7.5", "10", "12.5"]),
        ([entry(10.0)], 10, ["0", "2", "4", "6", "8", "10"]),
    ],
)
def test_axes_begin_at_zero_and_end_on_a_tick(entries, end, labels):
    axis = axis_of(entries)
    assert axis.end == pytest.approx(end) and [text for _, text in axis.ticks] == labels
    assert axis.ticks[0][0] == 0 and axis.ticks[-1][0] == 100


def test_an_interval_of_two_seeds_does_not_press_all_figures_together():
    wide = entry(10.0, 14.0)  # ± 25
    axis = axis_of([wide])
    assert axis.end == 30
    found = dot(wide, axis, "box AP")
    assert (found.low, found.high, found.x, found.text) == (0, 100, 40, "12.0 ± 25.4")
    assert found.seeds == pytest.approx([100 / 3, 140 / 3], abs=0.01)


def test_one_seed_has_no_interval():
    found = dot(entry(5.0, published=7.5), axis_of([entry(10.0)]), "box AP")
    assert (found.x, found.low, found.high, found.seeds, found.published) == (50, None, None, [], 75)
    assert found.title == "a: 5.0 box AP, seeds: 5.0; published: 7.5"
