"""Readout YAMLs: each says what the published protocol says, point by point of its learning rate, and each runs.

That no key stands twice is tested for all YAMLs in test_pretrain.py.
"""

import copy
import functools
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from pretrain.config import value_of
from pretrain.readout.config import check, get_cfg
from pretrain.readout.features import PooledEncoder
from pretrain.readout.linear import LinearClassifiers, build_optimizer, build_scheduler
from pretrain.readout.probe import LinearProbe

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "readout"
FILES = sorted(CONFIGS.rglob("*.yaml"))
LEAVES = [path.relative_to(CONFIGS).as_posix()[: -len(".yaml")] for path in FILES if path.stem[0] != "_"]

LOCO = {  # Sec. 5; what it does not state as in MoCo's main_lincls.py
    "DATASETS.TRAIN": "datasets/imagenet/train",
    "DATASETS.TEST": "datasets/imagenet/val",
    "DATASETS.HELD_OUT": 0.0,
    "INPUT.CROP_SIZE": 224,
    "INPUT.CROP_AREA": [0.08, 1.0],
    "MODEL.STAGES": ["res5"],
    "FEATURES.CACHED": False,
    "FEATURES.STANDARDIZE": False,
    "SOLVER.OPTIMIZER": "SGD",
    "SOLVER.IMS_PER_BATCH": 256,
    "SOLVER.BASE_LR": [30],
    "SOLVER.MOMENTUM": 0,
    "SOLVER.NESTEROV": False,
    "SOLVER.WEIGHT_DECAY": 0,
    "SOLVER.EPOCHS": 100,
    "SOLVER.SCHEDULE": "steps",
    "SOLVER.STEPS": [30, 60, 90],
    "SOLVER.GAMMA": 0.1,
}
COSINE = {"SOLVER.MOMENTUM": 0.9, "SOLVER.WEIGHT_DECAY": 1e-6, "SOLVER.SCHEDULE": "cosine"}
BLOCKS = [f"res{k}+expansion" for k in range(2, 6)]
PROTOCOLS = {  # in what each differs from LoCo
    "imagenet/linear": {},
    "imagenet/linear_moco": {"SOLVER.MOMENTUM": 0.9, "SOLVER.STEPS": [60, 80]},  # main_lincls.py, its defaults
    "imagenet/linear_simclr": {  # run.py as the README's ImageNet command calls it
        **COSINE,
        "SOLVER.NESTEROV": True,
        "SOLVER.IMS_PER_BATCH": 4096,
        "SOLVER.BASE_LR": [0.1],
        "SOLVER.EPOCHS": 90,
    },
    "imagenet/linear_barlow": {**COSINE, "SOLVER.BASE_LR": [0.3]},  # evaluate.py, its defaults
    "imagenet/linear_blockwise": {**COSINE, "SOLVER.BASE_LR": [0.1], "MODEL.STAGES": BLOCKS},  # eval.sh, evaluate.py
    "imagenet/linear_sweep": {
        "MODEL.STAGES": [],
        "DATASETS.HELD_OUT": 0.01,
        "SOLVER.BASE_LR": [0.1, 0.3, 1, 3, 10, 30, 100],
    },
    "cached": {
        **COSINE,
        "MODEL.STAGES": [],
        "FEATURES.CACHED": True,
        "FEATURES.STANDARDIZE": True,
        "DATASETS.HELD_OUT": 0.1,
        "SOLVER.BASE_LR": [0.003, 0.01, 0.03, 0.1, 0.3, 1],
        "SOLVER.WEIGHT_DECAY": 0,
        "SOLVER.EPOCHS": 50,
    },
}
PUBLISHED = {  # top-1 of the row that a protocol is known by
    "imagenet/linear": "69.5",
    "imagenet/linear_moco": "60.6",
    "imagenet/linear_simclr": "64.5",
    "imagenet/linear_barlow": "73.5",
    "imagenet/linear_blockwise": "70.15",
}


@functools.lru_cache
def _merged(name):
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / f"{name}.yaml"))
    return cfg


def merged(name):
    return _merged(name).clone()


def flat(node, prefix=""):
    """{"MODEL.WEIGHTS": ..., ...} of nested dicts."""
    pairs = {}
    for key, value in node.items():
        pairs |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return pairs


