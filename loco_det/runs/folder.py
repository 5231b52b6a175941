"""What a run folder of tools/pretrain.py, train_net.py, linear_probe.py or knn.py holds."""

import functools
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pretrain.engine.decoder_text import decoder_text
from pretrain.files.atomic import text_of
from pretrain.files.checkpoints import checkpoint_names, iteration_of
from pretrain.files.metrics import Metrics
from pretrain.files.results import (
    DetectionResults,
    NewerVersionError,
    Published,
    ReadoutResults,
    Results,
    read_results,
)
from pretrain.files.results.detection import Tasks
from pretrain.files.schema import either, fault, flag, maybe, number, path, text, whole
from pretrain.files.yaml_files import parse_yaml

from .analysis_file import read_analysis

_DECODER = {
    "CONV_BLOCKS": whole,
    "MLP_LAYERS": lambda value: value is None or (whole(value) and value < 100),
    **dict.fromkeys(("STAGES", "EXPANSION", "HIDDEN_DIM", "OUT_DIM"), maybe(whole)),
    "TIE": maybe(number),
    "DOWNSAMPLE": maybe(flag),
}
KEYS = {  # of a config that are read here, and their types: any other value counts as not known
    "DATASETS.TEST": either(text, [text]),
    "DATASETS.TRAIN": either(text, [text]),
    "LOSS.NAME": text,
    "LOSS.SCALE": number,
    "MODEL.BACKBONE.FREEZE_AT": whole,
    "MODEL.DECODER": _DECODER,
    "MODEL.ENCODER": text,
    "MODEL.RESNETS.DEPTH": whole,
    "MODEL.TIMM.NAME": text,
    "MODEL.UNITS": [[text]],
    "MODEL.WEIGHTS": path,
    "SOLVER.BASE_LR": number,
    "SOLVER.IMS_PER_BATCH": whole,
    "SOLVER.MAX_ITER": whole,
}


PLAN = re.compile(r", (\d{1,15}) iterations, \d+ processes; images per step")  # pretraining's line of its log


@dataclass
class Run:
    """What a run folder holds.

    Attributes:
        folder: the folder.
        name: short name in tables and legends.
        kind: "pretraining", "detection" or "readout" (linear probe or kNN).
        config_text: config.yaml as it is, empty if there is none.
        results: of results.json; None for pretraining, and before the end of another run.
        command: text of command.txt, perhaps empty.
        pictures: paths of views.png and pictures/*.png.
        analysis: analysis.json of a detection run, empty if there is none.
        problem: why nothing is known of this run, empty if something is: its folder is missing, or damaged.
    """

    folder: Path
    name: str
    kind: str
    config_text: str = ""
    results: Results | None = None
    command: str = ""
    pictures: list[Path] = field(default_factory=list)
    analysis: dict[str, Any] = field(default_factory=dict)
    problem: str = ""

    @functools.cached_property
    def metrics(self) -> Metrics:
        """Of metrics.json, read when it is asked for: a long run's takes long."""
        return Metrics() if self.problem else Metrics.read(self.folder / "metrics.json")

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """config.yaml as a dict; empty if it is damaged or missing. Parsed when it is asked for: that takes longer than
        all the rest of a run."""
        return _parsed(self.config_text, self.folder / "config.yaml")

    def key(self, path: str, default: Any = None) -> Any:
        """Value of a key of the config such as "SOLVER.MAX_ITER", one of ``KEYS``."""
        value: Any = self.config
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None or fault(value, KEYS[path]) else value

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Iterations (counted from 1) and values of a metric."""
        return self.metrics.curve(name)

    @property
    def detection(self) -> DetectionResults:
        """The results of a detection run; without values where there are none."""
        return self.results if isinstance(self.results, DetectionResults) else DetectionResults()

    @property
    def iterations(self) -> int | None:
        """Iterations trained; None if unknown."""
        if self.detection.iteration:
            return self.detection.iteration
        logged = self.series("data_time")[0]
        return logged[-1] if logged else self._saved

    @property
    def planned(self) -> int | None:
        """Iterations that were to be trained; None if unknown. That of pretraining is in its log."""
        found = PLAN.findall(text_of(self.folder / "log.txt")) if self.kind == "pretraining" else []
        return int(found[-1]) if found else self.key("SOLVER.MAX_ITER")

    @property
    def _saved(self) -> int | None:
        """The iterations of pretraining's newest checkpoint before the last one."""
        saved = map(iteration_of, checkpoint_names(self.folder)) if self.kind == "pretraining" else ()
        return next((int(iteration) + 1 for iteration in saved if iteration not in (None, math.inf)), None)

    @property
    def state(self) -> str:
        """In a word or two: how far it has come."""
        if self.problem:
            return self.problem
        if self.results:
            return "problems" if self.problems else "done"
        if self.kind == "readout":
            return "not finished"
        planned, done = self.planned, self.iterations
        if self.kind == "detection":
            return "not evaluated" if planned and (done or 0) >= planned else "not finished"
        stopped = checkpoint_names(self.folder)[:1] not in ([], ["model_final.pth"])
        return "not finished" if stopped or planned and (done or 0) < planned else "done"

    @property
    def problems(self) -> list[str]:
        """What has failed in evaluation, analysis or pictures of a detection run, a line each."""
        return self.detection.problems or []

    @property
    def seconds(self) -> float | None:
        """As the run recorded it, else from the time per iteration in its metrics; None if unknown."""
        return getattr(self.results, "seconds", None) or self.metrics.seconds

    @property
    def unit_losses(self) -> list[str]:
        """Names of the losses that were logged, but for their sum; of pretraining from the image upwards."""
        return sorted(name for name in self.metrics.names if name.startswith("loss_"))

    @property
    def decoder(self) -> str | None:
        """The decoder that a pretraining run looked through; published comparisons were unfair for not saying it.

        None for a run without decoder: the random control, and detection runs.
        """
        keys = self.key("MODEL.DECODER")
        if not keys or "CONV_BLOCKS" not in keys or self.key("MODEL.UNITS") == []:  # no unit: the random control
            return None
        return decoder_text(keys)

    @functools.cached_property
    def published(self) -> Published | None:
        """The row that the run's config names, with the differences from it; None if there is none, and before there
        are results."""
        found = self.detection.published
        if not found or found.differences is not None:
            return found
        from .published import differences  # imports torch, which a report does without

        weights, iteration = self.detection.weights, self.detection.iteration  # by an earlier version
        config = {**self.config, "PUBLISHED": {"ROW": found.row}}
        try:
            texts = differences(config, weights, metadata=self.detection.weights_metadata, iteration=iteration)
        except (AttributeError, KeyError, TypeError, ValueError):
            texts = ["settings (its config.yaml does not tell them)"]
        return replace(found, differences=texts)

    @property
    def evaluations(self) -> dict[str, Tasks]:
        """Dataset -> task ("bbox", "segm") -> metrics of a detection run; without metrics before its evaluation. Empty
        for a readout, whose figures are no AP."""
        if self.kind == "readout":
            return {}
        known = self.detection.dataset
        return self.detection.evaluations(None if known else (self.key("DATASETS.TEST") or ["–"])[0])


