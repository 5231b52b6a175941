"""Backdrops of the demo scenes: streets, walls, foliage, clouds and patterned planes in random colours."""

import math

import cv2
import numpy as np

Backdrop = tuple[np.ndarray, np.ndarray, int | None]  # what draw_backdrop returns

# Label ids of cityscapesscripts.helpers.labels
ROAD, SIDEWALK, BUILDING, WALL, VEGETATION, TERRAIN, SKY = 7, 8, 11, 12, 21, 22, 23


def draw_backdrop(rng: np.random.Generator, size: tuple[int, int]) -> Backdrop:
    """Draw a random backdrop.

    Args:
        rng: source of all random choices.
        size: (height, width) in pixels.

    Returns:
        (H, W, 3) float32 RGB radiance in about [0, 1], (H, W) uint8 Cityscapes label ids, and the row of the horizon in
        pixels, or None if the backdrop has no ground to stand on.
    """
    kinds = (_street, _room, _foliage, _clouds, _pattern)
    kind = rng.choice(len(kinds), p=(0.4, 0.15, 0.15, 0.15, 0.15))
    image, stuff, horizon = kinds[kind](rng, size)
    return np.ascontiguousarray(image, np.float32), stuff, horizon


def perlin(rng: np.random.Generator, size: tuple[int, int], cells: int | tuple[int, int], octaves: int) -> np.ndarray:
    """Smooth noise in [0, 1]: a sum of random grids, each twice as fine and half as strong as the one before.

    Args:
        rng: source of the grids.
        size: (height, width) in pixels.
        cells: cells of the first grid across the shorter side, or its (rows, columns).
        octaves: number of grids.

    Returns:
        (H, W) float32.
    """
    height, width = size
    across = cells if isinstance(cells, tuple) else (cells * height / min(size), cells * width / min(size))
    total = np.zeros(size, np.float32)
    for octave in range(octaves):
        rows, columns = (max(2, round(c * 2**octave)) for c in across)
        grid = rng.random((rows, columns), dtype=np.float32) * 0.5**octave
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(total / (2 - 0.5 ** (octaves - 1)), 0, 1)


def _mix(amount, first, second):
    """Blend two colours (3,) by an (H, W) amount in [0, 1]; (H, W, 3) float32."""
    first, second = np.asarray(first, np.float32), np.asarray(second, np.float32)
    return first + amount[:, :, None] * (second - first)


def _colour(rng, low=0.1, high=0.9, vivid=0.35):
    """A random colour (3,): a grey between ``low`` and ``high``, mixed with a random tint by the share ``vivid``."""
    return rng.uniform(low, high) * (1 - vivid) + rng.uniform(low, high, 3) * vivid


def _rows(size):
    """(H, W) float32 from 0 in the first row to 1 in the last."""
    return np.broadcast_to(np.linspace(0, 1, size[0], dtype=np.float32)[:, None], size)


