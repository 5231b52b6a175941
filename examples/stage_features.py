"""Pooled features of every stage of any project's checkpoint, and how well a nearest neighbour classifies with them.

    python examples/stage_features.py [CHECKPOINT]

Without a checkpoint it makes a random one with torchvision's names.
"""

import sys
import tempfile
from pathlib import Path

import torch
import torchvision

from loco_det import load_encoder


def main(arguments: list[str]) -> dict[str, float]:
    """Print and return the leave-one-out accuracy (%) of each stage on made-up images of two classes."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(arguments[0]) if arguments else Path(folder, "resnet18.pth")
        if not arguments:
            torch.save(torchvision.models.resnet18().state_dict(), checkpoint)
        readable = load_encoder(checkpoint)  # recognises the project, and what its pixels have to be
    print(readable.summary())

    labels = torch.arange(40) % 2
    images = 255 * torch.rand(40, 3, 64, 64) * (0.5 + 0.5 * labels.view(-1, 1, 1, 1))  # one class is darker
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in readable.conventions[1:3])
    with torch.no_grad():
        features = readable.encoder((images - mean) / std)  # stage -> (B, C, H, W)

    accuracies = {}
    for stage, feature in features.items():
        pooled = torch.nn.functional.normalize(feature.mean((2, 3)))
        similarity = pooled @ pooled.T
        similarity.fill_diagonal_(-1)
        accuracies[stage] = 100 * (labels[similarity.argmax(1)] == labels).double().mean().item()
        print(f"{stage}: {tuple(feature.shape)}, nearest neighbour {accuracies[stage]:.0f} %")
    return accuracies


if __name__ == "__main__":
    main(sys.argv[1:])
