"""A built network under the tools that record, copy or transform networks."""

import copy
import pickle

import pytest
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn

from pretrain.config import get_cfg
from pretrain.learning import small_maps
from pretrain.learning.build import build_learner
from pretrain.learning.pooling import GlobalAvgPool
from pretrain.learning.small_maps import SmallMapConv2d


@pytest.fixture(scope="module")
def net():
    """Encoder and decoder of a learner on the CPU, with maps of few pixels at the top, where our gradient is used."""
    cfg = get_cfg()
    cfg.MODEL.ENCODER, cfg.MODEL.DEVICE = "resnet18x0.25", "cpu"
    torch.manual_seed(0)
    learner = build_learner(cfg)
    net = nn.Sequential(*learner.encoder.stages, learner.decoders["res5"]).eval()
    kinds = {type(module) for module in net.modules()}
    assert {SmallMapConv2d, GlobalAvgPool} <= kinds and nn.Conv2d not in kinds
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(small_maps.PIXELS, torch.float32, 4)
        yield net


@pytest.fixture(scope="module")
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


TOOLS = {
    "torch.jit.trace": lambda net, x: torch.jit.trace(net, x)(x),
    "torch.export": lambda net, x: torch.export.export(net, (x,)).module()(x),
    "torch.export, strict": lambda net, x: torch.export.export(net, (x,), strict=True).module()(x),
    "deepcopy": lambda net, x: copy.deepcopy(net)(x),
    "pickle": lambda net, x: pickle.loads(pickle.dumps(net))(x),
    "functional_call": lambda net, x: torch.func.functional_call(net, dict(net.named_parameters()), (x,)),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tool", TOOLS)
def test_outputs_are_equal(tool, net, images):
    torch.testing.assert_close(TOOLS[tool](net, images), net(images), rtol=1e-5, atol=1e-6)


def test_flops_are_those_of_torchs_layers(net, images):
    def count(module):
        return FlopCountAnalysis(module, images).unsupported_ops_warnings(False).by_operator()

    plain = copy.deepcopy(net)
    for path, module in list(plain.named_modules()):
        if isinstance(module, SmallMapConv2d):
            sizes = module.in_channels, module.out_channels, module.kernel_size, module.stride, module.padding
            plain.set_submodule(path, nn.Conv2d(*sizes, bias=False))
        elif isinstance(module, GlobalAvgPool):
            plain.set_submodule(path, nn.AdaptiveAvgPool2d(1))
    assert count(net) == count(plain) and count(net)["conv"] > 0


def test_gradients_of_torch_func(net, images):
    def loss(parameters):
        return torch.func.functional_call(net, parameters, (images,)).square().sum()

    found = torch.func.grad(loss)(dict(net.named_parameters()))
    net.zero_grad()
    net(images).square().sum().backward()
    for name, parameter in net.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(found[name], parameter.grad), name


def test_vmap_and_forward_mode_say_that_they_cannot(net, images):
    with pytest.raises(RuntimeError, match="does not have vmap support"):
        torch.func.vmap(lambda x: net(x[None]))(images)
    with pytest.raises(NotImplementedError, match="jvp"):
        torch.func.jvp(net, (images,), (images,))
