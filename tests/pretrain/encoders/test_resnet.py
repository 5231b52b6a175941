"""ResNets from a name: torchvision's where it has them, and as wide, thin and grouped as one likes."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import example, given, settings
from hypothesis import strategies as st
from noise import noise
from torch import nn

from pretrain.encoders import build_encoder
from pretrain.encoders.resnet import BLOCKS, RESNETS, ResNetShape, SameConv2d, SameMaxPool2d, resnet_shape

NUMBERS = st.sampled_from([1, 4, 16, 32, 64, 128, 256]) | st.integers(1, 300)


@st.composite
def shapes(draw, depths=tuple(BLOCKS), numbers=NUMBERS):
    depth, stem, same = draw(st.sampled_from(depths)), draw(numbers), draw(st.booleans())
    if depth < 50:
        out = draw(numbers)
        return ResNetShape(depth, stem, 1, out, out, same)
    return ResNetShape(depth, stem, draw(numbers), draw(numbers), 4 * draw(numbers), same)


def on_meta(name):
    with torch.device("meta"):
        return build_encoder(name)


# --- names ------------------------------------------------------------------------------------------------------------


@settings(max_examples=500)
@given(shapes())
def test_a_shapes_name_is_read_as_that_shape(shape):
    assert resnet_shape(shape.name) == shape


@given(st.sampled_from([18, 34, 50]), st.integers(1, 400))
def test_times_scales_every_width(depth, quarters):
    shape, plain = resnet_shape(f"resnet{depth}x{quarters / 4}"), resnet_shape(f"resnet{depth}")
    assert [4 * n for n in (shape.stem, shape.width, shape.out)] == [
        quarters * n for n in (plain.stem, plain.width, plain.out)
    ]


@pytest.mark.parametrize(
    "name, shape",
    [
        ("resnet18", (18, 64, 1, 64, 64)),
        ("resnet34x0.25", (34, 16, 1, 16, 16)),
        ("resnet50", (50, 64, 1, 64, 256)),
        ("resnet50x2", (50, 128, 1, 128, 512)),
        ("resnet50x0.5", (50, 32, 1, 32, 128)),
        ("wide_resnet101_2", (101, 64, 1, 128, 256)),
        ("resnext50_32x4d", (50, 64, 32, 4, 256)),
        ("resnet152_stem24_2x6d_out40", (152, 24, 2, 6, 40)),
        ("resnet50x2_same", (50, 128, 1, 128, 512, True)),
    ],
)
def test_what_names_say(name, shape):
    assert resnet_shape(name) == ResNetShape(*shape) and resnet_shape(name).name == name


@pytest.mark.parametrize(
    "name, plain",
    [("resnet50x1", "resnet50"), ("resnet50x2.0", "resnet50x2"), ("resnet18x.5", "resnet18x0.5"),
     ("resnext50_1x64d", "resnet50"), ("resnext50_1x128d", "wide_resnet50_2"),
     ("resnet50_stem64_32x4d_out256", "resnext50_32x4d"), ("resnet18_stem32_1x32d_out32", "resnet18x0.5")],
)  # fmt: skip
def test_the_shortest_of_several_names_is_a_shapes_name(name, plain):
    assert resnet_shape(name).name == plain


@pytest.mark.parametrize(
    "name",
    ["", "_same", "resnet", "resnet51", "resnet20", "resnet50d", "ResNet50", "resnet50\n", " resnet50", "resnet50x",
     "resnet50x0", "resnet50x-1", "resnet50x1e1", "resnet50x0.01", "resnet50x1.3", "resnet50x1.2.3", "resnext50",
     "resnext50_0x4d", "resnext50_32x0d", "wide_resnet50_3", "wide_resnet18_2", "resnext18_32x4d", "presnet50",
     "resnet50_stem0_1x64d_out256", "resnet50_stem64_1x64d_out0", "resnet50_stem64_1x64d_out254",
     "resnet18_stem64_1x32d_out64", "resnet18_stem64_2x64d_out64", "resnet50_stem64_1x64d", "resnet50x2_stem64"],
)  # fmt: skip
def test_impossible_names_are_none(name):
    assert resnet_shape(name) is None


def test_names_that_cannot_be_built_are_refused_by_the_encoder():
    with pytest.raises(ValueError, match="unknown encoder 'wide_resnet18_2': choose one of resnet18, .*a variant"):
        build_encoder("wide_resnet18_2")


# --- networks ---------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@example(ResNetShape(50, 8, 1, 13, 92))  # 23 * (256 * 13 / 92 / 64) is a little below 13
@given(shapes(depths=(18, 50)))
def test_the_network_has_the_widths_of_its_shape(shape):
    encoder = on_meta(shape.name)
    assert encoder.conv1.weight.shape == (shape.stem, 3, 7, 7)
    for k in range(4):
        stage, scale = getattr(encoder, f"layer{k + 1}"), 2**k
        assert len(stage) == shape.blocks[k]
        assert encoder.channels[k] == shape.out * scale
        for i, block in enumerate(stage):
            assert block.conv2.out_channels == shape.groups * shape.width * scale == block.conv1.out_channels
            assert block.conv2.groups == shape.groups and block.conv2.kernel_size == (3, 3)
            below = (shape.out * scale // 2 if k else shape.stem) if i == 0 else shape.out * scale
            assert block.conv1.in_channels == below
            last = block.conv3 if shape.bottleneck else block.conv2
            assert last.out_channels == shape.out * scale
            stride = (2, 2) if k and i == 0 else (1, 1)  # in the 3x3 conv, as torchvision has it
            assert (block.conv2 if shape.bottleneck else block.conv1).stride == stride
            shortcut = i == 0 and (k > 0 or shape.stem != shape.out)
            assert (block.downsample is not None) == shortcut


def same_weights(name):
    """torchvision's network and ours, with its weights; norms far from the identity."""
    torch.manual_seed(0)
    net, encoder = getattr(torchvision.models, name)(weights=None).eval(), build_encoder(name).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.2)
    encoder.load_state_dict({key: tensor for key, tensor in net.state_dict().items() if not key.startswith("fc.")})
    return net, encoder


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "wide_resnet50_2", "resnext50_32x4d"])
def test_features_are_torchvisions_exactly(name):
    net, encoder = same_weights(name)
    x = noise(1, 3, 65, 70)
    with torch.no_grad():
        got, x = encoder(x), net.maxpool(net.relu(net.bn1(net.conv1(x))))
        for stage, layer in zip(encoder.stage_names, (net.layer1, net.layer2, net.layer3, net.layer4), strict=True):
            x = layer(x)
            assert torch.equal(got[stage], x), stage


