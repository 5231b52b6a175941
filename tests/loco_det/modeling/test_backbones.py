"""Encoders in Detectron2: the same features, honest scales, freezing as in its own ResNet, weights found by name."""

import copy
import math
import pickle
import sys
import types

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from noise import noise
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from loco_det.config import add_loco_config
from loco_det.convert import to_detectron2
from loco_det.engine.checkpoint import GuardedCheckpointer
from loco_det.modeling.backbones import EncoderBackbone
from pretrain.encoders import STAGE_NAMES, StageEncoder, build_encoder

NAMES = ("resnet18", "presnet50", "shufflenetv2_50")
LEVELS = {"presnet50": ["res2", "res4", "res5", "res7"]}  # stages under the FPN; of the others all four
NORMS = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm, "FrozenBN": FrozenBatchNorm2d}


@pytest.fixture(scope="module")
def encoders():
    """Every encoder with statistics and affine parameters of BN that are not the initial ones; take copies."""
    torch.manual_seed(0)
    built = {name: build_encoder(name) for name in NAMES}
    for encoder in built.values():
        for m in encoder.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(0, 0.1)
                m.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.normal_(m.bias, 0, 0.1)
    return built


def config(request, name, **keys):
    """Mask R-CNN of the project's base config on an encoder, with narrow heads."""
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file(str(request.config.rootpath / "configs/detection" / "_base_mask_rcnn_r50_fpn.yaml"))
    levels = LEVELS.get(name, list(STAGE_NAMES))
    small = {
        "MODEL.DEVICE": "cpu", "MODEL.BACKBONE.NAME": "build_encoder_fpn_backbone", "MODEL.ENCODER": name,
        "MODEL.RESNETS.OUT_FEATURES": levels, "MODEL.FPN.IN_FEATURES": levels, "MODEL.FPN.OUT_CHANNELS": 32,
        "MODEL.RPN.POST_NMS_TOPK_TRAIN": 20, "MODEL.RPN.POST_NMS_TOPK_TEST": 20, "MODEL.ROI_HEADS.NUM_CLASSES": 3,
        "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": 8, "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
        "MODEL.ROI_BOX_HEAD.CONV_DIM": 16, "MODEL.ROI_BOX_HEAD.FC_DIM": 16, "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    }  # fmt: skip
    cfg.merge_from_list([item for pair in {**small, **keys}.items() for item in pair])
    return cfg


# --- features ---------------------------------------------------------------------------------------------------------


def assert_close(got, wanted):
    assert list(got) == list(wanted)
    for stage in wanted:
        assert got[stage].shape == wanted[stage].shape
        assert (got[stage] - wanted[stage]).abs().max() <= 1e-6 * wanted[stage].abs().max(), stage


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", NAMES)
def test_features_are_the_encoders(encoders, name, norm):
    source = copy.deepcopy(encoders[name])
    backbone = EncoderBackbone(copy.deepcopy(source), source.stage_names, norm)
    kinds = (_BatchNorm, FrozenBatchNorm2d)
    assert {type(m) for m in backbone.modules() if isinstance(m, kinds)} == {NORMS[norm]}
    assert {k.removeprefix("encoder.") for k in backbone.state_dict()} == set(source.state_dict())
    images = noise(2, 3, 97, 66)
    with torch.no_grad():
        wanted = source.eval()(images)
        assert_close(backbone.eval()(images), wanted)
        if norm == "FrozenBN":
            assert_close(backbone.train()(images), wanted)
        else:
            assert_close(backbone.train()(images), source.train()(images))
    assert all(torch.allclose(v, backbone.encoder.state_dict()[k]) for k, v in source.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_output_shape_and_raw_features(request, encoders, name):
    """As they are: true strides and channels, also those of a subset of the stages, given in any order."""
    encoder = encoders[name]
    wanted = list(zip(encoder.channels, encoder.strides, strict=True))
    cfg = config(request, name, **{"MODEL.BACKBONE.NAME": "build_encoder_backbone"})
    cfg.MODEL.RESNETS.OUT_FEATURES = list(encoder.stage_names)
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    assert [(s.channels, s.stride) for s in shapes.values()] == wanted and tuple(shapes) == encoder.stage_names
    assert all(isinstance(s.stride, int) for s in shapes.values() if s.stride % 1 == 0)
    with torch.no_grad():
        features = backbone.eval()(noise(1, 3, 224, 448))
    for h, (channels, stride) in zip(features.values(), wanted, strict=True):
        assert (h.shape[1], 224 / h.shape[2], 448 / h.shape[3]) == (channels, stride, stride)
    some = EncoderBackbone(copy.deepcopy(encoder), ["res4", "res3"])
    assert list(some.output_shape()) == ["res3", "res4"] == list(some(noise(1, 3, 64, 64)))


# --- scales of the pyramid --------------------------------------------------------------------------------------------


def resampled(x, size):
    """Linear interpolation of rows, (B, C, H, W) to (B, C, size, W), between the centres of pixels."""
    place = ((torch.arange(size) + 0.5) * x.shape[2] / size - 0.5).clamp(0, x.shape[2] - 1)
    low, high, part = place.floor().long(), place.ceil().long(), (place % 1).view(-1, 1)
    return x[:, :, low] * (1 - part) + x[:, :, high] * part


@pytest.mark.parametrize("size", [(97, 130), (31, 225), (64, 33)])
@pytest.mark.parametrize("name", NAMES)
def test_levels_have_the_sizes_that_detectron2_assumes(encoders, name, size):
    levels = LEVELS.get(name, STAGE_NAMES)
    source = encoders[name].eval()
    backbone = EncoderBackbone(copy.deepcopy(source), levels, pyramid=True).eval()
    with torch.no_grad():
        got, raw = backbone(noise(1, 3, *size)), source(noise(1, 3, *size))
    for stage, stride in zip(levels, (4, 8, 16, 32), strict=True):
        assert backbone.output_shape()[stage] == ShapeSpec(channels=raw[stage].shape[1], stride=stride)
        assert tuple(got[stage].shape[2:]) == tuple(math.ceil(side / stride) for side in size)
        if stride in source.strides:
            assert torch.equal(got[stage], raw[stage])  # untouched
        else:
            wanted = resampled(resampled(raw[stage], got[stage].shape[2]).mT, got[stage].shape[3]).mT
            assert (got[stage] - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize("name", NAMES)
def test_levels_see_a_thing_where_it_is(encoders, name):
    """What changes in the features when a spot is added to the image lies around the spot, in the level's scale."""
    levels = LEVELS.get(name, STAGE_NAMES)
    backbone = EncoderBackbone(copy.deepcopy(encoders[name]), levels, pyramid=True).eval()
    image = 0.1 * noise(1, 3, 320, 448)
    spot = image.clone()
    spot[..., 236:244, 332:340] += 3
    with torch.no_grad():
        before, after = backbone(image), backbone(spot)
    for stage, stride in zip(levels, (4, 8, 16), strict=False):  # the last one sees nearly all of the image
        change = (after[stage] - before[stage])[0].pow(2).sum(0)
        y, x = ((change / change.sum() * (torch.arange(n).view(s) + 0.5)).sum() * stride
                for n, s in zip(change.shape, ((-1, 1), (1, -1)), strict=True))  # fmt: skip
        assert abs(y - 240) < stride and abs(x - 336) < stride, (stage, y, x)


@pytest.mark.parametrize("name", NAMES)
def test_mask_rcnn_trains_and_infers(request, name):
    """On images of odd sizes, from the project's base config: the losses reach every parameter."""
    torch.manual_seed(0)
    model = build_model(config(request, name, **{"MODEL.BACKBONE.FREEZE_AT": 0}))
    assert model.backbone.size_divisibility == 32
    sizes, inputs = [(75, 97), (61, 83)], []
    for k, (h, w) in enumerate(sizes):
        masks = torch.zeros(2, h, w, dtype=torch.bool)
        masks[0, 5:40, 10:50] = masks[1, 20:58, 40:80] = True
        boxes = Boxes(torch.tensor([[10.0, 5, 50, 40], [40, 20, 80, 58]]))
        truth = Instances((h, w), gt_boxes=boxes, gt_classes=torch.tensor([0, k]), gt_masks=BitMasks(masks))
        inputs.append({"image": 255 * noise(3, h, w, seed=k).clamp(0, 1), "instances": truth, "height": h, "width": w})
    padded = model.preprocess_image(inputs).tensor
    assert padded.shape[2:] == (96, 128)
    levels = {f"p{k}": (math.ceil(96 / 2**k), math.ceil(128 / 2**k)) for k in range(2, 7)}
    assert {k: tuple(h.shape[2:]) for k, h in model.backbone(padded).items()} == levels
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    assert len(losses) == 5 and all(torch.isfinite(loss) for loss in losses.values())
    assert not [k for k, p in model.backbone.named_parameters() if p.grad is None or not p.grad.any()]
    optimizer.step()
    model.eval()
    with torch.no_grad():
        outputs = [output["instances"] for output in model(inputs)]
    for (h, w), found in zip(sizes, outputs, strict=True):
        assert len(found) and found.pred_masks.shape[1:] == (h, w) and torch.isfinite(found.scores).all()
        boxes = found.pred_boxes.tensor
        assert boxes.min() >= 0 and (boxes[:, 2:] <= torch.tensor([w, h])).all()


# --- freezing ---------------------------------------------------------------------------------------------------------


def frozen_prefixes(name, freeze_at):
    """Beginnings of the names that FREEZE_AT freezes, spelled out."""
    if name == "resnet18":
        return ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")[: freeze_at + (freeze_at > 0)]
    if freeze_at >= 5:
        return ("res",)  # everything, PResNet-50's res6 and res7 too
    return ("res2.0.",)[:freeze_at] + tuple(f"res{k}." for k in range(2, freeze_at + 1))


@pytest.mark.parametrize(
    "name, freeze_at",
    [("resnet18", k) for k in range(7)]
    + [("presnet50", k) for k in (1, 4, 5)]
    + [("shufflenetv2_50", k) for k in (1, 4, 5)],
)
def test_freezing(encoders, name, freeze_at):
    """A training step changes every parameter and statistic above, and nothing below."""
    encoder = copy.deepcopy(encoders[name])
    backbone = EncoderBackbone(encoder, encoder.stage_names[-1:], "SyncBN", freeze_at).train()
    prefixes = frozen_prefixes(name, freeze_at)
    for k, p in encoder.named_parameters():
        assert p.requires_grad != k.startswith(prefixes), k
    for k, m in encoder.named_modules():
        if isinstance(m, (_BatchNorm, FrozenBatchNorm2d)):
            assert type(m) is (FrozenBatchNorm2d if f"{k}.".startswith(prefixes) else nn.SyncBatchNorm), k
    before = copy.deepcopy(encoder.state_dict())
    features = backbone(noise(2, 3, 64, 64))[encoder.stage_names[-1]]
    parameters = [p for p in backbone.parameters() if p.requires_grad]
    assert features.requires_grad == bool(parameters)
    if parameters:
        (features * noise(*features.shape, seed=1)).sum().backward()
        torch.optim.SGD(parameters, lr=0.1, weight_decay=0.1).step()
    after = encoder.state_dict()
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {k for k in before if not k.startswith(prefixes)}


@pytest.mark.parametrize("freeze_at", range(7))
def test_freezing_is_detectron2s(request, freeze_at):
    """The same parameters learn as in Detectron2's own ResNet-18."""
    more = {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64, "MODEL.BACKBONE.FREEZE_AT": freeze_at}
    cfg = config(request, "resnet18", **more)
    cfg.MODEL.BACKBONE.NAME = "build_encoder_backbone"
    learning = {k: p.requires_grad for k, p in build_backbone(cfg).encoder.named_parameters()}
    cfg.MODEL.BACKBONE.NAME = "build_resnet_backbone"
    theirs = {k for k, p in build_backbone(cfg).named_parameters() if p.requires_grad}
    assert {k for k, yes in to_detectron2(learning).items() if yes} == theirs


@pytest.mark.parametrize("name", NAMES)
def test_what_no_output_needs_does_not_train(encoders, name):
    """DistributedDataParallel stops at parameters without a gradient."""
    encoder = copy.deepcopy(encoders[name])
    backbone = EncoderBackbone(encoder, ["res3"], freeze_at=1).train()
    assert list(backbone.output_shape()) == ["res3"]
    encoder.stages[2][0].register_forward_hook(lambda *_: pytest.fail("a stage ran that no output needs"))
    sum(h.sum() for h in backbone(noise(2, 3, 64, 64)).values()).backward()
    learning = {k.split(".")[0] for k, p in encoder.named_parameters() if p.requires_grad}
    assert learning == ({"layer1", "layer2"} if name == "resnet18" else {"res2", "res3"})
    assert all((p.grad is not None) == p.requires_grad for p in encoder.parameters())


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("freeze_at", [0, 5])
@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_fills_the_backbone(request, encoders, tmp_path, name, freeze_at):
    """By Detectron2's matching of names, whatever the prefix of the backbone and the kind of norm."""
    source = encoders[name].state_dict()
    content = {f"encoder.{k}": v.numpy() for k, v in source.items()}
    content = {"model": content, "__author__": "loco-det", "matching_heuristics": True}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps(content))
    model = build_model(config(request, name, **{"MODEL.BACKBONE.FREEZE_AT": freeze_at}))
    GuardedCheckpointer(model).load(str(tmp_path / "w.pkl"))
    alone = EncoderBackbone(build_encoder(name), ["res2"], freeze_at=freeze_at)
    checkpointer = DetectionCheckpointer(alone)
    checkpointer.load(str(tmp_path / "w.pkl"))
    for loaded in (model.backbone.bottom_up.encoder, alone.encoder):
        got = loaded.state_dict()
        assert list(got) == list(source) and all(torch.equal(got[k], source[k]) for k in source)


# --- encoders of one's own, and refusals ------------------------------------------------------------------------------


def block(i, o, stride=2):
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1), nn.BatchNorm2d(o), nn.ReLU())


