"""The annotations of a COCO file as columns: what the checks of boxes, masks and areas compute with."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Objects:
    """N annotations whose fields have the right types, and whose images are known.

    Attributes:
        entries: list of dict, the annotations.
        images: list of dict, the image of each.
        size: (N, 2) width and height of the image in pixels.
        box: (N, 4) x, y, width, height in pixels.
        area: (N,) square pixels.
        crowd: (N,) bool.
    """

    entries: list
    images: list
    size: np.ndarray
    box: np.ndarray
    area: np.ndarray
    crowd: np.ndarray

    @classmethod
    def of(cls, annotations, known):
        """
        Args:
            annotations: list of dict.
            known: image id -> entry.
        """
        images = [known[a["image_id"]] for a in annotations]
        return cls(
            annotations,
            images,
            np.array([(i["width"], i["height"]) for i in images], float).reshape(-1, 2),
            np.array([a["bbox"] for a in annotations], float).reshape(-1, 4),
            np.array([a["area"] for a in annotations], float),
            np.array([a["iscrowd"] for a in annotations], bool),
        )

    def __len__(self):
        return len(self.entries)

    def where(self, i):
        """An annotation in words, for messages."""
        return f"annotation {self.entries[i]['id']} of {self.images[i]['file_name']}"

    def where_box(self, i):
        return f"{self.where(i)}: bbox {self.entries[i]['bbox']}"
