"""The network is detected from names and shapes, and whatever is not exactly one that can be built is refused."""

import re

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from loco_det.convert import infer_encoder
from loco_det.convert.sources import architecture
from loco_det.convert.sources.architecture import relative
from loco_det.convert.sources.messages import first_few
from pretrain.encoders import ENCODERS, parse_encoder

VARIANTS = ["resnet50x2", "resnet18x0.5", "wide_resnet50_2", "resnext50_32x4d", "resnext101_64x4d", "resnet34x2"]
VARIANTS += ["resnet50_stem64_1x32d_out128", "resnet101_stem24_2x6d_out40"]


def skeleton(name):
    return architecture.skeleton(parse_encoder(name))


def reference(name):
    return architecture.reference(parse_encoder(name))


def without(weights, pattern):
    return {name: tensor for name, tensor in weights.items() if not re.search(pattern, name)}


def empty(*shape):
    return torch.empty(shape, device="meta")


# --- what is detected -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [*ENCODERS, *VARIANTS])
def test_every_encoder_is_detected_from_its_shapes(arch):
    weights = skeleton(arch).state_dict()
    assert infer_encoder(weights) == parse_encoder(arch) and infer_encoder(weights).name == arch
    assert infer_encoder(dict(reversed(weights.items()))).name == arch  # the order does not matter
    assert infer_encoder(without(weights, "num_batches_tracked")).name == arch


@pytest.mark.parametrize("name", ["resnet18", "resnet152", "wide_resnet101_2", "resnext101_32x8d"])
def test_torchvisions_own_are_told(name):
    with torch.device("meta"):
        weights = getattr(torchvision.models, name)(weights=None).state_dict()
    assert infer_encoder(without(weights, "^fc")).name == name


def test_nothing_is_held_in_memory_and_no_random_number_is_drawn():
    before = torch.random.get_rng_state()
    assert all(tensor.is_meta for arch in ENCODERS for tensor in reference(arch).values())
    assert torch.equal(before, torch.random.get_rng_state())


# --- what is refused --------------------------------------------------------------------------------------------------


SMALL = ("resnet18x0.25", "resnet50x0.25", "resnext50_32x4d", "presnet50", "shufflenetv2_50")
CHANGES = {
    "double": lambda t: empty(*[2 * n for n in t.shape]) if t.dim() else empty(2),
    "wider": lambda t: empty(*t.shape[:-1], t.shape[-1] + 1) if t.dim() else empty(3),
    "a dimension more": lambda t: t[None],
    "flat": lambda t: t.flatten() if t.dim() > 1 else t.reshape(-1, 1),
    "empty": lambda t: empty(0),
    "no channel": lambda t: empty(0, *t.shape[1:]),
    "a scalar": lambda t: empty() if t.dim() else empty(1),
    "exchanged": lambda t: t.movedim(1, 0) if t.dim() > 1 and t.shape[0] != t.shape[1] else empty(*t.shape, 1),
}


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(SMALL), st.integers(0, 10**6), st.sampled_from(["none", "other name", *CHANGES]))
def test_no_entry_can_be_missing_or_have_another_shape(arch, place, change):
    weights = dict(skeleton(arch).state_dict())
    name = list(weights)[place % len(weights)]
    if change == "none":
        name = next(n for n in [*weights][place % len(weights) :: -1] if "num_batches" not in n)  # may be missing
        del weights[name]
    elif change == "other name":
        weights[name.replace("weight", "w").replace("bias", "b").replace("_", "")] = weights.pop(name)
    else:
        weights[name] = CHANGES[change](weights[name])
    if set(weights) == set(reference(arch)) and all(weights[n].shape == reference(arch)[n].shape for n in weights):
        return  # the name has nothing to replace
    with pytest.raises(ValueError) as caught:
        infer_encoder(weights)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("arch", SMALL)
def test_an_entry_more_is_refused(arch):
    weights = skeleton(arch).state_dict() | {"layer1.0.conv1.bias": empty(64)}
    with pytest.raises(ValueError, match=r"not a \S+, though it begins as one: 1 left over \(layer1.0.conv1.bias\)$"):
        infer_encoder(weights)


def test_faults_are_counted_and_named():
    weights = without(skeleton("resnet18").state_dict(), r"^layer4\.1\.bn2\.")
    weights |= {"fc.weight": empty(1000, 512), "layer2.1.conv1.weight": empty(128, 128, 1, 1)}
    with pytest.raises(ValueError) as caught:
        infer_encoder(weights)
    assert str(caught.value) == (
        "not a resnet18, though it begins as one: "
        "4 missing (layer4.1.bn2.weight, layer4.1.bn2.bias, layer4.1.bn2.running_mean and 1 more); "
        "1 left over (fc.weight); "
        "1 of another shape (layer2.1.conv1.weight is 128x128x1x1 and should be 128x128x3x3)"
    )
    assert first_few(["a"]) == "a" and first_few("abc") == "a, b, c" and first_few("abcde") == "a, b, c and 2 more"


def resized(arch, **shapes):
    """Its state dict with other shapes; a name's dots are double underscores."""
    return dict(skeleton(arch).state_dict()) | {n.replace("__", "."): empty(*shape) for n, shape in shapes.items()}


