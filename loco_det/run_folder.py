"""What a folder of tools/pretrain.py or tools/train_net.py holds."""

import json
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass
class Run:
    """What a run folder holds.

    Attributes:
        folder: the folder.
        name: short name in tables and legends.
        kind: "pretraining" or "detection".
        config: config.yaml as a dict, empty if there is none; ``config_text`` is the file as it is.
        metrics: list of dicts, ascending by "iteration" (counted from 0), as Detectron2's JSONWriter names things.
        results: results.json of a detection run, empty before its evaluation.
        command: text of command.txt, perhaps empty.
        pictures: paths of views.png and pictures/*.png.
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

    def key(self, path, default=None):
        """Value of a key of the config such as "SOLVER.MAX_ITER"."""
        value = self.config
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return default if value is None else value

    def series(self, name):
        """Iterations (counted from 1) and values of a metric."""
        points = [(m["iteration"] + 1, m[name]) for m in self.metrics if isinstance(m.get(name), int | float)]
        return [p[0] for p in points], [p[1] for p in points]

    @property
    def iterations(self):
        """Iterations trained; None if unknown."""
        return self.results.get("iteration") or (self.series("data_time")[0] or [None])[-1]

    @property
    def seconds(self):
        """As the run recorded it, else from the time per iteration in its metrics; None if unknown."""
        if self.results.get("seconds"):
            return self.results["seconds"]
        ends, times = self.series("time")
        return sum(t * (b - a) for t, a, b in zip(times, [0, *ends], ends, strict=False)) or None

    @property
    def unit_losses(self):
        """Names of the losses that were logged, but for their sum; of pretraining from the image upwards."""
        return sorted({k for m in self.metrics for k in m if k.startswith("loss_")})

    @property
    def evaluations(self):
        """Dataset -> task ("bbox", "segm") -> metrics of a detection run; without metrics before its evaluation."""
        results = self.results.get("results", {})
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
    results = {}
    if (folder / "results.json").is_file():
        try:
            results = json.loads((folder / "results.json").read_text())
            results["results"].get("bbox")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / 'results.json'} is damaged ({error!r}): evaluate that run again") from error
    text = _text(folder / "config.yaml")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError:
        config = None
    config = config if isinstance(config, dict) else {}
    metrics = _read_metrics(folder / "metrics.json")
    detection = results or "loss_mask" in {k for m in metrics for k in m} or "META_ARCHITECTURE" in text
    return Run(
        folder=folder,
        name=folder.resolve().name,
        kind="detection" if detection else "pretraining",
        config=config,
        config_text=text,
        metrics=metrics,
        results=results,
        command=_text(folder / "command.txt").strip(),
        pictures=[*folder.glob("views.png"), *sorted((folder / "pictures").glob("*.png"))],
    )


def _text(path):
    return path.read_text(errors="replace") if path.is_file() else ""


def _read_metrics(path):
    """Lines of a metrics.json, merged by iteration. A line that a kill tore is skipped; after a resume that went back
    to an earlier checkpoint, what had been logged beyond it is dropped."""
    merged, last = {}, -1
    for line in _text(path).splitlines():
        try:
            entry = json.loads(line)
            iteration = int(entry["iteration"])
        except (ValueError, KeyError, TypeError):
            continue
        if "data_time" in entry:  # an evaluation's line may come out of turn, a training step's only after a resume
            if iteration < last:
                merged = {i: m for i, m in merged.items() if i < iteration}
            last = iteration
        merged.setdefault(iteration, {}).update(entry)
    return [merged[i] for i in sorted(merged)]