def _street(rng: np.random.Generator, size: tuple[int, int]) -> Backdrop:
    """Sky, a skyline of houses or hills, and a road or a meadow whose texture gets finer towards the horizon."""
    height, width = size
    horizon = int(height * rng.uniform(0.25, 0.5))
    stuff = np.full(size, SKY, np.uint8)
    blue = np.array([0.45, 0.65, 0.95]) * rng.uniform(0.5, 1.0) + rng.uniform(-0.1, 0.1, 3)
    image = _mix(np.clip(_rows(size) * 1.8, 0, 1), blue, blue * 0.5 + rng.uniform(0.3, 0.5, 3))
    clouds = np.clip(perlin(rng, size, (5, 3), 4) * 3 - rng.uniform(1.2, 2.0), 0, 1)
    image = image + clouds[:, :, None] * (0.9 - image) * rng.uniform(0.3, 0.9)
    (_houses if rng.random() < 0.6 else _hills)(rng, image, stuff, horizon)
    ground = (slice(horizon, None), slice(None))
    shape = (height - horizon, width)
    depth = _rows(shape)  # 0 at the horizon
    rows = (np.log1p(depth * 8) / np.log(9) * (shape[0] - 1)).astype(np.float32)  # squeezes the texture far away
    aside = np.arange(width, dtype=np.float32) - width / 2
    columns = (aside / (0.3 + 0.7 * depth) * 0.4 + width / 2).astype(np.float32)
    grain = cv2.remap(perlin(rng, shape, 8, 5), columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    meadow = rng.random() < 0.4
    base = _colour(rng, 0.25, 0.6, 0.15) if not meadow else np.array([0.35, 0.5, 0.2]) * rng.uniform(0.5, 1.2, 3)
    image[ground] = _mix(grain, base * 0.55, base * 1.35)
    stuff[ground] = TERRAIN if meadow else ROAD
    if not meadow:
        _lane_marks(rng, image, horizon)
    return image, stuff, horizon


def _houses(rng, image, stuff, horizon):
    width, x = image.shape[1], 0
    while x < width:
        w = int(width * rng.uniform(0.08, 0.25)) + 2
        top = int(horizon * rng.uniform(0.15, 0.85))
        front = image[top:horizon, x : x + w]
        wall = _colour(rng, 0.2, 0.75, 0.4)
        front[:] = wall
        pitch = max(4, int(image.shape[0] * rng.uniform(0.03, 0.06)))
        yy, xx = np.mgrid[: front.shape[0], : front.shape[1]] % pitch
        front[(yy >= pitch * 0.4) & (xx >= pitch * 0.45)] = wall * rng.uniform(0.4, 1.3)
        stuff[top:horizon, x : x + w] = BUILDING
        x += w


def _hills(rng, image, stuff, horizon):
    width = image.shape[1]
    for _ in range(rng.integers(1, 4)):
        ridge = horizon * (0.3 + 0.7 * perlin(rng, (1, width), (1, rng.integers(2, 9)), 4)[0])
        area = (np.arange(image.shape[0])[:, None] >= ridge) & (np.arange(image.shape[0])[:, None] < horizon)
        tone = np.array([0.25, 0.38, 0.22]) * rng.uniform(0.4, 1.3, 3)
        image[area] = _mix(perlin(rng, image.shape[:2], 16, 3), tone * 0.6, tone * 1.4)[area]
        stuff[area] = VEGETATION


def _lane_marks(rng, image, horizon):
    """Dashes towards the vanishing point, thinner with distance."""
    height, width = image.shape[:2]
    vanish, paint = width * rng.uniform(0.3, 0.7), float(rng.uniform(0.6, 0.95))
    for lane in rng.uniform(-0.3, 1.3, rng.integers(1, 4)):
        for near, far in ((1.0, 0.62), (0.45, 0.28), (0.2, 0.12)):
            points = []
            for depth, side in ((near, -1), (near, 1), (far, 1), (far, -1)):
                x = vanish + (width * lane - vanish) * depth + side * 0.012 * width * depth
                points.append((x, horizon + (height - horizon) * depth))
            cv2.fillPoly(image, [np.round(np.array(points) * 16).astype(np.int32)], (paint,) * 3, cv2.LINE_8, 4)


def _room(rng: np.random.Generator, size: tuple[int, int]) -> Backdrop:
    """A wall of bricks or planks over a floor."""
    height, width = size
    horizon = int(height * rng.uniform(0.3, 0.55))
    tall = max(4, int(height * rng.uniform(0.04, 0.09)))
    long = int(tall * rng.uniform(1.5, 3))
    y, x = np.mgrid[:height, :width]
    row = y // tall
    column = (x + (row % 2) * (long // 2)) // long
    tones = rng.uniform(0.75, 1.15, (height // tall + 1, width // long + 2)).astype(np.float32)
    image = tones[row, column][:, :, None] * _colour(rng, 0.25, 0.75, 0.5).astype(np.float32)
    image[(y % tall == 0) | ((x + (row % 2) * (long // 2)) % long == 0)] *= 0.7
    image *= (0.8 + 0.4 * perlin(rng, size, 6, 4))[:, :, None]
    floor = _colour(rng, 0.2, 0.7)
    image[horizon:] = _mix(perlin(rng, (height - horizon, width), (12, 3), 4), floor * 0.7, floor * 1.3)
    stuff = np.full(size, WALL, np.uint8)
    stuff[horizon:] = SIDEWALK
    return image, stuff, horizon


def _foliage(rng: np.random.Generator, size: tuple[int, int]) -> Backdrop:
    """Hundreds of leaves, dark ones under bright ones: clutter with many edges."""
    height, width = size
    leaf = _colour(rng, 0.2, 0.7, 0.6)
    image = np.empty((height, width, 3), np.float32)
    image[:] = leaf * 0.3
    count = 260
    centres = rng.random((count, 2)) * (width, height) * 16
    axes = min(size) * rng.uniform(0.015, 0.06, (count, 2)) * 16 + 16
    angles = rng.uniform(0, 360, count)
    tones = np.linspace(0.35, 1.2, count)[:, None] * leaf * rng.uniform(0.8, 1.2, (count, 3))
    for centre, axis, angle, tone in zip(centres, axes, angles, tones, strict=True):
        outline = cv2.ellipse2Poly((0, 0), (int(axis[0]), int(axis[1])), int(angle), 0, 360, 30)
        cv2.fillConvexPoly(image, outline + centre.astype(np.int32), tone.tolist(), cv2.LINE_8, 4)
    return image, np.full(size, VEGETATION, np.uint8), None


def _clouds(rng: np.random.Generator, size: tuple[int, int]) -> Backdrop:
    """Three colours mixed by multi-octave noise."""
    noise = perlin(rng, size, int(rng.integers(2, 7)), 5)
    noise = np.clip((noise - noise.min()) / (np.ptp(noise) + 1e-6), 0, 1)
    image = _mix(noise, _colour(rng), _colour(rng))
    veil = np.clip(perlin(rng, size, 3, 3) * 2 - 0.7, 0, 1)
    image += veil[:, :, None] * (_colour(rng).astype(np.float32) - image)
    return image, np.full(size, TERRAIN, np.uint8), None


def _pattern(rng: np.random.Generator, size: tuple[int, int]) -> Backdrop:
    """A plane of stripes, checks or tiles over a gradient, with some dirt."""
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float32) / min(size)
    angle, frequency = rng.uniform(0, np.pi), rng.uniform(15, 60)
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    wave = np.sin(u * frequency) * (np.sin(v * frequency) if rng.random() < 0.5 else 1)
    wave = np.sign(wave) if rng.random() < 0.5 else wave
    ramp = np.clip(0.5 + 0.5 * (v + 0.3 * wave * rng.uniform(0.3, 1.0)), 0, 1)
    image = _mix(ramp, _colour(rng), _colour(rng)) * (0.75 + 0.5 * perlin(rng, size, 5, 5))[:, :, None]
    return image, np.full(size, WALL, np.uint8), None
