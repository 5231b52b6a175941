"""What the checks of a data set have found: the kinds, what each leads to, and the report that collects them."""

EXAMPLES = 5  # shown of each kind
KEPT = 10_000  # of each kind, for --json-report: a million of them would take gigabytes
SMALL, MEDIUM = 32**2, 96**2  # pixels: COCO's limits of small, medium and large objects

# kind: (severity, what it is, what comes of it). "error": training or evaluation would stop or be wrong; "warning": it
# is dropped or mended on the way; "info": worth knowing. What comes of it was tried on Detectron2 0.7.2 and pycocotools
# 2.0.11 (tests/loco_det/data/checks/test_coco.py sends most of the kinds through Detectron2's loader and mapper).
# train_net.py says the first kind of the errors only: causes come before what follows from them.
KINDS = {
    "not_coco": ("error", "no COCO instance file", "Detectron2 cannot load it"),
    "field_missing": ("error", "entries lack fields", "Detectron2 or pycocotools stops with a KeyError"),
    "wrong_type": ("error", "values of the wrong type", "Detectron2 or pycocotools stops"),
    "empty": ("error", "nothing to train on or to evaluate", "Detectron2 stops: no image with annotations is left"),
    "box_corners": (
        "error",
        "boxes are given as x0, y0, x1, y1",
        "they would be read as x, y, width, height: write [x0, y0, x1 - x0, y1 - y0]",
    ),
    "box_normalized": (
        "error",
        "boxes are smaller than a pixel, as if in shares of the image's size",
        "COCO's coordinates are pixels: multiply x and width by the image's width, y and height by its height",
    ),
    "polygon_nested": (
        "error",
        "polygons are lists of points [[x, y], ...]",
        "training drops them or evaluation stops: write each polygon as one flat list [x, y, x, y, ...]",
    ),
    "coordinates_far": (
        "error",
        "coordinates are farther out of the image than it is long",
        "the annotation is of another image or unit, and pycocotools may crash when it draws such polygons",
    ),
    "boxes_of_others": (
        "error",
        "most boxes do not fit the masks of their objects",
        "boxes or masks are in another unit, or of other objects",
    ),
    "area_wrong": (
        "error",
        "areas are negative, not finite, larger than the image, or far off the mask's",
        "evaluation drops the object or counts it as small, medium or large wrongly: write the mask's area in pixels",
    ),
    "image_outside": (
        "error",
        "file names lead out of the folder of images",
        "training would read files from anywhere: if that is meant, set DATASETS.ALLOW_OUTSIDE True "
        "(check_dataset.py --allow-outside)",
    ),
    "image_missing": ("error", "image files are missing", "training stops when it comes to the image"),
    "image_unreadable": ("error", "image files cannot be read", "training stops when it comes to the image"),
    "image_truncated": ("error", "image files are cut short", "training stops when it comes to the image"),
    "image_size": (
        "error",
        "images have another size than the annotations say",
        "Detectron2 stops with a SizeMismatchError (it compares after EXIF orientation)",
    ),
    "image_id_twice": ("error", "duplicate image ids", "only the last is kept, with the objects of both"),
    "annotation_id_twice": ("error", "duplicate annotation ids", "Detectron2 stops with an AssertionError"),
    "annotation_id_0": ("error", "annotation id 0", 'pycocotools takes 0 for "no match": a hit counts as a miss'),
    "category_id_twice": ("error", "duplicate category ids", "the last name is taken for all of its classes"),
    "category_unknown": ("error", "category_id not among the categories", "Detectron2 stops with a KeyError"),
    "ignore": ("error", 'annotations with "ignore" set', "Detectron2 stops with an AssertionError; iscrowd is meant"),
    "box_not_finite": (
        "error",
        "boxes with NaN or infinity",
        "training drops NaN and stretches infinity to the border; in evaluation NaN matches anything",
    ),
    "box_negative": (
        "error",
        "boxes of negative width or height",
        "training takes the box mirrored, at the wrong place; evaluation never matches it",
    ),
    "box_flat": ("warning", "boxes without width or height", "training drops them; in evaluation they are never found"),
    "box_cut": ("warning", "boxes reach more than a pixel out of the image", "training cuts them at the border"),
    "box_outside": ("warning", "boxes wholly outside of the image", "training drops them; evaluation counts a miss"),
    "mask_missing": (
        "error",
        "objects without a segmentation",
        "Mask R-CNN stops for want of gt_masks, and so does pycocotools; to train and evaluate boxes only set "
        "MODEL.MASK_ON False (check_dataset.py --boxes-only)",
    ),
    "mask_stops_evaluation": (
        "error",
        "objects whose first polygon has less than three points",
        "training drops that polygon, evaluation stops: pycocotools takes it for a box",
    ),
    "polygon_not_finite": ("error", "polygons with NaN or infinity", "pycocotools hangs on NaN when it draws them"),
    "polygon_short": ("warning", "polygons with less than three points", "training drops them"),
    "polygon_odd": ("warning", "polygons of an odd number of coordinates", "training drops them, evaluation does not"),
    "polygon_cut": ("info", "polygons reach more than a pixel out of the image", "they are cut at the border"),
    "mask_dropped": ("warning", "objects with no usable polygon", "Detectron2 leaves them out of training"),
    "rle_size": (
        "error",
        "run-length masks of another size than the image",
        "training stops with an AssertionError; in evaluation every IoU is -1",
    ),
    "rle_broken": (
        "error",
        "run-length masks that do not fill the image",
        "training and evaluation stop, or pycocotools fills the rest from memory that it has not set",
    ),
    "box_of_other": (
        "warning",
        "boxes that share less than half of their area with the object's mask",
        "training and evaluation of boxes and of masks see different objects",
    ),
    "image_id_unknown": ("warning", "annotations of images that are not listed", "Detectron2 leaves them out"),
    "file_name_twice": (
        "warning",
        "duplicate file names",
        "the picture is trained on twice, each time with only the objects of one entry",
    ),
    "category_name_twice": ("warning", "duplicate category names", "two classes, whose AP has one line in results"),
    "image_elsewhere": (
        "info",
        "image files lie outside of the folder of images",
        "by symbolic links, or by names that were allowed: training reads them",
    ),
    "exif": (
        "info",
        "images with an EXIF orientation",
        "Detectron2 turns the picture, other readers may not: look whether the annotations fit the turned one",
    ),
    "image_16_bit": ("info", "images of 16 bits", "they are scaled to 8 bits: the upper half of each value"),
    "no_annotations": ("info", "images without annotations", "left out of training; evaluated on"),
    "only_crowd": ("info", "images with crowd regions only", "left out of training; evaluated on"),
    "crowd": ("info", "crowd regions", "left out of training; in evaluation detections on them do not count"),
    "run_length": ("info", "objects with run-length masks", 'they need INPUT.MASK_FORMAT "bitmask"'),
    "category_gaps": ("info", "category ids are not 1, 2, 3, ...", "Detectron2 numbers classes in order of ids"),
    "category_empty": ("info", "categories without objects", "they get no AP"),
    "area": (
        "info",
        "area is a fifth off the mask's or more",
        "only the split into small, medium and large reads it",
    ),
    # Cityscapes
    "file_missing": ("error", "ground-truth files are missing", "Detectron2 stops, or its evaluation does"),
    "file_broken": ("error", "ground-truth files cannot be read", "Detectron2 stops"),
    "file_name": ("error", "files that are not named *_leftImg8bit.png", "Detectron2 stops with an AssertionError"),
    "label_unknown": ("error", "labels that Cityscapes does not have", "Detectron2 stops with a KeyError"),
    "truth_alone": ("error", "ground truth without its image", "cityscapesScripts stops for want of a prediction"),
    "outline_short": ("error", "polygons with less than three points", "Detectron2 stops with shapely's ValueError"),
}


