"""Swin's shifted windows on maps that the windows do not divide."""

import torch
import torch.nn.functional as F
from timm.models import swin_transformer, swin_transformer_v2
from torch import nn

V1, V2 = swin_transformer.SwinTransformerBlock, swin_transformer_v2.SwinTransformerV2Block


class PaddedSwinBlock(nn.Module):
    """A block of Swin, v1 or v2, for maps of any size; its parts are those of timm's block, with their names.

    timm shifts the map and pads it afterwards. Its mask then separates the padding from the map, and not the map's
    last rows and columns from the first ones, which the shift has brought beside them: tokens attend to the other side
    of the image. Here the padding comes first, as in Swin's own code for detection and in torchvision's, and the mask
    separates what the shift has brought together. Where the windows divide the map, all of them are equal. As in timm
    and torchvision, there is no shift along a side of one window: timm fixes this for the size that a network is
    built with, this block sees to it at each size.
    """

    def __init__(
        self, block: swin_transformer.SwinTransformerBlock | swin_transformer_v2.SwinTransformerV2Block
    ) -> None:
        """
        Args:
            block: timm's block, of a network with ``strict_img_size=False``; its parts are taken over.
        """
        super().__init__()
        self.window = tuple(int(side) for side in block.window_size)
        shifted = any(block.target_shift_size)
        self.shift = tuple(side // 2 if shifted else 0 for side in self.window)
        self.norm_first = isinstance(block, V1)
        self.norm1, self.attn, self.drop_path1 = block.norm1, block.attn, block.drop_path1
        self.norm2, self.mlp, self.drop_path2 = block.norm2, block.mlp, block.drop_path2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, H, W, C) -> the same."""
        if self.norm_first:
            x = x + self.drop_path1(self._attention(self.norm1(x)))
            return x + self.drop_path2(self.mlp(self.norm2(x)))
        x = x + self.drop_path1(self.norm1(self._attention(x)))
        return x + self.drop_path2(self.norm2(self.mlp(x)))

    def _attention(self, x):
        """Attention within windows, (B, H, W, C) -> the same."""
        batch, height, width, channels = x.shape
        rows, columns = self.window
        x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
        padded = x.shape[1:3]
        shift = [0 if side <= w else s for side, w, s in zip(padded, self.window, self.shift, strict=True)]
        mask = None
        if any(shift):
            x = torch.roll(x, shifts=(-shift[0], -shift[1]), dims=(1, 2))
            mask = self._mask(padded, shift, x)
        windows = self.attn(self._split(x).reshape(-1, rows * columns, channels), mask=mask)
        down, across = padded[0] // rows, padded[1] // columns
        x = windows.reshape(batch, down, across, rows, columns, channels).transpose(2, 3).reshape(x.shape)
        if any(shift):
            x = torch.roll(x, shifts=shift, dims=(1, 2))
        return x[:, :height, :width].contiguous()

    def _split(self, x):
        """(B, H, W, C) -> (B, windows down, windows across, rows, columns, C)."""
        batch, height, width, channels = x.shape
        rows, columns = self.window
        return x.reshape(batch, height // rows, rows, width // columns, columns, channels).transpose(2, 3)

    def _mask(self, size, shift, like):
        """(windows, tokens, tokens): 0 within a part of the image, -100 between parts brought together by the shift."""
        regions = torch.zeros(size, device=like.device)
        for axis, (side, window, step) in enumerate(zip(size, self.window, shift, strict=True)):
            if step:
                place = torch.arange(side, device=like.device)
                region = (place >= side - window).int() + (place >= side - step).int()
                regions = regions + (region * 3**axis).reshape((-1, 1) if axis == 0 else (1, -1))
        regions = self._split(regions[None, :, :, None]).reshape(-1, self.window[0] * self.window[1])
        differs = regions[:, None, :] != regions[:, :, None]
        return torch.zeros(differs.shape, dtype=like.dtype, device=like.device).masked_fill(differs, -100.0)


def pad_before_shift(network: nn.Module) -> None:
    """Replace the blocks of a Swin network, in place; other networks stay as they are."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, V1 | V2):
                setattr(module, name, PaddedSwinBlock(child))
