"""Pascal VOC's files: one reader for the checks, training (loco_det/data/voc_loader.py) and evaluation.

A set is a folder with ``ImageSets/Main/SPLIT.txt``, which lists names of images, ``Annotations/NAME.xml`` and
``JPEGImages/NAME.jpg``. An annotation is read as data: a DTD is refused, and so nothing is expanded or fetched.
"""

import math
import os
from dataclasses import dataclass
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from pretrain.files.image_folders import expect_file

CORNERS = ("xmin", "ymin", "xmax", "ymax")
MOST_BYTES, MOST_LEVELS = 2**22, 50  # of an annotation: VOC's largest has 20 kB and 5 levels


@dataclass(frozen=True)
class VOCObject:
    """An object of an annotation.

    Attributes:
        name: of its class.
        box: xmin, ymin, xmax, ymax: the first and the last pixel that it covers, counted from 1. A few files of VOC2012
            have fractions.
        difficult: whether the evaluation counts it neither as found nor as missed.
    """

    name: str
    box: tuple[float, float, float, float]
    difficult: bool


@dataclass(frozen=True)
class VOCImage:
    """An annotation file.

    Attributes:
        name: of the image and of the annotation, without their endings.
        width, height: of the image in pixels.
        objects: in the file's order.
    """

    name: str
    width: int
    height: int
    objects: tuple[VOCObject, ...]


def split_path(folder: str, split: str) -> str:
    """Path of the list of a split such as "trainval"."""
    return os.path.join(folder, "ImageSets", "Main", f"{split}.txt")


def annotation_path(folder: str, name: str) -> str:
    """Path of the annotation of an image."""
    return os.path.join(folder, "Annotations", f"{name}.xml")


def read_split(folder: str, split: str) -> list[str]:
    """The names of the images of a split, in the file's order.

    Args:
        folder: of the set, such as VOC2007.
        split: such as "trainval".

    Raises:
        FileNotFoundError: if there is no such list.
        ValueError: if it is not a name in each line; one line that says which is not.
    """
    path = split_path(folder, split)
    expect_file(path, "list of images", "text file")
    try:
        with open(path, encoding="utf-8-sig") as f:
            lines = [line.split() for line in f]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8: {error}") from None
    for number, words in enumerate(lines, 1):
        if len(words) > 1:
            raise ValueError(
                f"{path}, line {number}: {' '.join(words)[:60]!r} is not the name of an image; the lists of one class, "
                f"with 1 and -1, are other files: take {split}.txt"
            )
    return [words[0] for words in lines if words]


def read_annotation(folder: str, name: str) -> VOCImage:
    """Read the annotation of an image.

    Args:
        folder: of the set, such as VOC2007.
        name: of the image, without ending.

    Raises:
        OSError: if there is no such file, or it cannot be read.
        ValueError: if it is no annotation in VOC's format; one line that begins with the path.
    """
    path = annotation_path(folder, name)
    with open(path, "rb") as f:
        data = f.read(MOST_BYTES + 1)
    try:
        root = _parse(data)
        width, height = (_size(root, key) for key in ("width", "height"))
        objects = tuple(_object(e, number) for number, e in enumerate(root.findall("object"), 1))
        return VOCImage(name, width, height, objects)
    except (expat.ExpatError, ValueError, LookupError) as error:  # LookupError: an encoding that Python does not have
        raise ValueError(f"{path}: {error}") from None


def _parse(data: bytes) -> Element:
    """The root of an XML document; expat.ExpatError or ValueError if it is none, or is not plain."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES >> 20} MiB, it is no annotation of an image")
    builder, parser, level = TreeBuilder(), expat.ParserCreate(), 0

    def start(tag, attributes):
        nonlocal level
        level += 1
        if level > MOST_LEVELS:
            raise ValueError(f"more than {MOST_LEVELS} levels of elements")
        builder.start(tag, attributes)

    def end(tag):
        nonlocal level
        level -= 1
        builder.end(tag)

    def refuse(*_):
        raise ValueError("it has a DTD (<!DOCTYPE ...>), in which entities may be defined: remove it")

    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = refuse
    parser.Parse(data, True)
    root = builder.close()
    if root.tag != "annotation":
        raise ValueError(f"its root is <{root.tag}>, not <annotation>: it is not in VOC's format")
    return root


def _text(element, path, where):
    text = element.findtext(path)
    if not (text and text.strip()):
        raise ValueError(f"{where} lacks {path}")
    return text.strip()


def _number(text, what):
    """A finite number without underscores, which Python's own reader takes."""
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{what} is {text[:60]!r}, not a number")
    return value


def _size(root, key):
    value = _number(_text(root, f"size/{key}", "it"), f"size/{key}")
    if value != int(value) or not 0 < value < 2**31:
        raise ValueError(f"size/{key} is {value:g}, not a positive whole number of pixels")
    return int(value)


def _object(element, number):
    name = _text(element, "name", f"object {number}")
    where = f"object {number} ({' '.join(name.split())[:40]})"
    box = [_number(_text(element, f"bndbox/{key}", where), f"{key} of {where}") for key in CORNERS]
    difficult = (element.findtext("difficult") or "0").strip()
    if difficult not in ("0", "1"):
        raise ValueError(f"difficult of {where} is {difficult[:60]!r}, not 0 or 1")
    return VOCObject(name, (box[0], box[1], box[2], box[3]), difficult == "1")
