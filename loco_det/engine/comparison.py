"""What a run can be compared with, as results.json says it: from its config, its data and its training."""

import logging
from collections.abc import Mapping

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from pretrain.files.results import Comparability
from pretrain.files.yaml_files import parse_yaml

from ..data.versions import LOW_SHOT, version_of
from ..evaluation.build import ap_definition
from ..runs.comparable import comparability

logger = logging.getLogger(__name__)


def comparability_of(cfg: CfgNode, images: Mapping[str, int], iteration: int | None) -> Comparability | None:
    """What must be equal in runs that are compared with this one.

    Args:
        cfg: the config.
        images: data set -> number of its images, of those that are known.
        iteration: iterations that the network was trained for; None: not known.

    Returns:
        None if not all of it is known: of a detector that was not trained here, or of data that are not there any more
        or have no version (:func:`loco_det.data.versions.version_of`).
    """
    train, test = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    try:
        versions = {name: version_of(name) for name in (*train, *test)}
    except (OSError, ValueError) as error:
        logger.warning(f"results.json does not say what this run can be compared with: {error}")
        return None
    if iteration is None or not train or not test or None in versions.values():
        return None
    facts = {
        "data.train": [versions[name] for name in train],
        "data.test": [versions[name] for name in test],
        "images.train": [None if LOW_SHOT.fullmatch(name) else images.get(name) for name in train],
        "images.test": [images.get(name) for name in test],
        "classes": list(MetadataCatalog.get(test[0]).get("thing_classes") or ()),
        "AP": [ap_definition(name) for name in test],
        "iterations not trained": max(cfg.SOLVER.MAX_ITER - iteration, 0),
    }
    return comparability(parse_yaml(cfg.dump(), "the config"), facts)
