"""The annotations of a COCO file and their masks as columns, on which the checks of boxes, masks and areas compute."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Objects:
    """N annotations whose fields have the right types and whose images are known.

    Attributes:
        entries: the annotations.
        images: the entry of each annotation's image.
        size: (N, 2) float, width and height of the image in pixels.
        box: (N, 4) float, x, y, width, height in pixels.
        area: (N,) float, square pixels.
        crowd: (N,) bool, whether it is a crowd region.
    """

    entries: list[dict[str, Any]]
    images: list[dict[str, Any]]
    size: np.ndarray
    box: np.ndarray
    area: np.ndarray
    crowd: np.ndarray

    @classmethod
    def of(cls, annotations: list[dict[str, Any]], known: Mapping[int, dict[str, Any]]) -> "Objects":
        """The columns of some annotations; ``known`` has the entry of each image by its id."""
        images = [known[a["image_id"]] for a in annotations]
        return cls(
            annotations,
            images,
            np.array([(i["width"], i["height"]) for i in images], float).reshape(-1, 2),
            np.array([a["bbox"] for a in annotations], float).reshape(-1, 4),
            np.array([a["area"] for a in annotations], float),
            np.array([a["iscrowd"] for a in annotations], bool),
        )

    def __len__(self) -> int:
        return len(self.entries)

    def where(self, i: int) -> str:
        """Which annotation number ``i`` is, in words."""
        return f"annotation {self.entries[i]['id']} of {self.images[i]['file_name']}"

    def where_box(self, i: int) -> str:
        """The same with its box."""
        return f"{self.where(i)}: bbox {self.entries[i]['bbox']}"


@dataclass
class Shapes:
    """What N masks cover; NaN where that is unknown.

    Attributes:
        area: (N,) square pixels; the areas of an object's polygons are added, as if they did not overlap.
        box: (N, 4) left, top, right and bottom edge in pixels.
    """

    area: np.ndarray
    box: np.ndarray

    @classmethod
    def unknown(cls, count: int) -> "Shapes":
        """The shapes of ``count`` masks of which nothing is known."""
        return cls(np.full(count, np.nan), np.full((count, 4), np.nan))
