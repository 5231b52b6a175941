"""What is read out of a checkpoint computes what the source network computes, bit for bit; expansions, refusals."""

import sys

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.config import get_cfg as detectron2_cfg
from frameworks import FRAMEWORKS, detectron2_resnet
from project_parts import children, ddp, training
from projects import RESEARCH
from torch import nn
from weights import SMALL, random_weights

from loco_det.convert import add_encoder_config, load_encoder, load_encoder_of
from pretrain.config import get_cfg
from pretrain.encoders import TokenMap, build_encoder
from pretrain.engine.checkpoint import AtomicCheckpointer
from pretrain.learning.build import build_learner
from pretrain.learning.pooling import GlobalAvgPool

IMAGES = torch.randn(2, 3, 75, 58, generator=torch.Generator().manual_seed(3))
LIKE_PRETRAINING = IMAGES.to(memory_format=torch.channels_last)  # the other format rounds otherwise
STAGES = ("res2", "res3", "res4", "res5")
PROJECTS = {**RESEARCH, **FRAMEWORKS}
OPTIONS = {"byol": {"source": "byol"}, "loco-det-encoder": {"arch": "shufflenetv2_50"}}


def by_torchvision(net, images=IMAGES):
    """Stages of a torchvision ResNet, by its own modules."""
    x, features = net.maxpool(net.relu(net.bn1(net.conv1(images)))), {}
    for name, layer in zip(STAGES, (net.layer1, net.layer2, net.layer3, net.layer4), strict=True):
        features[name] = x = layer(x)
    return features


@torch.no_grad()
def assert_equal(readable, wanted, images=IMAGES):
    got = readable.encoder(images)
    assert list(got) == list(wanted) == list(readable.encoder.feature_names)
    for name, features in wanted.items():
        assert features.abs().max() > 0 and torch.equal(got[name], features), name


# --- stages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("key", ["moco", "torchvision", "vissl", "lightly", "simclr", "densecl", "dino"])
def test_features_are_torchvisions(key, ema, network, save):
    path = save(PROJECTS[key](network(), network(seed=1)))
    if ema and key not in ("moco", "dino", "lightly"):
        with pytest.raises(ValueError, match="no moving average"):
            load_encoder(path, ema=True)
        return
    readable = load_encoder(path, ema=ema)
    assert_equal(readable, by_torchvision(network(seed=int(ema))))
    assert (readable.source.arch, readable.conventions.format) == ("resnet18", "RGB")
    assert not any(parameter.requires_grad for parameter in readable.encoder.parameters())
    assert not any(module.training for module in readable.encoder.modules())


@pytest.mark.parametrize("key", PROJECTS)
def test_every_layout_is_read(key, network, save, tmp_path):
    arch = {"blockwise": "resnet50", "blockwise-backbone": "resnet50", "simclrv2": "resnet50"}.get(key, "resnet18")
    arch = OPTIONS.get(key, {}).get("arch", arch)
    if key.startswith("detectron2"):
        (tmp_path / "config.yaml").write_text("MODEL: {RESNETS: {DEPTH: 18, RES2_OUT_CHANNELS: 64}}\n")
    readable = load_encoder(save(PROJECTS[key](network(arch), network(arch, 1))), **OPTIONS.get(key, {}))
    encoder = build_encoder("resnet18_same" if key == "byol" else arch).eval()
    weights = {name: tensor for name, tensor in network(arch).state_dict().items() if not name.startswith("fc.")}
    encoder.load_state_dict(weights)
    with torch.no_grad():
        wanted = encoder(IMAGES.flip(1) if key.startswith("detectron2") else IMAGES)
        got = readable.encoder(IMAGES)
        assert all(torch.equal(got[name], features) for name, features in wanted.items())
    assert readable.conventions.format == "RGB"


def test_features_are_timms(network, save):
    timm = pytest.importorskip("timm")
    net = timm.create_model("resnet18", num_classes=3, features_only=True, out_indices=(1, 2, 3, 4))
    net.load_state_dict({n: t for n, t in network().state_dict().items() if not n.startswith("fc.")})
    with torch.no_grad():
        wanted = dict(zip(STAGES, net.eval()(IMAGES), strict=True))
    assert_equal(load_encoder(save(net.state_dict())), wanted)


def test_features_are_lightlys(network, save):
    """As lightly's tutorials make, train and save a model."""
    heads = pytest.importorskip("lightly.models.modules.heads", reason="lightly is not installed")
    model = nn.Module()
    model.backbone, model.projection_head = children(network()), heads.SimCLRProjectionHead(512, 8, 8)
    readable = load_encoder(save({"state_dict": model.state_dict()}))
    assert readable.source.layout == "lightly"
    with torch.no_grad():
        assert torch.equal(readable.encoder(IMAGES)["res5"], model.backbone[:-1](IMAGES))


