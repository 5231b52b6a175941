"""The box head's linear layer as a convolution: the same values, parameters, names and gradients."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from torch import nn

from loco_det.modeling.box_head import MapLinear, use_fast_linear


def heads(convs=(8,), linears=(16, 5)):
    """Detectron2's box head and ours, with the same parameters."""
    torch.manual_seed(0)
    found = [
        FastRCNNConvFCHead(ShapeSpec(channels=6, height=7, width=5), conv_dims=list(convs), fc_dims=list(linears))
        for _ in range(2)
    ]
    found[1].load_state_dict(found[0].state_dict())
    use_fast_linear(nn.Sequential(found[1]))
    return found


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_values_are_those_of_a_linear_layer(layout, monkeypatch):
    stock, fast = heads()
    maps = torch.randn(20, 6, 7, 5).to(memory_format=layout)
    used = []
    monkeypatch.setattr("torch.nn.functional.conv2d", lambda *a, conv=torch.conv2d: used.append(a[1].shape) or conv(*a))
    with torch.no_grad():
        wanted, got, middle = stock(maps), fast(maps), fast.conv1(maps)
        assert (16, 8, 7, 5) in used  # or this test would compare a linear layer with itself
        exact = nn.functional.linear(middle.double().flatten(1), fast.fc1.weight.double(), fast.fc1.bias.double())
        assert (fast.fc1(middle) - exact).abs().max() < 1e-6 * exact.abs().max()
        assert fast(maps[:0]).shape == (0, 5)
    assert (got - wanted).abs().max() < 1e-6 * wanted.abs().max()


def test_names_parameters_and_gradients_stay():
    stock, fast = heads()
    assert list(stock.state_dict()) == list(fast.state_dict()) and isinstance(fast.fc1, MapLinear)
    assert str(dict(stock.named_parameters()).keys()) == str(dict(fast.named_parameters()).keys())
    maps = torch.randn(20, 6, 7, 5)
    for head in (stock, fast):
        head(maps).square().sum().backward()
    for (name, one), other in zip(stock.named_parameters(), fast.parameters(), strict=True):
        assert torch.equal(one, other) and torch.equal(one.grad, other.grad), name


def test_a_head_without_linear_layers_or_of_another_kind_stays():
    _, fast = heads(linears=())
    assert isinstance(fast.conv1, nn.Conv2d) and not hasattr(fast, "fc1")
    other = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    use_fast_linear(other)
    assert type(other[0]) is nn.Flatten and type(other[1]) is nn.Linear
