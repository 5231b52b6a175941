"""Networks of timm as backbones: their maps are timm's own, and what is frozen stands still."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.structures import ImageList
from noise import noise
from timm.layers import FrozenBatchNormAct2d, resample_abs_pos_embed
from torch import nn

from loco_det.config import add_loco_config
from loco_det.modeling.frozen import speed_up
from loco_det.modeling.timm.backbone import TimmBackbone
from loco_det.modeling.timm.build import BUILDERS
from loco_det.modeling.timm.network import run
from loco_det.modeling.timm.pyramid import PlainPyramid


def backbone(name, **options):
    """With parameters of a spread that no layer of the network hides."""
    torch.manual_seed(0)
    made = TimmBackbone(name, **options)
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    for key, buffer in made.named_buffers():
        if "running" in key:
            buffer.uniform_(*((-0.1, 0.1) if "mean" in key else (0.5, 1.5)))
    return made.double().eval()


def reference_of(made, name, size=None):
    """timm's own network with the same weights, built for images of a size as timm does it."""
    options = {"img_size": size} if size and "vit" in name else {}
    reference = timm.create_model(name, num_classes=0, **options).double().eval()
    weights = made.network.state_dict()
    if size and "vit" in name:
        grid = tuple(side // made.network.patch_embed.patch_size[0] for side in size)
        weights["pos_embed"] = resample_abs_pos_embed(weights["pos_embed"], list(grid))
    missing = reference.load_state_dict(weights, strict=False)
    above = ("norm.", "fc_norm.", "head.", "conv_head.", "bn2.")  # the last map
    assert not missing.unexpected_keys and all(k.startswith(above) for k in missing.missing_keys)
    return reference


def assert_equal(got, wanted):
    assert got.shape == wanted.shape
    assert (got - wanted).abs().max() <= 1e-12 * wanted.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("name, size", [("test_vit", (160, 160)), ("test_vit", (96, 208)), ("test_vit2", (64, 64)),
                                        ("test_convnext", (160, 160)), ("test_convnext", (96, 224)),
                                        ("test_resnet", (96, 160)), ("test_efficientnet", (96, 64))])  # fmt: skip
def test_maps_are_timms_at_native_and_other_sizes(name, size):
    made = backbone(name)
    x = noise(2, 3, *size).double()
    features, shapes = made(x), made.output_shape()
    wanted = run(reference_of(made, name, size), x)
    wanted = wanted[-1:] if "vit" in name else wanted[-4:]
    assert list(features) == list(shapes) == (["last_feat"] if "vit" in name else ["res2", "res3", "res4", "res5"])
    for key, values in zip(features, wanted, strict=True):
        assert_equal(features[key], values)
        assert shapes[key] == ShapeSpec(channels=values.shape[1], stride=size[0] // values.shape[2])


@torch.no_grad()
def test_features_only_are_the_same_maps():
    made = backbone("test_convnext")
    reference = timm.create_model("test_convnext", features_only=True).double().eval()
    weights = {k.replace("stages.", "stages_"): v for k, v in made.network.state_dict().items()}
    reference.load_state_dict({k.replace("stem.", "stem_"): v for k, v in weights.items()})
    x = noise(1, 3, 96, 64).double()
    for got, wanted in zip(made(x).values(), reference(x), strict=True):
        assert_equal(got, wanted)


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_sizes_that_nothing_divides_are_padded_and_cropped(name):
    made = backbone(name)
    multiple = 16 if name == "test_vit" else 32
    x = noise(2, 3, 70, 101).double()
    padded = F.pad(x, (0, -101 % multiple, 0, -70 % multiple))
    assert padded.shape[2] % multiple == padded.shape[3] % multiple == 0
    wanted = made(padded)
    for key, values in made(x).items():
        stride = made.output_shape()[key].stride
        rows, columns = -(-70 // stride), -(-101 // stride)
        assert values.shape[2:] == (rows, columns)
        assert_equal(values, wanted[key][:, :, :rows, :columns])


@torch.no_grad()
def test_final_norm():
    made = backbone("test_vit", final_norm=True)
    x = noise(1, 3, 160, 160).double()
    reference = timm.create_model("test_vit", num_classes=0).double().eval()
    reference.load_state_dict(made.network.state_dict())
    wanted = reference.forward_features(x)[:, reference.num_prefix_tokens :]
    assert_equal(made(x)["last_feat"], wanted.transpose(1, 2).reshape(1, 64, 10, 10))


@torch.no_grad()
def test_another_patch_is_brought_to_stride_16(monkeypatch):
    """Values stay at their place in the image: a map of coordinates is a map of coordinates afterwards."""
    made = TimmBackbone("vit_tiny_patch16_224", pyramid=True)
    assert made.output_shape()["last_feat"].stride == 16
    made = TimmBackbone("eva02_tiny_patch14_224", pyramid=True)
    assert made.output_shape()["last_feat"].stride == 16

    def centres(network, x, *_):
        rows, columns = (torch.arange(side // 14) * 14.0 + 7 for side in x.shape[2:])
        return [torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]]

    monkeypatch.setattr("loco_det.modeling.timm.backbone.run", centres)
    rows, columns = made(torch.zeros(1, 3, 160, 224))["last_feat"][0]
    assert rows.shape == (10, 14)
    wanted = torch.arange(14) * 16.0 + 8
    assert torch.allclose(rows[:, 0], wanted[:10]) and torch.allclose(columns[0], wanted)
    assert made(torch.zeros(1, 3, 33, 500))["last_feat"].shape[2:] == (3, 32)  # 42 x 504 pixels would have 2 rows


def frozen_names(made):
    return {k for k, p in made.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("name, freeze_at, parts", [
    ("test_vit", 0, ()),
    ("test_vit", 1, ("cls_token", "pos_embed", "patch_embed.")),
    ("test_vit", 3, ("cls_token", "pos_embed", "patch_embed.", "blocks.0.", "blocks.1.")),
    ("test_vit", 5, ("cls_token", "pos_embed", "patch_embed.", "blocks.0.", "blocks.1.", "blocks.2.", "blocks.3.")),
    ("test_vit", 7, ("",)),
    ("test_vit", 99, ("",)),
    ("test_convnext", 0, ()),
    ("test_convnext", 1, ("stem.",)),
    ("test_convnext", 2, ("stem.", "stages.0.")),
    ("test_convnext", 4, ("stem.", "stages.0.", "stages.1.", "stages.2.")),
    ("test_convnext", 5, ("",)),
    ("swin_tiny_patch4_window7_224", 3, ("patch_embed.", "layers.0.", "layers.1.")),
    ("regnetx_002", 2, ("stem.", "s1.")),
])  # fmt: skip
def test_freeze_at(name, freeze_at, parts):
    made = TimmBackbone(name, freeze_at=freeze_at)
    wanted = {k for k, _ in made.named_parameters() if parts and k.startswith(tuple(f"network.{p}" for p in parts))}
    assert frozen_names(made) == wanted
    made.train()
    for key, module in made.network.named_modules():
        parameters = list(module.parameters())
        if parameters:
            assert module.training is any(parameter.requires_grad for parameter in parameters), key


def test_no_gradient_reaches_what_is_frozen():
    made = backbone("test_convnext", freeze_at=3).train()
    sum(values.sum() for values in made(noise(1, 3, 64, 64).double()).values()).backward()
    frozen = frozen_names(made)
    assert frozen and all((p.grad is None) is (k in frozen) for k, p in made.named_parameters())
    assert not any(v.requires_grad for v in backbone("test_vit", freeze_at=99)(noise(1, 3, 64, 64).double()).values())


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_stochastic_depth_is_off_in_what_is_frozen_and_on_where_it_learns(name):
    x = noise(4, 3, 64, 64).double()

    def differ(freeze_at, rate=0.9):
        made = backbone(name, freeze_at=freeze_at, drop_path=rate).train()
        torch.manual_seed(1)
        return not all(torch.equal(a, b) for a, b in zip(made(x).values(), made(x).values(), strict=True))

    assert differ(0) and not differ(99) and not differ(0, rate=0.0)
    made = backbone(name, freeze_at=3, drop_path=0.9).train()
    on = {k for k, m in made.named_modules() if type(m).__name__ == "DropPath" and m.training}
    parts = ("network.blocks.0.", "network.blocks.1.", "network.stages.0.", "network.stages.1.")
    assert on and not any(k.startswith(parts) for k in on)


def test_norms_of_convolutional_networks():
    made = TimmBackbone("regnetx_002", freeze_at=2, norm="BN")
    kinds = {k: type(m).__name__ for k, m in made.network.named_modules() if "BatchNorm" in type(m).__name__}
    frozen = {k for k, kind in kinds.items() if "Frozen" in kind}
    assert frozen == {k for k in kinds if k.startswith(("stem.", "s1."))} and len(frozen) < len(kinds)
    assert isinstance(made.network.stem.bn, FrozenBatchNormAct2d)  # with its activation
    for norm, word in (("SyncBN", "SyncBatchNorm"), ("FrozenBN", "FrozenBatchNorm")):
        made = TimmBackbone("regnetx_002", norm=norm)
        assert all(word in type(m).__name__ for m in made.modules() if "BatchNorm" in type(m).__name__)


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "regnetx_002"])
def test_the_fast_frozen_backbone_has_the_same_maps(name):
    made = backbone(name, freeze_at=99).float().train()
    fast = copy.deepcopy(made)
    assert speed_up(fast)
    assert not speed_up(TimmBackbone(name))
    for size in ((64, 96), (70, 50)):
        x = noise(2, 3, *size)
        for got, wanted in zip(fast(x).values(), made(x).values(), strict=True):
            assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max() and not got.requires_grad
    exact, x = made(noise(1, 3, 64, 96)), noise(1, 3, 64, 96)
    with torch.autocast("cpu", torch.bfloat16):
        for got, plain, wanted in zip(fast(x).values(), made(x).values(), exact.values(), strict=True):
            errors = [(values.float() - wanted).norm() / wanted.norm() for values in (got, plain)]
            assert errors[0] < 0.03 and errors[0] <= 1.5 * errors[1] + 1e-3


def config(**keys):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.FPN.OUT_CHANNELS = "build_timm_fpn_backbone", 32
    cfg.MODEL.FPN.IN_FEATURES = ["res2", "res3", "res4", "res5"]
    cfg.merge_from_list([word for pair in keys.items() for word in pair])
    return cfg


@pytest.mark.parametrize("name", ["test_vit", "eva02_tiny_patch14_224", "test_convnext"])
@pytest.mark.parametrize("norm, kind", [("", type(None)), ("GN", nn.GroupNorm), ("BN", nn.BatchNorm2d)])
def test_pyramid(name, norm, kind):
    made = build_backbone(config(**{"MODEL.TIMM.NAME": name, "MODEL.FPN.NORM": norm}))
    assert isinstance(made, PlainPyramid) is (name != "test_convnext")
    assert {k: v.stride for k, v in made.output_shape().items()} == {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
    part = made.simfp_4 if name != "test_convnext" else nn.ModuleList([made.fpn_lateral4, made.fpn_output4])
    norms = [conv.norm for conv in part if hasattr(conv, "norm")]
    assert [type(m) for m in norms] == [kind] * 2
    images = [torch.zeros(3, 90, 120), torch.zeros(3, 100, 101)]
    batch = ImageList.from_tensors(images, made.size_divisibility, padding_constraints=made.padding_constraints)
    assert batch.tensor.shape[2:] == (128, 128)
    with torch.no_grad():
        sides = {k: tuple(v.shape) for k, v in made(batch.tensor).items()}
    assert sides == {f"p{k}": (2, 32, 128 >> k, 128 >> k) for k in range(2, 7)}


def test_square_pad():
    made = build_backbone(config(**{"MODEL.TIMM.NAME": "test_vit", "MODEL.TIMM.SQUARE_PAD": 160}))
    images = [torch.zeros(3, 90, 120)]
    batch = ImageList.from_tensors(images, made.size_divisibility, padding_constraints=made.padding_constraints)
    assert batch.tensor.shape[2:] == (160, 160)


@pytest.mark.parametrize("keys, message", [
    ({}, "set MODEL.TIMM.NAME"),
    ({"MODEL.TIMM.NAME": "efficientvit_m0"}, "has maps of strides 16, 32 and no res2, res3"),
    ({"MODEL.TIMM.NAME": "test_convnext", "MODEL.FPN.IN_FEATURES": ["res2", "res4"]}, "expected the last ones"),
    ({"MODEL.TIMM.NAME": "test_resnet", "MODEL.RESNETS.NORM": "GN"}, "can be BN, SyncBN, FrozenBN"),
    ({"MODEL.TIMM.NAME": "test_convnext", "MODEL.TIMM.FINAL_NORM": True}, "no norm after its last block"),
    ({"MODEL.TIMM.NAME": "vgg11", "MODEL.TIMM.DROP_PATH": 0.1}, "vgg11 has no stochastic depth"),
])  # fmt: skip
def test_what_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(config(**keys))


def test_maps_alone():
    made = build_backbone(config(**{"MODEL.BACKBONE.NAME": BUILDERS[0], "MODEL.TIMM.NAME": "test_convnext"}))
    assert type(made) is TimmBackbone and list(made.output_shape()) == ["res2", "res3", "res4", "res5"]
    lower = TimmBackbone("test_convnext", ["res4", "res3"])
    assert list(lower.output_shape()) == ["res3", "res4"] and len(lower.network.stages) == 3  # no idle parameters
    sum(values.sum() for values in lower(noise(1, 3, 64, 64)).values()).backward()
    assert all(p.grad is not None for p in lower.parameters())
    with pytest.raises(ValueError, match="has the maps res2, res3, res4, res5, not last_feat"):
        TimmBackbone("test_convnext", ["last_feat"])
