"""Tensors from a process to its neighbour without waiting, over torch.distributed."""

from collections import deque
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

Lost = Callable[[int, RuntimeError], Exception]  # the rank of a process, what torch says -> what is raised
DTYPES = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
MOST_DIMS = 6


class Layout:
    """Shape, strides and type of a tensor whose elements fill a piece of memory.

    Attributes:
        shape, stride, dtype: as of a tensor.
    """

    def __init__(self, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype) -> None:
        """Arguments as of a tensor."""
        self.shape, self.stride, self.dtype = shape, stride, dtype

    @classmethod
    def of(cls, tensor: Tensor) -> "Layout":
        """The layout of a tensor, or of its contiguous copy if it leaves gaps in its memory."""
        dense = torch.empty_like(tensor, device="meta")  # keeps the strides of a dense tensor
        return cls(tuple(dense.shape), dense.stride(), dense.dtype)

    def empty(self, device: torch.device) -> Tensor:
        """A tensor of this layout whose values are not set."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)

    def flat(self, tensor: Tensor) -> Tensor:
        """The memory of a tensor, (N,) bytes; that of a copy in this layout if it has another one.

        Raises:
            ValueError: if the tensor has another shape or type.
        """
        if tuple(tensor.shape) != self.shape or tensor.dtype != self.dtype:
            raise ValueError(
                f"a batch gives {tensor.dtype} {tuple(tensor.shape)} between two devices, but the first one gave "
                f"{self.dtype} {self.shape}: all batches must have one size"
            )
        if tensor.stride() != self.stride:
            tensor = self.empty(tensor.device).copy_(tensor)
        return tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)

    def encoded(self) -> Tensor:
        """As a tensor of fixed size, for the first message."""
        pad = [0] * (MOST_DIMS - len(self.shape))
        return torch.tensor([DTYPES.index(self.dtype), len(self.shape), *self.shape, *pad, *self.stride, *pad])

    @classmethod
    def decoded(cls, code: Tensor) -> "Layout":
        """From :meth:`encoded`."""
        dtype, dims, *numbers = code.tolist()
        return cls(tuple(numbers[:dims]), tuple(numbers[MOST_DIMS : MOST_DIMS + dims]), DTYPES[dtype])

    @staticmethod
    def empty_code() -> Tensor:
        """A tensor that receives :meth:`encoded`."""
        return torch.zeros(2 + 2 * MOST_DIMS, dtype=torch.int64)


class Channel:
    """Messages between this process and another one, in one direction, in order.

    Attributes:
        peer: rank of the other process.
        bytes: what has been sent so far.
    """

    def __init__(self, peer: int, group: dist.ProcessGroup, lost: Lost, tag: int = 0, most: int = 1) -> None:
        """
        Args:
            peer: rank of the other process among all.
            group: to which both belong.
            lost: what to raise when the connection is lost.
            tag: tells the messages from those of another channel of the group.
            most: messages on their way; with one more, :meth:`send` waits for the oldest.
        """
        self.peer, self.bytes = peer, 0
        self._group, self._lost, self._tag, self._most = group, lost, tag, most
        self._sent: deque[tuple[dist.Work, Tensor]] = deque()  # the tensors must live until they are sent

    def send(self, tensor: Tensor) -> None:
        """Send a dense tensor, which must not be changed afterwards."""
        while len(self._sent) >= self._most:
            self._wait(self._sent.popleft()[0])
        try:
            work = dist.isend(tensor, self.peer, self._group, self._tag)
        except RuntimeError as error:
            raise self._lost(self.peer, error) from error
        assert work is not None
        self._sent.append((work, tensor))
        self.bytes += tensor.numel() * tensor.element_size()

    def receive(self, buffer: Tensor) -> Callable[[], Tensor]:
        """Begin to receive the next message.

        Args:
            buffer: a dense tensor of its size.

        Returns:
            A function that waits for it, and returns ``buffer``.
        """
        try:
            work = dist.irecv(buffer, self.peer, self._group, self._tag)
        except RuntimeError as error:
            raise self._lost(self.peer, error) from error
        assert work is not None

        def wait() -> Tensor:
            self._wait(work)
            return buffer

        return wait

    def flush(self) -> None:
        """Wait until everything is sent."""
        while self._sent:
            self._wait(self._sent.popleft()[0])

    def _wait(self, work: dist.Work) -> None:
        try:
            work.wait()
        except RuntimeError as error:
            raise self._lost(self.peer, error) from error
