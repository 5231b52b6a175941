"""The sub-commands of ``loco-det``, and what in a command line names one."""

import difflib
import os
import re
from collections.abc import Sequence
from typing import NamedTuple


class Command(NamedTuple):
    """One sub-command.

    Attributes:
        module: in loco_det.cli; tools/ has a script of its last name.
        line: what it does, in a line.
    """

    module: str
    line: str

    @property
    def script(self) -> str:
        """Name of the script in tools/, without its ending."""
        return self.module.rpartition(".")[2]


COMMANDS = {
    "pretrain": Command("pretrain", "train an encoder on a folder of unlabeled images"),
    "convert": Command("convert_to_d2", "turn a pretraining checkpoint into verified weights for Detectron2"),
    "convert-back": Command("convert_from_d2", "turn the backbone of a Detectron2 run into a torchvision state dict"),
    "train": Command("train_net", "train and evaluate Mask R-CNN, frozen or fine-tuned"),
    "light-head": Command("light_head", "rank frozen encoders in minutes by a light detection head"),
    "probe": Command("linear_probe", "train linear classifiers on every stage of an encoder"),
    "knn": Command("knn", "classify by nearest neighbours on every stage of an encoder"),
    "evaluate": Command("evaluate", "rank checkpoints for detection: frozen, fine-tuned, with controls and seeds"),
    "report": Command("report", "write one HTML page about runs: tables, curves, pictures"),
    "runs": Command("lists.runs", "list the runs beneath a folder: state, figures, time"),
    "predict": Command("predict", "run a trained detector on images"),
    "check-data": Command("check_dataset", "list all errors of a data set"),
    "low-shot": Command("low_shot", "train on each random split of a low-shot set; mean and standard deviation of AP"),
    "model-card": Command("model_card", "write the model card of a pretrained encoder"),
    "demo": Command("demo", "run all steps on generated scenes, in minutes"),
    "demo-data": Command("make_demo_data", "generate the demo's scenes"),
    "checkpoints": Command(
        "lists.checkpoints", "list published checkpoints, which convert, probe and knn take by name"
    ),
    "configs": Command("lists.configs", "list the shipped configs"),
    "slurm": Command("slurm", "submit a training command to Slurm"),
    "install-detectron2": Command("install_detectron2", "install Detectron2, without a compiler"),
}


def nearest_command(name: str) -> str:
    """What to write in place of a name that is no command's, for an error."""
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    return f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"


def named_tool(words: Sequence[str]) -> list[str]:
    """A command line without what only starts it: the tool, a script that is there or a command, and its arguments.

    Args:
        words: as a user types them: ``loco-det train ...``, ``train ...``, or ``[python] tools/train_net.py ...``, also
            where there is no such script.

    Raises:
        FileNotFoundError: if they name no tool.
    """
    launcher = words[0] if os.path.basename(words[0]) in ("loco-det", "python", "python3") else ""
    tool, *arguments = words[bool(launcher) :] or [""]
    script = re.fullmatch(r"(?:.*/)?tools/(\w+)\.py", tool)
    if os.path.isfile(tool) and not launcher.endswith("loco-det"):
        return [tool, *arguments]
    for name, command in COMMANDS.items():
        if tool == name or script and script[1] == command.script:
            return [name, *arguments]
    name = script[1] if script else tool
    raise FileNotFoundError(f"{f'{launcher} {tool}'.strip()}: no such tool: {nearest_command(name)}")
