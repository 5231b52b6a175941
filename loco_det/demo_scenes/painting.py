"""Light and colour of a scene: shadows, painted sprites, and what a camera makes of them."""

import math

import cv2
import numpy as np

from .backdrops import perlin
from .pictograms import BODY, DARK, GLASS, NUM_ROLES, SKIN, TRIM
from .sprites import Sprite


def shade_ground(
    rng: np.random.Generator, image: np.ndarray, mask: np.ndarray, sprite: Sprite, on_ground: bool, light: float
) -> None:
    """Darken the shadow of a sprite, in place: flat on the ground, or slightly offset on a wall.

    Args:
        rng: source of all random choices.
        image: (H, W, 3) float32 radiance.
        mask: (H, W) bool, the sprite's silhouette in the frame.
        sprite: casts the shadow.
        on_ground: whether there is a ground to cast it on.
        light: direction of the light, an angle in radians.
    """
    h, w = sprite.mask.shape
    lean, foot = math.cos(light) * rng.uniform(0.4, 1.0), float(sprite.y + h - 2)
    if on_ground:
        squash = 0.3
        matrix = np.array([[1, lean, -lean * foot], [0, squash, foot * (1 - squash)]])
    else:
        shift = 0.12 * min(h, w)
        matrix = np.array([[1, 0, math.cos(light) * shift], [0, 1, abs(math.sin(light)) * shift + 1]])
    shadow = cv2.warpAffine(mask.astype(np.float32), matrix, mask.shape[::-1], flags=cv2.INTER_LINEAR)
    shadow = cv2.GaussianBlur(shadow, (0, 0), max(1.0, 0.04 * min(h, w)))
    image *= (1 - rng.uniform(0.3, 0.6) * shadow)[:, :, None]


def paint(rng: np.random.Generator, image: np.ndarray, sprite: Sprite, light: float) -> None:
    """Blend a sprite into the image, in place: random colours, a texture on the body, rounded shading.

    Args:
        rng, image, sprite, light: as in :func:`shade_ground`.
    """
    colours = np.zeros((NUM_ROLES, 3), np.float32)  # the row of HOLE is not used
    colours[[BODY, TRIM]] = rng.uniform(0.1, 0.95, (2, 3))
    colours[SKIN] = np.array([0.95, 0.72, 0.58]) * rng.uniform(0.35, 1.0) + rng.uniform(-0.05, 0.05, 3)
    colours[DARK] = rng.uniform(0.04, 0.22) + rng.uniform(0, 0.05, 3)
    colours[GLASS] = rng.uniform(0.15, 0.85) * np.array([0.85, 0.95, 1.0])
    alpha = sprite.coverage.sum(2)
    pixels = np.tensordot(sprite.coverage, colours[1:], 1) / np.maximum(alpha, 1e-3)[:, :, None]
    texture = 1 + rng.uniform(0.05, 0.3) * _texture(rng, sprite)
    share = (sprite.coverage[:, :, BODY - 1] + 0.5 * sprite.coverage[:, :, TRIM - 1])[:, :, None]
    pixels *= 1 + (texture[:, :, None] - 1) * share
    # As on a rounded body, the side that faces the light is brighter and the rim is darker
    lit = 1 - 0.35 * (sprite.along * math.cos(light) + sprite.across * abs(math.sin(light)))
    inner = cv2.GaussianBlur(alpha, (0, 0), max(1.0, 0.05 * min(alpha.shape)))
    pixels *= (np.clip(lit, 0.6, 1.4) * (0.55 + 0.45 * inner))[:, :, None]
    frame, own = sprite.window(image.shape[:2])
    a = alpha[own][:, :, None]
    image[frame] += a * (pixels[own] - image[frame])


def _texture(rng, sprite):
    """A pattern (h, w) in about [-1, 1] that rotates with the object: plain, stripes, dots, checks or smooth noise."""
    kind, frequency = rng.integers(5), rng.uniform(20, 60)
    angle = rng.uniform(0, np.pi)
    u = sprite.along * math.cos(angle) + sprite.across * math.sin(angle)
    v = sprite.across * math.cos(angle) - sprite.along * math.sin(angle)
    if kind == 0:
        return np.zeros_like(u)
    if kind == 1:
        return np.sin(u * frequency)
    if kind == 2:
        return np.where(np.sin(u * frequency) * np.sin(v * frequency) > 0.45, 1.0, -0.3).astype(np.float32)
    if kind == 3:
        return np.sign(np.sin(u * frequency * 0.7) * np.sin(v * frequency * 0.7))
    return 2 * perlin(rng, u.shape, 4, 3) - 1


def photograph(rng: np.random.Generator, image: np.ndarray, light: float) -> np.ndarray:
    """Turn radiance into a picture: uneven light, colour cast, blur, sensor noise, 8 bits.

    Args:
        rng, image, light: as in :func:`shade_ground`; the image is not changed.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    height, width = image.shape[:2]
    y, x = np.linspace(-0.5, 0.5, height, dtype=np.float32), np.linspace(-0.5, 0.5, width, dtype=np.float32)
    slope = rng.uniform(0.1, 0.5)
    image = image * (1 - slope * (math.cos(light) * x[None, :] + math.sin(light) * y[:, None]))[:, :, None]
    image *= rng.uniform(0.75, 1.15) * rng.uniform(0.92, 1.08, 3).astype(np.float32)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.35, 0.75))
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    image = image + grain * (rng.uniform(0.006, 0.03) * (0.5 + np.sqrt(np.maximum(image, 0))))
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