def read_run(folder: str | Path) -> Run:
    """Read a run folder; whatever is missing or was torn by an interruption is left out.

    Raises:
        FileNotFoundError: if the folder holds neither metrics.json nor results.json.
        ValueError: if results.json, which is written in one go, is damaged or by a later version.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("metrics.json", "results.json")):
        raise FileNotFoundError(f"{folder} is not a run: it has neither metrics.json nor results.json")
    results = read_results(folder / "results.json") if (folder / "results.json").is_file() else None
    run = Run(
        folder=folder,
        name=folder.resolve().name,
        kind="readout" if isinstance(results, ReadoutResults) else "detection",
        config_text=text_of(folder / "config.yaml"),
        results=results,
        command=text_of(folder / "command.txt").strip(),
        pictures=[*folder.glob("views.png"), *sorted((folder / "pictures").glob("*.png"))],
        analysis=read_analysis(folder / "analysis.json"),
    )
    if not results:
        run.kind = _kind_of_unfinished(run)
    return run


def _kind_of_unfinished(run: Run) -> str:
    if _is_readout(run.config_text):
        return "readout"
    detection = "META_ARCHITECTURE" in run.config_text or "loss_mask" in run.metrics.names
    return "detection" if detection else "pretraining"


def is_finished(folder: str | Path) -> bool:
    """Whether a run has its results.json, and nothing failed in evaluation, analysis or pictures.

    Raises:
        NewerVersionError: if a later version of loco-det wrote it: who takes it for unfinished would do it anew.
    """
    try:
        return not getattr(read_results(Path(folder) / "results.json"), "problems", None)
    except NewerVersionError:
        raise
    except (FileNotFoundError, ValueError):
        return False


def lost_run(folder: str | Path, problem: str) -> Run:
    """A Run that stands for a folder of which nothing can be read; its kind is a guess by its config, if it has one."""
    kind = "readout" if _is_readout(text_of(Path(folder) / "config.yaml")) else "detection"
    return Run(Path(folder), Path(folder).name, kind, problem=problem)


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        config = parse_yaml(text, path)
    except ValueError:
        config = None
    return config if isinstance(config, dict) else {}


def _is_readout(text: str) -> bool:
    return "FEATURES" in text and "FEATURES" in _parsed(text, Path("config.yaml"))  # a key of no other tool
