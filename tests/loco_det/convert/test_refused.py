"""What wrappers put into names is ignored; whatever is not known for certain is refused in a line that says why."""

import shlex

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from project_parts import Nest, children, ddp, mlp, training, with_fc
from torch import nn

from loco_det.cli import convert_to_d2
from loco_det.convert import convert, convert_back, load_source
from pretrain.encoders import build_encoder


@pytest.fixture
def weights(network):
    """The state dict of a ResNet-18 without classifier."""
    return with_fc(network()).state_dict()


def prefixed(prefix, weights):
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


# --- wrappers --------------------------------------------------------------------------------------------------------

WRAPPED = [
    "module.",
    "_fsdp_wrapped_module.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "_forward_module._fsdp_wrapped_module._checkpoint_wrapped_module.",
]


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrappers_are_ignored_wherever_they_are(wrapper, weights, network, assert_same_bits, save):
    inside = {name.replace("layer3.", f"layer3.{wrapper}"): tensor for name, tensor in weights.items()}
    for content, layout, place in (
        (prefixed(wrapper, weights), "torchvision", ""),
        ({"state_dict": prefixed(f"{wrapper}encoder_q.", weights)}, "moco", "state_dict/encoder_q."),
        ({"state_dict": prefixed(f"encoder_q.{wrapper}", inside)}, "moco", "state_dict/encoder_q."),
    ):
        source, got = load_source(save(content))
        assert (source.layout, source.location) == (layout, place)
        assert_same_bits(got, network())


def test_flat_parameters_of_fsdp_are_refused(weights, refused):
    refused(weights | {"_fsdp_wrapped_module.layer1._flat_param": torch.zeros(9)}, "FSDP's flat parameters")


def test_one_name_twice_is_refused(weights, refused):
    again = {"module.conv1.weight": weights["conv1.weight"] + 1}
    refused(weights | again, "holds conv1.weight twice, once as module.conv1.weight")


# --- places that no row knows ----------------------------------------------------------------------------------------


PLACES = [
    "state_dict/encoder.",
    "state_dict/backbone.",
    "model/backbone.",
    "model/encoder.",
    "state_dict/visual.trunk.",
]


@pytest.mark.parametrize("place", PLACES)
def test_an_unknown_prefix_has_to_be_named(place, network, refused, assert_same_bits, save):
    """Among them those that need a mark: backbone. and encoder. alone are everybody's."""
    key, prefix = place.split("/")
    content = training(Nest(a=mlp("L"))) | {key: prefixed(f"module.{prefix}", network().state_dict())}
    refused(content, f"encoder at '{place}', which no known .* --prefix")
    refused(content, f"0 encoders with the prefix 'b.': there are some at '{place}'", prefix="b.")
    for named in (prefix, place):
        source, weights = load_source(save(content), prefix=named)
        assert (source.layout, source.location, source.dropped) == ("prefix", place, {"fc": 2})
        assert_same_bits(weights, network())


AS_IN_THE_FILE = {  # prefix in the file -> what a user may call it
    "module.encoder.": ["module.encoder.", "module.encoder", "encoder.", "encoder", "state_dict/module.encoder."],
    "_orig_mod.module.net.": ["_orig_mod.module.net.", "module.net.", "net.", "state_dict/_orig_mod.module.net"],
    "a.module.b.": ["a.module.b.", "a.b.", "a.b", "state_dict/a.module.b."],
    "module.": ["module.", "module", "", "state_dict/", "state_dict", "state_dict/module."],
}


@pytest.mark.parametrize("prefix", AS_IN_THE_FILE)
def test_a_place_is_named_as_it_is_in_the_file(prefix, network, save, refused):
    path = save({"state_dict": prefixed(prefix, network().state_dict()), "epoch": 3})
    for named in AS_IN_THE_FILE[prefix]:
        source, weights = load_source(path, prefix=named)
        assert torch.equal(weights["conv1.weight"], network().conv1.weight) and source.dropped == {"fc": 2}
    for other in ("module.decoder.", "ncoder.", "x/module.encoder.", prefix + "x"):
        refused(path, "0 encoders with the prefix", prefix=other)


@pytest.mark.parametrize("prefix", ["module.encoder.", "backbone.", "a b.", "$(touch x).", "-x.", "m.module.n."])
def test_a_file_without_its_projects_marks_gets_the_command_to_copy(prefix, network, tmp_path, monkeypatch):
    """SimSiam without its predictor, for one; the command is run as a shell and a user would."""
    monkeypatch.chdir(tmp_path)
    torch.save(prefixed(prefix, with_fc(network()).state_dict()), "it's mine.pth")
    with pytest.raises(ValueError, match="which no known project's layout fits") as caught:
        load_source("it's mine.pth")
    words = shlex.split(str(caught.value).partition("name its place with --prefix: ")[2])
    assert words[:2] == ["python", "tools/convert_to_d2.py"]
    args = convert_to_d2.parser().parse_args(words[2:])
    assert (args.checkpoint, args.output, args.prefix) == ("it's mine.pth", "OUT.pkl", prefix)
    _, weights = load_source(args.checkpoint, prefix=args.prefix)
    assert torch.equal(weights["conv1.weight"], network().conv1.weight)


