"""``loco-det COMMAND``: every command line of the project under one name. ``tools/*.py`` are the same commands.

A command's module is imported when its name has been read, so that help and wrong names are answered at once.
"""

import difflib
import importlib
import importlib.metadata
import sys
from typing import NamedTuple

from .common.errors import BAD_INPUT, missing_module


class Command(NamedTuple):
    """One sub-command.

    Attributes:
        module: in loco_det.cli; tools/ has a script of the same name.
        line: what it does, in a line.
    """

    module: str
    line: str


COMMANDS = {
    "pretrain": Command("pretrain", "train an encoder on a folder of unlabeled images"),
    "convert": Command("convert_to_d2", "turn a checkpoint of any project into weights for Detectron2, with a proof"),
    "convert-back": Command("convert_from_d2", "turn the backbone of a Detectron2 run into a torchvision state dict"),
    "train": Command("train_net", "train and evaluate Mask R-CNN, frozen or fine-tuned"),
    "probe": Command("linear_probe", "train linear classifiers on every stage of an encoder"),
    "knn": Command("knn", "classify by nearest neighbours on every stage of an encoder"),
    "report": Command("report", "write one page about runs: tables, curves, pictures"),
    "predict": Command("predict", "run a trained detector on images"),
    "check-data": Command("check_dataset", "list everything that is wrong with a data set"),
    "low-shot": Command("low_shot", "train on each random split of a low-shot set; mean and deviation"),
    "model-card": Command("model_card", "write the model card of a pretrained encoder"),
    "demo": Command("demo", "the whole path on generated scenes, in minutes"),
    "demo-data": Command("make_demo_data", "generate the demo's scenes"),
    "configs": Command("configs", "list the shipped configs"),
    "slurm": Command("slurm", "submit a training command to Slurm"),
    "install-detectron2": Command("install_detectron2", "install Detectron2, without a compiler"),
}
EPILOG = "loco-det COMMAND --help says more. Guides: docs/, or README.md."


def main(argv: list[str] | None = None) -> int:
    """Run a sub-command; returns its exit code, 2 without a known one."""
    words = sys.argv[1:] if argv is None else argv
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else BAD_INPUT
    if words[0] == "--version":
        print(importlib.metadata.version("loco-det"))
        return 0
    name, rest = words[0], words[1:]
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        print(f"error: loco-det has no command {name!r}: {hint}", file=sys.stderr)
        return BAD_INPUT
    sys.argv = [f"loco-det {name}", *rest]
    try:
        return importlib.import_module(f"loco_det.cli.{COMMANDS[name].module}").main(rest) or 0
    except ModuleNotFoundError as error:
        print(f"error: {missing_module(error)}", file=sys.stderr)
        return 1


def usage() -> str:
    """What ``loco-det --help`` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.line}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: loco-det COMMAND ...", "", *lines, "", EPILOG])
