"""What a process builds: only its own part gets to its device, with the weights of one process."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from pretrain.config import get_cfg
from pretrain.engine.stage_parallel.build import build_share
from pretrain.learning.build import build_learner


class Placed(TorchFunctionMode):
    """Notes the tensors that are moved to MODEL.DEVICE."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.to and args[1:] == ("cpu",):
            self.elements += args[0].numel()
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stage", [0, 1])
def test_only_its_own_part_gets_to_the_device(stage):
    cfg = get_cfg()
    cfg.MODEL.ENCODER, cfg.MODEL.DEVICE, cfg.MODEL.DECODER.HIDDEN_DIM = "resnet18x0.25", "cpu", 16
    torch.manual_seed(3)
    whole = build_learner(cfg)
    cfg.MODEL.STAGE_PARALLEL.SPLIT = [["res2", "res3"], ["res4", "res5"]]
    torch.manual_seed(3)
    with Placed() as placed:
        share = build_share(cfg, SimpleNamespace(data=None, everyone=None, stage=stage))
    own = {name: t for name, t in share.learner.state_dict().items() if not t.is_meta}
    assert {segment.name for segment in share.segments} == set(cfg.MODEL.STAGE_PARALLEL.SPLIT[stage])
    assert placed.elements == sum(t.numel() for t in own.values()) > 0
    assert len(own) < len(whole.state_dict())
    for name, tensor in own.items():
        expected = whole.state_dict()[name]
        assert torch.equal(tensor, expected) and tensor.stride() == expected.stride(), name


MEMORY = """
import torch
from pretrain.engine.stage_parallel.memory import give_back_all, resident
from pretrain.processes.cpu import prepare_cpu
def now():
    return next(int(line.split()[1]) / 1e3 for line in open("/proc/self/status") if line.startswith("VmRSS"))
prepare_cpu("cpu", keep_freed_memory=True)
kept = [torch.ones(2**18) for _ in range(200)]  # 1 MB each
small = kept[::10]
del kept
print(now(), resident("cpu") / 1e6)
give_back_all()
print(now(), resident("cpu") / 1e6)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_freed_memory_is_given_back_and_the_peak_is_forgotten():
    command = [sys.executable, "-W", "ignore", "-c", MEMORY]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    before, peak, after, new_peak = map(float, found)
    assert before - after > 120  # MB
    assert peak - new_peak > 120 and new_peak >= after - 1
