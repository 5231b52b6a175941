"""Encoders as lists of stages: the published shapes and FLOPs, and what local learning relies on."""

import copy
import sys
import types

import pytest
import torch
import torchvision
from fvcore.nn import FlopCountAnalysis
from torch import nn

from pretrain.encoders import ENCODERS, RESNETS, STAGE_NAMES, ResNetEncoder, StageEncoder, build_encoder
from pretrain.encoders.base import check_encoder

GFLOPS = {  # multiply-adds at 224 x 224 with a 1000-class layer on top: torchvision's documentation, and the papers
    "resnet18": 1.814,
    "resnet34": 3.664,
    "resnet50": 4.089,
    "resnet101": 7.801,
    "resnet152": 11.514,
    "presnet50": 4.16,
    "shufflenetv2_50": 2.3,
}
CHANNELS = {
    "resnet18": (64, 128, 256, 512),
    "resnet34": (64, 128, 256, 512),
    "resnet50": (256, 512, 1024, 2048),
    "resnet101": (256, 512, 1024, 2048),
    "resnet152": (256, 512, 1024, 2048),
    "presnet50": (56, 96, 576, 1024, 2048, 4096),
    "shufflenetv2_50": (244, 488, 976, 2048),
}
BLOCKS = {  # of each stage; res2 with its stem, ShuffleNet's res5 with the last 1x1 conv
    "resnet18": [3, 2, 2, 2],
    "resnet34": [4, 4, 6, 3],
    "resnet50": [4, 4, 6, 3],
    "resnet101": [4, 4, 23, 3],
    "resnet152": [4, 8, 36, 3],
    "presnet50": [4, 3, 3, 3, 3, 3],
    "shufflenetv2_50": [4, 4, 6, 4],
}
SIDES = {  # of the features for images of 224 and 97 pixels
    "resnet": {224: [56, 28, 14, 7], 97: [25, 13, 7, 4]},
    "shufflenetv2_50": {224: [56, 28, 14, 7], 97: [25, 13, 7, 4]},
    "presnet50": {224: [56, 36, 24, 16, 12, 8], 97: [25, 16, 11, 7, 5, 3]},
}


@pytest.fixture(scope="module")
def encoders():
    """Every encoder, built once; tests that change one take a copy."""
    torch.manual_seed(0)
    return {name: build_encoder(name) for name in ENCODERS}


@pytest.fixture(scope="module")
def shapes():
    """Every encoder on the meta device, where only shapes are computed."""
    with torch.device("meta"):
        return {name: build_encoder(name).eval() for name in ENCODERS}


def noise(*shape, seed=0, **kwargs):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(**kwargs)


# --- the published networks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", [224, 97])
@pytest.mark.parametrize("name", ENCODERS)
def test_names_and_shapes(shapes, name, side):
    encoder = shapes[name]
    features = encoder(torch.empty(1, 3, side, side, device="meta"))
    sides = SIDES["resnet" if name in RESNETS else name]
    assert tuple(features) == encoder.stage_names == tuple(f"res{i}" for i in range(2, 2 + len(CHANNELS[name])))
    assert encoder.channels == CHANNELS[name]
    assert [tuple(h.shape) for h in features.values()] == [
        (1, c, s, s) for c, s in zip(CHANNELS[name], sides[side], strict=True)
    ]
    assert [len(stage) for stage in encoder.stages] == BLOCKS[name]
    assert [224 / stride for stride in encoder.strides] == pytest.approx(sides[224])


def test_presnet_on_oblong_and_tiny_images(encoders):
    encoder = encoders["presnet50"].eval()
    with torch.no_grad():
        assert [tuple(h.shape[2:]) for h in encoder(noise(1, 3, 64, 448)).values()] == [
            (16, 112), (10, 72), (7, 48), (5, 32), (4, 24), (3, 16),
        ]  # fmt: skip
        assert all(h.shape[2:] == (1, 1) for h in encoder(noise(1, 3, 4, 4)).values())


