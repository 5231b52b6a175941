"""The faster frozen backbone: the same features, gradients and checkpoints, and off where it would be wrong."""

import copy
import logging
import pickle
import shutil

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import Conv2d, FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from detectron2.modeling.proposal_generator import proposal_utils
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from noise import noise
from torch import nn

from loco_det.config import add_loco_config
from loco_det.engine.trainer import Trainer
from loco_det.modeling.backbones import EncoderBackbone
from loco_det.modeling.frozen import fold, speed_up
from pretrain.encoders import build_encoder


def randomize(module, seed=0):
    """Give all frozen norms statistics and affine parameters that are not the initial ones."""
    generator = torch.Generator().manual_seed(seed)
    for m in module.modules():
        if isinstance(m, FrozenBatchNorm2d):
            for buffer, low, high in ((m.weight, 0.5, 1.5), (m.bias, -0.2, 0.2), (m.running_mean, -0.2, 0.2),
                                      (m.running_var, 0.5, 1.5)):  # fmt: skip
                buffer.uniform_(low, high, generator=generator)
    return module


def small_resnet(norm="FrozenBN", freeze_at=5):
    """Detectron2's with the blocks of its ResNet-18, eight channels wide."""
    torch.manual_seed(0)
    stem = BasicStem(3, 8, norm)
    sizes = ((1, 8, 8), (2, 8, 16))
    stages = [ResNet.make_stage(BasicBlock, 2, stride_per_block=[s, 1], in_channels=i, out_channels=o, norm=norm)
              for s, i, o in sizes]  # fmt: skip
    return randomize(ResNet(stem, stages, out_features=["stem", "res2", "res3"], freeze_at=freeze_at))


def resnet50():
    """Detectron2's with bottlenecks, as narrow as it gets."""
    cfg = get_cfg()
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 8, 16
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.BACKBONE.FREEZE_AT = 4, 5
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.RESNETS.OUT_FEATURES = "build_resnet_backbone", ["res2", "res3", "res4", "res5"]
    torch.manual_seed(0)
    return randomize(build_backbone(cfg))


def encoder(name, stages=("res2", "res3", "res4", "res5")):
    torch.manual_seed(0)
    return randomize(EncoderBackbone(build_encoder(name), stages, "FrozenBN", freeze_at=5, pyramid=True))


BACKBONES = {
    "Detectron2's R18": small_resnet,
    "Detectron2's R50": resnet50,
    "presnet50": lambda: encoder("presnet50", ("res2", "res4", "res5", "res7")),
    "shufflenetv2_50": lambda: encoder("shufflenetv2_50"),
    "resnet18x0.5": lambda: encoder("resnet18x0.5"),
}


def assert_equal(got, wanted, tolerance=1e-5):
    assert list(got) == list(wanted)
    for name, features in wanted.items():
        assert got[name].shape == features.shape
        assert (got[name] - features).abs().max() <= tolerance * features.abs().max(), name


@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_those_of_the_frozen_backbone(name):
    backbone = BACKBONES[name]()
    fast = copy.deepcopy(backbone)
    assert speed_up(fast)
    for shape in ((2, 3, 64, 96), (1, 3, 64, 96), (1, 3, 97, 75)):  # also half the batch, and odd sizes
        x = noise(*shape)
        assert_equal(fast(x), backbone(x))
    assert any(isinstance(m, FrozenBatchNorm2d) for m in backbone.modules())
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in fast.forward.network.modules())
    weights = [m.weight for m in fast.forward.network.modules() if isinstance(m, nn.Conv2d) and m.weight.shape[1] > 1]
    assert all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


def test_nothing_is_recorded_for_autograd():
    fast = small_resnet()
    speed_up(fast)
    x = noise(1, 3, 64, 64).requires_grad_()
    assert not any(features.requires_grad for features in fast(x).values())
    with torch.inference_mode():  # where the copy may be made, too
        fast.forward.network = None
        fast(x)
    assert not any(features.is_inference() for features in fast(x).values())


