"""LoCo on an encoder of your own, with your own DataLoader, in a plain training loop.

python examples/own_loop.py
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pretrain import Decoder, LocalLearner, StageEncoder, info_nce


def block(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A conv block that leaves its input as it was, as stages of an encoder have to."""
    conv = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def main(steps: int = 10) -> list[float]:
    """Train on random images; returns the sum of the losses of each step."""
    torch.manual_seed(0)
    widths = {"res2": 32, "res3": 48, "res4": 64, "res5": 96}
    stages, below = {}, 3
    for name, width in widths.items():
        stages[name] = nn.Sequential(block(below, width, stride=2), block(width, width, stride=1))
        below = width
    encoder = StageEncoder(stages, channels=list(widths.values()), strides=[2, 4, 8, 16])

    # LoCo: three units of two stages each. Neighbours share a stage, which learns from both losses.
    units = [["res2", "res3"], ["res3", "res4"], ["res4", "res5"]]
    decoders = {top: Decoder(widths[top], bottleneck=False, hidden_dim=128, out_dim=64) for _, top in units}
    learner = LocalLearner(encoder, units, decoders, lambda z1, z2: info_nce(z1, z2, temperature=0.2))
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05, momentum=0.9)

    images = torch.rand(64, 3, 32, 32)
    totals = []
    while len(totals) < steps:
        for (batch,) in DataLoader(TensorDataset(images), batch_size=32, shuffle=True):
            flipped = batch.flip(-1)  # two views of each image; yours are stronger
            views = torch.cat([batch + 0.1 * torch.randn_like(batch), flipped + 0.1 * torch.randn_like(batch)])
            losses = learner.forward_backward(views)  # computes all losses and accumulates all gradients
            optimizer.step()
            optimizer.zero_grad()
            totals.append(sum(loss.item() for loss in losses.values()))
            print("  ".join(f"{name}: {loss.item():.3f}" for name, loss in losses.items()))
    return totals


if __name__ == "__main__":
    main()
