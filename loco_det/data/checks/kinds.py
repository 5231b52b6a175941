"""The kinds of findings of the checks: how severe each is, what it is, and what it leads to."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning", "info"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "info")


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        severity: "error" if training or evaluation would stop or be wrong, "warning" if the data is dropped or
            corrected on the way, "info" if it is worth knowing.
        what: a noun phrase, for messages.
        outcome: what happens if it is left as it is, or how to correct it.
    """

    severity: Severity
    what: str
    outcome: str


# The outcomes were tried on Detectron2 0.7.2 and pycocotools 2.0.11: tests/loco_det/data/checks/test_coco.py sends most
# kinds through Detectron2's loader and mapper. train_net.py reports only the first kind of errors, so causes come
# before their consequences.
KINDS = {
    "not_coco": Kind("error", "not a COCO instance file", "Detectron2 cannot load it"),
    "field_missing": Kind("error", "entries lack fields", "Detectron2 or pycocotools stops with a KeyError"),
    "wrong_type": Kind("error", "values of the wrong type", "Detectron2 or pycocotools stops"),
    "empty": Kind("error", "nothing to train on or to evaluate", "Detectron2 stops: no image with annotations is left"),
    "box_corners": Kind(
        "error",
        "boxes are given as x0, y0, x1, y1",
        "they would be read as x, y, width, height: write [x0, y0, x1 - x0, y1 - y0]",
    ),
    "box_normalized": Kind(
        "error",
        "boxes are smaller than a pixel, as if relative to the image's size",
        "COCO's coordinates are pixels: multiply x and width by the image's width, y and height by its height",
    ),
    "polygon_nested": Kind(
        "error",
        "polygons are lists of points [[x, y], ...]",
        "training drops them or evaluation stops: write each polygon as one flat list [x, y, x, y, ...]",
    ),
    "coordinates_far": Kind(
        "error",
        "coordinates are outside the image by more than its longer side",
        "the annotation is of another image or unit, and pycocotools may crash when it draws such polygons",
    ),
    "boxes_of_others": Kind(
        "error",
        "most boxes do not fit the masks of their objects",
        "boxes or masks are in another unit, or of other objects",
    ),
    "area_wrong": Kind(
        "error",
        "areas are negative, not finite, larger than the image, or far from the mask's",
        "evaluation drops the object or assigns it to the wrong size range: write the mask's area in pixels",
    ),
    "image_outside": Kind(
        "error",
        "file names lead out of the folder of images",
        "training would read files from anywhere: if that is intended, set DATASETS.ALLOW_OUTSIDE True "
        "(check_dataset.py --allow-outside)",
    ),
    "image_missing": Kind("error", "image files are missing", "training stops when it reaches the image"),
    "image_unreadable": Kind("error", "image files cannot be read", "training stops when it reaches the image"),
    "image_truncated": Kind("error", "image files are truncated", "training stops when it reaches the image"),
    "image_size": Kind(
        "error",
        "image sizes differ from the annotations",
        "Detectron2 stops with a SizeMismatchError (it compares after EXIF orientation)",
    ),
    "image_id_twice": Kind("error", "duplicate image ids", "only the last is kept, with the objects of both"),
    "annotation_id_twice": Kind("error", "duplicate annotation ids", "Detectron2 stops with an AssertionError"),
    "annotation_id_0": Kind("error", "annotation id 0", 'pycocotools takes 0 for "no match": a hit counts as a miss'),
    "category_id_twice": Kind("error", "duplicate category ids", "all classes of that id get the last name"),
    "category_unknown": Kind("error", "category_id not among the categories", "Detectron2 stops with a KeyError"),
    "ignore": Kind(
        "error", 'annotations with "ignore" set', "Detectron2 stops with an AssertionError: use iscrowd instead"
    ),
    "box_not_finite": Kind(
        "error",
        "boxes with NaN or infinity",
        "training drops NaN and stretches infinity to the border; in evaluation NaN matches anything",
    ),
    "box_negative": Kind(
        "error",
        "boxes of negative width or height",
        "training takes the box mirrored, at the wrong place; evaluation never matches it",
    ),
    "box_flat": Kind("warning", "boxes without width or height", "training drops them; evaluation counts a miss"),
    "box_cut": Kind("warning", "boxes reach more than a pixel out of the image", "training clips them at the border"),
    "box_outside": Kind("warning", "boxes entirely outside the image", "training drops them; evaluation counts a miss"),
    "mask_missing": Kind(
        "error",
        "objects without a segmentation",
        "Mask R-CNN stops for lack of gt_masks, and so does pycocotools; to train and evaluate boxes only set "
        "MODEL.MASK_ON False (check_dataset.py --boxes-only)",
    ),
    "mask_stops_evaluation": Kind(
        "error",
        "objects whose first polygon has fewer than three points",
        "training drops that polygon, evaluation stops: pycocotools takes it for a box",
    ),
    "polygon_not_finite": Kind("error", "polygons with NaN or infinity", "pycocotools hangs on NaN when it draws them"),
    "polygon_short": Kind("warning", "polygons with fewer than three points", "training drops them"),
    "polygon_odd": Kind(
        "warning", "polygons with an odd number of coordinates", "training drops them, evaluation does not"
    ),
    "polygon_cut": Kind("info", "polygons reach more than a pixel out of the image", "they are clipped at the border"),
    "mask_dropped": Kind("warning", "objects with no usable polygon", "Detectron2 leaves them out of training"),
    "rle_size": Kind(
        "error",
        "RLE masks whose size is not the image's",
        "training stops with an AssertionError; in evaluation every IoU is -1",
    ),
    "rle_broken": Kind(
        "error",
        "RLE masks that do not fill the image",
        "training and evaluation stop, or pycocotools fills the rest from uninitialized memory",
    ),
    "box_of_other": Kind(
        "warning",
        "boxes whose IoU with the box of the object's mask is below 0.5",
        "training and evaluation see different objects for boxes and for masks",
    ),
    "image_id_unknown": Kind("warning", "annotations of images that are not listed", "Detectron2 leaves them out"),
    "file_name_twice": Kind(
        "warning",
        "duplicate file names",
        "the image is trained on twice, each time with only the objects of one entry",
    ),
    "category_name_twice": Kind("warning", "duplicate category names", "the results have one line of AP for both"),
    "image_elsewhere": Kind(
        "info",
        "image files lie outside the folder of images",
        "training reads them: symbolic links lead there, or names that were allowed",
    ),
    "exif": Kind(
        "info",
        "images with an EXIF orientation",
        "Detectron2 rotates the image, other readers may not: check that the annotations fit the rotated image",
    ),
    "image_16_bit": Kind("info", "16-bit images", "they are scaled to 8 bits: the upper half of each value"),
    "no_annotations": Kind("info", "images without annotations", "left out of training, evaluated on"),
    "only_crowd": Kind("info", "images with crowd regions only", "left out of training, evaluated on"),
    "crowd": Kind("info", "crowd regions", "left out of training; in evaluation detections on them do not count"),
    "run_length": Kind("info", "objects with RLE masks", 'they need INPUT.MASK_FORMAT "bitmask"'),
    "category_gaps": Kind("info", "category ids are not 1, 2, 3, ...", "Detectron2 numbers the classes by id"),
    "category_empty": Kind("info", "categories without objects", "they get no AP"),
    "area": Kind(
        "info",
        "areas differ from the mask's by a fifth or more",
        "only the split into small, medium and large uses them",
    ),
    # Cityscapes
    "file_missing": Kind("error", "ground-truth files are missing", "Detectron2 stops, or its evaluation does"),
    "file_broken": Kind("error", "ground-truth files cannot be read", "Detectron2 stops"),
    "file_name": Kind("error", "files that are not named *_leftImg8bit.png", "Detectron2 stops with an AssertionError"),
    "label_unknown": Kind("error", "labels that Cityscapes does not have", "Detectron2 stops with a KeyError"),
    "truth_alone": Kind("error", "ground truth without its image", "cityscapesScripts stops for lack of a prediction"),
    "outline_short": Kind(
        "error", "polygons with fewer than three points", "Detectron2 stops with a ValueError of shapely"
    ),
    # Pascal VOC; Detectron2 0.7.2 was tried
    "class_unknown": Kind(
        "error",
        "objects of classes that the data set does not have",
        "Detectron2 stops with a ValueError; evaluation leaves them out: names count as they are written",
    ),
    "corners_swapped": Kind(
        "error",
        "boxes whose xmax is left of xmin, or whose ymax is above ymin",
        "training takes the box mirrored, evaluation never matches it: write the left, top, right and bottom pixel",
    ),
    "name_listed_twice": Kind("warning", "images that are listed twice", "they are read once"),
    "difficult": Kind("info", "objects marked as difficult", "trained on; in evaluation neither hits nor misses"),
}
