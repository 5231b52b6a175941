"""results.json of tools/train_net.py and tools/light_head.py."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from ..schema import ANY, either, flag, maybe, number, path, text, whole
from .base import Results, known

Metrics = dict[str, float | None]  # "AP", "AP50", "AP75", "APs", "APm", "APl", "AP-<class>" -> percent
Tasks = dict[str, Metrics]  # "bbox", "segm", "bbox_coco" -> its metrics
_METRICS = {ANY: maybe(number)}


@dataclass
class Published:
    """A published row of a table, and in what a run is not that row.

    Attributes:
        row: name of the row, PUBLISHED.ROW.
        box_ap, mask_ap: its figures in percent; None if it has none.
        differences: in what the run differs from it, a line each; None in files that do not say it. The figures may
            stand beside the run's only if there are none.
    """

    row: str
    box_ap: float | None = None
    mask_ap: float | None = None
    differences: list[str] | None = None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Published":
        values: dict[str, Any] = {key: content.get(key) for key in _PUBLISHED}
        return cls(**values)

    @property
    def comparable(self) -> bool:
        """Whether the run is known to be that row."""
        return self.differences == []


_PUBLISHED = {"row": text, "box_ap": maybe(number), "mask_ap": maybe(number), "differences": maybe([text])}


@dataclass
class Comparability:
    """What must be equal between two runs for their figures to be compared.

    Attributes:
        key: of the settings; only runs of equal keys may stand in one ranking.
        settings: name -> value in JSON: keys of the config such as "SOLVER.MAX_ITER", data, versions.
    """

    key: str
    settings: dict[str, Any]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Comparability":
        return cls(content["key"], content["settings"])


@dataclass(kw_only=True)
class DetectionResults(Results):
    """What a detector has reached, and how it was trained; the fields' texts are in ``docs/run_folders.md``."""

    KIND: ClassVar[str] = "detection"
    FIGURES: ClassVar[str] = "results"

    results: Tasks | dict[str, Tasks] | None = known(
        {ANY: either(_METRICS, {ANY: _METRICS})},
        "task (`bbox`, `segm`; of Pascal VOC `bbox`, its own AP, and `bbox_coco`, COCO's) -> metric (`AP`, `AP50`, "
        "`AP75`, `APs`, `APm`, `APl`, `AP-<class>`) -> percent; with several test sets: data set -> task -> metric -> "
        "percent",
    )
    detector: str | None = known(
        text, '"Mask R-CNN"; "light head", whose AP only ranks encoders; or another MODEL.META_ARCHITECTURE'
    )
    dataset: str | None = known(text, "DATASETS.TEST, joined by commas")
    train_dataset: str | None = known(text, "DATASETS.TRAIN, joined by commas")
    iteration: int | None = known(whole, "iterations that the evaluated network has been trained for")
    seconds: float | None = known(
        number, "of training, over all parts of a resumed run; evaluations during training count, the last one does not"
    )
    evaluation_seconds: float | None = known(number, "of the last evaluation, on all test sets")
    peak_memory: float | None = known(
        number, "bytes in the main process: on a GPU what torch allocated there, on the CPU the resident memory"
    )
    device: str | None = known(text, "MODEL.DEVICE")
    processes: int | None = known(whole, "number of processes of the run that wrote this file")
    images_per_step: int | None = known(whole, "SOLVER.IMS_PER_BATCH, of all processes together")
    max_iter: int | None = known(whole, "SOLVER.MAX_ITER")
    schedule: str | None = known(
        text, 'the schedule in the usual words: "1x" (COCO), "64 epochs" (Cityscapes), or "15000 x 16 images"'
    )
    backbone: str | None = known(text, 'MODEL.TIMM.NAME, MODEL.ENCODER, or "ResNet-<depth>"')
    freeze_at: int | None = known(whole, "MODEL.BACKBONE.FREEZE_AT")
    frozen: bool | None = known(flag, "whether no parameter of the backbone learns")
    norm: str | None = known(text, "norm of the backbone")
    heads_norm: str | None = known(text, "norm of FPN, box head and mask head, each named once")
    weights: str | None = known(path, "MODEL.WEIGHTS at the start of the run")
    weights_sha256: str | None = known(text, "SHA-256 of that file")
    weights_metadata: dict[str, str] | None = known(
        {"sha256": maybe(text), "source": maybe(text)},
        "what tools/convert_to_d2.py wrote into it: `source`, `layout`, `location`, `arch`, `sha256`, `date`",
    )
    decoder: str | None = known(text, "of the pretraining, if the weights lie in a run folder of tools/pretrain.py")
    published: Published | None = known(
        _PUBLISHED,
        "`row`, `box_ap`, `mask_ap` of PUBLISHED, and `differences`: how this run differs from that row, a line "
        "each; the row's figures may be printed only if there are none",
        load=Published.from_json,
    )
    comparability: Comparability | None = known(
        {"key": text, "settings": {ANY: lambda value: True}},
        "`key` and `settings`: what must be equal for two runs to be compared, and the first digits of its hash; "
        "null: not known, and equal to no other run's",
        load=Comparability.from_json,
    )
    thing_classes: list[str] | None = known([text], "names of the classes, in the network's order")
    category_ids: list[int] | None = known([whole], "their ids in the data set")
    problems: list[str] | None = known(
        [text], "what failed in evaluation, analysis or pictures, a line each; empty if nothing did"
    )

    def evaluations(self, dataset: str | None = None) -> dict[str, Tasks]:
        """Data set -> task -> metric -> percent, also of a single test set.

        Args:
            dataset: name of the only test set if the file does not say it.
        """
        found: Any = self.results or {}
        if any("bbox" in value or "segm" in value for value in found.values()):
            return found
        return {str(self.dataset or dataset or "–"): found}


def without_nan(value: Any) -> Any:
    """Nested dicts of metrics with None for NaN, which JSON does not have: COCO's AP where there are no objects."""
    if isinstance(value, dict):
        return {key: without_nan(part) for key, part in value.items()}
    return None if math.isnan(value) else value
