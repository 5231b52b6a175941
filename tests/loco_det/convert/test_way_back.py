"""The way back: the same bits, the same conventions, and what has no way back."""

import hashlib
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from hypothesis import given, settings
from hypothesis import strategies as st
from weights import SMALL, random_weights, same, save

from loco_det.convert import Conventions, convert, convert_back, to_detectron2
from loco_det.convert.networks import in_detectron2
from loco_det.convert.sources.conventions import ZERO_TO_ONE
from pretrain.encoders import ResNetShape, parse_encoder


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A checkpoint that converts in no time."""
    return save(random_weights(SMALL), tmp_path_factory.mktemp("small"))


def written(path):
    return pickle.loads(Path(path).read_bytes())


@st.composite
def shapes(draw):
    """Narrow ResNets, each of the kinds of block and both of Detectron2's backbones."""
    depth, stem, k = draw(st.sampled_from([18, 34, 50])), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    if depth < 50:
        return ResNetShape(depth, stem, 1, 4 * k, 4 * k)
    return ResNetShape(depth, stem, draw(st.integers(1, 3)), draw(st.integers(1, 6)), 4 * k)


@settings(max_examples=10, deadline=None)
@given(shapes(), st.integers(0, 2**32))
def test_there_and_back_gives_the_same_bits(shape, seed):
    weights = random_weights(shape.name, seed)
    with tempfile.TemporaryDirectory() as folder:
        path = save(weights, Path(folder))
        there = convert(path, Path(folder) / "out.pkl")
        back = convert_back(there.output, Path(folder) / "back.pth")
        assert same(torch.load(back.output), weights)
    assert (back.source.arch, back.config_file, back.entries) == (shape.name, None, len(weights))
    assert back.source.conventions == there.source.conventions == Conventions()


def test_a_file_that_came_back_converts_to_the_same_again(small, tmp_path):
    there = convert(small, tmp_path / "out.pkl")
    back = convert_back(there.output, tmp_path / "back.pth")
    again, direct = convert(back.output, tmp_path / "again.pkl"), convert(there.output, tmp_path / "direct.pkl")
    models = [pickle.dumps(written(result.output)["model"]) for result in (there, again, direct)]
    assert models[0] == models[1] == models[2]
    assert back.metadata["sha256"] == hashlib.sha256(Path(there.output).read_bytes()).hexdigest()


def simclr(weights):
    """simclr-converter's ResNet makes the shortcut of a block before its convs."""
    order = sorted(weights, key=lambda name: (name.split(".")[:2], "downsample" not in name))
    return {"state_dict": {name: weights[name] for name in order}}


@pytest.mark.parametrize("arch", [SMALL, "resnet50x0.25"])
def test_conventions_survive_there_and_back(tmp_path, arch):
    path = save(simclr(random_weights(arch)), tmp_path)
    there = convert(path, tmp_path / "out.pkl")
    assert there.source.layout == "simclr" and there.source.conventions == ZERO_TO_ONE
    assert there.config["MODEL"]["PIXEL_MEAN"] == [0, 0, 0] and there.config["MODEL"]["PIXEL_STD"] == [255, 255, 255]
    back = convert_back(there.output, tmp_path / "back.pth")
    again = convert(there.output, tmp_path / "again.pkl")
    assert back.source.conventions == again.source.conventions == ZERO_TO_ONE
    again.config["MODEL"]["WEIGHTS"] = there.config["MODEL"]["WEIGHTS"]
    assert again.config == there.config


def test_the_padding_of_byol_survives(small, tmp_path):
    """Which shapes do not tell; the file's own config does."""
    there = convert(small, tmp_path / "out.pkl", source="byol")
    again = convert(there.output, tmp_path / "again.pkl")
    assert there.source.arch == again.source.arch == f"{SMALL}_same"
    assert again.config["MODEL"]["ENCODER"] == f"{SMALL}_same"


def detectron2_run(folder, arch, frozen=False, **resnets):
    """A model_final.pth with its config.yaml, as Detectron2's trainer leaves them."""
    weights, cfg = random_weights(arch), get_cfg()
    if in_detectron2(parse_encoder(arch)):
        weights = to_detectron2(weights)
    else:
        weights, cfg.MODEL.ENCODER = {f"encoder.{name}": tensor for name, tensor in weights.items()}, arch
    weights = weights.items()
    model = {f"backbone.bottom_up.{name}": t for name, t in weights if not frozen or "num_batches" not in name}
    model |= {"backbone.fpn_output2.weight": torch.zeros(2), "proposal_generator.x": torch.zeros(2)}
    torch.save({"model": model, "optimizer": {}, "iteration": 9}, folder / "model_final.pth")
    for key, value in resnets.items():
        cfg.MODEL.RESNETS[key] = value
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model_final.pth"


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("arch", ["resnet50x0.25", SMALL])
def test_the_backbone_of_a_run_comes_back(tmp_path, arch, frozen):
    """Frozen norms have no counters. Colours and pixels are those of the run's config, here Detectron2's defaults."""
    path = detectron2_run(tmp_path, arch, frozen, STRIDE_IN_1X1=False)
    back = convert_back(path, tmp_path / "back.pth")
    weights = random_weights(arch)
    assert same(torch.load(back.output), {n: t * (not frozen or "num_b" not in n) for n, t in weights.items()})
    assert back.source.conventions == Conventions("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
    assert back.source.dropped == {"backbone": 1, "proposal_generator": 1}


def test_strides_in_1x1_are_kept_and_have_no_way_back(tmp_path):
    path = detectron2_run(tmp_path, "resnet50x0.25", STRIDE_IN_1X1=True)
    there = convert(path, tmp_path / "out.pkl")
    assert there.config["MODEL"]["RESNETS"]["STRIDE_IN_1X1"] is True
    for source in (path, there.output):
        with pytest.raises(ValueError, match=f"^{source}: trained with STRIDE_IN_1X1 True.* no torchvision network"):
            convert_back(source, tmp_path / "back.pth")
    assert not (tmp_path / "back.pth").exists()
