"""A run in a line: what a list of many runs shows of each."""

from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from pretrain.files.results import KnnResults, LinearResults, ReadoutResults

from .folder import Run

FILES = ("results.json", "metrics.json")


@dataclass(frozen=True)
class Summary:
    """What is known of a run; None for what is not, or does not apply.

    Attributes:
        name, kind, state: as of :class:`loco_det.runs.folder.Run`.
        data: of detection the test set, of a readout the test images, of pretraining the images.
        backbone: such as "ResNet-18".
        box_ap, mask_ap: percent, on the first test set.
        top1: percent, of a readout's last stage; of kNN with its first setting.
        iterations, planned: trained, and that were to be trained.
        seconds: of training.
        date: ISO 8601, local: when results.json or else metrics.json was last written.
        key: the comparability key; figures of runs with equal keys may be compared.
        weights: that it began with.
        folder: path of the run.
    """

    name: str
    kind: str
    state: str
    data: str | None = None
    backbone: str | None = None
    box_ap: float | None = None
    mask_ap: float | None = None
    top1: float | None = None
    iterations: int | None = None
    planned: int | None = None
    seconds: float | None = None
    date: str | None = None
    key: str | None = None
    weights: str | None = None
    folder: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Name of a field -> its value, for JSON and CSV."""
        return asdict(self)

    def matches(self, text: str) -> bool:
        """Whether the name, weights, data or backbone contains a text; upper and lower case are the same."""
        return any(text.lower() in (part or "").lower() for part in (self.name, self.weights, self.data, self.backbone))


NAMES = tuple(part.name for part in fields(Summary))


def summary(run: Run) -> Summary:
    """The line of a run."""
    if run.problem:
        return Summary(run.name, run.kind, run.problem, folder=str(run.folder))
    tasks = next(iter(run.evaluations.values()), {})
    return Summary(
        name=run.name,
        kind=run.kind,
        state=run.state,
        data=_data(run),
        backbone=_backbone(run),
        box_ap=tasks.get("bbox", {}).get("AP"),
        mask_ap=tasks.get("segm", {}).get("AP"),
        top1=top1_of(run),
        iterations=run.iterations if run.kind != "readout" else None,
        planned=run.detection.max_iter or (run.planned if run.kind != "readout" else None),
        seconds=run.seconds,
        date=_date(run.folder),
        key=comparability(run).get("key"),
        weights=_weights(run),
        folder=str(run.folder),
    )


def comparability(run: Run) -> dict[str, Any]:
    """ "key" and "settings" of a run: figures may be compared where the keys are equal. Empty if its file has none."""
    found = run.detection.comparability
    return asdict(found) if found else {}


def _data(run: Run) -> str | None:
    if run.kind == "detection":
        return ", ".join(name for name in run.evaluations if name != "–") or None
    path = (run.key("DATASETS.TEST") if run.kind == "readout" else None) or run.key("DATASETS.TRAIN")
    return "/".join(Path(str(path)).parts[-2:]) if path else None


def _backbone(run: Run) -> str | None:
    if isinstance(run.results, ReadoutResults):
        return (run.results.weights or {}).get("arch")
    if run.detection.backbone:
        return run.detection.backbone
    depth = run.key("MODEL.RESNETS.DEPTH") if run.kind == "detection" else None
    return run.key("MODEL.ENCODER") or (f"ResNet-{depth}" if depth else None)


def _weights(run: Run) -> str | None:
    if isinstance(run.results, ReadoutResults):
        return (run.results.weights or {}).get("path")
    return run.detection.weights or (run.key("MODEL.WEIGHTS") if run.kind != "pretraining" else None)


def top1_of(run: Run) -> float | None:
    """Top-1 accuracy of a readout's last stage, in percent, of kNN with its first setting; None if there is none."""
    if isinstance(run.results, LinearResults) and run.results.linear:
        return list(run.results.linear.values())[-1].top1
    if isinstance(run.results, KnnResults) and run.results.knn:
        settings = list(run.results.knn.values())[-1]
        return next((tops.top1 for tops in settings.values()), None)
    return None


def _date(folder: Path) -> str | None:
    path = next((folder / name for name in FILES if (folder / name).is_file()), None)
    return datetime.fromtimestamp(path.stat().st_mtime).isoformat(timespec="seconds") if path else None
