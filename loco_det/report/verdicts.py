"""What figures over seeds say: a difference with its 95 % interval, and in words whether there is one."""

import math
import statistics
from collections.abc import Mapping
from typing import NamedTuple, Protocol

# Student's t, of which a 95 % interval has that many standard errors to each side; by degrees of freedom from 1
T95 = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)


class Difference(NamedTuple):
    """A difference of two runs over the seeds that both have.

    Attributes:
        mean: of the differences seed by seed.
        half: of the 95 % interval, to each side; None of a single seed.
        seeds: how many.
    """

    mean: float
    half: float | None
    seeds: int


class OverImages(Protocol):
    """The sampling error of a difference over test images, as :class:`loco_det.ranking.sampling.ImageError` has it.

    Attributes:
        half: of the 95 % interval, to each side.
        images: number of test images.
    """

    @property
    def half(self) -> float: ...

    @property
    def images(self) -> int: ...


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """The difference of two runs, seed by seed: what else a seed decides is the same in both.

    Args:
        first, second: seed -> figure; those that are not finite do not count.

    Returns:
        first − second, with the interval of Student's t; None without a common seed.
    """
    values = [float(first[seed]) - float(second[seed]) for seed in first if seed in second]
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return None
    half = None
    if len(values) > 1:
        half = t95(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return Difference(statistics.mean(values), half, len(values))


def t95(degrees: int) -> float:
    """The 97.5 % quantile of Student's t for that many degrees of freedom.

    From 11 on by Cornish and Fisher's expansion (Abramowitz and Stegun 26.7.5), which is exact to four digits there.
    """
    if degrees <= len(T95):
        return T95[degrees - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def verdict(
    first: str,
    second: str,
    difference: Difference,
    metric: str,
    over_images: OverImages | None = None,
    control: bool = False,
) -> str:
    """A sentence on which of two runs is above the other: the intervals over seeds and over images must both leave 0.

    Args:
        first, second: names of the runs.
        difference: first − second.
        metric: such as "box AP".
        over_images: the sampling error of the same difference; None: it is not known.
        control: whether the second run is a random initialisation, above which is above chance.
    """
    mean, half, seeds = difference
    second = f"chance ({second})" if control else second
    if over_images is None:
        return f"{_over_seeds(first, second, difference, metric)}."
    images = f"{over_images.images} test image{'s' * (over_images.images != 1)}"
    over = f"± {over_images.half:.1f}"
    if abs(mean) <= over_images.half and (half is None or abs(mean) > half):
        seeds_text = "one seed" if half is None else f"± {half:.1f} over {seeds} seeds"
        return (
            f"{first} and {second} cannot be told apart on these {images}: {mean:+.1f} {over} {metric} "
            f"(95 % interval over test images; {seeds_text})."
        )
    return f"{_over_seeds(first, second, difference, metric)}; {over} over the {images}."


def _over_seeds(first, second, difference, metric):
    """What the seeds alone say, without the full stop."""
    mean, half, seeds = difference
    if half is None:
        return f"{first} − {second}: {mean:+.1f} {metric}, one seed: what seeds differ by is not known"
    about = f"± {half:.1f} {metric} (95 % interval, {seeds} seeds)"
    if abs(mean) <= half:
        return f"{first} and {second} cannot be told apart: {mean:+.1f} {about}"
    return f"{first} is {'above' if mean > 0 else 'below'} {second} by {abs(mean):.1f} {about}"