def detector_gradients(enabled):
    """Of the demo's Mask R-CNN on two images of noise, with its losses."""
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file("configs/demo_coco_loco_frozen.yaml")
    cfg.MODEL.DEVICE, cfg.MODEL.FAST_FROZEN.ENABLED = "cpu", enabled
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    randomize(model.double())  # in which rounding does not choose other proposals
    assert ("forward" in vars(model.backbone.bottom_up)) is enabled
    inputs = []
    for i in range(2):
        masks = torch.zeros(1, 96, 96, dtype=torch.bool)
        masks[:, 20:60, 30:80] = True
        objects = Instances((96, 96), gt_boxes=Boxes([[30.0, 20, 80, 60]]), gt_classes=torch.tensor([i]),
                            gt_masks=BitMasks(masks))  # fmt: skip
        inputs.append({"image": noise(3, 96, 96, seed=i) * 50 + 100, "instances": objects})
    cfg.INPUT.MASK_FORMAT = "bitmask"
    torch.manual_seed(1)
    with EventStorage():
        losses = model(inputs)
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters()}


def test_all_that_learns_gets_the_same_gradients(request, monkeypatch):
    monkeypatch.chdir(request.config.rootpath)
    nms = proposal_utils.batched_nms  # wants float32
    monkeypatch.setattr(proposal_utils, "batched_nms", lambda boxes, scores, *more: nms(boxes, scores.float(), *more))
    (losses, gradients), (expected_losses, expected) = detector_gradients(True), detector_gradients(False)
    assert gradients.keys() == expected.keys()
    assert {n for n, g in expected.items() if g is None} == {n for n in expected if ".bottom_up." in n}
    largest = max(g.norm() for g in expected.values() if g is not None)
    for name, gradient in expected.items():
        assert (gradient is None) == (gradients[name] is None), name
        if gradient is not None:  # before a norm a bias' gradient is zero but for rounding
            assert (gradients[name] - gradient).norm() <= 1e-8 * gradient.norm() + 1e-10 * largest, name
    for name, loss in expected_losses.items():
        torch.testing.assert_close(losses[name], loss, rtol=1e-10, atol=1e-10)


def test_parameters_and_checkpoints_stay_what_they_are(tmp_path):
    backbone, fast = small_resnet(), small_resnet()
    speed_up(fast)
    fast(noise(1, 3, 64, 64))
    for kind in ("named_parameters", "named_buffers", "named_modules"):
        assert [n for n, _ in getattr(fast, kind)()] == [n for n, _ in getattr(backbone, kind)()]
    for name, module in (("stock", backbone), ("fast", fast)):
        DetectionCheckpointer(module, str(tmp_path)).save(name)
    stock, saved = (torch.load(tmp_path / f"{n}.pth", weights_only=True)["model"] for n in ("stock", "fast"))
    for state in (saved, fast.state_dict()):
        assert list(state) == list(stock) and all(torch.equal(state[n], stock[n]) for n in stock)


def test_loaded_weights_are_used(tmp_path):
    other, x = randomize(small_resnet(), seed=1), noise(1, 3, 64, 64)
    DetectionCheckpointer(other, str(tmp_path)).save("other")
    for load in (
        lambda m: m.load_state_dict(other.state_dict()),
        lambda m: nn.Sequential(m).load_state_dict({f"0.{k}": v for k, v in other.state_dict().items()}),
        lambda m: DetectionCheckpointer(m).load(str(tmp_path / "other.pth")),
    ):
        fast = small_resnet()
        speed_up(fast)
        before = fast(x)
        load(fast)
        assert_equal(fast(x), other(x))
        assert not torch.allclose(fast(x)["res3"], before["res3"], rtol=0.01)


@pytest.mark.parametrize("freeze_at", [0, 2, 5])
@pytest.mark.parametrize("norm", ["BN", "SyncBN", "FrozenBN"])
def test_not_where_something_learns(norm, freeze_at):
    """With freeze_at 2 the stem and res2 only."""
    backbone = small_resnet(norm, freeze_at)
    frozen = freeze_at == 5  # which makes all norms FrozenBN
    assert speed_up(backbone) is frozen and ("forward" in vars(backbone)) is frozen
    assert frozen or not backbone._load_state_dict_post_hooks