@pytest.mark.parametrize("stride_in_1x1", [True, False])
@pytest.mark.parametrize("format", ["BGR", "RGB"])
def test_features_are_detectron2s(stride_in_1x1, format, network, save, tmp_path):
    cfg = detectron2_cfg()
    resnets = cfg.MODEL.RESNETS
    resnets.NORM, resnets.STRIDE_IN_1X1, resnets.OUT_FEATURES = "BN", stride_in_1x1, list(STAGES)
    resnets.STEM_OUT_CHANNELS, resnets.RES2_OUT_CHANNELS, resnets.WIDTH_PER_GROUP = 16, 64, 16
    cfg.INPUT.FORMAT, cfg.MODEL.PIXEL_STD = format, [57.375, 57.12, 58.395]
    net = detectron2_resnet(network("resnet50x0.25"), cfg).eval()
    (tmp_path / "config.yaml").write_text(cfg.dump())
    readable = load_encoder(save({"model": {f"backbone.bottom_up.{n}": t for n, t in net.state_dict().items()}}))
    with torch.no_grad():
        wanted = net(IMAGES.flip(1) if format == "BGR" else IMAGES)
    assert_equal(readable, wanted)
    mean, std = cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD
    turn = -1 if format == "BGR" else 1
    assert readable.conventions[:3] == ("RGB", tuple(mean[::turn]), tuple(std[::turn]))


@pytest.mark.parametrize("arch", ["presnet50", "shufflenetv2_50", f"{SMALL}_same"])
def test_features_are_our_encoders(arch, save):
    weights = random_weights(arch)
    encoder = build_encoder(arch)
    encoder.load_state_dict(weights)
    readable = load_encoder(save(weights), source="byol" if arch.endswith("_same") else "auto")
    with torch.no_grad():
        assert_equal(readable, encoder.eval()(IMAGES))


def test_a_prefix_of_no_known_project(network, save):
    path = save({"net": {f"student.{n}": t for n, t in network().state_dict().items()}})
    with pytest.raises(ValueError, match="which no known project's layout fits"):
        load_encoder(path)
    assert_equal(load_encoder(path, prefix="net/student."), by_torchvision(network()))


def test_a_prefix_as_it_is_in_the_file(network, save):
    path = save({f"module.encoder.{n}": t for n, t in network().state_dict().items()})
    cfg = CfgNode({"MODEL": {"WEIGHTS": str(path)}})
    add_encoder_config(cfg)
    with pytest.raises(ValueError, match=r"with MODEL\.SOURCE\.PREFIX: MODEL\.SOURCE\.PREFIX module\.encoder\.$"):
        load_encoder_of(cfg)
    cfg.merge_from_list(["MODEL.SOURCE.PREFIX", "module.encoder."])
    assert_equal(load_encoder_of(cfg), by_torchvision(network()))


# --- our own checkpoints, and expansions ------------------------------------------------------------------------------


def learner_of(tmp_path, *keys):
    """A learner whose norms are far from the identity, and the path of its checkpoint."""
    cfg = get_cfg()
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ENCODER", SMALL, "MODEL.DECODER.HIDDEN_DIM", 8,
                         "MODEL.DECODER.OUT_DIM", 4, "OUTPUT_DIR", str(tmp_path), *keys])  # fmt: skip
    torch.manual_seed(0)
    learner = build_learner(cfg)
    with torch.no_grad():
        for tensor in learner.state_dict().values():
            if tensor.is_floating_point() and tensor.dim() == 1:
                tensor.copy_(torch.rand_like(tensor) + 0.5)
    AtomicCheckpointer(cfg, learner).save("model_final", iteration=1)
    return learner.eval(), tmp_path / "model_final.pth"


BLOCKWISE = ("MODEL.UNITS", [["res2"], ["res3"], ["res4"], ["res5"]], "MODEL.DECODER.CONV_BLOCKS", 0,
             "MODEL.DECODER.EXPANSION", 24)  # fmt: skip


def expansion(learner, name):
    """Conv, BN, ReLU of a decoder, which pools what they give."""
    *layers, pool = list(learner.decoders[name])[:4]
    assert isinstance(pool, GlobalAvgPool)
    return nn.Sequential(*layers)


def test_features_are_those_of_pretraining(tmp_path):
    learner, path = learner_of(tmp_path)
    readable = load_encoder(path)
    with torch.no_grad():
        assert_equal(readable, learner.encoder(LIKE_PRETRAINING), LIKE_PRETRAINING)
    assert (readable.source.layout, readable.source.arch) == ("loco-det", SMALL)


