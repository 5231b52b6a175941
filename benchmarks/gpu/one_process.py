"""Check of NCCL and SyncBN with one process, as torchrun starts it; it runs in a process of its own.

Tolerances: as a step in float32 (pretraining.py) where SyncBN's kernels are compared with BN's, which sum in another
order; 0 where a collective operation of one process has to give back what it got.
"""

import argparse
import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.utils import comm
from torch import Tensor, nn

from loco_det.cli.common.launch import launch
from pretrain.learning.build import build_learner
from pretrain.learning.learner import LocalLearner
from pretrain.processes.distributed import GradientReducer, any_process, broadcast_state, worst_of_processes

from . import pretraining
from .setting import Figure, Setting, full_float32

KERNELS = 1e-5  # relative: one layer, not a network


def figures(device: str, smoke: bool) -> list[Figure]:
    """All figures of this check; joins a process group of one process, and leaves it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    one = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    os.environ.update({"MASTER_ADDR": "127.0.0.1", **{key: str(value) for key, value in one.items()}})
    found: list[Figure] = []

    def main(args: argparse.Namespace) -> None:
        with full_float32():
            found.extend(_in_group(Setting(device, Path(), smoke)))

    launch(main, argparse.Namespace(local_rank=None, num_gpus=1, num_machines=1))
    return found


def _in_group(setting: Setting) -> list[Figure]:
    backend = dist.get_backend()
    if (backend == "nccl") != (setting.device != "cpu"):
        raise ValueError(f"the backend is {backend}, which --device {setting.device} does not go with")
    cfg, views = pretraining.config(setting, setting.device), pretraining.views_of(setting)
    wanted = pretraining.step(pretraining.learner_of(cfg), views)
    with _as_if_of_two():
        torch.manual_seed(0)
        learner = build_learner(cfg)
    kinds = {type(module) for module in learner.modules()}
    if (nn.SyncBatchNorm in kinds) != (setting.device != "cpu"):
        raise ValueError("BN is synchronised on GPUs, and only there")
    plain = pretraining.learner_of(cfg)
    learner.load_state_dict(plain.state_dict())
    found = pretraining.compared(pretraining.step(learner.train(), views), wanted)
    found.append(Figure("collectives", _collectives(learner, setting.device), 0.0, text=backend))
    if setting.device != "cpu":
        found.append(Figure("kernels of SyncBN", _kernels(setting.device), KERNELS))
    return found


@contextlib.contextmanager
def _as_if_of_two() -> Iterator[None]:
    """Code that asks how many processes there are does what it does for two."""
    before = comm.get_world_size
    comm.get_world_size = lambda: 2
    try:
        yield
    finally:
        comm.get_world_size = before


def _collectives(learner: LocalLearner, device: str) -> float:
    """By how much what the trainer exchanges, weights in channels_last among it, differs from what it should be."""
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    parameters = [p for p in learner.parameters() if p.grad is not None]
    gradients = [p.grad.clone() for p in parameters if p.grad is not None]
    figure = torch.tensor(3.0, device=device)
    with _as_if_of_two():
        reducer = GradientReducer()
        broadcast_state(learner)
        reducer(parameters)
        reducer.wait()  # the mean over two processes, of which only one has given its gradients
        agreed = any_process(True) and not any_process(False) and worst_of_processes([figure]) == [3.0]
    wrong = [(before[name] - value).abs().max().item() for name, value in learner.state_dict().items() if value.numel()]
    wrong += [(g - 2 * p.grad).abs().max().item() for g, p in zip(gradients, parameters, strict=True)]
    return max(wrong) if agreed else float("nan")


def _kernels(device: str) -> float:
    """SyncBN's own kernels and its exchange, against BN: the worst of output, statistics and gradients, relative.

    nn.SyncBatchNorm calls them with several processes only.
    """
    from torch.nn.modules._functions import SyncBatchNorm

    def layer(synchronised: bool) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        x = (
            torch.randn(16, 32, 9, 7, generator=generator)
            .to(device, memory_format=torch.channels_last)
            .requires_grad_()
        )
        weight, bias = (torch.randn(32, generator=generator).to(device).requires_grad_() for _ in range(2))
        statistics = torch.zeros(32, device=device), torch.ones(32, device=device)
        if synchronised:
            y = SyncBatchNorm.apply(x, weight, bias, *statistics, 1e-5, 0.1, dist.group.WORLD, 1)
        else:
            y = nn.functional.batch_norm(x, *statistics, weight, bias, True, 0.1, 1e-5)
        (y * torch.randn(y.shape, generator=generator).to(device)).sum().backward()
        return [y.detach(), *statistics, x.grad, weight.grad, bias.grad]

    pairs = zip(layer(True), layer(False), strict=True)
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs)