def no_statistics(weights):
    return without(weights, "running_|num_batches")


def of(net, **kwargs):
    with torch.device("meta"):
        return without(net(**kwargs).state_dict(), "^fc")


def blocks(kind, *counts):
    return of(torchvision.models.ResNet, block=getattr(torchvision.models.resnet, kind), layers=counts)


def group_norm(channels):
    return nn.GroupNorm(4, channels)


R18, R50 = skeleton("resnet18").state_dict(), skeleton("resnet50").state_dict()
REFUSED = {
    "nothing": ({}, r"expected a torchvision-style ResNet \(conv1.weight.*saw 0 other names \(\)"),
    "a prefix": ({f"a.{name}": t for name, t in R18.items()}, r"saw 120 other names \(a.conv1.weight, .* 117 more\)"),
    "a VGG": (of(torchvision.models.vgg11), r"expected a torchvision-style ResNet"),
    "no statistics": (no_statistics(R50), "no bn1.running_mean: GroupNorm, or BatchNorm without its statistics"),
    "GroupNorm": (of(torchvision.models.resnet18, norm_layer=group_norm), "no bn1.running_mean: GroupNorm"),
    "CIFAR's stem": (resized("resnet18", conv1__weight=(64, 3, 3, 3)), "64x3x3x3, expected .* ResNets for CIFAR$"),
    "grey images": (resized("resnet18", conv1__weight=(64, 1, 7, 7)), "64x1x7x7, expected a stem of Nx3x7x7$"),
    "other counts": (blocks("Bottleneck", 3, 4, 6, 4), r"bottleneck 3-4-6-4 blocks, expected .* 3-4-6-3 \(resnet50\)"),
    "ResNet-26": (blocks("Bottleneck", 2, 2, 2, 2), "saw a ResNet of bottleneck 2-2-2-2 blocks, expected basic 2-2-2"),
    "three stages": (without(R18, "^layer4"), r"no layer4 \(res5\): that of a C4 detector is in its ROI head"),
    "the last stage only": (without(R50, "^layer[123]"), "saw a ResNet of bottleneck 0-0-0-3 blocks"),
    "a block lost": (without(R50, r"^layer3\.2\."), "saw a ResNet of bottleneck 3-4-5-3 blocks"),
    "blocks from 1": ({n.replace("r1.0.", "r1.9."): t for n, t in R18.items()}, "layer1.0.conv1.weight is missing"),
    "a flat conv": (resized("resnet18", layer1__0__conv2__weight=(64,)), "conv2.weight is missing or no 4-dimensional"),
    "a conv of 0": (resized("resnet50", layer1__0__conv2__weight=(64, 0, 3, 3)), "is missing or no 4-dimensional"),
    "far too wide": (of(torchvision.models.resnet18) | {"layer1.0.conv2.weight": empty(10**6, 64, 3, 3)}, "1000000 ch"),
    "too wide": (skeleton("resnet50x17").state_dict(), "with 4352 channels in res2 and 1 groups of 1088, which cannot"),
    "out is no multiple of 4": (resized("resnet50", layer1__0__conv3__weight=(250, 64, 1, 1)), "250 channels .* can"),
    "a stem of none": (resized("resnet18", conv1__weight=(0, 3, 7, 7)), "64 channels in res2 .* cannot be built"),
    "a stage of another width": (resized("resnet18", layer3__0__conv1__weight=(200, 128, 3, 3)), "1 of another shape"),
    "PResNet in part": (without(skeleton("presnet50").state_dict(), r"^res7"), r"not a presnet50, .* missing \(res7"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_other_networks_are_refused_in_one_line(case):
    weights, message = REFUSED[case]
    with pytest.raises(ValueError, match=message) as caught:
        infer_encoder(weights)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


RELATIVES = [
    ("resnet50d", "with a deep stem"),
    ("resnetv2_50", "ResNet v2"),
    ("seresnet50", "squeeze and excitation"),
    ("skresnet18", "selective kernels"),
    ("resnest14d", "deep stem"),
    ("resnetrs50", "deep stem"),
    ("ecaresnet26t", "deep stem"),
    ("densenet121", "DenseNet"),
    ("vit_tiny_patch16_224", "vision transformer"),
    ("convnext_atto", "another network of timm"),
]


@pytest.mark.parametrize("name, kind", RELATIVES)
def test_relatives_of_timm_are_named(name, kind):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        weights = timm.create_model(name, pretrained=False, num_classes=0).state_dict()
    with pytest.raises(ValueError, match=f"{kind}.*which Detectron2's ResNet cannot compute$"):
        infer_encoder(weights)


@pytest.mark.parametrize(
    "name, kind",
    [
        ("stem.0.weight", "MMPretrain's ResNetV1d"),
        ("layer2.0.downsample.2.weight", "ResNet-D, with a pool"),
        ("layer1.0.conv2.conv.weight", "selective kernels or split attention"),
        ("layer1.0.aa.filt", "anti-aliasing"),
        ("backbone.layer1.0.se.fc1.weight", "squeeze and excitation"),  # behind any prefix
    ],
)
def test_relatives_are_known_by_one_name(name, kind):
    assert kind in relative([*R50, name]) and f"({name})" in relative([*R50, name])
    assert relative(R50) is relative(R18) is None