@pytest.mark.parametrize("units", [[["res2"], ["res3"], ["res4"], ["res5"]], [["res2", "res3", "res4"]], []])
def test_our_expansions(units, tmp_path):
    learner, path = learner_of(tmp_path, *BLOCKWISE, "MODEL.UNITS", units)
    with torch.no_grad():
        wanted = learner.encoder(LIKE_PRETRAINING)
        for name in [unit[-1] for unit in units]:
            wanted[f"{name}+expansion"] = expansion(learner, name)(wanted[name])
    assert_equal(load_encoder(path), wanted, LIKE_PRETRAINING)


@pytest.mark.parametrize("name", ["test_vit", "test_convnext"])
def test_networks_of_timm_and_their_expansions(name, tmp_path):
    """Built by the name in our checkpoint, for oblong images too; a decoder on tokens begins with their map."""
    learner, path = learner_of(tmp_path, *BLOCKWISE, "MODEL.ENCODER", f"timm:{name}")
    with torch.no_grad():
        wanted = learner.encoder(LIKE_PRETRAINING)
        for stage in STAGES:
            layers = [layer for layer in learner.decoders[stage] if not isinstance(layer, TokenMap)]
            wanted[f"{stage}+expansion"] = nn.Sequential(*layers[:3])(wanted[stage])
    readable = load_encoder(path)
    assert_equal(readable, wanted, LIKE_PRETRAINING)
    assert (readable.source.layout, readable.source.arch) == ("loco-det", f"timm:{name}")
    assert load_encoder(path, arch=f"timm:{name}").source.arch == f"timm:{name}"
    with pytest.raises(ValueError, match=f"this is a timm:{name}, not the resnet18 that was asked for"):
        load_encoder(path, arch="resnet18")


@pytest.mark.parametrize("keys", [("MODEL.DECODER.CONV_BLOCKS", 1), ("MODEL.DECODER.STAGES", 1),
                                  ("MODEL.DECODER.EXPANSION", 0), ("MODEL.UNITS", [["res2", "res3[:1]"]])])  # fmt: skip
def test_what_is_no_expansion_of_a_stage_is_left_out(keys, tmp_path):
    units = ("MODEL.UNITS", [["res2"], ["res4"]])
    _, path = learner_of(tmp_path, *BLOCKWISE, *units, *keys)
    assert load_encoder(path).encoder.feature_names == STAGES


def test_pixels_are_those_of_the_run(tmp_path):
    mean, std = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]
    _, path = learner_of(tmp_path, "MODEL.PIXEL_MEAN", mean, "MODEL.PIXEL_STD", std)
    assert load_encoder(path).conventions[:3] == ("RGB", tuple(mean), tuple(std))


