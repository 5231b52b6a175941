"""What was measured of a checkpoint: the results.json of linear probe, kNN and detection as rows of a card."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..files.atomic import text_of
from ..files.results import (
    KINDS,
    DetectionResults,
    KnnResults,
    LinearResults,
    LinearStage,
    NewerVersionError,
    Results,
)
from ..files.tables import GENERAL, PLAIN, Column, Table, decimals
from ..files.text import for_terminal
from ..files.yaml_files import parse_yaml
from ..readout.results import at_the_edge
from .run import dataset_of, last_part

TOOLS = {"linear": "tools/linear_probe.py", "knn": "tools/knn.py", "detection": "tools/train_net.py"}
CHOSEN = {
    "held-out": "on images of the training set held out of the training",
    "test": "on the test set itself, which flatters the figures",
    None: "not at all: there was one only",
}
METRICS = [(name, task, metric) for name, task in (("box", "bbox"), ("mask", "segm")) for metric in ("AP", "AP50")]


@dataclass
class Readout:
    """Figures of one results.json.

    Attributes:
        kind: "linear", "knn" or "detection".
        run: name of its folder.
        dataset: of the test, as far as the config tells; of linear readouts and kNN.
        table: its figures.
        notes: what was done to get them, sentences.
        figures: (data set, name of the figure, its type for Hugging Face, percent or None): the front matter's.
        flattered: whether something was chosen on the test set.
    """

    kind: str
    run: str
    dataset: str
    table: Table
    notes: list[str] = field(default_factory=list)
    figures: list[tuple[str, str, str, float | None]] = field(default_factory=list)
    flattered: bool = False


def read_readout(folder: str | Path, kind: str, sha256: str) -> Readout:
    """Read the results.json in a folder, which must be of the checkpoint with this SHA-256.

    Args:
        folder: an OUTPUT_DIR of the tool.
        kind: key of ``TOOLS``.
        sha256: of the checkpoint.

    Returns:
        Readout

    Raises:
        FileNotFoundError: if there is no results.json.
        ValueError: if it is damaged, of another kind, or of another checkpoint.
    """
    path = Path(folder) / "results.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; run {TOOLS[kind]} to its end first")
    name = Path(folder).resolve().name
    try:
        content = KINDS[kind].read(path)
        readout = Readout(kind, name, _dataset(path.with_name("config.yaml")) or name, Table(_columns(kind)))
        measured = _origin(content).get("sha256")
        _FILL[type(content)](content, readout)
        if not readout.table:
            raise ValueError("no figures")
    except NewerVersionError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = " ".join(repr(error).split())
        raise ValueError(f"{path} is damaged, or not by {TOOLS[kind]}: {why}") from error
    if problems := getattr(content, "problems", None):
        problems = for_terminal("; ".join(problems))
        raise ValueError(f"{path} is of a run that has not succeeded: {problems}")
    if measured != sha256:
        what = f"another checkpoint, SHA-256 {measured}" if measured else "weights whose origin it does not tell"
        raise ValueError(f"{path} holds results of {what}; the SHA-256 of this one is {sha256}")
    return readout


def _dataset(config: Path) -> str | None:
    """The folder of test images in a readout's config.yaml; None if there is none."""
    content = parse_yaml(text_of(config), config)
    keys = (content.get("DATASETS") if isinstance(content, dict) else None) or {}
    folder = keys.get("TEST") or keys.get("TRAIN")
    return dataset_of(folder) if isinstance(folder, str) else None


def _origin(content: Results) -> dict[str, str]:
    """What results tell of the checkpoint that was measured."""
    found = content.weights_metadata if isinstance(content, DetectionResults) else getattr(content, "weights", None)
    return found or {}


