"""Differences over seeds: their intervals against scipy's, and what is said of them."""

import math

import numpy as np
import pytest
from scipy import stats

from loco_det.ranking.sampling import ImageError
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


SEEDS, OVER = "box AP (95 % interval, 3 seeds)", "over the 50 test images."
EQUAL = "a and b cannot be told apart on these 50 test images"


@pytest.mark.parametrize(
    ("difference", "half", "text"),
    [
        ((1.2, 0.4, 3), 0.9, f"a is above b by 1.2 ± 0.4 {SEEDS}; ± 0.9 {OVER}"),
        ((-1.2, 0.4, 3), 1.1, f"a is below b by 1.2 ± 0.4 {SEEDS}; ± 1.1 {OVER}"),
        ((1.2, 0.4, 3), 2.1, f"{EQUAL}: +1.2 ± 2.1 box AP (95 % interval over test images; ± 0.4 over 3 seeds)."),
        ((-0.3, 1.0, 3), 2.1, f"a and b cannot be told apart: -0.3 ± 1.0 {SEEDS}; ± 2.1 {OVER}"),
        ((0.3, 1.0, 3), 0.1, f"a and b cannot be told apart: +0.3 ± 1.0 {SEEDS}; ± 0.1 {OVER}"),
        ((1.2, None, 1), 2.1, f"{EQUAL}: +1.2 ± 2.1 box AP (95 % interval over test images; one seed)."),
        ((1.2, None, 1), 0.9, f"a − b: +1.2 box AP, one seed: what seeds differ by is not known; ± 0.9 {OVER}"),
    ],
)
def test_both_intervals_must_leave_zero(difference, half, text):
    error = ImageError(difference[0], half, 0.0, 0.0, 50, 200)
    assert verdict("a", "b", Difference(*difference), "box AP", error) == text


def test_above_a_control_is_above_chance():
    found = verdict("a", "random", Difference(2.5, 1.0, 3), "box AP", control=True)
    assert found == "a is above chance (random) by 2.5 ± 1.0 box AP (95 % interval, 3 seeds)."
    found = verdict("a", "random", Difference(2.5, 1.0, 3), "box AP", ImageError(2.5, 3.0, 0, 0, 9, 200), control=True)
    assert found.startswith("a and chance (random) cannot be told apart on these 9 test images: +2.5 ± 3.0 box AP")
    found = verdict("a", "random", Difference(0.3, 1.0, 3), "box AP", control=True)
    assert found == "a and chance (random) cannot be told apart: +0.3 ± 1.0 box AP (95 % interval, 3 seeds)."
