"""Tied parameters: a decoder's copy of a stage is held close to the stage itself (LoCo, Table 5)."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def tie_backward(ties: Iterable[tuple[nn.Parameter, nn.Parameter]], weight: float) -> Tensor:
    """Accumulate the gradient of the L2 penalty between tied parameters into the ``.grad`` of both.

    Args:
        ties: pairs of parameters of the same shape.
        weight: the penalty is this times the sum of squared differences.

    Returns:
        The penalty, a detached scalar.
    """
    squares = [(copy - original).square().sum() for copy, original in ties]
    penalty = weight * sum(squares, start=torch.zeros_like(squares[0]))
    penalty.backward()
    return penalty.detach()
