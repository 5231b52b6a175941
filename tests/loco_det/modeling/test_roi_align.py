"""Our ROIAlign against torchvision's: values and gradients, at the borders, without regions, beside the image."""

import copy

import pytest
import torch
from detectron2.layers import ROIAlign

from loco_det.modeling.roi_align import FastROIAlign, use_fast_roi_align

SIDES = (2, 3, 13, 19)  # images, channels, height and width of the features


def regions(count, dtype, scale):
    """Boxes of all sizes and shapes on two images, some beyond their borders, some of no size."""
    generator = torch.Generator().manual_seed(0)
    corners = (torch.rand(count, 2, generator=generator, dtype=dtype) * 1.4 - 0.2) * torch.tensor([19, 13]) / scale
    sizes = torch.rand(count, 2, generator=generator, dtype=dtype) ** 3 * torch.tensor([30, 30]) / scale
    sizes[::7, 0] = 0
    images = torch.arange(count)[:, None] % 2
    return torch.cat([images.to(dtype), corners, corners + sizes], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(("size", "ratio", "aligned", "scale"), [
    ((7, 7), 0, True, 0.25), ((14, 14), 0, True, 0.125), ((3, 5), 2, True, 1.0), ((2, 2), 0, False, 0.5),
    (7, 1, True, 1.0),
])  # fmt: skip
def test_it_is_torchvisions(dtype, channels_last, size, ratio, aligned, scale):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(SIDES, generator=generator, dtype=dtype)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    rois = regions(60, dtype, scale)
    results = []
    for kind in (ROIAlign, FastROIAlign):
        features = x.clone().requires_grad_()
        out = kind(size, scale, ratio, aligned)(features, rois)
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=dtype))
        results.append((out.detach(), features.grad))
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12 if dtype == torch.float64 else 2e-5)
        assert wanted.abs().max() > 0.5


def test_without_regions():
    x = torch.randn(SIDES, requires_grad=True)
    out = FastROIAlign((7, 7), 0.25, 0)(x, torch.zeros(0, 5))
    assert out.shape == (0, 3, 7, 7)
    out.sum().backward()
    assert not x.grad.any()


def test_a_region_of_negative_size_is_left_to_torchvision():
    x, rois = torch.randn(SIDES), torch.tensor([[0, 5.0, 5, 3, 9]])
    assert torch.equal(FastROIAlign((7, 7), 1.0, 0)(x, rois), ROIAlign((7, 7), 1.0, 0)(x, rois))


def test_a_region_far_beside_the_image_is_zero():
    x, rois = torch.randn(SIDES), torch.tensor([[1, 5e9, 2, 5e9 + 4096, 9], [0, -6e9, -6e9, -6e9, 4]])
    assert torch.equal(FastROIAlign((2, 2), 1.0, 2)(x, rois), torch.zeros(2, 3, 2, 2))


def test_gradients_by_finite_differences():
    x = torch.randn(1, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 0.3, 1.1, 4.7, 3.9], [0, 2, 2, 6, 6]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: FastROIAlign((2, 3), 1.0, 0)(x, rois), (x,))


def test_it_takes_the_place_of_detectron2s():
    model = torch.nn.ModuleDict({"pooler": torch.nn.ModuleList([ROIAlign((7, 7), 0.25, 2, False)])})
    use_fast_roi_align(model)
    layer = model["pooler"][0]
    assert type(layer) is FastROIAlign and repr(layer) == repr(ROIAlign((7, 7), 0.25, 2, False)).replace(
        "ROI", "FastROI"
    )
    assert type(copy.deepcopy(model)["pooler"][0]) is FastROIAlign
