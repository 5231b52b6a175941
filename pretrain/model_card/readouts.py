"""What was measured of a checkpoint: the results.json of linear probe, kNN and detection as rows of a card."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from ..files.atomic import text_of
from ..files.results import read_results
from ..files.text import for_terminal
from ..files.yaml_files import parse_yaml
from ..readout.results import at_the_edge
from .markdown import percent
from .run import dataset_of, last_part

TOOLS = {"linear": "tools/linear_probe.py", "knn": "tools/knn.py", "detection": "tools/train_net.py"}
CHOSEN = {
    "held-out": "on images of the training set held out of the training",
    "test": "on the test set itself, which flatters the figures",
    None: "not at all: there was one only",
}


@dataclass
class Readout:
    """Figures of one results.json.

    Attributes:
        kind: "linear", "knn" or "detection".
        run: name of its folder.
        dataset: of the test, as far as the config tells; of linear readouts and kNN.
        rows: list of dicts, column -> text.
        notes: what was done to get them, sentences.
        figures: (data set, name of the figure, its type for Hugging Face, percent or None): the front matter's.
        flattered: whether something was chosen on the test set.
    """

    kind: str
    run: str
    dataset: str
    rows: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    figures: list = field(default_factory=list)
    flattered: bool = False


def read_readout(folder, kind, sha256):
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
        content = read_results(path)
        readout = Readout(kind, name, _dataset(path.with_name("config.yaml")) or name)
        origin = (content["weights_metadata"] or {}) if kind == "detection" else content["weights"]
        measured = origin.get("sha256")
        {"linear": _linear, "knn": _knn, "detection": _detection}[kind](content, readout)
        if not readout.rows:
            raise ValueError("no figures")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        why = " ".join(repr(error).split())
        raise ValueError(f"{path} is damaged, or not by {TOOLS[kind]}: {why}") from error
    if content.get("problems"):
        problems = for_terminal("; ".join(content["problems"]))
        raise ValueError(f"{path} is of a run that has not succeeded: {problems}")
    if measured != sha256:
        what = f"another checkpoint, SHA-256 {measured}" if measured else "weights whose origin it does not tell"
        raise ValueError(f"{path} holds results of {what}; the SHA-256 of this one is {sha256}")
    return readout


def _dataset(config):
    """The folder of test images in a readout's config.yaml; None if there is none."""
    content = parse_yaml(text_of(config), config)
    keys = (content.get("DATASETS") if isinstance(content, dict) else None) or {}
    folder = keys.get("TEST") or keys.get("TRAIN")
    return dataset_of(folder) if isinstance(folder, str) else None


def _linear(content, readout):
    protocol = dict(content["protocol"])
    chosen, rates = protocol.pop("chosen_on"), protocol.pop("base_lr")
    readout.flattered = chosen == "test"
    tried = ", ".join(f"{rate:g}" for rate in rates)
    readout.notes += [
        _images(content["images"]),
        f"Learning rates tried: {tried}; chosen, for each stage by itself, {CHOSEN[chosen]}.",
        _protocol(protocol),
    ]
    if edge := at_the_edge(content):
        stages = ", ".join(edge)
        readout.notes.append(f"Best at the least or largest rate tried, beyond which a better may lie: {stages}.")
    for stage, row in content["linear"].items():
        rate = "all diverged" if row["lr"] is None else f"{row['lr']:g}"
        cells = {"features": stage, "top-1 (%)": percent(row["top1"]), "top-5 (%)": percent(row.get("top5"))}
        readout.rows.append({**cells, "learning rate": rate, "held-out top-1 (%)": percent(row["held_out_top1"])})
        readout.figures.append((readout.dataset, f"linear probe top-1, {stage}", "accuracy", row["top1"]))


def _knn(content, readout):
    readout.notes += [
        "Weighted kNN (arXiv 1805.01978) on pooled features.",
        _images(content["images"]),
        _protocol(content["protocol"]),
    ]
    for stage, settings in content["knn"].items():
        for setting, row in settings.items():
            k, temperature = setting.removeprefix("k").split("_t")
            cells = {"features": stage, "k": k, "temperature": temperature, "top-1 (%)": percent(row["top1"])}
            readout.rows.append({**cells, "top-5 (%)": percent(row.get("top5"))})
            figure = f"kNN top-1, {stage}, k {k}, temperature {temperature}"
            readout.figures.append((readout.dataset, figure, "accuracy", row["top1"]))


def _images(counts):
    held_out = f", {counts['held_out']:,} held out" if counts.get("held_out") else ""
    learned, tested = f"{counts['train']:,} images to learn from{held_out}", f"{counts['test']:,} to test"
    return f"{learned}, {tested}, {counts['classes']:,} classes."


def _protocol(keys):
    """A protocol in a sentence, without the machine's folders."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in keys.items()}
    texts = {key: last_part(text) if "/" in text else text for key, text in texts.items() if text != "null"}
    return f"Protocol: {', '.join(f'{key} {text}' for key, text in texts.items())}."


def _detection(content, readout):
    evaluations = content["results"]
    if not any("bbox" in tasks or "segm" in tasks for tasks in evaluations.values()):
        evaluations = {content["dataset"]: evaluations}
    backbone = "frozen" if content["frozen"] else f"fine-tuned, FREEZE_AT {content['freeze_at']}"
    for dataset, tasks in evaluations.items():
        cells = {"run": readout.run, "test set": dataset, "training": content["schedule"], "backbone": backbone}
        cells |= {"norm of backbone": content["norm"], "of heads": content["heads_norm"]}
        for task, name in (("bbox", "box"), ("segm", "mask")):
            for metric in ("AP", "AP50"):
                cells[f"{name} {metric}"] = percent(tasks.get(task, {}).get(metric))
            figure = f"{name} AP, Mask R-CNN, backbone {backbone} ({readout.run})"
            value = tasks.get(task, {}).get("AP")
            readout.figures.append((dataset, figure, "mean_average_precision", value))
        readout.rows.append(cells)