def test_the_command_tells_two_encoders_apart(network, save):
    nets = [prefixed("module.net.", network(seed=seed).state_dict()) for seed in (0, 1)]
    with pytest.raises(ValueError, match=r"'a/net\.', 'b/net\.'.* --prefix a/module\.net\.$"):
        load_source(save({"a": nets[0], "b": nets[1]}))
    queries = {key: prefixed("module.encoder_q.", network().state_dict()) for key in ("a", "b")}
    with pytest.raises(ValueError, match=r"several encoders, .* such as python .* --prefix a/module\.encoder_q\.$"):
        load_source(save(queries))


def test_an_exact_place_goes_before_one_that_differs_by_wrappers(network, save):
    content = {"module": network().state_dict(), "": {"x": network(seed=1).state_dict()}}
    _, weights = load_source(save(content), prefix="module/")
    assert torch.equal(weights["conv1.weight"], network().conv1.weight)


def test_a_named_prefix_is_converted(network, assert_written, save, tmp_path):
    path = save(prefixed("visual.trunk.", network().state_dict()))
    assert_written(convert(path, tmp_path / "out.pkl", prefix="visual.trunk.").output, network())


def test_of_two_encoders_at_one_prefix_the_whole_place_is_named(network, save, refused):
    content = {"a": prefixed("net.", network().state_dict()), "b": prefixed("net.", network(seed=1).state_dict())}
    refused(content, "'a/net.', 'b/net.'")
    refused(content, "2 encoders with the prefix 'net.'", prefix="net.")
    _, got = load_source(save(content), prefix="b/net.")
    assert torch.equal(got["conv1.weight"], network(seed=1).conv1.weight)


def test_our_names_without_our_word_are_not_ours(weights, refused):
    refused({"encoder": "resnet18", "model": prefixed("encoder.", weights)}, "--prefix")


def test_the_order_of_names_alone_makes_it_simclrs(network, save):
    """{"state_dict": torchvision's} in torchvision's order has ImageNet's mean; simclr-converter's order has none."""
    source, _ = load_source(save({"state_dict": network().state_dict()}))
    assert source.layout == "torchvision" and source.conventions.std == (58.395, 57.12, 57.375)


# --- networks that are no plain ResNet -------------------------------------------------------------------------------

EXTRA = {
    "layer2_attention.query.weight": "1 names in its encoder .*layer2_attention",
    "layer1.0.attn.weight": "with attention",
    "layer1.0.se.fc1.weight": "squeeze and excitation",
    "layer4.1.gamma": "1 left over .layer4.1.gamma",
    "layer4.2.conv1.weight": "saw a ResNet of basic 2-2-2-3 blocks",
    "layer5.0.conv1.weight": "1 left over .layer5.0",
    "pool_conv_block_5.0.weight": "1 names in its encoder",
    "head.weight": "1 names in its encoder .*head.weight",
}


@pytest.mark.parametrize("name", EXTRA)
def test_unknown_parameters_inside_the_encoder_are_refused(name, weights, refused):
    refused(weights | {name: torch.zeros(2, 2)}, EXTRA[name])
    refused({"state_dict": prefixed("encoder_q.", weights | {name: torch.zeros(2, 2)})}, EXTRA[name])


def test_an_attention_module_between_the_stages_is_refused(network, refused):
    net = with_fc(network())
    net.attention = nn.MultiheadAttention(8, 2)
    refused(
        training(ddp(Nest(encoder_q=net, **{"queue": torch.zeros(2)}))), "4 names in its encoder .*attention.in_proj"
    )


def stem(channels_in, size):
    def change(weights):
        return weights | {"conv1.weight": torch.zeros(64, channels_in, size, size)}

    return change


def deep_stem(weights):
    weights = {name: tensor for name, tensor in weights.items() if name != "conv1.weight"}
    return weights | {f"conv1.{i}.weight": torch.zeros(32, 3, 3, 3) for i in (0, 3, 6)}


def without_statistics(weights):
    return {name: tensor for name, tensor in weights.items() if "running" not in name and "num_batches" not in name}


def vision_transformer(weights):
    return {"cls_token": torch.zeros(1, 1, 8), "patch_embed.proj.weight": torch.zeros(8, 3, 16, 16),
            "blocks.0.attn.qkv.weight": torch.zeros(24, 8)}  # fmt: skip


def caffe2(weights):
    return {"conv1_w": np.zeros((64, 3, 7, 7)), "res2_0_branch2a_w": np.zeros((64, 64, 1, 1)), "fc1000_b": np.zeros(9)}


OTHERS = [
    (stem(1, 7), "conv1.weight is 64x1x7x7, expected a stem of Nx3x7x7"),
    (stem(4, 7), "conv1.weight is 64x4x7x7"),
    (stem(3, 3), "ResNets for CIFAR"),
    (deep_stem, "deep stem"),
    (without_statistics, "GroupNorm, or BatchNorm without its statistics"),
    (vision_transformer, "a vision transformer"),
    (caffe2, "Caffe2's names .*Detectron2 reads this file as it is"),
]


