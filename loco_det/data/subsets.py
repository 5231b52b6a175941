"""Parts of a registered data set, as registered data sets of their own."""

from collections.abc import Callable
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog


def register_subset(name: str, base: str, load: Callable[[], list[dict[str, Any]]], is_evaluated: bool) -> None:
    """Register some images of a data set, with its files and classes.

    Args:
        name: of the subset.
        base: a registered data set.
        load: returns Detectron2's dataset dicts of the subset's images.
        is_evaluated: whether it is tested on: by COCO's AP on its own images, whatever the data are. The annotation
            file of ``base`` is not the subset's, then. Otherwise it has no evaluator.
    """
    left_out = {"name", "evaluator_type"} | ({"json_file"} if is_evaluated else set())
    metadata = {key: value for key, value in MetadataCatalog.get(base).as_dict().items() if key not in left_out}
    if is_evaluated:
        metadata["evaluator_type"] = "coco"
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)
