"""What other libraries save by their own functions is read, and their networks that look like ResNets are refused."""

import argparse
import json
import pickle
import sys
import types

import numpy as np
import pytest
import torch
import torchvision
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from frameworks import detectron2_resnet
from project_parts import Nest, children, mlp, training
from torch import nn

from loco_det.convert import convert, convert_back, infer_encoder, load_source
from pretrain.encoders import build_encoder

IMAGENET = (123.675, 116.28, 103.53)
ARCHITECTURES = (
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2", "wide_resnet101_2",
    "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d",
)  # fmt: skip


# --- torchvision -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_resnet_of_torchvision_is_named(arch):
    with torch.device("meta"):
        weights = getattr(torchvision.models, arch)(weights=None).state_dict()
    weights = {name: tensor for name, tensor in weights.items() if not name.startswith("fc.")}
    assert infer_encoder(weights).name == arch
    with torch.device("meta"):
        ours = build_encoder(arch).state_dict()
    assert {n: t.shape for n, t in ours.items()} == {n: t.shape for n, t in weights.items()}


@pytest.mark.parametrize("arch", ["wide_resnet50_2", "resnext50_32x4d"])
def test_our_encoder_computes_torchvisions_features(arch, network):
    net = network(arch)
    with torch.device("meta"):
        encoder = build_encoder(arch)
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items() if not name.startswith("fc.")}
    encoder.load_state_dict(weights, assign=True)
    images = torch.rand(2, 3, 33, 47, generator=torch.Generator().manual_seed(1))
    for mode in (False, True):
        with torch.no_grad():
            got = encoder.train(mode)(images)
            x = net.train(mode).maxpool(net.relu(net.bn1(net.conv1(images))))
            for name, layer in zip(got, (net.layer1, net.layer2, net.layer3, net.layer4), strict=True):
                assert torch.equal(got[name], x := layer(x)), (name, mode)


# --- timm ------------------------------------------------------------------------------------------------------------


def timm_network(network, **kwargs):
    """timm's own ResNet-18 with the weights of ``network()``."""
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet18", num_classes=3, **kwargs)
    net.load_state_dict(network().state_dict())
    return net


