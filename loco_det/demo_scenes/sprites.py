"""Pictograms as pixels: drawn with anti-aliasing, mirrored, rotated and scaled, and placed in the frame of a scene."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from .pictograms import CLASSES, NUM_ROLES, PICTOGRAMS

SUPERSAMPLING = 4  # of each axis, when a silhouette is drawn


@dataclass
class Sprite:
    """A pictogram in pixels.

    Attributes:
        category: index into ``CLASSES``.
        y, x: the frame's row and column of the sprite's top left pixel; it may lie outside of the frame.
        coverage: (h, w, NUM_ROLES - 1) in [0, 1], the share of each pixel that each role but HOLE covers.
        mask: (h, w) bool, the pixels that are at least half covered.
        filled: (h, w) bool, the mask with its holes closed.
        along, across: (h, w) coordinates of each pixel in the rotated object, in units of its size.
    """

    category: int
    y: int
    x: int
    coverage: np.ndarray
    mask: np.ndarray
    filled: np.ndarray
    along: np.ndarray
    across: np.ndarray

    def window(self, size: tuple[int, int]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """The overlap with a frame of ``size`` (height, width), as slices of the frame and as slices of the sprite."""
        (h, w), (height, width) = self.mask.shape, size
        y0, y1, x0, x1 = max(self.y, 0), min(self.y + h, height), max(self.x, 0), min(self.x + w, width)
        rows, columns = slice(y0, max(y0, y1)), slice(x0, max(x0, x1))
        own = slice(rows.start - self.y, rows.stop - self.y), slice(columns.start - self.x, columns.stop - self.x)
        return (rows, columns), own

    def in_frame(self, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """An (h, w) mask of the sprite as an (H, W) bool mask of a frame of ``size`` (height, width)."""
        out = np.zeros(size, bool)
        frame, own = self.window(size)
        out[frame] = mask[own]
        return out


def draw_sprite(rng: np.random.Generator, category: int, scale: float) -> Sprite | None:
    """Draw one pictogram, mirrored at random and rotated by up to 25 degrees.

    Args:
        rng: source of all random choices.
        category: index into ``CLASSES``.
        scale: square root of the area of its upright bounding box, in pixels.

    Returns:
        The sprite at (0, 0), or None if its thin parts fell apart at this scale.
    """
    parts = PICTOGRAMS[CLASSES[category]](rng, 1.9 / scale)
    points = np.concatenate([polygon for _, polygon in parts])
    low, high = points.min(0), points.max(0)
    angle = np.deg2rad(np.clip(rng.normal(0, 9), -25, 25))
    zoom = scale / np.sqrt(np.prod(high - low))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = zoom * turn * (rng.choice((-1, 1)), 1)  # the mirror flips x before the rotation
    points = points @ matrix.T
    corner = np.floor(points.min(0)) - 1
    w, h = (np.ceil(points.max(0)) + 1 - corner).astype(int)
    roles = np.zeros((h * SUPERSAMPLING, w * SUPERSAMPLING), np.uint8)
    for role, polygon in parts:
        at = ((polygon @ matrix.T - corner) * SUPERSAMPLING - 0.5) * 16  # 4 fractional bits; pixel centres are integers
        cv2.fillPoly(roles, [np.round(at).astype(np.int32)], int(role), shift=4)
    coverage = np.empty((h, w, NUM_ROLES - 1), np.float32)
    for role in range(1, NUM_ROLES):
        layer = (roles == role).astype(np.uint8) * np.uint8(255)
        coverage[:, :, role - 1] = cv2.resize(layer, (w, h), interpolation=cv2.INTER_AREA)
    coverage /= 255
    mask = coverage.sum(2) >= 0.5
    contours = outer_contours(mask)
    if len(contours) != 1:
        return None
    filled = cv2.drawContours(np.zeros((h, w), np.uint8), contours, -1, 1, cv2.FILLED).astype(bool)
    y, x = np.mgrid[:h, :w]
    along, across = np.tensordot(turn.T, np.stack([x - w / 2, y - h / 2]) / scale, 1).astype(np.float32)
    return Sprite(category, 0, 0, coverage, mask, filled, along, across)


def outer_contours(mask: np.ndarray) -> Sequence[np.ndarray]:
    """OpenCV's outer contours of an (H, W) bool mask: an (N, 1, 2) array of (x, y) for each connected part."""
    return cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]