@pytest.mark.parametrize("name", ENCODERS)
def test_flops_are_the_published_ones(encoders, name):
    """To 0.1 %, ShuffleNet's two digits to 0.5 %. Convs and classifier; for PResNet-50 all that fvcore counts."""
    classifier = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS[name][-1], 1000)]
    network = nn.Sequential(*encoders[name].stages, *classifier).eval()
    flops = FlopCountAnalysis(network, torch.zeros(1, 3, 224, 224)).unsupported_ops_warnings(False).by_operator()
    count = flops.total() if name == "presnet50" else flops["conv"] + flops["linear"]
    assert count / 1e9 == pytest.approx(GFLOPS[name], rel=0.005 if name == "shufflenetv2_50" else 0.001)


def test_presnet_has_the_widths_and_groups_of_the_table(encoders):
    expected = [("basic", 56, 1), ("basic", 96, 1), (None, 144, 1), (None, 256, 2), (None, 512, 16), (None, 1024, 128)]
    for stage, (kind, width, groups) in zip(encoders["presnet50"].stages, expected, strict=True):
        blocks = list(stage)[-3:]
        for i, block in enumerate(blocks):
            convs = [m for n, m in block.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in n]
            if kind == "basic":
                assert [(c.kernel_size[0], c.out_channels, c.groups) for c in convs] == [(3, width, 1)] * 2
            else:
                assert [(c.kernel_size[0], c.out_channels, c.groups) for c in convs] == [
                    (1, width, groups), (3, width, groups), (1, 4 * width, groups if i else 1),
                ]  # fmt: skip
            assert all(c.stride == (1, 1) for c in convs)  # interpolation does it
            assert (block.downsample is None) == (i > 0)
    stem = next(m for m in encoders["presnet50"].modules() if isinstance(m, nn.Conv2d))
    assert (stem.kernel_size, stem.out_channels, stem.stride) == ((7, 7), 32, (2, 2))


def test_presnet_interpolates_bilinearly(encoders):
    """A ramp through a block of identities stays a ramp: at the pixels' centres, where strides would shift it."""
    shortcut = copy.deepcopy(encoders["presnet50"].stages[1][0].downsample).eval()
    nn.init.zeros_(shortcut[1].weight)
    shortcut[1].weight.data[0, 0] = 1
    ramp = (torch.arange(56.0) + 0.5).expand(1, 56, 56, 56)
    got = shortcut(ramp)[0, 0, 0]
    assert torch.allclose(got, (torch.arange(36.0) + 0.5) * 56 / 36, atol=1e-3)


def test_shufflenet_has_the_units_of_the_table(encoders):
    stages = encoders["shufflenetv2_50"].stages
    units = [[m for m in stage if hasattr(m, "branch2")] for stage in stages]
    assert [len(u) for u in units] == [3, 4, 6, 3]
    for k, (stage, channels) in enumerate(zip(units, (244, 488, 976, 1952), strict=True)):
        for i, unit in enumerate(stage):
            assert {m.out_channels for m in unit.branch2 if isinstance(m, nn.Conv2d)} == {channels // 2}
            assert len(unit.branch1) == (0 if i else 5)
            strides = {m.stride for m in unit.modules() if isinstance(m, nn.Conv2d)}
            assert strides == ({(1, 1)} if i or not k else {(1, 1), (2, 2)})


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_are_torchvisions(name):
    encoder, net = build_encoder(name), getattr(torchvision.models, name)(weights=None).eval()
    wanted = {key: tensor for key, tensor in net.state_dict().items() if not key.startswith("fc.")}
    assert list(encoder.state_dict()) == list(wanted)  # so there are no duplicates either
    encoder.load_state_dict(wanted)
    x = noise(1, 3, 64, 64)
    with torch.no_grad():
        pooled = encoder.eval()(x)["res5"].mean((2, 3))
        assert torch.allclose(net.fc(pooled), net(x), atol=1e-5)


@pytest.mark.parametrize("name", ENCODERS)
def test_initialisation_is_torchvisions(encoders, name):
    for module in encoders[name].modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            if module.weight.numel() > 5000:
                assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.06)
        elif isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


