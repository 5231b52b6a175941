"""Small data in Pascal VOC's layout."""

import numpy as np
from PIL import Image

ENTRY = """  <object>
    <name>{}</name>
    <pose>Unspecified</pose>
    <truncated>0</truncated>
    <difficult>{}</difficult>
    <bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox>
  </object>
"""


def annotation(objects, width=40, height=30):
    """The text of an annotation; ``objects`` are (name, difficult, (xmin, ymin, xmax, ymax))."""
    size = f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
    entries = "".join(ENTRY.format(name, difficult, *box) for name, difficult, box in objects)
    return f"<annotation>\n{size}{entries}</annotation>\n"


def write_voc(folder, images, split="trainval", pictures=True):
    """Write a set: ``images`` has the objects of each name, as :func:`annotation` takes them."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, objects in images.items():
        (folder / "Annotations" / f"{name}.xml").write_text(annotation(objects))
        if pictures:
            Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(folder / "JPEGImages" / f"{name}.jpg")
    (folder / "ImageSets/Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in images))
