"""The linear readout against what MoCo's main_lincls.py and its kin do, by hand on torch and torchvision alone.

The images are mirror-symmetric squares of the crop's size, and CROP_AREA is [1, 1]: every view is the image itself.
"""

import copy
import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision.models import resnet18

from pretrain.encoders import build_encoder
from pretrain.readout.config import get_cfg
from pretrain.readout.features import PooledEncoder
from pretrain.readout.labelled import central_crop
from pretrain.readout.probe import LinearProbe

MEAN, STD, SIZE = [123.675, 116.280, 103.530], [58.395, 57.120, 57.375], 64
CLASSES, IMAGES, BATCH, EPOCHS, SEED = ("a", "b", "c"), 8, 6, 4, 5


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with train and test images of three classes that differ in their colours, and the images as arrays."""
    folder, rng, pixels = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0), {}
    for split in ("train", "test"):
        pixels[split] = []
        for label, name in enumerate(CLASSES):
            (folder / split / name).mkdir(parents=True)
            for k in range(IMAGES):
                half = rng.integers(0, 160, (SIZE, SIZE // 2, 3)) + 30 * np.eye(3, dtype=int)[label]
                image = np.concatenate([half, half[:, ::-1]], 1).astype(np.uint8)
                Image.fromarray(image).save(folder / split / name / f"{k}.png")
                pixels[split].append((image, label))
    return (str(folder / "train"), str(folder / "test")), pixels


@pytest.fixture(scope="module")
def network():
    """A ResNet-18 with BN statistics that are not the initial ones."""
    torch.manual_seed(0)
    network = resnet18()
    with torch.no_grad():
        network(torch.randn(16, 3, SIZE, SIZE))
    return network


def steps(*milestones):
    """adjust_learning_rate of main_lincls.py."""
    return lambda epoch: math.prod(0.1 if epoch >= milestone else 1.0 for milestone in milestones)


def cosine(epoch):
    """learning_rate_schedule of SimCLR's model_util.py."""
    return (1 + math.cos(math.pi * epoch / EPOCHS)) / 2


def normalized(image):
    """(3, H, W) float from (H, W, 3) uint8."""
    return ((torch.from_numpy(image) - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)


def main_lincls(network, images, first, lr, factor, sgd):
    """``network`` with a linear classifier that was trained on (image, label) pairs, beginning with ``first``."""
    network = copy.deepcopy(network).requires_grad_(False)
    network.fc = nn.Linear(512, len(CLASSES))
    network.fc.load_state_dict(first)
    network.eval()
    optimizer = torch.optim.SGD(network.fc.parameters(), lr, **sgd)
    for epoch in range(EPOCHS):
        order = np.random.default_rng([SEED, epoch]).permutation(len(images))  # what the loader would shuffle
        for step, batch in enumerate(order.reshape(-1, BATCH)):
            optimizer.param_groups[0]["lr"] = lr * factor(epoch + step * BATCH / len(images))
            output = network(torch.stack([normalized(images[i][0]) for i in batch]))
            loss = nn.functional.cross_entropy(output, torch.tensor([images[i][1] for i in batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return network


PROTOCOLS = {  # learning rate of 256 images, factor, options of SGD; and what the config calls them
    "loco": (30, steps(1, 2, 3), {}, []),
    "moco": (30, steps(2, 3), {"momentum": 0.9}, ["SOLVER.MOMENTUM", 0.9, "SOLVER.STEPS", [2.0, 3.0]]),
    "simclr": (
        10,
        cosine,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},  # far more than 1e-6, to be seen
        ["SOLVER.SCHEDULE", "cosine", "SOLVER.MOMENTUM", 0.9, "SOLVER.NESTEROV", True, "SOLVER.WEIGHT_DECAY", 0.1],
    ),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_linear_readout_is_that_of_the_references(name, data, network, tmp_path):
    (folder, images), (lr, factor, sgd, options) = data, PROTOCOLS[name]
    cfg = get_cfg()
    cfg.OUTPUT_DIR, cfg.SEED, cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = str(tmp_path), SEED, *folder
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "DATALOADER.NUM_WORKERS", 0, "INPUT.CROP_SIZE", SIZE])
    cfg.merge_from_list(["INPUT.CROP_AREA", [1.0, 1.0], "SOLVER.EPOCHS", float(EPOCHS), "SOLVER.IMS_PER_BATCH", BATCH])
    cfg.merge_from_list(["SOLVER.BASE_LR", [lr], "SOLVER.STEPS", [1.0, 2.0, 3.0], *options])
    encoder = build_encoder("resnet18")
    encoder.load_state_dict(network.state_dict(), strict=False)  # all but fc
    probe = LinearProbe(cfg, PooledEncoder(encoder, MEAN, STD, ["res5"]), {"path": "", "sha256": ""})
    classifier = probe.classifiers.heads["res5"][0]
    first = copy.deepcopy(classifier.state_dict())
    before = copy.deepcopy(encoder.state_dict())
    results = probe.train()

    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())
    expected = main_lincls(network, images["train"], first, lr * BATCH / 256, factor, sgd)
    for key, value in expected.fc.state_dict().items():
        assert not torch.allclose(value, first[key], atol=1e-2)
        torch.testing.assert_close(classifier.state_dict()[key], value, rtol=1e-4, atol=1e-4)
    views = [normalized(central_crop(image, SIZE)) for image, _ in images["test"]]
    hits = expected(torch.stack(views)).argmax(1) == torch.tensor([label for _, label in images["test"]])
    assert results.linear["res5"].top1 == pytest.approx(100 * hits.double().mean().item())
    assert results.linear["res5"].top1 > 45  # of which chance is 33