class Report:
    """Findings and counts of one data set.

    Attributes:
        name: of the data set or file, for messages.
        findings: {kind: [count, examples]}, kinds as in ``KINDS``.
        images, annotations: how many there are.
        classes: {category id: name}, in order of the ids, which is the order of Detectron2's classes.
        table: {category id: {"images", "instances", "small", "medium", "large"}}, without crowd regions.
        has_rle: whether the mask of an object, crowds aside, is run-length encoded.
    """

    def __init__(self, name):
        self.name, self.findings = name, {}
        self.images = self.annotations = 0
        self.classes, self.table, self.has_rle = {}, {}, False

    def add(self, kind, example="", count=1):
        """Count a finding; its example, a string or a function that makes one, is kept for the first few."""
        entry = self.findings.setdefault(kind, [0, []])
        entry[0] += count
        if example and len(entry[1]) < KEPT:
            text = example() if callable(example) else example
            entry[1].append(text.encode(errors="backslashreplace").decode())  # bytes of names that are not UTF-8

    def add_each(self, kind, which, describe):
        """Count a finding for each of many items; ``describe(item)`` gives an example."""
        for item in which[:KEPT]:
            self.add(kind, describe(item))
        if len(which) > KEPT:
            self.add(kind, count=len(which) - KEPT)

    def of(self, severity):
        """The findings of a severity, {kind: [count, examples]}, in the order of ``KINDS``."""
        return {k: self.findings[k] for k in KINDS if k in self.findings and KINDS[k][0] == severity}

    def sentence(self, kind):
        """A kind in words: what, how often, an example and what comes of it."""
        count, examples = self.findings[kind]
        _, what, outcome = KINDS[kind]
        return f"{what} ({count}): {examples[0] if examples else self.name}. {outcome}"

    def lines(self):
        """The report as lines of text: table of classes, then errors, warnings and notes with their examples."""
        yield f"{self.name}: {self.images} images, {self.annotations} annotations, {len(self.classes)} classes"
        columns = ("images", "instances", "small", "medium", "large")
        if self.table:
            width = max(map(len, ("class", *map(str, self.classes.values()))))
            yield "  ".join(["   id", "class".ljust(width), *(f"{c:>9}" for c in columns)])
        for key, row in self.table.items():
            cells = (f"{row[c]:>9}" for c in columns)
            yield "  ".join([f"{key:>5}", str(self.classes[key]).ljust(width), *cells])
        for severity in ("error", "warning", "info"):
            for kind, (count, examples) in self.of(severity).items():
                _, what, outcome = KINDS[kind]
                yield f"{severity}: {what}: {count}. {outcome}."
                yield from (f"    {example}" for example in examples[:EXAMPLES])
                if examples and count > EXAMPLES:
                    yield f"    ... and {count - EXAMPLES} more (--json-report lists them)"
        yield f"{len(self.of('error'))} kinds of errors, {len(self.of('warning'))} of warnings"

    def to_dict(self):
        """The same for scripts, plain types only."""
        findings = [
            {"kind": k, "severity": s, "what": KINDS[k][1], "outcome": KINDS[k][2], "count": n, "examples": examples}
            for s in ("error", "warning", "info")
            for k, (n, examples) in self.of(s).items()
        ]
        classes = [{"id": key, "name": name, **self.table.get(key, {})} for key, name in self.classes.items()]
        counts = {"images": self.images, "annotations": self.annotations}
        return {"name": self.name, **counts, "classes": classes, "findings": findings}


def fill_table(report, category, image, area):
    """Count objects per class.

    Args:
        report: whose ``classes`` are known; its ``table`` is filled.
        category, image, area: a list each, one entry an object (crowds left out); area in square pixels.
    """
    rows = {key: {"images": set(), "instances": 0, "small": 0, "medium": 0, "large": 0} for key in report.classes}
    for c, i, a in zip(category, image, area, strict=True):
        row = rows[c]
        row["images"].add(i)
        row["instances"] += 1
        row["small" if a < SMALL else "medium" if a < MEDIUM else "large"] += 1
    report.table = {key: {**row, "images": len(row["images"])} for key, row in rows.items()}
    unused = [report.classes[key] for key, row in rows.items() if not row["instances"]]
    if unused:
        report.add("category_empty", ", ".join(map(str, unused[:20])), len(unused))
