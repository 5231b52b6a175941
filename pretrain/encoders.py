"""Encoders as ordered lists of stages: the unit of locality in LoCo, Greedy InfoMax and their relatives."""

import torchvision
from torch import nn

STAGE_NAMES = ("res2", "res3", "res4", "res5")  # Detectron2's names; "res2" includes the stem, as in the LoCo paper
ENCODERS = ("resnet18", "resnet34", "resnet50", "resnet101")


class ResNetEncoder(nn.Module):
    """A torchvision ResNet without its classifier, seen as the four stages of LoCo (Sec. 4.1).

    The parameters keep torchvision's names (``conv1.weight``, ``layer1.0.conv1.weight``, ...), so that its state
    dict is what every other ResNet tool reads.

    Attributes:
        stage_names: names of the stages, from the image upwards.
        channels: output channels of each stage.
        strides: output stride of each stage, in pixels of the image.
    """

    stage_names = STAGE_NAMES
    strides = (4, 8, 16, 32)

    def __init__(self, name):
        """
        Args:
            name: one of ``ENCODERS``.

        Raises:
            ValueError: if the name is not known.
        """
        super().__init__()
        if name not in ENCODERS:
            raise ValueError(f"unknown encoder {name!r}: choose one of {', '.join(ENCODERS)}")
        net = getattr(torchvision.models, name)(weights=None, zero_init_residual=False)
        for child in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(child, getattr(net, child))
        last = [getattr(net, f"layer{i}")[-1] for i in range(1, 5)]
        self.channels = tuple((b.bn3 if hasattr(b, "bn3") else b.bn2).num_features for b in last)

    @property
    def stages(self):
        """The stages as modules, each mapping (B, C_in, H, W) to (B, C_out, H', W'); the first includes the stem."""
        stem = nn.Sequential(self.conv1, self.bn1, self.relu, self.maxpool, self.layer1)
        return [stem, self.layer2, self.layer3, self.layer4]

    def forward(self, x):
        """
        Args:
            x: images, (B, 3, H, W), normalised.

        Returns:
            dict: stage name -> features (B, C, H / stride, W / stride), rounded up.
        """
        features = {}
        for name, stage in zip(self.stage_names, self.stages, strict=True):
            x = features[name] = stage(x)
        return features


def build_encoder(name):
    """Build the encoder called ``name`` (one of ``ENCODERS``) with torchvision's random initialisation."""
    return ResNetEncoder(name)
