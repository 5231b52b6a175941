"""One demo scene: a pure function of (seed, stream, index, size) to an image and its exact instance masks.

A scene is a textured backdrop, three to seven pictograms that may hide one another, shadows, a light from one side,
blur and sensor noise. A class is told by its shape: colours, textures, sizes and angles are drawn the same way for all.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np

from .backdrops import draw_backdrop, perlin
from .pictograms import BODY, DARK, GLASS, NUM_ROLES, PICTOGRAMS, SKIN, TRIM

CLASSES = tuple(PICTOGRAMS)
STREAMS = ("unlabeled", "coco_train", "coco_val", "cityscapes_train", "cityscapes_val")  # order is part of the seed
MAX_INSTANCES = 7
MIN_VISIBLE_PIXELS = 40
MIN_VISIBLE_SHARE = 0.4  # of the instance's own silhouette inside the frame
MIN_IN_FRAME = 0.75  # of the whole silhouette
SUPERSAMPLING = 4  # of each axis, when a silhouette is drawn
TRIES = 25  # places tried for one instance before the scene does without it


@dataclass
class Instance:
    """One drawn thing.

    Attributes:
        category: index into ``CLASSES``.
        mask: (H, W) bool, its visible pixels.
        silhouette: (H, W) bool, the pixels that it would have if nothing stood before it.
    """

    category: int
    mask: np.ndarray
    silhouette: np.ndarray


@dataclass
class Scene:
    """
    Attributes:
        image: (H, W, 3) uint8 RGB.
        instances: list of Instance, the farthest first: each hides those before it in the list.
        stuff: (H, W) uint8, Cityscapes label id of the backdrop, under the instances too.
    """

    image: np.ndarray
    instances: list
    stuff: np.ndarray


@dataclass
class _Sprite:
    """A pictogram in pixels: where it lies in the frame, its coverage by role and its filled outline."""

    category: int
    y: int
    x: int
    coverage: np.ndarray  # (h, w, NUM_ROLES - 1) in [0, 1], of the roles but HOLE
    mask: np.ndarray  # (h, w) bool: at least half covered
    filled: np.ndarray  # (h, w) bool: the mask with its holes closed
    along: np.ndarray  # (h, w) coordinates of the turned object, in units of its size
    across: np.ndarray


def draw_scene(seed, stream, index, size):
    """Draws one scene; the same arguments give the same bytes, in whatever process and order scenes are drawn.

    Args:
        seed: non-negative int.
        stream: one of ``STREAMS``; scenes of different streams are independent.
        index: non-negative int, the scene's number in its stream.
        size: (height, width) in pixels, each at least 64.

    Returns:
        Scene: with at most ``MAX_INSTANCES`` instances, each of which shows at least ``MIN_VISIBLE_PIXELS`` pixels and
        ``MIN_VISIBLE_SHARE`` of its silhouette. Whatever would show less is not drawn at all, so that
        nothing in the picture lacks its annotation.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), index)))
    light = rng.uniform(0, 2 * np.pi)
    image, stuff, horizon = draw_backdrop(rng, size)
    sprites, masks = _place(rng, size, horizon)
    for sprite, mask in zip(sprites, masks, strict=True):
        _shade_ground(rng, image, mask, sprite, horizon is not None, light)
        _paint(rng, image, sprite, light)
    owner = np.full(size, -1)
    for k, mask in enumerate(masks):
        owner[mask] = k
    instances = [Instance(s.category, owner == k, m) for k, (s, m) in enumerate(zip(sprites, masks, strict=True))]
    return Scene(_photograph(rng, image, light), instances, stuff)


