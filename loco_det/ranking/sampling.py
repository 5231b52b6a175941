"""AP's own sampling error: how much a difference of two rows would change with other test images of the same kind.

The images are resampled with replacement, the same ones for all runs, and AP is computed of each resample as COCO's
evaluation would of a data set in which images stand as often as they were drawn. Which detection takes which object is
a matter of one image, and is found once; a resample only weights the images. hotcoco.compare resamples, too, but two
runs at a time, and a row has several seeds.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..data.coco_files import read_ground_truth
from ..evaluation.analysis import read_detections
from ..evaluation.matches import Matches, Objects, count_objects, match

Path = str | os.PathLike[str]

Z95 = 1.959964  # standard errors to each side of a 95 % interval
RECALLS = np.linspace(0.0, 1.0, 101)  # pycocotools' recThrs
RESAMPLES = 200
AT_ONCE = 2_000_000  # weights of detections, in several resamples, that are in memory


class Sampled(NamedTuple):
    """AP of a row, the mean over its seeds, in percent.

    Attributes:
        ap: on the test images.
        resampled: (R,) on each resample of them.
        images: number of test images.
    """

    ap: float
    resampled: np.ndarray
    images: int


class ImageError(NamedTuple):
    """A difference of two rows and its sampling error over test images, in percent.

    Attributes:
        mean: of the seeds' differences, on the test images.
        half: of the 95 % interval, to each side: 1.96 standard errors, which are the standard deviation over the
            resamples. Percentiles would need many more of them.
        low, high: 2.5 % and 97.5 % percentiles of the resampled differences, which need not be symmetrical.
        images: number of test images.
        resamples: how many.
    """

    mean: float
    half: float
    low: float
    high: float
    images: int
    resamples: int


def image_error(
    ground_truth: Path,
    first: Sequence[Path],
    second: Sequence[Path],
    task: str = "bbox",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> ImageError:
    """The difference of two rows and its sampling error over test images, with the arguments of :func:`sample`.

    Args:
        first, second: files of predictions of the two rows, one for each seed.
    """
    return difference(*(sample(ground_truth, files, task, resamples, seed) for files in (first, second)))


def sample(
    ground_truth: Path,
    predictions: Sequence[Path],
    task: str = "bbox",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Sampled:
    """AP of a row by COCO's definition, on the test images and on resamples of them.

    Rows with the same ground truth, number of resamples and seed have the same resamples. A resample without an object
    of a class leaves that class out of its AP, as COCO's evaluation does.

    Args:
        ground_truth: path of a COCO annotation file.
        predictions: files in COCO's results format, one for each seed of the row.
        task: "bbox" or "segm".
        resamples: how many, at least 2.
        seed: of the resamples.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if there is no file of predictions, one is not in COCO's format or of other images or classes, masks
            are missing, or the ground truth has no object.
    """
    if not predictions or resamples < 2:
        raise ValueError("a sampling error needs predictions, and at least 2 resamples")
    truth = read_ground_truth(ground_truth)
    objects = count_objects(truth)
    images = len(objects.images)
    if not objects.counts.any():
        raise ValueError(f"{ground_truth} has no object that counts")
    weights = draw(images, resamples, seed)
    runs = []
    for path in predictions:
        found = read_detections(path, truth, ground_truth)
        if task == "segm" and not all("segmentation" in d for d in found):
            raise ValueError(f"{path} has no masks")
        runs.append(average_precision(objects, match(truth, objects, found, task), weights))
    aps = 100 * np.mean(runs, axis=0)
    return Sampled(float(aps[0]), aps[1:], images)


def difference(first: Sampled, second: Sampled) -> ImageError:
    """First − second, which :func:`sample` has made with the same arguments but for the predictions.

    Raises:
        ValueError: if they have other numbers of images or resamples.
    """
    if first.images != second.images or len(first.resampled) != len(second.resampled):
        raise ValueError("rows of other images or resamples cannot be compared")
    resampled = first.resampled - second.resampled
    resampled = resampled[np.isfinite(resampled)]  # but for draws without any object
    low, high = np.percentile(resampled, (2.5, 97.5))
    half = Z95 * resampled.std(ddof=1)
    return ImageError(first.ap - second.ap, float(half), float(low), float(high), first.images, len(resampled))


def draw(images: int, resamples: int, seed: int) -> np.ndarray:
    """(1 + resamples, images) int32: how often each image stands in the test set, once, and in each resample."""
    random = np.random.default_rng(seed)
    drawn = random.multinomial(images, np.full(images, 1 / images), size=resamples)
    return np.concatenate([np.ones((1, images), dtype=np.int32), drawn.astype(np.int32)])


def average_precision(objects: Objects, found: Sequence[Matches], weights: np.ndarray) -> np.ndarray:
    """(R,) AP in [0, 1] of a run, the mean over IoUs and classes, for each row of ``weights``; NaN without objects.

    Args:
        objects: of the ground truth.
        found: of each class.
        weights: (R, I) int32, how often each image counts.
    """
    counts = weights.astype(np.int64) @ objects.counts.T  # (R, K)
    aps = np.full(counts.shape, np.nan)
    for index, matches in enumerate(found):
        rows = np.flatnonzero(counts[:, index])
        for part in np.array_split(rows, max(1, len(rows) * len(matches.images) // AT_ONCE)):
            aps[part, index] = _of_class(matches, weights[part], counts[part, index])
    known = np.isfinite(aps)
    return np.where(known, aps, 0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)


def _of_class(matches, weights, objects):
    """(R,) AP of a class, the mean over IoUs.

    As pycocotools' accumulate: precision at each of 101 recalls is the best at that recall or above. It only rises at
    hits, and so only those are looked at; the copies of a hit count as its last.
    """
    drawn = weights[:, matches.images]
    above = drawn.cumsum(axis=1, dtype=np.int32)  # detections with at least that score
    total = np.zeros(len(weights))
    for hits, ignored in zip(matches.hits, matches.ignored, strict=True):
        if not len(hits):
            continue
        counted = above[:, hits]
        if len(ignored):
            left_out = np.zeros((len(weights), len(ignored) + 1), dtype=np.int32)
            drawn[:, ignored].cumsum(axis=1, out=left_out[:, 1:])
            counted = counted - left_out[:, np.searchsorted(ignored, hits)]
        right = drawn[:, hits].cumsum(axis=1, dtype=np.int32)
        precision = right / (counted + np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        reached = np.searchsorted(RECALLS, right / objects[:, None], side="right")
        total += (precision * np.diff(reached, axis=1, prepend=0)).sum(axis=1)
    return total / len(RECALLS) / len(matches.hits)