def test_not_where_statistics_follow_the_data():
    backbone = small_resnet("BN", freeze_at=0).requires_grad_(False)
    assert speed_up(backbone) is False and "forward" not in vars(backbone)
    assert speed_up(FrozenBatchNorm2d.convert_frozen_batchnorm(backbone)) is True


class Crossed(nn.Module):
    """Two convs and norms whose order in here is not that in which they run."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 1), FrozenBatchNorm2d(4)

    def forward(self, x):
        return {"out": self.norm1(self.conv2(self.norm2(self.conv1(x).relu())))}


def test_what_cannot_be_folded_runs_as_it_is(caplog):
    crossed, x = randomize(Crossed().requires_grad_(False)), noise(2, 3, 8, 8)
    fast, expected = copy.deepcopy(crossed), crossed(x)["out"]
    speed_up(fast)
    with caplog.at_level(logging.WARNING):
        got = fast(x)["out"]
    assert "folding its norms changes out by" in caplog.text and len(caplog.records) == 1
    torch.testing.assert_close(got, expected)
    fast(x)
    assert len(caplog.records) == 1  # said once
    other = copy.deepcopy(fast)
    randomize(other, seed=1)
    assert not torch.allclose(other(x)["out"], expected)  # its own weights, not those of what it is a copy of


def test_norms_without_a_conv_before_them_are_left():
    first = nn.Sequential(FrozenBatchNorm2d(3), nn.Conv2d(3, 4, 1), nn.ReLU(), FrozenBatchNorm2d(4))
    narrow = nn.Sequential(nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(8))
    for network, norms in ((first, 2), (narrow, 1), (Conv2d(3, 4, 1, norm=FrozenBatchNorm2d(4)), 0)):
        fold(network)
        assert sum(isinstance(m, FrozenBatchNorm2d) for m in network.modules()) == norms


def test_another_dtype_makes_another_copy():
    backbone = small_resnet()
    fast, x = copy.deepcopy(backbone), noise(1, 3, 64, 64)
    speed_up(fast)
    fast(x)
    first = fast.forward.network
    assert fast(x) and fast.forward.network is first
    assert_equal(fast.double()(x.double()), backbone.double()(x.double()), tolerance=1e-12)
    assert fast.forward.network is not first
    assert fast(x.double())["res3"].dtype == torch.float64


def test_under_autocast_it_is_folded_as_well(caplog):
    """Where rounding to half precision differs by more than folding may."""
    backbone = small_resnet()
    fast, x = copy.deepcopy(backbone), noise(1, 3, 64, 64)
    speed_up(fast)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        got, wanted = fast(x), backbone(x)
    assert not caplog.records and not any(isinstance(m, FrozenBatchNorm2d) for m in fast.forward.network.modules())
    assert_equal(got, wanted, tolerance=0.05)
    assert any(isinstance(m, nn.Conv2d) and m.bias is not None for m in fast.forward.network.modules())


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("called", [False, True])
def test_copies_are_networks_of_their_own(again, called):
    fast, x = small_resnet(), noise(1, 3, 64, 64)
    speed_up(fast)
    if called:
        fast(x)
    copied, other = again(fast), randomize(small_resnet(), seed=1)
    assert_equal(copied(x), fast(x))
    copied.load_state_dict(other.state_dict())
    assert_equal(copied(x), other(x))
    assert_equal(fast(x), small_resnet()(x))


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_compiled_it_gives_the_same_features():
    torch.manual_seed(0)
    stem, x = BasicStem(3, 8, "FrozenBN"), noise(2, 3, 64, 64)
    backbone = randomize(ResNet(stem, [], out_features=["stem"], freeze_at=5))
    fast = copy.deepcopy(backbone)
    assert speed_up(fast, compile=True)
    assert_equal(fast(x), backbone(x))
    assert fast.forward.network is not None and isinstance(fast.forward.network, torch._dynamo.OptimizedModule)
    x = noise(1, 3, 97, 75)
    assert_equal(fast(x), backbone(x))