def _columns(kind: str) -> list[Column]:
    """The columns of a kind's table."""
    accuracy, text = decimals(1), [Column("features")]
    figures = {name: Column(f"{name} (%)", accuracy) for name in ("top-1", "top-5", "held-out top-1")}
    if kind == "linear":
        return [*text, figures["top-1"], figures["top-5"], Column("learning rate", GENERAL), figures["held-out top-1"]]
    if kind == "knn":
        return [*text, Column("k", PLAIN), Column("temperature", GENERAL), figures["top-1"], figures["top-5"]]
    about = ("run", "test set", "training", "backbone", "norm of backbone", "of heads")
    return [*map(Column, about), *(Column(f"{name} {metric}", accuracy) for name, _, metric in METRICS)]


def _linear(content: LinearResults, readout: Readout) -> None:
    protocol = dict(content.protocol or {})
    chosen, rates = protocol.pop("chosen_on"), protocol.pop("base_lr")
    readout.flattered = chosen == "test"
    tried = ", ".join(f"{rate:g}" for rate in rates)
    readout.notes += [
        _images(content.images),
        f"Learning rates tried: {tried}; chosen, for each stage by itself, {CHOSEN[chosen]}.",
        _protocol(protocol),
    ]
    if edge := at_the_edge(content):
        stages = ", ".join(edge)
        readout.notes.append(f"Best at the least or largest rate tried, beyond which a better may lie: {stages}.")
    for name, stage in content.linear.items():
        if stage == LinearStage():  # one whose classifiers have all diverged has its sweep
            raise ValueError(f"no figures of {name}")
        rate = "all diverged" if stage.lr is None else stage.lr
        row = {"features": name, "top-1 (%)": stage.top1, "top-5 (%)": stage.top5, "learning rate": rate}
        readout.table.rows.append({**row, "held-out top-1 (%)": stage.held_out_top1})
        readout.figures.append((readout.dataset, f"linear probe top-1, {name}", "accuracy", stage.top1))


def _knn(content: KnnResults, readout: Readout) -> None:
    readout.notes += [
        "Weighted kNN (arXiv 1805.01978) on pooled features.",
        _images(content.images),
        _protocol(content.protocol),
    ]
    for stage, settings in content.knn.items():
        for key, tops in settings.items():
            row = {"features": stage, **key._asdict(), "top-1 (%)": tops.top1, "top-5 (%)": tops.top5}
            readout.table.rows.append(row)
            figure = f"kNN top-1, {stage}, k {key.k}, temperature {key.temperature:g}"
            readout.figures.append((readout.dataset, figure, "accuracy", tops.top1))


def _images(counts: Any) -> str:
    held_out = f", {counts['held_out']:,} held out" if counts.get("held_out") else ""
    learned, tested = f"{counts['train']:,} images to learn from{held_out}", f"{counts['test']:,} to test"
    return f"{learned}, {tested}, {counts['classes']:,} classes."


def _protocol(keys: Any) -> str:
    """A protocol in a sentence, without the machine's folders."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in keys.items()}
    texts = {key: last_part(text) if "/" in text else text for key, text in texts.items() if text != "null"}
    return f"Protocol: {', '.join(f'{key} {text}' for key, text in texts.items())}."


def _detection(content: DetectionResults, readout: Readout) -> None:
    backbone = None if content.frozen is None else "frozen"
    if content.frozen is False:
        backbone = f"fine-tuned, FREEZE_AT {content.freeze_at}"
    for dataset, tasks in content.evaluations().items():
        row: dict[str, Any] = {
            "run": readout.run,
            "test set": dataset,
            "training": content.schedule,
            "backbone": backbone,
        }
        row |= {"norm of backbone": content.norm, "of heads": content.heads_norm}
        row |= {f"{name} {metric}": tasks.get(task, {}).get(metric) for name, task, metric in METRICS}
        readout.table.rows.append(row)
        for name, task in (("box", "bbox"), ("mask", "segm")):
            figure = f"{name} AP, Mask R-CNN, backbone {backbone or 'not known'} ({readout.run})"
            readout.figures.append((dataset, figure, "mean_average_precision", tasks.get(task, {}).get("AP")))


_FILL: dict[type, Any] = {LinearResults: _linear, KnnResults: _knn, DetectionResults: _detection}