def _place(rng, size, horizon):
    """Chooses what stands where.

    Returns:
        tuple: list of _Sprite, farthest first, and the list of their silhouettes as (H, W) bool masks in the frame.
    """
    height, width = size
    feet = rng.uniform(0.35, 1.0, rng.integers(3, MAX_INSTANCES + 1))
    if horizon is not None:  # on the ground, and the nearer the lower in the picture
        feet = np.sort(horizon / height + 0.06 + (0.97 - horizon / height - 0.06) * rng.random(len(feet)))
    sprites, masks, filled = [], [], []
    for foot in feet:
        category = int(rng.integers(len(CLASSES)))
        scale = min(size) * np.exp(rng.uniform(np.log(0.24), np.log(0.5)))
        if horizon is not None:
            scale *= 0.75 + 0.5 * (foot * height - horizon) / (height - horizon)
        sprite = None
        for attempt in range(TRIES):
            if sprite is None or attempt % 5 == 0:  # drawing is slow: one drawing is tried in several places
                sprite = _sprite(rng, category, max(20.0, scale * 0.96**attempt))
            if sprite is None:
                continue
            sprite.y = round(foot * height) - sprite.mask.shape[0]
            sprite.x = round(rng.uniform(0.0, 1.0) * width - sprite.mask.shape[1] / 2)
            mask, solid = _in_frame(sprite, sprite.mask, size), _in_frame(sprite, sprite.filled, size)
            if _fits(mask, solid, sprite, masks, filled):
                sprites, masks, filled = sprites + [sprite], masks + [mask], filled + [solid]
                break
    return sprites, masks


def _fits(mask, solid, sprite, masks, filled):
    """Whether a new topmost silhouette is mostly inside the frame, in one piece, and hides nobody too much.

    Occluders count as filled here: what shows only through a wheel is too little to be annotated.
    """
    if mask.sum() < max(MIN_VISIBLE_PIXELS, MIN_IN_FRAME * sprite.mask.sum()) or len(_outlines(mask)) != 1:
        return False
    hidden = solid.copy()
    for below, outline in zip(reversed(masks), reversed(filled), strict=True):
        if np.count_nonzero(below & ~hidden) < max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * np.count_nonzero(below)):
            return False
        hidden |= outline
    return True


def _sprite(rng, category, scale):
    """Draws one pictogram, mirrored at random and turned by up to 25 degrees.

    Args:
        rng: numpy Generator.
        category: index into ``CLASSES``.
        scale: square root of the area of its upright bounding box, in pixels.

    Returns:
        _Sprite at (0, 0), or None if its thin parts fell apart at this scale.
    """
    parts = PICTOGRAMS[CLASSES[category]](rng, thin=1.9 / scale)
    points = np.concatenate([polygon for _, polygon in parts])
    low, high = points.min(0), points.max(0)
    angle = np.deg2rad(np.clip(rng.normal(0, 9), -25, 25))
    zoom = scale / np.sqrt(np.prod(high - low))
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    matrix = zoom * turn * (rng.choice((-1, 1)), 1)  # the mirror flips x before the turn
    points = points @ matrix.T
    corner = np.floor(points.min(0)) - 1
    w, h = (np.ceil(points.max(0)) + 1 - corner).astype(int)
    roles = np.zeros((h * SUPERSAMPLING, w * SUPERSAMPLING), np.uint8)
    for role, polygon in parts:
        at = ((polygon @ matrix.T - corner) * SUPERSAMPLING - 0.5) * 16  # 4 fractional bits; pixel centres are integers
        cv2.fillPoly(roles, [np.round(at).astype(np.int32)], int(role), shift=4)
    coverage = np.empty((h, w, NUM_ROLES - 1), np.float32)
    for role in range(1, NUM_ROLES):
        layer = cv2.compare(roles, role, cv2.CMP_EQ)  # 0 or 255
        coverage[:, :, role - 1] = cv2.resize(layer, (w, h), interpolation=cv2.INTER_AREA)
    coverage /= 255
    mask = coverage.sum(2) >= 0.5
    outlines = _outlines(mask)
    if len(outlines) != 1:
        return None
    filled = cv2.drawContours(np.zeros((h, w), np.uint8), outlines, -1, 1, cv2.FILLED).astype(bool)
    y, x = np.mgrid[:h, :w]
    along, across = np.tensordot(turn.T, np.stack([x - w / 2, y - h / 2]) / scale, 1).astype(np.float32)
    return _Sprite(category, 0, 0, coverage, mask, filled, along, across)