def published(net, size):
    """A ResNet-50 of blockwise Barlow Twins, with pooled expansions as its authors name them."""
    for i, stage in enumerate((net.layer1, net.layer2, net.layer3, net.layer4), 1):
        conv = nn.Conv2d(stage[-1].conv3.out_channels, 16, size, padding=size // 2, bias=False)
        block = nn.Sequential(conv, nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d((1, 1)))
        for tensor in block[1].state_dict().values():
            tensor.copy_(torch.rand_like(tensor.float()) + 0.5)
        net.add_module(f"pool_conv_block_{i}", block)
    return net.eval()


@pytest.mark.parametrize("size", [1, 3])  # --filter-size of its main.py
@pytest.mark.parametrize("place", ["checkpoint.pth", "resnet50.pth"])
def test_published_blockwise_expansions(place, size, network, save):
    net = published(network("resnet50"), size)
    model = nn.Module()
    model.backbone, model.bn = net, nn.BatchNorm1d(8, affine=False)
    readable = load_encoder(save(training(ddp(model), "model") if place == "checkpoint.pth" else net.state_dict()))
    assert readable.encoder.feature_names == (*STAGES, *(f"{name}+expansion" for name in STAGES))
    with torch.no_grad():
        got, stages = readable.encoder(IMAGES), by_torchvision(net)
        for i, (name, features) in enumerate(stages.items(), 1):
            assert torch.equal(got[name], features)
            pooled = net.get_submodule(f"pool_conv_block_{i}")(features).flatten(1)
            torch.testing.assert_close(got[f"{name}+expansion"].mean((2, 3)), pooled, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("damage, message", [
    (lambda w: w.pop("decoders.res4.0.weight"), "conv is .*, expected a square one of"),
    (lambda w: w.update({"decoders.res4.0.weight": torch.zeros(24, 3, 1, 1)}), "conv is .24, 3, 1, 1."),
    (lambda w: w.pop("decoders.res4.1.weight"), "Missing key"),
    (lambda w: w.update({"decoders.res4.1.bias": torch.zeros(3)}), "size mismatch"),
    (lambda w: w["decoders.res4.1.bias"].fill_(torch.nan), "NaN"),
])  # fmt: skip
def test_damaged_expansions_are_refused(damage, message, tmp_path):
    _, path = learner_of(tmp_path, *BLOCKWISE)
    content = torch.load(path, weights_only=True)
    damage(content["model"])
    torch.save(content, path)
    refused(path, message)


# --- refusals --------------------------------------------------------------------------------------------------------


def refused(path, message, **options):
    with pytest.raises(ValueError, match=message) as caught:
        load_encoder(path, **options)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).count(str(path)) == 1


def test_what_is_no_encoder_is_refused_in_one_line(network, save, tmp_path):
    (tmp_path / "text.pth").write_text("no checkpoint")
    refused(tmp_path / "text.pth", "not a PyTorch checkpoint")
    refused(save({"fc.weight": torch.zeros(3, 3)}), "no ResNet among 1 names")
    refused(save({"format": "loco-det pretraining", "model": {}}), "without tensors")
    weights = network().state_dict()
    refused(save({n: t for n, t in weights.items() if "layer4.1" not in n}), "saw a ResNet of basic")
    refused(save(weights), "not the resnet50 that was asked for", arch="resnet50")
    weights["conv1.weight"][0] = torch.nan
    refused(save(weights), "NaN")
    detector = {f"backbone.bottom_up.{n}": t for n, t in detectron2_resnet(network()).state_dict().items()}
    refused(save({"model": detector}), "--config-file")
    damaged = bytearray(save(weights).read_bytes())
    damaged[len(damaged) // 2] ^= 255
    (tmp_path / "damaged.pth").write_bytes(damaged)
    refused(tmp_path / "damaged.pth", "damaged")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_encoder(tmp_path / "none.pth")


@pytest.mark.parametrize("config", ["MODEL: {", "3", "MODEL: {PIXEL_MEAN: [1, 2], PIXEL_STD: [1, 1]}", None,
                                    "MODEL: {PIXEL_MEAN: [1, 2, 3], PIXEL_STD: [1, 0, 1]}"])  # fmt: skip
def test_a_config_without_pixels_is_refused(config, tmp_path):
    _, path = learner_of(tmp_path)
    torch.save({**torch.load(path, weights_only=True), "config": config}, path)
    refused(path, "no PIXEL_MEAN and PIXEL_STD")


# --- the user's own encoder -------------------------------------------------------------------------------------------

OWN = """
from torch import nn
from pretrain.encoders import StageEncoder
open(__file__ + ".ran", "w").close()

class Bare(nn.Module):  # has no forward
    stage_names, channels = ("low", "high"), (4, 6)
    def __init__(self):
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.BatchNorm2d(4), nn.ReLU(True))
        self.high = nn.Sequential(nn.Conv2d(4, 6, 3, 2), nn.ReLU())
    @property
    def stages(self):
        return [self.low, self.high]

def small():
    bare = Bare()
    return StageEncoder({"low": bare.low, "high": bare.high}, bare.channels, (2, 4))
"""


@pytest.mark.parametrize("function", ["small", "Bare"])
def test_code_of_ones_own_runs_if_it_is_named(function, tmp_path, monkeypatch):
    module = f"encoders_for_{function}"
    (tmp_path / f"{module}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    name, mark = f"{module}.{function}", tmp_path / f"{module}.py.ran"
    keys = ("MODEL.ENCODER", name, "MODEL.UNITS", [["low"], ["high"]], "MODEL.PIXEL_STD", [9.0, 9.0, 9.0])
    learner, path = learner_of(tmp_path, *BLOCKWISE, *keys)
    mark.unlink()
    del sys.modules[module]
    refused(path, f"'{name}', code of your own, which is run only if asked for by that name")
    refused(path, "code of your own", arch="resnet50")
    assert not mark.exists()  # reading alone has not run it
    readable = load_encoder(path, arch=name)
    with torch.no_grad():
        low = learner.encoder.low(LIKE_PRETRAINING)
        high = learner.encoder.high(low)
        wanted = {"low": low, "high": high, "low+expansion": expansion(learner, "low")(low),
                  "high+expansion": expansion(learner, "high")(high)}  # fmt: skip
    assert_equal(readable, wanted, LIKE_PRETRAINING)
    assert (readable.source.arch, readable.conventions.std) == (name, (9.0, 9.0, 9.0))
    content = torch.load(path, weights_only=True)
    del content["model"]["encoder.high.0.bias"]
    torch.save(content, path)
    refused(path, f"not those of what '{name}' builds .*Missing key", arch=name)
