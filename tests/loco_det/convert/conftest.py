"""Networks to be found again in checkpoints, and what the written files must hold."""

import copy
import functools
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from loco_det.convert import convert
from pretrain.encoders import build_encoder

sys.path.append(str(Path(__file__).parent))  # for projects.py and frameworks.py: test folders are no packages


@functools.lru_cache
def randomised(name, seed):
    """A network, torchvision's or ours, whose norms are far from the identity, so that a lost one shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        build = getattr(torchvision.models, name, None)
        net = build(weights=None, num_classes=3) if build else build_encoder(name)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                shape = module.weight.shape
                module.weight.copy_(torch.rand(shape, generator=generator) + 0.5)
                module.bias.copy_(0.2 * torch.randn(shape, generator=generator))
                module.running_mean.copy_(0.2 * torch.randn(shape, generator=generator))
                module.running_var.copy_(torch.rand(shape, generator=generator) + 0.5)
                module.num_batches_tracked.fill_(7 + seed)
    return net.eval()


@pytest.fixture(scope="session")
def network():
    """``network(name, seed)``: a network of one's own; another seed, other weights everywhere."""
    return lambda name="resnet18", seed=0: copy.deepcopy(randomised(name, seed))


def torchvision_name(name):
    """The rules of names read from right to left, and without any of the converter's code."""
    if name.startswith("encoder."):  # of EncoderBackbone, whose names are the encoder's
        return name.removeprefix("encoder.")
    name = name.removeprefix("stem.").replace("shortcut.norm.", "downsample.1.").replace("shortcut.", "downsample.0.")
    for i in (1, 2, 3):
        name = name.replace(f"conv{i}.norm.", f"bn{i}.")
    for i in (2, 3, 4, 5):
        name = name.replace(f"res{i}.", f"layer{i - 1}.")
    return name


@pytest.fixture(scope="session")
def assert_same_bits():
    """``assert_same_bits(weights, net)``: the tensors or arrays, by torchvision's names, are the network's encoder."""

    def check(weights, net, counters=None):
        wanted = {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("fc.")}
        assert set(weights) == set(wanted)
        for name, tensor in wanted.items():
            if name.endswith("num_batches_tracked") and counters is not None:
                tensor = torch.full_like(tensor, counters)
            got = torch.as_tensor(weights[name])
            assert got.dtype == tensor.dtype and torch.equal(got, tensor), name

    return check


@pytest.fixture(scope="session")
def assert_written(assert_same_bits):
    """``assert_written(path, net)``: the converted file holds the network's encoder, bit for bit, and no more."""

    def check(path, net, counters=None):
        with open(path, "rb") as file:
            model = pickle.load(file)["model"]
        weights = {torchvision_name(name): array for name, array in model.items()}
        assert len(weights) == len(model)
        assert_same_bits(weights, net, counters)

    return check


@pytest.fixture(autouse=True)
def no_files_left(tmp_path):
    """pytest keeps the folders of three runs: with checkpoints of 100 MB these would be tens of gigabytes."""
    yield
    shutil.rmtree(tmp_path, ignore_errors=True)


@pytest.fixture
def save(tmp_path):
    """``save(content)``: the path of a checkpoint that holds it."""

    def write(content, name="checkpoint.pth", **more):
        torch.save(content, tmp_path / name, **more)
        return tmp_path / name

    return write


@pytest.fixture
def refused(save, tmp_path):
    """``refused(content, message)``: converting it fails in one line, and nothing is written."""

    def check(content, message, **options):
        path = content if hasattr(content, "parent") else save(content)
        before = sorted(path.parent.iterdir())
        with pytest.raises(ValueError, match=message) as caught:
            convert(path, path.parent / "out.pkl", **options)
        assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ")
        assert sorted(path.parent.iterdir()) == before

    return check
