"""Small random parts of COCO's train2017, registered with Detectron2: 1,000 and 10,000 images, 1, 2, 5 and 10 %.

The sets are called ``coco_2017_train_<size>_seed<k>`` with sizes 1k, 10k, 1pct, 2pct, 5pct, 10pct and seeds 0 to 4.
There are no lists to download and no copies of the annotation file: the images of a seed are put in the order of the
SHA-256 of "seed:image id", and a set is the first so many of them. So

- the same images come out on any machine and with any version of anything, whatever the order of the annotation file;
- a set holds the smaller ones of its seed (1k in 1pct in 2pct in 5pct in 10k in 10pct), so that more images are always
  additional ones; sets of different seeds are independent draws, which may overlap.

All images count, those without objects too (1,021 of the 118,287), so that the draw does not look at annotations.
Detectron2 leaves these out in training (DATALOADER.FILTER_EMPTY_ANNOTATIONS), about 86 of 10,000.

LoCo (Table 3) does not publish its splits. Of those of the semi-supervised field, STAC draws positions in the
annotation file with numpy, with replacement (prepare_datasets/prepare_coco_data.py in google-research/ssl_detection),
and Unbiased Teacher publishes lists of positions without the rule behind them (dataseed/COCO_supervision.txt in
facebookresearch/unbiased-teacher). Ours are drawn by our own rule: about the sizes of those, but other images.
"""

import functools
import hashlib
import logging

from detectron2.data import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)

SIZES = {"1k": 1000, "10k": 10000, "1pct": "1%", "2pct": "2%", "5pct": "5%", "10pct": "10%"}
SEEDS = range(5)


def draw(image_ids, size, seed):
    """Draw a random part of a data set.

    Args:
        image_ids: ids of all images, ints, each once, in any order.
        size: number of images, or a share such as "5%", rounded down to whole images.
        seed: number of the draw.

    Returns:
        list of int: the ids that were drawn, ascending.

    Raises:
        ValueError: if there are fewer images than asked for, or none would be drawn.
    """
    count = size if isinstance(size, int) else len(image_ids) * int(size.removesuffix("%")) // 100
    if not 0 < count <= len(image_ids):
        raise ValueError(f"{size} of {len(image_ids)} images cannot be drawn")
    return sorted(sorted(image_ids, key=lambda i: hashlib.sha256(f"{seed}:{i}".encode()).digest())[:count])


def checksum(image_ids):
    """SHA-256 of ids in the order given, joined by commas: what to compare to know that two lists are the same."""
    return hashlib.sha256(",".join(map(str, image_ids)).encode()).hexdigest()


def register_low_shot(base="coco_2017_train"):
    """Register the sets, those that are not registered yet; no file is read before one of them is asked for.

    They share the files and the classes of ``base``, but they have no evaluator: COCO's would count the objects of
    images that were not drawn as missed.

    Args:
        base: name of a registered data set in Detectron2's format, whose images have ids; sets are called after it.
    """
    metadata = MetadataCatalog.get(base).as_dict()
    metadata = {key: value for key, value in metadata.items() if key not in ("name", "evaluator_type")}
    for label, size in SIZES.items():
        for seed in SEEDS:
            name = f"{base}_{label}_seed{seed}"
            if name not in DatasetCatalog.list():
                DatasetCatalog.register(name, functools.partial(_load, name, base, size, seed))
                MetadataCatalog.get(name).set(**metadata)


def _load(name, base, size, seed):
    """The drawn ones of the dataset dicts of ``base``; ValueError as :func:`draw`."""
    records = {record["image_id"]: record for record in DatasetCatalog.get(base)}
    try:
        ids = draw(records, size, seed)
    except ValueError as error:
        raise ValueError(f"data set {name}: {error}: {base} is too small for it") from None
    logger.info(f"{name}: {len(ids)} of {len(records)} images, SHA-256 of the ids {checksum(ids)}")
    return [records[i] for i in ids]
