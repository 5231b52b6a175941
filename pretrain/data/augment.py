"""SimCLR's augmentation (arXiv 2002.05709, Appendix A): a random view of an image.

The distributions are those of torchvision's RandomResizedCrop, ColorJitter, RandomGrayscale, GaussianBlur and
RandomSolarize (``tests/pretrain/data/test_augment.py``). :class:`SimCLRView` augments one image at a time on the CPU,
with OpenCV; :class:`.device_augment.DeviceAugment` does all but crop and flip for a batch on its device.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import cv2
import numpy as np
import torch
from fvcore.common.config import CfgNode as CN
from PIL import Image

from ..files import StrPath
from ..files.atomic import write_whole

cv2.setNumThreads(0)  # the loader's workers run in parallel already

# (image (H, W, 3) uint8 RGB, generator, 0 or 1 for the first or second view) -> view (S, S, 3) uint8 RGB
View: TypeAlias = Callable[[np.ndarray, np.random.Generator, int], np.ndarray]


class SimCLRView:
    """Random resized crop, flip, colour jitter, grayscale, blur and solarize, in this order."""

    def __init__(self, cfg: CN, colour: bool = True) -> None:
        """
        Args:
            cfg: the INPUT node of the config.
            colour: False: only crop and flip; :class:`.device_augment.DeviceAugment` does the rest.
        """
        self.size, self.area, self.colour = cfg.CROP_SIZE, cfg.CROP_AREA, colour
        self.jitter_prob, self.jitter_limits = cfg.JITTER_PROB, jitter_limits(cfg.JITTER)
        self.gray_prob = cfg.GRAYSCALE_PROB
        self.blur_prob, self.sigma = cfg.BLUR_PROB, cfg.BLUR_SIGMA
        self.solarize_prob = cfg.SOLARIZE_PROB

    def __call__(self, image: np.ndarray, rng: np.random.Generator, which: int) -> np.ndarray:
        """
        Args:
            image: (H, W, 3) uint8 RGB.
            rng: the only source of randomness.
            which: 0 for the first and 1 for the second view of the image, whose probabilities may differ.

        Returns:
            (S, S, 3) uint8 RGB, S = INPUT.CROP_SIZE.
        """
        view = self._crop(image, rng)
        if rng.random() < 0.5:
            view = cv2.flip(view, 1)
        if not self.colour:
            return view
        if rng.random() < self.jitter_prob:
            view = self._jitter(view, rng)
        gray = rng.random() < self.gray_prob
        if gray:
            view = cv2.cvtColor(view, cv2.COLOR_RGB2GRAY)  # blur and solarize then process one channel instead of three
        if rng.random() < self.blur_prob[which]:
            view = _blur(view, rng.uniform(*self.sigma), self.size // 20)
        if rng.random() < self.solarize_prob[which]:
            view = cv2.min(view, ~view)  # inverts values of 128 and more
        return cv2.cvtColor(view, cv2.COLOR_GRAY2RGB) if gray else view

    def _crop(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        height, width = image.shape[:2]
        for _ in range(10):
            area = height * width * rng.uniform(*self.area)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
                break
        else:  # like torchvision: the largest central crop within the limits of the ratio
            w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
            y, x = (height - h) // 2, (width - w) // 2
        # torchvision's own resize: antialiased, and on channels_last bytes faster than OpenCV's INTER_AREA.
        # numpy makes the contiguous copy, because torch would use its threads for it.
        crop = torch.from_numpy(np.ascontiguousarray(image[y : y + h, x : x + w]))[None].permute(0, 3, 1, 2)
        crop = torch.nn.functional.interpolate(crop, (self.size, self.size), mode="bilinear", antialias=True)
        return crop[0].permute(1, 2, 0).contiguous().numpy()

    def _jitter(self, view: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        for kind in rng.permutation(4):
            factor = rng.uniform(*self.jitter_limits[kind])
            if kind == 0:  # brightness
                view = cv2.convertScaleAbs(view, alpha=factor)
            elif kind == 1:  # contrast, about the mean gray level
                mean = cv2.mean(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY))[0]
                view = cv2.addWeighted(view, factor, view, 0, mean * (1 - factor))
            elif kind == 2:  # saturation
                view = cv2.addWeighted(view, factor, _gray(view), 1 - factor, 0)
            else:
                view = _shift_hue(view, factor)
        return view


def jitter_limits(jitter: Sequence[float]) -> list[tuple[float, float]]:
    """Ranges of the factors of brightness, contrast and saturation, and of the hue's shift in turns.

    Args:
        jitter: INPUT.JITTER, the strengths of these four.
    """
    *factors, hue = jitter
    return [(max(0, 1 - width), 1 + width) for width in factors] + [(-hue, hue)]


def _gray(view: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(cv2.cvtColor(view, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _shift_hue(view: np.ndarray, turns: float) -> np.ndarray:
    hsv = cv2.cvtColor(view, cv2.COLOR_RGB2HSV_FULL)
    shift = np.zeros((1, hsv.shape[1], 3), np.uint8)  # whole rows are added several times as fast as every third byte
    shift[..., 0] = round(turns * 256) % 256
    hsv += shift  # wraps around, as hue does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def _blur(view: np.ndarray, sigma: float, radius: int) -> np.ndarray:
    """Gaussian blur of at most ``radius`` pixels to each side (SimCLR: a kernel of a tenth of the image's side).

    The kernel ends at 3 sigma: beyond, it does not change 8-bit images (OpenCV's own rule). Its weights are floats;
    cv2.GaussianBlur rounds them to 8 bits for such images, and is slower.
    """
    kernel = cv2.getGaussianKernel(2 * min(radius, math.ceil(3 * sigma)) + 1, sigma, cv2.CV_32F)
    return cv2.sepFilter2D(view, -1, kernel, kernel)


def save_views(path: StrPath, images: Iterable[np.ndarray], view: View, seed: int, height: int = 128) -> None:
    """Write a picture with a row for each image: the image and two views of it.

    Args:
        path: the PNG file.
        images: (H, W, 3) uint8 RGB each; if there are none, nothing is written.
        view: makes the views.
        seed: of the augmentation.
        height: of a row, in pixels, without its margins.

    Raises:
        OSError: naming the file, if it cannot be written.
    """
    rows, rng = [], np.random.default_rng(seed)
    for image in images:
        scale = height / image.shape[0]
        cells = [cv2.resize(image, (max(1, round(image.shape[1] * scale)), height), interpolation=cv2.INTER_AREA)]
        cells += [cv2.resize(view(image, rng, which), (height, height)) for which in range(2)]
        rows.append(np.hstack([np.pad(cell, ((2, 2), (2, 2), (0, 0)), constant_values=255) for cell in cells]))
    if not rows:
        return
    width = max(row.shape[1] for row in rows)
    sheet = np.vstack([np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows])
    write_whole(path, lambda file: Image.fromarray(sheet).save(file, "PNG"))
