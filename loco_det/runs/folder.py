"""What a run folder of tools/pretrain.py, train_net.py, linear_probe.py or knn.py holds."""

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path

from pretrain.files.atomic import text_of
from pretrain.files.metrics import read_metrics, training_seconds
from pretrain.files.results import READOUTS, read_results
from pretrain.files.schema import ANY, either, fault, flag, maybe, number, path, read_json, text, whole
from pretrain.files.yaml_files import parse_yaml

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
    "MODEL.UNITS": [[text]],
    "MODEL.WEIGHTS": path,
    "SOLVER.IMS_PER_BATCH": whole,
    "SOLVER.MAX_ITER": whole,
}
CURVES = ("recall", "0.50", "0.50:0.95")  # that are drawn
_CURVE = [maybe(number)]
_TASK = {
    "per_class": {ANY: {"objects": whole, "AP": maybe(number)}},
    "curves": {"recall": [number], "0.50": _CURVE, "0.50:0.95": _CURVE},
}
ANALYSIS = {
    "dataset": maybe(text),
    "classes": [text],
    "tasks": {re.compile("bbox|segm"): _TASK},
    "confusion": {ANY: lambda value: True},
}


@dataclass
class Run:
    """What a run folder holds.

    Attributes:
        folder: the folder.
        name: short name in tables and legends.
        kind: "pretraining", "detection" or "readout" (linear probe or kNN).
        config: config.yaml as a dict, empty if there is none; ``config_text`` is the file as it is.
        metrics: list of dicts, ascending by "iteration" (counted from 0), as Detectron2's JSONWriter names things.
        results: results.json of a detection run or a readout, empty before its evaluation.
        command: text of command.txt, perhaps empty.
        pictures: paths of views.png and pictures/*.png.
        analysis: analysis.json of a detection run, empty if there is none.
        problem: why nothing is known of this run, empty if something is: its folder is missing, or damaged.
    """

    folder: Path
    name: str
    kind: str
    config: dict
    config_text: str
    metrics: list
    results: dict
    command: str
    pictures: list
    analysis: dict = field(default_factory=dict)
    problem: str = ""

    def key(self, path, default=None):
        """Value of a key of the config such as "SOLVER.MAX_ITER", one of ``KEYS``."""
        value = self.config
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None or fault(value, KEYS[path]) else value

    def series(self, name):
        """Iterations (counted from 1) and values of a metric."""
        points = [(m["iteration"] + 1, m[name]) for m in self.metrics if name in m]
        return [p[0] for p in points], [p[1] for p in points]

    @property
    def iterations(self):
        """Iterations trained; None if unknown."""
        return self.results.get("iteration") or (self.series("data_time")[0] or [None])[-1]

    @property
    def state(self):
        """In a word or two: how far it has come."""
        if self.problem:
            return self.problem
        planned, done = self.key("SOLVER.MAX_ITER"), self.iterations
        if self.kind == "readout":
            return "done" if self.results else "not finished"
        if self.kind == "detection":
            if self.results:
                return "problems" if self.problems else "done"
            return "not evaluated" if planned and (done or 0) >= planned else "not finished"
        return "not finished" if planned and (done or 0) < planned else "done"

    @property
    def problems(self):
        """What has failed in evaluation, analysis or pictures of a detection run, a line each."""
        return self.results.get("problems") or []

    @property
    def seconds(self):
        """As the run recorded it, else from the time per iteration in its metrics; None if unknown."""
        if self.results.get("seconds"):
            return self.results["seconds"]
        return training_seconds(self.metrics)

    @property
    def unit_losses(self):
        """Names of the losses that were logged, but for their sum; of pretraining from the image upwards."""
        return sorted({k for m in self.metrics for k in m if k.startswith("loss_")})

    @functools.cached_property
    def published(self):
        """ "row", "box_ap", "mask_ap" that the run's config names, and "differences" from it, as ``published_row``
        returns them; empty if there is none, and before there are results."""
        found = self.results.get("published") or {}
        if not found or found.get("differences") is not None:
            return found
        from .published import differences  # imports torch, which a report does without

        known = {key: self.results.get(key) for key in ("weights", "iteration")}  # by an earlier version
        config = {**self.config, "PUBLISHED": {"ROW": found["row"]}}
        metadata = self.results.get("weights_metadata")
        try:
            return {**found, "differences": differences(config, metadata=metadata, **known)}
        except (AttributeError, KeyError, TypeError, ValueError):
            return {**found, "differences": ["settings (its config.yaml does not tell them)"]}

    @property
    def evaluations(self):
        """Dataset -> task ("bbox", "segm") -> metrics of a detection run; without metrics before its evaluation. Empty
        for a readout, whose figures are no AP."""
        if self.kind == "readout":
            return {}
        results = self.results.get("results") or {}
        if any("bbox" in value or "segm" in value for value in results.values()):  # several test sets
            return results
        return {str(self.results.get("dataset") or (self.key("DATASETS.TEST") or ["–"])[0]): results}


def read_run(folder):
    """Read a run folder; whatever is missing or was torn by an interruption is left out.

    Returns:
        Run

    Raises:
        FileNotFoundError: if the folder holds neither metrics.json nor results.json.
        ValueError: if results.json, which is written in one go, is damaged.
    """
    folder = Path(folder)
    if not any((folder / name).is_file() for name in ("metrics.json", "results.json")):
        raise FileNotFoundError(f"{folder} is not a run: it has neither metrics.json nor results.json")
    results = read_results(folder / "results.json") if (folder / "results.json").is_file() else {}
    config, text = _config(folder)
    metrics = read_metrics(folder / "metrics.json")
    detection = results or "loss_mask" in {k for m in metrics for k in m} or "META_ARCHITECTURE" in text
    readout = any(results.get(part) is not None for part in READOUTS) if results else _is_readout(config)
    return Run(
        folder=folder,
        name=folder.resolve().name,
        kind="readout" if readout else "detection" if detection else "pretraining",
        config=config,
        config_text=text,
        metrics=metrics,
        results=results,
        command=text_of(folder / "command.txt").strip(),
        pictures=[*folder.glob("views.png"), *sorted((folder / "pictures").glob("*.png"))],
        analysis=_analysis(folder / "analysis.json"),
    )


def is_finished(folder):
    """Whether a run has its results.json, and nothing failed in evaluation, analysis or pictures."""
    try:
        return not read_results(Path(folder) / "results.json").get("problems")
    except (FileNotFoundError, ValueError):
        return False


def lost_run(folder, problem):
    """A Run that stands for a folder of which nothing can be read; its kind is a guess by its config, if it has one."""
    kind = "readout" if _is_readout(_config(Path(folder))[0]) else "detection"
    return Run(Path(folder), Path(folder).name, kind, {}, "", [], {}, "", [], problem=problem)


def _config(folder):
    """config.yaml as a dict, empty if it is damaged or missing, and as text."""
    path = folder / "config.yaml"
    text = text_of(path)
    try:
        config = parse_yaml(text, path)
    except ValueError:
        config = None
    return config if isinstance(config, dict) else {}, text


def _is_readout(config):
    return "FEATURES" in config  # a key of no other tool


def _analysis(path):
    """Empty, too, if the file is no analysis: the report then does without its part."""
    try:
        content = read_json(path)
    except (FileNotFoundError, ValueError):
        return {}
    if fault(content, ANALYSIS) or not content["tasks"]:
        return {}
    curves = [task["curves"] for task in content["tasks"].values()]
    return content if all(len({len(part[name]) for name in CURVES}) == 1 for part in curves) else {}