# --- what local learning relies on -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ENCODERS)
def test_blocks_in_a_row_are_the_network_and_leave_their_input_alone(encoders, name):
    encoder = copy.deepcopy(encoders[name]).double().train()
    images = noise(2, 3, 65, 65, dtype=torch.float64)
    wanted = copy.deepcopy(encoder)(images)  # in training mode it changes the running statistics
    x = images
    for stage_name, stage in zip(encoder.stage_names, encoder.stages, strict=True):
        assert type(stage) is nn.Sequential
        for block in stage:
            before, version = x.clone(), x._version
            h = block(x)
            assert torch.equal(x, before) and x._version == version
            assert h.data_ptr() != x.data_ptr()
            x = h
        assert torch.equal(x, wanted[stage_name]) and x.dtype == torch.float64


@pytest.mark.parametrize("name", ENCODERS)
def test_stages_hold_every_parameter_once_and_all_get_a_gradient(encoders, name):
    encoder = copy.deepcopy(encoders[name]).train()
    of_stages = [p for stage in encoder.stages for p in stage.parameters()]
    assert len(of_stages) == len({id(p) for p in of_stages})
    assert {id(p) for p in of_stages} == {id(p) for p in encoder.parameters()}
    buffers = {id(b) for stage in encoder.stages for b in stage.buffers()}
    assert buffers == {id(b) for b in encoder.buffers()}
    x = noise(2, 3, 64, 64).requires_grad_()
    h = encoder(x)[encoder.stage_names[-1]]
    (h * noise(*h.shape, seed=1)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in of_stages)
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["resnet18", "presnet50", "shufflenetv2_50"])
def test_stages_follow_what_is_done_to_the_encoder(encoders, name):
    encoder = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(encoders[name]))
    kinds = {type(m) for stage in encoder.stages for m in stage.modules()}
    assert nn.SyncBatchNorm in kinds and nn.BatchNorm2d not in kinds
    encoder = copy.deepcopy(encoder).to(torch.float64, memory_format=torch.channels_last)
    assert {p.dtype for stage in encoder.stages for p in stage.parameters()} == {torch.float64}
    assert {id(p) for s in encoder.stages for p in s.parameters()} == {id(p) for p in encoder.parameters()}


