"""SimCLR's augmentation (arXiv 2002.05709, Appendix A) with OpenCV: one image to one random view."""

import math

import cv2
import numpy as np
from PIL import Image

cv2.setNumThreads(0)  # the loader's workers are the parallelism


class SimCLRView:
    """Random resized crop, flip, colour jitter, grayscale and blur, in this order.

    Distributions are those of torchvision's RandomResizedCrop, ColorJitter, RandomGrayscale and GaussianBlur with
    SimCLR's settings.
    """

    def __init__(self, cfg):
        """
        Args:
            cfg: the INPUT node of the config.
        """
        self.size = cfg.CROP_SIZE
        self.area = cfg.CROP_AREA
        self.strength = cfg.JITTER_STRENGTH
        self.jitter_prob, self.gray_prob = cfg.JITTER_PROB, cfg.GRAYSCALE_PROB
        self.blur_prob, self.sigma = cfg.BLUR_PROB, cfg.BLUR_SIGMA

    def __call__(self, image, rng):
        """
        Args:
            image: (H, W, 3) uint8 RGB.
            rng: numpy Generator, the only source of randomness.

        Returns:
            ndarray: (size, size, 3) uint8 RGB.
        """
        image = self._crop(image, rng)
        if rng.random() < 0.5:
            image = cv2.flip(image, 1)
        if rng.random() < self.jitter_prob:
            image = self._jitter(image, rng)
        if rng.random() < self.gray_prob:
            image = _gray(image)
        if rng.random() < self.blur_prob:
            kernel = 2 * (self.size // 20) + 1  # a tenth of the image's side, odd
            image = cv2.GaussianBlur(image, (kernel, kernel), rng.uniform(*self.sigma))
        return np.ascontiguousarray(image)

    def _crop(self, image, rng):
        height, width = image.shape[:2]
        for _ in range(10):
            area = height * width * rng.uniform(*self.area)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                y, x = rng.integers(height - h + 1), rng.integers(width - w + 1)
                break
        else:  # as torchvision: the largest central crop within the ratios
            w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
            y, x = (height - h) // 2, (width - w) // 2
        # averaging over areas is the antialiased choice when an image gets smaller
        how = cv2.INTER_AREA if h * w > self.size**2 else cv2.INTER_LINEAR
        return cv2.resize(image[y : y + h, x : x + w], (self.size, self.size), interpolation=how)

    def _jitter(self, image, rng):
        s = self.strength
        for kind in rng.permutation(4):
            if kind == 3:
                image = _shift_hue(image, rng.uniform(-0.2 * s, 0.2 * s))
                continue
            factor = rng.uniform(max(0, 1 - 0.8 * s), 1 + 0.8 * s)
            if kind == 0:  # brightness
                image = cv2.convertScaleAbs(image, alpha=factor)
            elif kind == 1:  # contrast, about the mean gray level
                mean = round(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0])
                image = cv2.LUT(image, _clip((np.arange(256) - mean) * factor + mean))
            else:  # saturation
                image = cv2.addWeighted(image, factor, _gray(image), 1 - factor, 0)
        return image


def _clip(levels):
    return levels.round().clip(0, 255).astype(np.uint8)


def _gray(image):
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def _shift_hue(image, turns):
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    hsv[..., 0] += np.uint8(round(turns * 256) % 256)  # wraps around, as hue does
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def save_views(path, images, view, seed, height=128):
    """Write a picture with a row for each image: the image and two views of it, ``height`` pixels high.

    Args:
        path: PNG to write.
        images: iterable of (H, W, 3) uint8 RGB; nothing is written if there are none.
        view: function (image, numpy Generator) -> (S, S, 3) uint8.
        seed: of the augmentation.
    """
    rows, rng = [], np.random.default_rng(seed)
    for image in images:
        scale = height / image.shape[0]
        cells = [cv2.resize(image, (max(1, round(image.shape[1] * scale)), height), interpolation=cv2.INTER_AREA)]
        cells += [cv2.resize(view(image, rng), (height, height)) for _ in range(2)]
        rows.append(np.hstack([np.pad(cell, ((2, 2), (2, 2), (0, 0)), constant_values=255) for cell in cells]))
    if not rows:
        return
    width = max(row.shape[1] for row in rows)
    sheet = np.vstack([np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows])
    Image.fromarray(sheet).save(path)