def _outlines(mask):
    return cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]


def _window(sprite, size):
    """Slices of the frame and of the sprite's own arrays where the two overlap."""
    (h, w), (height, width) = sprite.mask.shape, size
    y0, y1, x0, x1 = max(sprite.y, 0), min(sprite.y + h, height), max(sprite.x, 0), min(sprite.x + w, width)
    frame = (slice(y0, max(y0, y1)), slice(x0, max(x0, x1)))
    own = tuple(slice(s.start - o, s.stop - o) for s, o in zip(frame, (sprite.y, sprite.x), strict=True))
    return frame, own


def _in_frame(sprite, mask, size):
    out = np.zeros(size, bool)
    frame, own = _window(sprite, size)
    out[frame] = mask[own]
    return out


def _shade_ground(rng, image, mask, sprite, on_ground, light):
    """Darkens (in place) what lies in the shadow of a silhouette: flat on the ground, or just behind on a wall."""
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


def _paint(rng, image, sprite, light):
    """Blends a sprite into the image (in place): random colours, a texture on the body, rounded shading."""
    colours = np.zeros((NUM_ROLES, 3), np.float32)  # of HOLE: never used
    colours[[BODY, TRIM]] = rng.uniform(0.1, 0.95, (2, 3))
    colours[SKIN] = np.array([0.95, 0.72, 0.58]) * rng.uniform(0.35, 1.0) + rng.uniform(-0.05, 0.05, 3)
    colours[DARK] = rng.uniform(0.04, 0.22) + rng.uniform(0, 0.05, 3)
    colours[GLASS] = rng.uniform(0.15, 0.85) * np.array([0.85, 0.95, 1.0])
    alpha = sprite.coverage.sum(2)
    paint = np.tensordot(sprite.coverage, colours[1:], 1) / np.maximum(alpha, 1e-3)[:, :, None]
    texture = 1 + rng.uniform(0.05, 0.3) * _texture(rng, sprite)
    share = (sprite.coverage[:, :, BODY - 1] + 0.5 * sprite.coverage[:, :, TRIM - 1])[:, :, None]
    paint *= 1 + (texture[:, :, None] - 1) * share
    # the side that looks at the light is brighter, and the rim darker, as on a rounded body
    lit = 1 - 0.35 * (sprite.along * math.cos(light) + sprite.across * abs(math.sin(light)))
    inner = cv2.GaussianBlur(alpha, (0, 0), max(1.0, 0.05 * min(alpha.shape)))
    paint *= (np.clip(lit, 0.6, 1.4) * (0.55 + 0.45 * inner))[:, :, None]
    frame, own = _window(sprite, image.shape[:2])
    a = alpha[own][:, :, None]
    image[frame] += a * (paint[own] - image[frame])


def _texture(rng, sprite):
    """A pattern in about [-1, 1] that turns with the object: plain, stripes, dots, checks or smooth noise."""
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


def _photograph(rng, image, light):
    """From radiance to a picture: uneven light, colour cast, blur, sensor noise, 8 bits."""
    height, width = image.shape[:2]
    y, x = np.linspace(-0.5, 0.5, height, dtype=np.float32), np.linspace(-0.5, 0.5, width, dtype=np.float32)
    slope = rng.uniform(0.1, 0.5)
    image = image * (1 - slope * (math.cos(light) * x[None, :] + math.sin(light) * y[:, None]))[:, :, None]
    image *= rng.uniform(0.75, 1.15) * rng.uniform(0.92, 1.08, 3).astype(np.float32)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.35, 0.75))
    grain = rng.standard_normal(image.shape, dtype=np.float32)
    image += grain * (rng.uniform(0.006, 0.03) * (0.5 + np.sqrt(np.maximum(image, 0))))
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