# --- what the files say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LEAVES)
def test_merges_and_passes_the_check(name):
    cfg = merged(name)
    assert not cfg.MODEL.WEIGHTS  # for the user to name
    cfg.MODEL.WEIGHTS = "some.pth"
    check(cfg)
    assert len({merged(other).OUTPUT_DIR for other in LEAVES}) == len(LEAVES)  # no run overwrites another's files


def test_every_config_is_in_these_tables():
    assert set(LEAVES) == {*PROTOCOLS, "knn"}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_protocols(name):
    expected, cfg = {**LOCO, **PROTOCOLS[name]}, merged(name)
    if expected["SOLVER.SCHEDULE"] == "cosine":  # reads neither
        expected = {key: value for key, value in expected.items() if key not in ("SOLVER.STEPS", "SOLVER.GAMMA")}
    assert {key: value_of(cfg, key) for key in expected} == expected
    assert cfg.OUTPUT_DIR == f"output/readout/{name}"
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    comment = " ".join(line[2:] for line in itertools.takewhile(lambda line: line.startswith("# "), lines))
    assert f"{PUBLISHED[name]} top-1" in comment if name in PUBLISHED else "Not from a paper" in comment


@pytest.mark.parametrize("name", PROTOCOLS)
def test_nothing_else_is_changed(name):
    cfg, default = flat(merged(name)), flat(get_cfg())
    assert {key for key in cfg if cfg[key] != default[key]} <= {*LOCO, "OUTPUT_DIR", "SOLVER.LOG_PERIOD"}


