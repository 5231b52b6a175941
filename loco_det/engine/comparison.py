"""What a run can be compared with, as results.json says it: from its config, its data and its training."""

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from pretrain.files.results import Comparability
from pretrain.files.yaml_files import parse_yaml

from ..data.versions import LOW_SHOT, version_of, version_of_file
from ..evaluation.build import ap_definition
from ..runs.comparable import comparability

logger = logging.getLogger(__name__)


def known_versions(names: Iterable[str]) -> list[str | None]:
    """The version of each data set (:func:`loco_det.data.versions.version_of`); None if it is not there or has none."""
    return [_known(name) for name in names]


def _known(name):
    try:
        return version_of(name)
    except (OSError, ValueError) as error:
        logger.warning(f"results.json does not say what this run can be compared with: {error}")
        return None


def comparability_of(cfg: CfgNode, trained: Mapping[str, Any], iteration: int | None) -> Comparability | None:
    """What must be equal in runs that are compared with this one.

    Args:
        cfg: the config.
        trained: the trainer's state: "versions" of the training data as they were then (if it lacks them, as they are
            now), and "images", their numbers.
        iteration: iterations that the network was trained for; None: not known.

    Returns:
        None if not all of it is known: of a detector that was not trained here, or of data that are not there any more
        or have no version.
    """
    train, test, custom = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST, cfg.DATASETS.CUSTOM
    trained_on, tested_on = trained.get("versions") or known_versions(train), known_versions(test)
    if trained_on == [None] and os.path.isfile(custom.TRAIN_JSON):  # an evaluation registers no data to train on
        trained_on = [version_of_file(custom.TRAIN_JSON)]
    if iteration is None or not train or not test or None in [*trained_on, *tested_on]:
        return None
    images = [] if any(map(LOW_SHOT.fullmatch, train)) else [*trained.get("images", {}).values()]
    facts = {
        "data.train": trained_on,
        "data.test": tested_on,
        "images.train": images,
        "images.test": [len(DatasetCatalog.get(name)) for name in test],
        "classes": list(MetadataCatalog.get(test[0]).get("thing_classes") or ()),
        "AP": [ap_definition(name) for name in test],
        "iterations not trained": max(cfg.SOLVER.MAX_ITER - iteration, 0),
    }
    return comparability(parse_yaml(cfg.dump(), "the config"), facts)
