"""Schedule and groups against formulas; LARS against a hand-written step."""

import math

import pytest
import torch
from torch import nn

from pretrain.config import get_cfg
from pretrain.encoders import build_encoder
from pretrain.engine.optim import build_optimizer, build_scheduler


def solver(**keys):
    cfg = get_cfg().SOLVER
    for key, value in {"IMS_PER_BATCH": 512, "BASE_LR": 0.5, **keys}.items():
        cfg[key] = value
    return cfg


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


def test_learning_rates_of_a_run():
    cfg = solver(EPOCHS=10.0, WARMUP_EPOCHS=2.0)
    optimizer = build_optimizer(cfg, network())
    scheduler, rates = build_scheduler(cfg, optimizer, 100), []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    peak = 0.5 * 512 / 256
    expected = [peak * i / 20 if i < 20 else peak * (1 + math.cos(math.pi * (i - 20) / 80)) / 2 for i in range(100)]
    assert rates == pytest.approx(expected, abs=1e-9)


def test_biases_and_norms_have_a_learning_rate_of_their_own():
    optimizer = build_optimizer(solver(BIAS_LR_FACTOR=0.024), network())
    scheduler = build_scheduler(solver(EPOCHS=10.0, WARMUP_EPOCHS=0.0), optimizer, 100)
    for _ in range(50):
        optimizer.step()
        scheduler.step()
    rates = {p.ndim > 1: g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert rates == pytest.approx({True: 0.5, False: 0.5 * 0.024})


def test_no_decay_on_norms_and_biases():
    for name in ("LARS", "SGD", "AdamW"):
        optimizer = build_optimizer(solver(OPTIMIZER=name, WEIGHT_DECAY=0.1), network())
        decayed = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
        assert sorted(decayed.values()) == [0, 0, 0, 0, 0.1, 0.1]
        for group in optimizer.param_groups:
            assert all((p.ndim > 1) == (group["weight_decay"] > 0) for p in group["params"])


@pytest.mark.parametrize("name", ["deit_tiny_distilled_patch16_224", "swin_tiny_patch4_window7_224", "test_convnext2"])
def test_no_decay_on_what_transformers_add(name):
    """What timm excludes by name, and norms, biases and layer scale; so LARS adapts weights of layers alone."""
    encoder = build_encoder(f"timm:{name}")
    optimizer = build_optimizer(solver(OPTIMIZER="LARS", WEIGHT_DECAY=0.1), encoder)
    adapted = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert adapted == {id(p) for group in optimizer.param_groups if group.get("always_adapt") for p in group["params"]}
    excluded = encoder.network.no_weight_decay() if hasattr(encoder.network, "no_weight_decay") else set()
    for key, p in encoder.network.named_parameters():
        assert (id(p) in adapted) == (p.ndim > 1 and key not in excluded), key
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(encoder.parameters()))


@pytest.mark.parametrize("decay", [0.01, 0.0])
def test_lars_step_by_hand(decay):
    """Two steps of You et al. 2017 with SimCLR's exceptions; the trust coefficient is 0.001."""
    cfg = solver(WEIGHT_DECAY=decay)
    model, reference = network(), [p.detach().clone() for p in network().parameters()]
    optimizer = build_optimizer(cfg, model)
    momentum = [torch.zeros_like(p) for p in reference]
    for seed in (1, 2):
        torch.manual_seed(seed)
        for p, q, v in zip(model.parameters(), reference, momentum, strict=True):
            grad = torch.randn_like(p)
            p.grad = grad.clone()
            if p.ndim > 1:
                trust = 0.001 * q.norm() / (grad.norm() + decay * q.norm())
                grad = trust * (grad + decay * q)
            v.mul_(0.9).add_(grad)
            q -= 1.0 * v
        optimizer.step()
        for p, q in zip(model.parameters(), reference, strict=True):
            torch.testing.assert_close(p.detach(), q)


def test_what_cannot_be():
    with pytest.raises(ValueError, match="LARS, SGD, AdamW"):
        build_optimizer(solver(OPTIMIZER="Adam"), network())
    cfg = solver(EPOCHS=5.0, WARMUP_EPOCHS=5.0)
    with pytest.raises(ValueError, match="WARMUP_EPOCHS 5.0 must be less than SOLVER.EPOCHS 5.0"):
        build_scheduler(cfg, build_optimizer(cfg, network()), 10)
