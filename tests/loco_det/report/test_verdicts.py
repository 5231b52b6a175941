"""Differences over seeds: their intervals against scipy's, and what is said of them."""

import math

import numpy as np
import pytest
from scipy import stats

from loco_det.report.verdicts import Difference, paired, t95, verdict


@pytest.mark.parametrize("degrees", [*range(1, 31), 100, 1000])
def test_quantiles_are_scipys(degrees):
    assert t95(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=1e-4)


def test_intervals_are_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(5, 1, 4), rng.normal(4, 1, 4)
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    found = paired(dict(enumerate(a)), dict(enumerate(b)))
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high), rel=1e-4)
    assert found.seeds == 4


def test_only_common_seeds_with_figures_count():
    first = {0: 5.0, 1: 6.0, 2: math.nan, 7: 9.0}
    assert paired(first, {0: 4.0, 1: 4.0, 2: 1.0}) == pytest.approx((1.5, 12.7062 * math.sqrt(0.5) / math.sqrt(2), 2))
    assert paired(first, {1: 4.0}) == (2.0, None, 1)
    assert paired(first, {2: 4.0, 3: 1.0}) is None


@pytest.mark.parametrize(
    ("difference", "text"),
    [
        (Difference(2.5, 1.0, 3), "a is above b by 2.5 ± 1.0 box AP (95 % interval, 3 seeds)."),
        (Difference(-2.5, 1.0, 3), "a is below b by 2.5 ± 1.0 box AP (95 % interval, 3 seeds)."),
        (Difference(0.3, 1.0, 3), "a and b cannot be told apart: +0.3 ± 1.0 box AP (95 % interval, 3 seeds)."),
        (Difference(-0.3, None, 1), "a − b: -0.3 box AP, one seed: what seeds differ by is not known."),
    ],
)
def test_in_words(difference, text):
    assert verdict("a", "b", difference, "box AP") == text
