"""The sampling errors of an evaluation's differences, from the predictions that its runs have left."""

from collections.abc import Sequence
from pathlib import Path

from detectron2.data import MetadataCatalog

from ..runs.folder import Run
from .evaluation import Evaluation
from .sampling import ImageError, Sampled, difference, sample

PREDICTIONS = Path("inference") / "coco_instances_results.json"


class ImageErrors:
    """Gives the sampling error of a difference of two rows; each row is resampled once."""

    def __init__(self, evaluation: Evaluation) -> None:
        """
        Args:
            evaluation: whose test images are resampled.
        """
        self.evaluation = evaluation
        self.known: dict[tuple[tuple[Path, ...], str], Sampled | None] = {}

    def __call__(self, first: Sequence[Run], second: Sequence[Run], task: str) -> ImageError | None:
        """The sampling error; None where ground truth or predictions in COCO's format are missing.

        Args:
            first, second: runs of two rows, with the same seeds.
            task: "bbox" or "segm".
        """
        samples = [self._sample(tuple(run.folder for run in runs), task) for runs in (first, second)]
        if not samples[0] or not samples[1] or samples[0].images != samples[1].images:
            return None
        return difference(samples[0], samples[1])

    def _sample(self, folders: tuple[Path, ...], task: str) -> Sampled | None:
        key = folders, task
        if key not in self.known:
            try:
                truth = self._truth(folders[0])
                self.known[key] = sample(truth, [folder / PREDICTIONS for folder in folders], task) if truth else None
            except (OSError, ValueError):  # moved, or damaged: the figures themselves are in results.json
                self.known[key] = None
        return self.known[key]

    def _truth(self, folder: Path) -> Path | str | None:
        """The test images' annotations: as an evaluator wrote them, which may be of some drawn from the test images; of
        the user's own data; or of a registered set."""
        if written := sorted((folder / PREDICTIONS).parent.glob("*_coco_format.json")):
            return written[0]
        own = (self.evaluation.data.get("test") or {}).get("json")
        if isinstance(own, str):
            return own
        name = {"coco": "coco_2017_val"}.get(str(self.evaluation.data.get("name")))
        return MetadataCatalog.get(name).json_file if name else None
