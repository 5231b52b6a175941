"""Convert a checkpoint in Python, with its proof, and use it as Detectron2's backbone.

    python examples/convert_and_load.py [CHECKPOINT]

Without a checkpoint it makes a random one in the form of MoCo's.
"""

import sys
import tempfile
from pathlib import Path

import torch
import torchvision

from loco_det import convert_from_d2, convert_to_d2, load_backbone


def made_up_checkpoint(folder: Path) -> Path:
    """A ResNet-18 as MoCo v2 saves it."""
    network = torchvision.models.resnet18(num_classes=128)
    names = {f"module.encoder_q.{name}": value for name, value in network.state_dict().items()}
    path = folder / "moco.pth.tar"
    torch.save({"epoch": 200, "arch": "resnet18", "state_dict": names}, path)
    return path


def main(arguments: list[str]) -> dict[str, torch.Size]:
    """Convert, load, run; returns the shape of each stage's features."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = Path(arguments[0]) if arguments else made_up_checkpoint(folder)
        result = convert_to_d2(checkpoint, folder / "backbone.pkl")  # raises VerificationError if the networks differ
        print(f"{result.source.arch}, written by {result.source.project}")
        for stage, difference in result.differences["eval"].items():
            print(f"  {stage}: largest relative difference {difference.relative:.1e}")

        backbone = load_backbone(folder / "backbone.pkl")  # the config beside it says which network it is
        features = backbone(torch.randn(1, 3, 224, 224))
        shapes = {stage: feature.shape for stage, feature in features.items()}
        print(shapes)

        torch.save({"model": {f"backbone.{k}": v for k, v in backbone.state_dict().items()}}, folder / "detector.pth")
        convert_from_d2(folder / "detector.pth", folder / "resnet.pth", config_file=str(folder / "backbone.yaml"))
        back = torch.load(folder / "resnet.pth", weights_only=True)
        print(f"and back: {len(back)} tensors with torchvision's names")
    return shapes


if __name__ == "__main__":
    main(sys.argv[1:])
