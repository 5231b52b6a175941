"""The largest linear layer of a box head, as the convolution that it is: on many CPUs twice as fast in inference."""

import torch
import torch.nn.functional as F
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from torch import Tensor, nn


def use_fast_linear(model: nn.Module) -> None:
    """Put a :class:`MapLinear` in the place of the first linear layer of each box head that has convs, in place."""
    for head in model.modules():
        if type(head) is FastRCNNConvFCHead and type(getattr(head, "flatten", None)) is nn.Flatten:
            linear = head.fc1
            assert isinstance(linear, nn.Linear)
            head.flatten, head.fc1 = nn.Identity(), MapLinear(linear)


class MapLinear(nn.Linear):
    """``nn.Linear`` of flattened maps (N, C, h, w), with its parameters and their names.

    In inference on a CPU it runs as a convolution with one output position: oneDNN, which torch has for convolutions,
    takes maps in channels_last as they are, and uses what a processor has where torch's matrix product does not. The
    sums are the same to float rounding.
    """

    def __init__(self, linear: nn.Linear) -> None:
        """
        Args:
            linear: the layer whose parameters this one shares.
        """
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """
        Args:
            input: (N, C, h, w).

        Returns:
            (N, out_features).
        """
        others = torch.is_grad_enabled() or input.device.type != "cpu" or not len(input) or torch.jit.is_tracing()
        if others or input.dtype != self.weight.dtype:
            return F.linear(input.flatten(1), self.weight, self.bias)
        return F.conv2d(input, self.weight.view(-1, *input.shape[1:]), self.bias).flatten(1)