@pytest.mark.parametrize("name", [*RESNETS, "wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d",
                                  "resnext101_32x8d", "resnext101_64x4d"])  # fmt: skip
def test_names_and_shapes_are_torchvisions(name):
    with torch.device("meta"):
        wanted = getattr(torchvision.models, name)(weights=None).state_dict()
    wanted = [(key, tensor.shape) for key, tensor in wanted.items() if not key.startswith("fc.")]
    assert [(key, tensor.shape) for key, tensor in on_meta(name).state_dict().items()] == wanted


@pytest.mark.parametrize("name, millions", [("resnet50", 24), ("resnet50x2", 94), ("resnet50x4", 375)])
def test_parameters_are_as_many_as_simclrs(name, millions):
    """arXiv 2002.05709, Table 6."""
    assert round(sum(p.numel() for p in on_meta(name).parameters()) / 1e6) == millions


# --- TensorFlow's padding ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side, kernel, pads", [(8, 7, (2, 3)), (9, 7, (3, 3)), (8, 3, (0, 1)), (9, 3, (1, 1))])
def test_same_padding_has_the_odd_pixel_below_and_right(side, kernel, pads):
    """TensorFlow: total = (ceil(side / stride) - 1) * stride + kernel - side, half of it before, rounded down."""
    x = noise(2, 3, side, side) - 5  # all negative: padding a maximum with zeros would show
    conv, pool = SameConv2d(3, 4, kernel, stride=2, padding=1, bias=False), SameMaxPool2d(kernel, stride=2)
    with torch.no_grad():
        assert torch.equal(conv(x), F.conv2d(F.pad(x, pads * 2), conv.weight, stride=2))
    assert torch.equal(pool(x), F.max_pool2d(F.pad(x, pads * 2, value=-9e9), kernel, stride=2))
    assert conv(x).shape[2:] == pool(x).shape[2:] == (-(-side // 2),) * 2


@pytest.mark.parametrize("name", ["resnet18x0.25", "resnet50x0.25"])
def test_same_moves_every_strided_layer_and_no_weight(name):
    encoder, plain = build_encoder(f"{name}_same").eval(), build_encoder(name).eval()
    assert list(encoder.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(encoder.state_dict())
    strided = [m for m in encoder.modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert sorted({(type(m), m.kernel_size[0]) for m in strided}, key=lambda pair: pair[1]) == [
        (nn.Conv2d, 1), (SameConv2d, 3), (SameConv2d, 7),
    ]  # fmt: skip
    assert type(encoder.maxpool) is SameMaxPool2d
    with torch.no_grad():
        odd, even = noise(1, 3, 97, 97), noise(1, 3, 96, 96)  # 97, 49, 25, 13, 7, 4: both pad symmetrically
        for stage, features in plain(odd).items():
            assert (encoder(odd)[stage] - features).abs().max() <= 1e-5 * features.abs().max()
        for stage, features in plain(even).items():
            assert encoder(even)[stage].shape == features.shape
            assert (encoder(even)[stage] - features).abs().max() > 0.01 * features.abs().max()
