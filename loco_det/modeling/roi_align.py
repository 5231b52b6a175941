"""ROIAlign on a CPU as a sum of rows: what torchvision computes, several times as fast, most of all its gradient.

Each bin of a region is a weighted sum of pixels. In channels_last a pixel is a row of C numbers, and torch has a fast
sum of weighted rows, which is called ``embedding_bag``: forward the rows are pixels and the bags are bins, backward the
rows are bins and the bags are pixels. torchvision's own gradient adds single numbers on one core.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.layers import ROIAlign
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Weights = tuple[Tensor, Tensor, Tensor]  # numbers of regions (r,); pixels of each bin (r, bins, K); their weights


def use_fast_roi_align(model: nn.Module) -> None:
    """Put a :class:`FastROIAlign` in the place of each ROIAlign of a model, in place."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is ROIAlign:
                size, options = child.output_size, (child.spatial_scale, child.sampling_ratio, child.aligned)
                setattr(parent, name, FastROIAlign(size, *options))


class FastROIAlign(ROIAlign):
    """Detectron2's ROIAlign, with the same values to float rounding; it has no second derivatives."""

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """
        Args:
            input: features, (N, C, H, W).
            rois: (R, 5): the image, and left, top, right and bottom in pixels of the image.

        Returns:
            (R, C, h, w), in channels_last.
        """
        height, width = (self.output_size,) * 2 if isinstance(self.output_size, int) else self.output_size
        offset, rois = 0.5 if self.aligned else 0.0, rois.to(input.dtype)
        starts = rois[:, 1:3] * self.spatial_scale - offset
        sizes = rois[:, 3:5] * self.spatial_scale - offset - starts
        if not self.aligned:
            sizes = sizes.clamp(min=1.0)
        others = input.is_quantized or input.device.type != "cpu" or input.dtype not in (torch.float32, torch.float64)
        if others or torch.jit.is_tracing() or torch.compiler.is_compiling() or not (sizes >= 0).all():
            return super().forward(input, rois)
        return _ROIAlign.apply(input, rois[:, 0].long(), starts, sizes, (height, width), self.sampling_ratio)


class _ROIAlign(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, images: Tensor, starts: Tensor, sizes: Tensor, size: tuple[int, int], ratio: int
    ) -> Tensor:
        channels, bins = x.shape[1], size[0] * size[1]
        pixels = x.permute(0, 2, 3, 1).reshape(-1, channels)  # of channels_last a view
        out = x.new_zeros(len(images), bins, channels)
        ctx.weights, ctx.shape = [], x.shape
        for regions, places, weights in _weights(x.shape, images, starts, sizes, size, ratio):
            flat = places.flatten(0, 1), weights.flatten(0, 1)
            sums = F.embedding_bag(flat[0], pixels, mode="sum", per_sample_weights=flat[1])
            out[regions] = sums.view(len(regions), bins, channels)
            if x.requires_grad:
                ctx.weights.append((regions, places, weights))
        return out.view(len(images), *size, channels).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, None, None, None]:
        n, channels, height, width = ctx.shape
        rows = gradient.permute(0, 2, 3, 1).reshape(-1, channels)
        bins = gradient.shape[2] * gradient.shape[3]
        own = torch.arange(bins, dtype=torch.int32)
        found: list[tuple[Tensor, ...]] = []  # of all entries: the pixel, the bin, the weight
        for regions, places, weights in ctx.weights:
            bin_of = (regions.int()[:, None] * bins + own)[..., None].expand_as(places)
            found.append((places.flatten(), bin_of.flatten(), weights.flatten()))
        if not found:
            return gradient.new_zeros(ctx.shape), None, None, None, None, None
        places, bin_of, weights = (torch.cat(parts) for parts in zip(*found, strict=True))
        places, order = places.sort()
        first = torch.searchsorted(places, torch.arange(n * height * width, dtype=torch.int32), out_int32=True)
        sums = F.embedding_bag(bin_of[order], rows, first, mode="sum", per_sample_weights=weights[order])
        return sums.view(n, height, width, channels).permute(0, 3, 1, 2), None, None, None, None, None


def _weights(
    shape: torch.Size, images: Tensor, starts: Tensor, sizes: Tensor, size: tuple[int, int], ratio: int
) -> Iterator[Weights]:
    """Which pixels each bin sums up, and with which weights; regions with as many samples come together.

    Args:
        shape: of the features, (N, C, H, W).
        images: of each region, (R,).
        starts, sizes: of each region, x and y in pixels of the features, (R, 2).
        size: bins, vertically and horizontally.
        ratio: samples of a bin in each direction; 0: one for each pixel that it begins to cover.
    """
    lengths = sizes / sizes.new_tensor([size[1], size[0]])  # of a bin
    counts = torch.full_like(lengths, ratio) if ratio > 0 else lengths.ceil()
    for count in counts.unique(dim=0) if len(counts) else ():
        across, down = count.long().tolist()
        if across * down == 0:
            continue  # a bin without samples is 0
        regions = (counts == count).all(1).nonzero().flatten()
        x, x_weight = _axis(starts[regions, 0], lengths[regions, 0], across, size[1], shape[3])
        y, y_weight = _axis(starts[regions, 1], lengths[regions, 1], down, size[0], shape[2])
        y = y + images[regions].int()[:, None, None] * shape[2]
        places = y[:, :, None, :, None] * shape[3] + x[:, None, :, None, :]  # (r, h, w, 2 down, 2 across)
        weights = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
        yield regions, places.flatten(3).flatten(1, 2), weights.flatten(3).flatten(1, 2)


def _axis(start: Tensor, length: Tensor, count: int, bins: int, side: int) -> tuple[Tensor, Tensor]:
    """Pixels and weights of linear interpolation along one axis, (r, bins, 2 count) each; int32 and the coordinates'.

    Args:
        start: of each region, in pixels, (r,).
        length: of its bins, (r,).
        count: samples of a bin.
        bins: of a region.
        side: of the features, in pixels.
    """
    steps = torch.arange(bins, dtype=start.dtype)[:, None], torch.arange(count, dtype=start.dtype) + 0.5
    length = length[:, None, None]
    at = start[:, None, None] + steps[0] * length + steps[1] * length / count
    inside = (at >= -1) & (at <= side)
    at = at.clamp(0, side)  # also where it is beyond what int32 holds
    low = at.to(torch.int32).clamp(max=side - 1)
    part = torch.where(low == side - 1, 0, at - low)
    weights = torch.cat([1 - part, part], 2) * torch.cat([inside, inside], 2) / count
    return torch.cat([low, (low + 1).clamp(max=side - 1)], 2), weights
