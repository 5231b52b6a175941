"""What a device needs of those that hold the stages below and above its own."""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from ..replay import RandomState


class Ports(Protocol):
    """Messages between neighbours. Those of one kind arrive in the order in which they were sent.

    Sending returns at once. A tensor that was given away must not be changed afterwards.
    """

    def send_activation(self, h: Tensor, random: RandomState) -> None:
        """Send the output of the highest stage here, (2B, C, H, W), and the state of the random generators upwards."""

    def receive_activation(self) -> tuple[Tensor, RandomState]:
        """Wait for these two from below."""

    def send_gradient(self, gradient: Tensor) -> None:
        """Send the gradient of one loss at the input of the lowest stage here, (2B, C, H, W), downwards."""

    def receive_gradient(self) -> Callable[[], Tensor]:
        """Begin to receive the next gradient at the output of the highest stage here, (2B, C, H, W), from above.

        Returns:
            A function that waits for it.
        """