def test_timm_safetensors_and_state_dict(network, assert_same_bits, tmp_path):
    net = timm_network(network)
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(net.state_dict(), tmp_path / "a.safetensors")
    torch.save(net.state_dict(), tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        source, weights = load_source(tmp_path / name)
        assert (source.layout, source.arch, source.dropped) == ("torchvision", "resnet18", {"fc": 2})
        assert_same_bits(weights, network())


def test_timm_save_for_hf_brings_its_own_mean_and_std(network, assert_written, tmp_path):
    net = timm_network(network, pretrained_cfg_overlay={"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.25)})
    pytest.importorskip("huggingface_hub")
    from timm.models import save_for_hf

    save_for_hf(net, str(tmp_path / "hub"), safe_serialization=True)
    assert json.loads((tmp_path / "hub/config.json").read_text())["architecture"] == "resnet18"
    result = convert(tmp_path / "hub/model.safetensors", tmp_path / "out.pkl")
    assert result.source.conventions[:3] == ("RGB", (127.5, 127.5, 127.5), (127.5, 127.5, 63.75))
    assert yaml.safe_load((tmp_path / "out.yaml").read_text())["MODEL"]["PIXEL_STD"] == [127.5, 127.5, 63.75]
    assert_written(result.output, network())


def test_timm_checkpoint_saver_with_average(network, assert_same_bits, tmp_path):
    timm_utils = pytest.importorskip("timm.utils")
    net = timm_network(network)
    average = timm_utils.ModelEmaV3(net)
    average.module.load_state_dict(network(seed=1).state_dict())
    options = argparse.Namespace(model="resnet18")
    sgd = torch.optim.SGD(net.parameters(), lr=0.1)
    timm_utils.CheckpointSaver(net, sgd, options, average, checkpoint_dir=tmp_path).save_checkpoint(3, 71.5)
    path = tmp_path / "last.pth.tar"
    for ema, place in ((False, "state_dict/"), (True, "state_dict_ema/")):
        source, weights = load_source(path, ema=ema)
        assert (source.layout, source.location) == ("timm", place)
        assert_same_bits(weights, network(seed=int(ema)))


RELATIVES = {
    "resnet50d": "deep stem", "resnet50c": "deep stem", "ecaresnet50t": "deep stem", "resnest14d": "deep stem",
    "seresnet50": "squeeze", "skresnet18": "selective", "skresnet50": "selective", "ecaresnetlight": "a ResNet-D",
    "resnetv2_50": "v2", "resnet50_gn": "GroupNorm", "resnetrs50": "maxpool.0.weight",
    "res2net50_26w_4s": "layer1.0.conv2", "resnet26": "bottleneck 2-2-2-2", "resnet200": "bottleneck 3-24-36-3",
    "vit_tiny_patch16_224": "vision transformer",
}  # fmt: skip


@pytest.mark.parametrize("arch", RELATIVES)
def test_timms_other_networks_are_refused(arch, refused):
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        weights = timm.create_model(arch, num_classes=3).state_dict()
    weights = {name: torch.zeros((), dtype=t.dtype).expand(t.shape) for name, t in weights.items()}
    refused(weights, RELATIVES[arch])


@pytest.mark.parametrize("arch", ["resnetblur18", "resnetaa50", "resnetblur50.bt_in1k"])
@pytest.mark.parametrize("place", ["arch", "config.json"])
def test_timms_twins_by_shapes_are_refused_by_name(arch, place, save, refused, tmp_path):
    plain = {"resnetblur18": "resnet18"}.get(arch, "resnet50")
    with torch.device("meta"):
        weights = getattr(torchvision.models, plain)().state_dict()
    weights = {name: torch.zeros((), dtype=t.dtype).expand(t.shape) for name, t in weights.items()}
    if place == "config.json":
        (tmp_path / "config.json").write_text(json.dumps({"architecture": arch}))
    content = {"arch": arch, "state_dict": weights} if place == "arch" else weights
    refused(content, f"a {arch.split('.')[0]} of timm: .* anti-aliased")


# --- lightly ---------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # Lightning's own
@pytest.mark.parametrize("form", ["Sequential", "named"])
def test_lightly_saved_by_lightnings_trainer(form, network, assert_same_bits, tmp_path):
    lightning, heads = pytest.importorskip("pytorch_lightning"), pytest.importorskip("lightly.models.modules.heads")
    from lightly.models.utils import deactivate_requires_grad
    from torch.utils.data import DataLoader

    class Model(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            online, average = network(seed=0), network(seed=1)
            online.fc = average.fc = nn.Identity()
            make = children if form == "Sequential" else lambda net: net
            self.backbone, self.backbone_momentum = make(online), make(average)
            self.projection_head = heads.BYOLProjectionHead(512, 8, 4)
            self.prediction_head = heads.BYOLPredictionHead(4, 8, 4)
            deactivate_requires_grad(self.backbone_momentum)

        def training_step(self, batch, index):
            return sum(p.sum() for p in self.prediction_head.parameters())

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    quiet = dict.fromkeys(["enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    trainer = lightning.Trainer(max_steps=1, accelerator="cpu", logger=False, default_root_dir=tmp_path, **quiet)
    trainer.fit(Model(), DataLoader(torch.zeros(1, 1)))
    trainer.save_checkpoint(tmp_path / "byol.ckpt")
    for ema, place in ((False, "state_dict/backbone."), (True, "state_dict/backbone_momentum.")):
        source, weights = load_source(tmp_path / "byol.ckpt", ema=ema)
        assert (source.layout, source.location, source.arch) == ("lightly", place, "resnet18")
        assert source.dropped["projection_head"] > 5
        assert_same_bits(weights, network(seed=int(ema)))


def test_lightlys_resnet_for_cifar_is_refused(refused):
    generator = pytest.importorskip("lightly.models").ResNetGenerator("resnet-18")
    parts = {"backbone": children(generator), "projection_head": mlp("L")}
    refused(Nest(**parts).state_dict(), "54 names in its encoder .*2.0.conv1.weight")
    refused(generator.state_dict(), "linear.weight")


# --- Detectron2 ------------------------------------------------------------------------------------------------------


def save_detector(folder, net, norm, stride_in_1x1):
    """A detector with FPN, saved as Detectron2's trainer does: model, optimizer, iteration, and the config beside."""
    cfg = get_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.BACKBONE.NAME = "RetinaNet", "build_retinanet_resnet_fpn_backbone"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = (
        16,
        16,
        64,
    )
    cfg.MODEL.FPN.OUT_CHANNELS, cfg.MODEL.RETINANET.NUM_CONVS = 16, 1
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.RESNETS.STRIDE_IN_1X1 = norm, stride_in_1x1
    model = build_model(cfg)
    model.backbone.bottom_up = detectron2_resnet(net, cfg)
    sgd = torch.optim.SGD(model.head.parameters(), lr=0.1, momentum=0.9)
    folder.mkdir()
    DetectionCheckpointer(model, str(folder), optimizer=sgd).save("model_final", iteration=9)
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model_final.pth"


@pytest.mark.parametrize("norm, stride_in_1x1", [("FrozenBN", True), ("FrozenBN", False), ("BN", False)])
def test_detectron2s_own_detector(norm, stride_in_1x1, network, assert_written, assert_same_bits, tmp_path):
    net = network("resnet50x0.25")
    counters = 0 if norm == "FrozenBN" else None
    path = save_detector(tmp_path / "run", net, norm, stride_in_1x1)
    result = convert(path, tmp_path / "out.pkl")
    assert (result.source.layout, result.source.location) == ("detectron2", "model/backbone.bottom_up.")
    config = yaml.safe_load((tmp_path / "out.yaml").read_text())
    assert config["INPUT"]["FORMAT"] == "BGR" and config["MODEL"]["PIXEL_STD"] == [1, 1, 1]
    assert config["MODEL"]["PIXEL_MEAN"] == [103.53, 116.28, 123.675]
    assert config["MODEL"]["RESNETS"]["STRIDE_IN_1X1"] is stride_in_1x1
    assert_written(result.output, net, counters)
    if stride_in_1x1:
        with pytest.raises(ValueError, match="STRIDE_IN_1X1 True"):
            convert_back(path, tmp_path / "back.pth")
    else:
        convert_back(path, tmp_path / "back.pth")
        assert_same_bits(torch.load(tmp_path / "back.pth"), net, counters)
    (path.parent / "config.yaml").unlink()
    with pytest.raises(ValueError, match="--config-file"):
        load_source(path)


def test_a_pickle_of_the_mocos_own_converter(network, assert_same_bits, tmp_path):
    """It keeps the head as stem.fc; its author is no config, so that has to be named."""
    model = {n: t.detach().numpy() for n, t in detectron2_resnet(network()).state_dict().items()}
    model |= {"stem.fc.0.weight": np.zeros((8, 8)), "stem.fc.0.bias": np.zeros(8)}
    with open(tmp_path / "moco.pkl", "wb") as file:
        pickle.dump({"model": model, "__author__": "MOCO", "matching_heuristics": True}, file)
    (tmp_path / "c.yaml").write_text("INPUT: {FORMAT: RGB}\nMODEL: {PIXEL_MEAN: [123.675, 116.28, 103.53]}\n")
    source, weights = load_source(tmp_path / "moco.pkl", config_file=tmp_path / "c.yaml")
    assert (source.layout, source.conventions.format, source.conventions.mean) == ("detectron2", "RGB", IMAGENET)
    assert source.dropped in ({"fc": 2}, {"stem": 2})
    assert_same_bits(weights, network())


# --- OpenMMLab -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("missing", [True, False])
def test_mmengines_history_is_passed_over(missing, network, assert_same_bits, save, monkeypatch):
    """Every training file has it: an object of a class that is not installed, with numpy arrays and getattr inside."""
    name = "mmengine.logging.history_buffer"
    names = [name.rsplit(".", i)[0] for i in range(3)]
    for module in names:
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))

    class HistoryBuffer:
        def __init__(self):
            self._log_history, self._count_history = np.array([1.5, 2.5]), np.array([1, 2])
            self._statistics_methods = {"mean": getattr}

        def __setstate__(self, state):
            raise AssertionError("nothing of the file may run")

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = name, "HistoryBuffer"
    sys.modules[name].HistoryBuffer = HistoryBuffer
    model = Nest(backbone=network(), head=mlp("L"))
    hub = {"log_scalars": {"train/loss": HistoryBuffer()}, "runtime_info": {"lr": np.float64(0.1)}}
    path = save({"meta": {"iter": 9}, **training(model), "message_hub": hub})
    if missing:
        for module in names:
            monkeypatch.delitem(sys.modules, module)
    source, weights = load_source(path)
    assert (source.layout, source.location, source.dropped) == (
        "openmmlab",
        "state_dict/backbone.",
        {"fc": 2, "head": 2},
    )
    assert_same_bits(weights, network())
