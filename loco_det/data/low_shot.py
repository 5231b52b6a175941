"""Random subsets of COCO's train2017, registered with Detectron2: 1,000 and 10,000 images, 1, 2, 5 and 10 %.

The sets are called ``coco_2017_train_<size>_seed<k>`` with sizes 1k, 10k, 1pct, 2pct, 5pct, 10pct and seeds 0 to 4.
There are no lists to download and no copies of the annotation file: a set is the first images in the order of the
SHA-256 of "seed:image id". So

- the images are the same on any machine, with any version of the libraries and in any order of the annotation file;
- a set contains the smaller sets of its seed (1k in 1pct in 2pct in 5pct in 10k in 10pct); sets of different seeds are
  independent draws, which may overlap.

Images without objects (1,021 of the 118,287) count too, so that the draw does not depend on the annotations. Detectron2
leaves them out of training (DATALOADER.FILTER_EMPTY_ANNOTATIONS), about 86 of 10,000.

LoCo (Table 3) does not publish its splits. In semi-supervised detection, STAC draws positions in the annotation file
with numpy, with replacement (prepare_datasets/prepare_coco_data.py in google-research/ssl_detection), and Unbiased
Teacher publishes lists of positions without their rule (dataseed/COCO_supervision.txt in
facebookresearch/unbiased-teacher). Our sets have about the same sizes, but other images.
"""

import functools
import hashlib
import logging
from collections.abc import Collection, Iterable

from detectron2.data import DatasetCatalog

from .subsets import register_subset

logger = logging.getLogger(__name__)

SIZES: dict[str, int | str] = {"1k": 1000, "10k": 10000, "1pct": "1%", "2pct": "2%", "5pct": "5%", "10pct": "10%"}
SEEDS = range(5)


def draw(image_ids: Collection[int], size: int | str, seed: int) -> list[int]:
    """Draw a random subset of a data set.

    Args:
        image_ids: ids of all images without duplicates, in any order.
        size: number of images, or a share such as "5%", rounded down to whole images.
        seed: number of the draw.

    Returns:
        The drawn ids, ascending.

    Raises:
        ValueError: if there are fewer images than ``size``, or none would be drawn.
    """
    count = size if isinstance(size, int) else len(image_ids) * int(size.removesuffix("%")) // 100
    if not 0 < count <= len(image_ids):
        raise ValueError(f"{size} of {len(image_ids)} images cannot be drawn")
    return sorted(sorted(image_ids, key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())[:count])


def checksum(image_ids: Iterable[int]) -> str:
    """SHA-256, in hexadecimal, of ids joined by commas in the order given: equal lists have equal checksums."""
    return hashlib.sha256(",".join(map(str, image_ids)).encode()).hexdigest()


def register_low_shot(base: str = "coco_2017_train") -> None:
    """Register the sets that are not registered yet; no file is read until a set is loaded.

    They share the files and the classes of ``base``, but have no evaluator: COCO's would count the objects of all other
    images as missed.

    Args:
        base: a registered data set in Detectron2's format whose images have ids; its name is the prefix of the sets'.
    """
    for label, size in SIZES.items():
        for seed in SEEDS:
            name = f"{base}_{label}_seed{seed}"
            if name not in DatasetCatalog.list():
                register_subset(name, base, functools.partial(_load, name, base, size, seed), is_evaluated=False)


def _load(name, base, size, seed):
    """The drawn dataset dicts of ``base``; ValueError as in :func:`draw`."""
    records = {record["image_id"]: record for record in DatasetCatalog.get(base)}
    try:
        ids = draw(records, size, seed)
    except ValueError as error:
        raise ValueError(f"data set {name}: {error}: {base} is too small for it") from None
    logger.info(f"{name}: {len(ids)} of {len(records)} images, SHA-256 of the ids {checksum(ids)}")
    return [records[i] for i in ids]