class Own(nn.Module):
    """Has what is asked for and nothing else: no ``forward``, and a parameter that no stage uses."""

    stage_names, channels, strides = ("low", "high"), (4, 6), (2, 6)

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([nn.Sequential(block(3, 4)), nn.Sequential(block(4, 6, 3))])
        self.classifier = nn.Linear(6, 10)


class Stale(Own):
    """Its stages are views, which do not follow when norms are replaced in the encoder."""

    def __init__(self):
        nn.Module.__init__(self)
        self.a, self.b = block(3, 4), block(4, 6, 3)
        self.stages = [nn.Sequential(*self.a), nn.Sequential(*self.b)]


class Strideless(Own):
    strides = None


@pytest.fixture
def own(monkeypatch):
    """The module ``own_networks`` with these classes, and ``own``: an encoder from stages with few strides."""
    module = types.ModuleType("own_networks")
    module.Own, module.Stale, module.Strideless = Own, Stale, Strideless
    module.low = lambda: StageEncoder({"a": nn.Sequential(block(3, 4))}, [4], [2])
    monkeypatch.setitem(sys.modules, "own_networks", module)


def test_an_encoder_of_ones_own(request, own):
    cfg = config(request, "own_networks.Own", **{"MODEL.RESNETS.OUT_FEATURES": ["high", "low"]})
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.FREEZE_AT = "build_encoder_backbone", 1
    backbone = build_backbone(cfg)
    assert {k: (s.channels, s.stride) for k, s in backbone.output_shape().items()} == {"low": (4, 2), "high": (6, 6)}
    assert {k: tuple(h.shape) for k, h in backbone(noise(2, 3, 13, 18)).items()} == {
        "low": (2, 4, 7, 9), "high": (2, 6, 3, 3),
    }  # fmt: skip
    assert {k for k, p in backbone.named_parameters() if p.requires_grad} == {
        f"encoder.stages.1.0.{k}" for k in ("0.weight", "0.bias", "1.weight", "1.bias")
    }
    low, high = backbone.encoder.stages[0][0], backbone.encoder.stages[1][0]
    for stage in (low, high):
        stage.append(nn.Dropout(0.5))
    both = EncoderBackbone(copy.deepcopy(backbone.encoder), ["low", "high"], freeze_at=1).train()
    twice = [both(noise(2, 3, 13, 18)) for _ in range(2)]
    assert torch.equal(twice[0]["low"], twice[1]["low"])  # frozen: no dropout
    assert not torch.equal(twice[0]["high"], twice[1]["high"])  # trained
    assert torch.equal(both.eval()(noise(2, 3, 13, 18))["low"], twice[0]["low"])
    resized = EncoderBackbone(Own(), ["high"], pyramid=True)
    assert resized.output_shape()["high"].stride == 8 and resized(noise(2, 3, 13, 18))["high"].shape == (2, 6, 2, 3)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"ENCODER": "resnet51"}, "unknown encoder 'resnet51': choose one of resnet18"),
        ({"ENCODER": ""}, "unknown encoder ''"),
        ({"ENCODER": "timm:test_vit"}, "stages give tokens and no maps: a ViT of timm's is MODEL.TIMM.NAME"),
        ({"RESNETS.OUT_FEATURES": ["res2", "res6"]}, r"OUT_FEATURES \['res2', 'res6'\].* res2, res3, res4, res5$"),
        ({"RESNETS.OUT_FEATURES": []}, r"OUT_FEATURES \[\]: expected some of res2"),
        ({"RESNETS.NORM": "GN"}, "NORM 'GN': .* can be BN, SyncBN or FrozenBN"),
        ({"RESNETS.NORM": ""}, "NORM '': .* can be BN"),
        ({"FPN.IN_FEATURES": []}, r"IN_FEATURES \[\] have strides \[\]"),
        ({"FPN.IN_FEATURES": ["res2", "res3"]}, r"strides \[4, 8\] .*doubling up to 32"),
        ({"RESNETS.OUT_FEATURES": ["res2", "res3", "res5"]}, r"strides \[4, 8, None, 32\] \(None: not in RESNETS.OUT_"),
        ({"ENCODER": "presnet50"}, r"strides \[4, 8, 8, 16\] .* are \['res2', 'res4', 'res5', 'res7'\]"),
        ({"ENCODER": "own_networks.low", "RESNETS.OUT_FEATURES": ["a"], "FPN.IN_FEATURES": ["a"]}, r"strides \[2\]"),
        ({"ENCODER": "own_networks.Strideless", "RESNETS.OUT_FEATURES": ["low"]}, "give Strideless 2 strides"),
        ({"ENCODER": "own_networks.Stale", "RESNETS.OUT_FEATURES": ["low"]}, "Stale.stages holds .*property"),
    ],
)
def test_refusals(request, own, keys, message):
    cfg = config(request, "resnet18", **{f"MODEL.{key}": value for key, value in keys.items()})
    with pytest.raises(ValueError, match=message) as caught:
        build_backbone(cfg)
    assert "\n" not in str(caught.value)
