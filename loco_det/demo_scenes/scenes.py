"""One demo scene: a pure function of (seed, stream, index, size) to an image and its exact instance masks.

A scene has a textured backdrop and three to seven pictograms that may occlude one another, with shadows, directional
light, blur and sensor noise. Only the shape tells the class: colours, textures, sizes and angles have the same
distribution for all.
"""

from dataclasses import dataclass

import numpy as np

from .backdrops import draw_backdrop
from .painting import paint, photograph, shade_ground
from .pictograms import CLASSES
from .sprites import draw_sprite, outer_contours

STREAMS = (  # their order is part of the seed
    "unlabeled", "coco_train", "coco_val", "cityscapes_train", "cityscapes_val",
    "voc_2007_trainval", "voc_2007_test", "voc_2012_trainval",
)  # fmt: skip
MAX_INSTANCES = 7
MIN_VISIBLE_PIXELS = 40
MIN_VISIBLE_SHARE = 0.4  # of the instance's own silhouette inside the frame
MIN_IN_FRAME = 0.75  # of the whole silhouette
TRIES = 25  # places that are tried for an instance before it is left out


@dataclass
class Instance:
    """One object of a scene.

    Attributes:
        category: index into ``CLASSES``.
        mask: (H, W) bool, its visible pixels.
        silhouette: (H, W) bool, the pixels that it would have if nothing occluded it.
    """

    category: int
    mask: np.ndarray
    silhouette: np.ndarray


@dataclass
class Scene:
    """An image with its ground truth.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        instances: the farthest first: each occludes those before it in the list.
        stuff: (H, W) uint8, Cityscapes label ids of the backdrop, also under the instances.
    """

    image: np.ndarray
    instances: list[Instance]
    stuff: np.ndarray


def draw_scene(seed: int, stream: str, index: int, size: tuple[int, int]) -> Scene:
    """Draw one scene; the same arguments give the same bytes, in any process and in any order.

    Args:
        seed: not negative.
        stream: one of ``STREAMS``; scenes of different streams are independent.
        index: number of the scene in its stream, from 0.
        size: (height, width) in pixels, each at least 64.

    Returns:
        A scene with at most ``MAX_INSTANCES`` instances, each of which shows at least ``MIN_VISIBLE_PIXELS`` pixels and
        ``MIN_VISIBLE_SHARE`` of its silhouette. Objects that would show less are not drawn at all, so that every object
        in the image is annotated.

    Raises:
        ValueError: if the seed or the index is negative, or the stream is unknown.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS.index(stream), index)))
    light = rng.uniform(0, 2 * np.pi)
    image, stuff, horizon = draw_backdrop(rng, size)
    sprites, masks = _place(rng, size, horizon)
    for sprite, mask in zip(sprites, masks, strict=True):
        shade_ground(rng, image, mask, sprite, horizon is not None, light)
        paint(rng, image, sprite, light)
    owner = np.full(size, -1)
    for k, mask in enumerate(masks):
        owner[mask] = k
    instances = [Instance(s.category, owner == k, m) for k, (s, m) in enumerate(zip(sprites, masks, strict=True))]
    return Scene(photograph(rng, image, light), instances, stuff)


def _place(rng, size, horizon):
    """Choose the objects and their places.

    Returns:
        tuple: list of Sprite, farthest first, and the list of their silhouettes as (H, W) bool masks in the frame.
    """
    height, width = size
    feet = rng.uniform(0.35, 1.0, rng.integers(3, MAX_INSTANCES + 1))
    if horizon is not None:  # they stand on the ground, and nearer ones are lower in the image
        feet = np.sort(horizon / height + 0.06 + (0.97 - horizon / height - 0.06) * rng.random(len(feet)))
    sprites, masks, filled = [], [], []
    for foot in feet:
        category = int(rng.integers(len(CLASSES)))
        scale = min(size) * np.exp(rng.uniform(np.log(0.24), np.log(0.5)))
        if horizon is not None:
            scale *= 0.75 + 0.5 * (foot * height - horizon) / (height - horizon)
        sprite = None
        for attempt in range(TRIES):
            if sprite is None or attempt % 5 == 0:  # drawing is slow: each drawing is tried in several places
                sprite = draw_sprite(rng, category, max(20.0, scale * 0.96**attempt))
            if sprite is None:
                continue
            sprite.y = round(foot * height) - sprite.mask.shape[0]
            sprite.x = round(rng.uniform(0.0, 1.0) * width - sprite.mask.shape[1] / 2)
            mask, solid = sprite.in_frame(sprite.mask, size), sprite.in_frame(sprite.filled, size)
            if _leaves_all_visible(mask, solid, sprite, masks, filled):
                sprites, masks, filled = sprites + [sprite], masks + [mask], filled + [solid]
                break
    return sprites, masks


def _leaves_all_visible(mask, solid, sprite, masks, filled):
    """Whether a new topmost silhouette is mostly inside the frame and in one piece, and leaves enough of the others.

    Occluders count as filled here: an object that shows only through a wheel is too little to annotate.
    """
    if mask.sum() < max(MIN_VISIBLE_PIXELS, MIN_IN_FRAME * sprite.mask.sum()) or len(outer_contours(mask)) != 1:
        return False
    hidden = solid.copy()
    for below, outline in zip(reversed(masks), reversed(filled), strict=True):
        if np.count_nonzero(below & ~hidden) < max(MIN_VISIBLE_PIXELS, MIN_VISIBLE_SHARE * np.count_nonzero(below)):
            return False
        hidden |= outline
    return True