@pytest.mark.parametrize("name", ["presnet50", "shufflenetv2_50"])
def test_channels_last_and_bfloat16(encoders, name):
    encoder, x = copy.deepcopy(encoders[name]).eval(), noise(1, 3, 97, 97)
    with torch.no_grad():
        wanted = encoder(x)
        encoder, x = (t.to(memory_format=torch.channels_last) for t in (encoder, x))
        last = encoder(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = encoder(x)
    for stage, h in wanted.items():
        assert torch.allclose(last[stage], h, rtol=1e-4, atol=1e-4 * h.abs().max().item()), stage
        assert (half[stage] - h).abs().max() < 0.1 * h.abs().max(), stage


# --- encoders of one's own -------------------------------------------------------------------------------------------


def two_stages():
    def stage(i, o):
        return nn.Sequential(nn.Sequential(nn.Conv2d(i, o, 3, 2, 1), nn.BatchNorm2d(o), nn.ReLU()))

    return StageEncoder({"low": stage(3, 4), "high": stage(4, 6)}, channels=[4, 6], strides=[2, 4])


@pytest.fixture
def own(monkeypatch):
    """A module ``own_networks.zoo`` whose functions a test sets."""
    package, module = types.ModuleType("own_networks"), types.ModuleType("own_networks.zoo")
    monkeypatch.setitem(sys.modules, "own_networks", package)
    monkeypatch.setitem(sys.modules, "own_networks.zoo", module)
    return module


def test_an_encoder_from_stages(own):
    own.small = two_stages
    encoder = build_encoder("own_networks.zoo.small")
    assert (encoder.stage_names, encoder.channels, encoder.strides) == (("low", "high"), (4, 6), (2, 4))
    assert [tuple(h.shape) for h in encoder(noise(2, 3, 9, 9)).values()] == [(2, 4, 5, 5), (2, 6, 3, 3)]
    assert list(encoder.state_dict())[0] == "low.0.0.weight"


def test_an_encoder_need_not_derive_from_ours(own):
    class Mine(nn.Module):
        stage_names, channels = ("a",), (3,)

        def __init__(self):
            super().__init__()
            self.stages = nn.ModuleList([nn.Sequential(nn.Identity())])

    own.mine = Mine
    assert isinstance(build_encoder("own_networks.zoo.mine"), Mine)


def broken():
    raise RuntimeError("no\nweights")


def with_(**attributes):
    encoder = two_stages()
    for name, value in attributes.items():
        setattr(encoder, name, value)
    return encoder


@pytest.mark.parametrize(
    "name, function, message",
    [
        ("resnet51", None, "unknown encoder 'resnet51': choose one of resnet18, .*, a variant .*, or package"),
        ("", None, "unknown encoder ''"),
        ("no_such.module.f", None, "cannot be imported .*PYTHONPATH.*No module named 'no_such'"),
        ("own_networks.zoo.f", None, "cannot be imported .*no attribute 'f'"),
        (".f", None, "cannot be imported"),
        ("own_networks.zoo.f", 3, "calling it failed: TypeError"),
        ("own_networks.zoo.f", broken, "calling it failed: RuntimeError: no weights"),
        ("own_networks.zoo.f", lambda: None, "got a NoneType without stages, stage_names, channels"),
        ("own_networks.zoo.f", lambda: nn.ReLU(), "got a ReLU without stages"),
        ("own_networks.zoo.f", lambda: types.SimpleNamespace(stages=[], stage_names=[], channels=[]), "no nn.Module"),
        ("own_networks.zoo.f", lambda: with_(channels=(4,)), "2 stages, 2 stage_names and 1 channels"),
        ("own_networks.zoo.f", lambda: StageEncoder({}, [], []), "0 stages"),
    ],
)
def test_refusals(own, name, function, message):
    if function is not None:
        own.f = function
    with pytest.raises(ValueError, match=message) as caught:
        build_encoder(name)
    assert "\n" not in str(caught.value) and repr(name) in str(caught.value)


@pytest.mark.parametrize(
    "stages, channels, strides, message",
    [
        ({"res2": nn.Conv2d(3, 4, 3)}, [4], [1], "every stage must be an nn.Sequential"),
        ({"res2": nn.Sequential()}, [4], [1], "one or more blocks"),
        ({"res2[0]": nn.Sequential(nn.ReLU())}, [4], [1], "stage 'res2\\[0\\]' cannot be used"),
        ({"forward": nn.Sequential(nn.ReLU())}, [4], [1], "stage 'forward' cannot be used"),
        ({"res2": None}, [4], [1], "stage 'res2' cannot be used"),
        ({"res2": nn.Sequential(nn.ReLU())}, [4, 5], [1], "1 stages, 1 stage_names and 2 channels"),
        ({"res2": nn.Sequential(nn.ReLU())}, [4], [1, 2], "1 stages, but 2 strides"),
    ],
)
def test_stages_that_do_not_fit_together(stages, channels, strides, message):
    with pytest.raises(ValueError, match=message):
        StageEncoder(stages, channels, strides)


def test_the_constants_agree(encoders):
    assert set(RESNETS) < set(ENCODERS)
    assert STAGE_NAMES == ResNetEncoder.stage_names == encoders["shufflenetv2_50"].stage_names
    for encoder in encoders.values():
        check_encoder(encoder)
        assert len(encoder.strides) == len(encoder.stage_names)