@pytest.mark.parametrize("change, message", OTHERS)
@pytest.mark.parametrize("prefix", ["", "module.encoder_q."])
def test_other_networks_are_refused(change, message, prefix, weights, refused, tmp_path):
    content = prefixed(prefix, change(weights))
    if change is caffe2:
        if prefix:
            return
        np.savez(tmp_path / "caffe2.npz", **content)
        content = tmp_path / "caffe2.npz"
    refused(content, message)


def test_pycontrasts_cmc_is_refused(network, refused):
    """Two encoders, of one and two channels of a Lab image."""
    nets = [with_fc(network()), with_fc(network(seed=1))]
    for channels, net in enumerate(nets, 1):
        net.conv1 = nn.Conv2d(channels, 64, 7, bias=False)
    model = ddp(Nest(encoder1=nets[0], encoder2=nets[1], head1=mlp("L"), head2=mlp("L")))
    refused(training(model, "model", contrast={"memory_1": torch.zeros(4, 8)}), "encoder")


def test_a_sequential_with_another_order_of_children_is_refused(network, refused):
    parts = list(children(network()).children())
    refused(nn.Sequential(nn.BatchNorm2d(3), *parts).state_dict(), "no ResNet|names in its encoder|missing")


# --- TensorFlow's SAME padding ---------------------------------------------------------------------------------------


def same(function, x, kernel, stride):
    """Pad to ceil(side / stride) outputs, an odd pixel going to the end (TensorFlow's documentation of SAME)."""
    pads = []
    for side in (x.shape[3], x.shape[2]):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        pads += [total // 2, total - total // 2]
    value = -torch.inf if function is F.max_pool2d else 0.0
    return F.pad(x, pads, value=value)


def reference(net, x):
    """torchvision's ResNet with SAME everywhere, by hand."""

    def conv(layer, x):
        kernel, stride = layer.kernel_size[0], layer.stride[0]
        return F.conv2d(same(F.conv2d, x, kernel, stride), layer.weight, stride=stride, groups=layer.groups)

    features = []
    x = F.relu(net.bn1(conv(net.conv1, x)))
    x = F.max_pool2d(same(F.max_pool2d, x, 3, 2), 3, 2)
    for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
        for block in layer:
            shortcut = block.downsample[1](conv(block.downsample[0], x)) if block.downsample else x
            last = 3 if hasattr(block, "conv3") else 2
            for i in range(1, last + 1):
                x = getattr(block, f"bn{i}")(conv(getattr(block, f"conv{i}"), x))
                x = F.relu(x + shortcut if i == last else x)
        features.append(x)
    return features


@pytest.mark.parametrize("arch, size", [
    ("resnet18", (64, 96)), ("resnet18", (65, 97)), ("resnet18", (64, 97)), ("resnet18", (50, 39)),
    ("resnet50x0.25", (64, 96)), ("resnet50x0.25", (65, 97)),
])  # fmt: skip
def test_same_padding_is_tensorflows(arch, size, network):
    net, encoder = network(arch), build_encoder(f"{arch}_same").eval()
    encoder.load_state_dict({n: t for n, t in net.state_dict().items() if not n.startswith("fc.")})
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        got = list(encoder(images).values())
        for features, wanted in zip(got, reference(net, images), strict=True):
            torch.testing.assert_close(features, wanted, rtol=0, atol=0)
        plain = build_encoder(arch).eval()
        plain.load_state_dict(encoder.state_dict())
        equal = [torch.equal(a, b) for a, b in zip(got, plain(images).values(), strict=True)]
    # Both pad alike where every side on the way down is odd: 65 -> 33 -> 17 -> 9 -> 5 -> 3
    assert all(equal) if size == (65, 97) else not any(equal)


def test_byol_goes_into_detectron2_and_back(network, assert_written, assert_same_bits, save, tmp_path):
    path = save(network().state_dict())
    result = convert(path, tmp_path / "byol.pkl", source="byol")
    assert result.source.arch == "resnet18_same" and result.source.layout == "byol"
    assert result.config["MODEL"]["ENCODER"] == "resnet18_same"
    assert result.config["MODEL"]["BACKBONE"]["NAME"] == "build_encoder_fpn_backbone"
    assert all(d.absolute == 0 for stages in result.differences.values() for d in stages.values())
    assert_written(result.output, network())
    convert_back(result.output, tmp_path / "back.pth")
    assert_same_bits(torch.load(tmp_path / "back.pth"), network())
    plain = convert(path, tmp_path / "plain.pkl")  # by itself it is taken for torchvision's: the name decides
    assert (plain.source.layout, plain.source.arch) == ("torchvision", "resnet18")


def test_our_own_checkpoint_with_same_padding(network, save):
    encoder = build_encoder("resnet18_same")
    content = {"format": "loco-det pretraining", "encoder": "resnet18_same",
               "model": Nest(encoder=encoder, decoders=mlp("L")).state_dict()}  # fmt: skip
    source, _ = load_source(save(content))
    assert (source.layout, source.arch) == ("loco-det", "resnet18_same")
