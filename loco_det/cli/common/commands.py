"""The sub-commands of ``loco-det``."""

from typing import NamedTuple


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
    "convert": Command("convert_to_d2", "turn a pretraining checkpoint into verified weights for Detectron2"),
    "convert-back": Command("convert_from_d2", "turn the backbone of a Detectron2 run into a torchvision state dict"),
    "train": Command("train_net", "train and evaluate Mask R-CNN, frozen or fine-tuned"),
    "probe": Command("linear_probe", "train linear classifiers on every stage of an encoder"),
    "knn": Command("knn", "classify by nearest neighbours on every stage of an encoder"),
    "report": Command("report", "write one HTML page about runs: tables, curves, pictures"),
    "predict": Command("predict", "run a trained detector on images"),
    "check-data": Command("check_dataset", "list all errors of a data set"),
    "low-shot": Command("low_shot", "train on each random split of a low-shot set; mean and standard deviation of AP"),
    "model-card": Command("model_card", "write the model card of a pretrained encoder"),
    "demo": Command("demo", "run all steps on generated scenes, in minutes"),
    "demo-data": Command("make_demo_data", "generate the demo's scenes"),
    "configs": Command("configs", "list the shipped configs"),
    "slurm": Command("slurm", "submit a training command to Slurm"),
    "install-detectron2": Command("install_detectron2", "install Detectron2, without a compiler"),
}
