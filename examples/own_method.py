"""A local-learning method of your own: any loss of two matrices, on any runs of stages.

Every stage learns by VICReg's loss (Bardes, Ponce, LeCun 2022, arXiv 2105.04906, Sec. 4); that of res5 also reaches
the last block of res4. To give it a config, see "How to add a local learning method" in CONTRIBUTING.md.

    python examples/own_method.py
"""

import torch
import torch.nn.functional as F

from pretrain import Decoder, LocalLearner, build_encoder


def vicreg(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    """VICReg's loss of the embeddings of two views.

    Args:
        z1, z2: (B, D).

    Returns:
        Scalar: 25 x invariance + 25 x variance + 1 x covariance.
    """
    total = 25 * F.mse_loss(z1, z2)
    for z in (z1, z2):
        z = z - z.mean(0)
        std = (z.var(0) + 1e-4).sqrt()
        covariance = z.T @ z / (len(z) - 1)
        off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
        total = total + 25 / 2 * F.relu(1 - std).mean() + off_diagonal / z.shape[1]
    return total


def main(steps: int = 5) -> list[dict[str, float]]:
    """Train a thin ResNet-18 on random images; returns the losses of each step."""
    torch.manual_seed(0)
    encoder = build_encoder("resnet18x0.25")
    units = [["res2"], ["res3"], ["res4"], ["res4[1:]", "res5"]]  # the last shares the second block of res4
    width = dict(zip(encoder.stage_names, encoder.channels, strict=True))
    decoders = {
        unit[-1]: Decoder(width[unit[-1]], conv_blocks=0, mlp_layers=3, hidden_dim=64, out_dim=64, out_bn=False)
        for unit in units
    }
    learner = LocalLearner(encoder, units, decoders, vicreg)
    optimizer = torch.optim.AdamW(learner.parameters(), lr=1e-3)
    history = []
    for step in range(steps):
        images = torch.rand(16, 3, 64, 64)
        views = torch.cat([images, images.flip(-1)])
        losses = {name: loss.item() for name, loss in learner.forward_backward(views).items()}
        optimizer.step()
        optimizer.zero_grad()
        history.append(losses)
        print(f"step {step}: " + "  ".join(f"{name} {loss:.2f}" for name, loss in losses.items()))
    return history


if __name__ == "__main__":
    main()