def test_nearest_neighbours():
    """Wu et al. 2018, Sec. 3.4 and 4.1, on all stages; the solver's keys are the default's, as nothing reads them."""
    cfg, default = flat(merged("knn")), flat(get_cfg())
    assert (cfg["KNN.K"], cfg["KNN.TEMPERATURE"], cfg["MODEL.STAGES"]) == ([200], [0.07], [])
    assert {key for key in cfg if cfg[key] != default[key]} == {"OUTPUT_DIR"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_file_repeats_its_base(path):
    own, inherited = yaml.safe_load(path.read_text()), {}
    if base := own.pop("_BASE_", None):
        inherited = flat(get_cfg().load_yaml_with_base(str(path.parent / base)))
    assert not {key: value for key, value in flat(own).items() if key in inherited and inherited[key] == value}


# --- the learning rate as the reference computes it -------------------------------------------------------------------


def milestones(*epochs):
    """adjust_learning_rate of main_lincls.py: from each of these epochs on a tenth."""
    return lambda epoch: math.prod(0.1 if epoch >= milestone else 1.0 for milestone in epochs)


def annealed(epochs):
    """CosineAnnealingLR(optimizer, epochs) after as many steps, and TensorFlow's cosine_decay; both without a floor."""
    return lambda epoch: (1 + math.cos(math.pi * epoch / epochs)) / 2


SCHEDULES = {  # learning rates before the first step, and the factor as a function of the epoch
    "imagenet/linear": ([30], milestones(30, 60, 90)),
    "imagenet/linear_moco": ([30], milestones(60, 80)),
    "imagenet/linear_simclr": ([1.6], annealed(90)),  # paper, Appendix B.6: 0.1 x 4096 / 256
    "imagenet/linear_barlow": ([0.3], annealed(100)),
    "imagenet/linear_blockwise": ([0.1], annealed(100)),
    "imagenet/linear_sweep": ([0.1, 0.3, 1, 3, 10, 30, 100], milestones(30, 60, 90)),
    "cached": ([0.003, 0.01, 0.03, 0.1, 0.3, 1], annealed(50)),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_learning_rate_of_every_iteration(name, epoch_iters=7):
    solver, (rates, factor) = merged(name).SOLVER, SCHEDULES[name]
    classifiers = LinearClassifiers({"res4": 3, "res5": 2}, len(rates), 4, seed=0)
    optimizer = build_optimizer(solver, classifiers)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    iterations = round(epoch_iters * solver.EPOCHS)
    scheduler = build_scheduler(solver, optimizer, epoch_iters, iterations)
    for iteration in range(iterations):
        # CosineAnnealingLR's cosine stands still during an epoch, TensorFlow's goes on: they agree where one begins
        epoch = iteration / epoch_iters if solver.SCHEDULE == "cosine" else iteration // epoch_iters
        for heads in classifiers.heads.values():
            for rate, head in zip(rates, heads, strict=True):
                for parameter in (head.weight, head.bias):
                    assert groups[id(parameter)]["lr"] == pytest.approx(rate * factor(epoch), rel=1e-6), iteration
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", PROTOCOLS)
def test_weight_decay_and_momentum_of_every_parameter(name):
    """Weights and offsets alike: evaluate.py's groups, and add_weight_decay of model_util.py, which skips BN only."""
    solver, expected = merged(name).SOLVER, {**LOCO, **PROTOCOLS[name]}
    for group in build_optimizer(solver, LinearClassifiers({"res5": 2}, len(solver.BASE_LR), 4, seed=0)).param_groups:
        assert {key: group[key] for key in ("weight_decay", "momentum", "nesterov")} == {
            key: expected[f"SOLVER.{key.upper()}"] for key in ("weight_decay", "momentum", "nesterov")
        }


# --- every protocol runs ----------------------------------------------------------------------------------------------


class Network(nn.Module):
    """The stages of a ResNet, and what blockwise pretraining puts on them, with two channels each."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(nn.Sequential(nn.Conv2d(c, 2, 3, 2, 1), nn.BatchNorm2d(2)) for c in (3, 2, 2, 2))
        self.expansions = nn.ModuleList(nn.Conv2d(2, 5, 1) for _ in range(4))

    def forward(self, x):
        features = {}
        for k, (stage, expansion) in enumerate(zip(self.stages, self.expansions, strict=True), 2):
            x = features[f"res{k}"] = stage(x)
            features[f"res{k}+expansion"] = expansion(x)
        return features


@pytest.fixture(scope="module")
def tiny_data(tmp_path_factory):
    """Folders of training and test images of seven classes, four images of 20 x 16 each."""
    folder, rng = tmp_path_factory.mktemp("tiny"), np.random.default_rng(0)
    for k in range(7 * 4 * 2):
        place = folder / ("train" if k % 2 else "test") / f"class{k // 8}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 20, 3), np.uint8)).save(place / f"{k}.png")
    return folder


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_runs(name, tiny_data, tmp_path):
    """Two iterations: every classifier learns, the encoder does not, and all that was asked for is reported."""
    cfg = merged(name)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (str(tiny_data / split) for split in ("train", "test"))
    cfg.OUTPUT_DIR, cfg.MODEL.DEVICE, cfg.DATALOADER.NUM_WORKERS, cfg.INPUT.CROP_SIZE = str(tmp_path), "cpu", 0, 16
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 8, "SOLVER.EPOCHS", 2 / 3 if not cfg.DATASETS.HELD_OUT else 1.0])
    cfg.SOLVER.STEPS = [0.5 * cfg.SOLVER.EPOCHS]
    torch.manual_seed(0)
    network = Network()
    frozen = copy.deepcopy(network.state_dict())
    encoder = PooledEncoder(network, [128.0] * 3, [64.0] * 3, cfg.MODEL.STAGES)
    probe = LinearProbe(cfg, encoder, {"path": "", "sha256": ""})
    first = copy.deepcopy(probe.classifiers.state_dict())
    assert probe.max_iter == 2
    results = probe.train()
    assert all(torch.equal(value, frozen[key]) for key, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    for key, value in probe.classifiers.heads.state_dict().items():
        assert value.isfinite().all() and not torch.equal(value, first[f"heads.{key}"]), key
    assert list(results.linear) == (cfg.MODEL.STAGES or list(network(torch.zeros(1, 3, 16, 16))))
    for row in results.linear.values():
        assert list(row.sweep) == [f"{rate:g}" for rate in cfg.SOLVER.BASE_LR] and row.lr in cfg.SOLVER.BASE_LR
        assert 0 <= row.top1 <= row.top5 <= 100 and (row.held_out_top1 is None) == (not cfg.DATASETS.HELD_OUT)
