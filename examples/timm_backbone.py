"""A vision transformer of timm as Detectron2's backbone: converted with its proof, frozen, under a pyramid.

    python examples/timm_backbone.py [CHECKPOINT]

Without a checkpoint it makes a random one as timm saves it for Hugging Face: weights beside a config.json.
"""

import json
import sys
import tempfile
from pathlib import Path

import timm
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_backbone
from safetensors.torch import save_file

from loco_det import add_loco_config, convert_to_d2, load_backbone


def made_up_checkpoint(folder: Path) -> Path:
    """A folder as timm's ``push_to_hf_hub`` makes it."""
    name = "vit_tiny_patch16_224"
    network, folder = timm.create_model(name, num_classes=10), folder / name
    folder.mkdir()
    save_file(network.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": network.pretrained_cfg}))
    return folder


def main(arguments: list[str], height: int = 203, width: int = 270) -> dict[str, torch.Size]:
    """Convert, load, and put it under a pyramid; returns the shapes of the pyramid's maps."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint = Path(arguments[0]) if arguments else made_up_checkpoint(folder)
        result = convert_to_d2(checkpoint, folder / "vit.pkl")  # raises VerificationError if the networks differ
        print(f"{result.source.arch}, written by {result.source.project}")
        backbone = load_backbone(folder / "vit.pkl").eval()
        images = torch.randn(1, 3, height, width)
        with torch.inference_mode():
            print({key: tuple(value.shape) for key, value in backbone(images).items()})

        cfg = get_cfg()
        add_loco_config(cfg)
        cfg.merge_from_file(str(folder / "vit.yaml"))  # MODEL.TIMM.NAME, the mean and standard deviation
        cfg.MODEL.BACKBONE.FREEZE_AT, cfg.MODEL.FPN.NORM, cfg.MODEL.DEVICE = 99, "LN", "cpu"
        pyramid = build_backbone(cfg)
        learning = sum(p.numel() for p in pyramid.parameters() if p.requires_grad)
        print(f"{learning:,} parameters learn: those of the pyramid")
        shapes = {key: value.shape for key, value in pyramid(torch.randn(1, 3, 224, 288)).items()}
        print(shapes)
    return shapes


if __name__ == "__main__":
    main(sys.argv[1:])
