"""Frozen backbones: what is frozen stays in evaluation mode; a whole one runs folded and without autograd."""

import copy
import logging
from collections.abc import Sequence

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import Backbone
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # relative difference of features that folding may make by rounding


class PartlyFrozen(Backbone):
    """A backbone of which some modules learn no more."""

    _frozen: Sequence[nn.Module] = ()

    def train(self, mode: bool = True) -> "PartlyFrozen":
        """As of any module, but what is frozen stays in evaluation mode: dropout and stochastic depth are off."""
        super().train(mode)
        for module in self._frozen:
            module.training = False
        return self


def speed_up(module: nn.Module, compile: bool = False) -> bool:
    """Let a frozen module run by a folded copy of itself; its parameters, their names and its checkpoints stay.

    Args:
        module: a backbone's bottom_up, whose ``forward`` takes (B, 3, H, W) and returns a dict of features.
        compile: run the copy through torch.compile, for inputs of any size.

    Returns:
        bool: False, and nothing is changed, if something in it learns or has statistics that follow the data.
    """
    follows = any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in module.modules())
    if follows or any(parameter.requires_grad for parameter in module.parameters()):
        return False
    module.forward = _FastForward(module, compile)
    return True


class _FastForward:
    """Stands in for a module's ``forward``. The copy is made at the first call, and anew after weights were loaded."""

    def __init__(self, module, compile):
        self.module, self.compile, self.network, self.place = module, compile, None, None
        self.casts = False  # whether the copy is in the type of autocast
        module.register_load_state_dict_post_hook(self._forget)

    def _forget(self, *_):
        self.network = None

    @torch.no_grad()
    def __call__(self, x):
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        if self.network is None or (x.device, dtype) != self.place:
            self.network, self.place = self._build(x, dtype), (x.device, dtype)
        x = x.contiguous(memory_format=torch.channels_last)
        if dtype == x.dtype or not self.casts:
            return self.network(x)
        with torch.autocast(kind, enabled=False):
            return self.network(x.to(dtype))

    def _build(self, x, dtype):
        self.casts = False
        network = copy.deepcopy(self.module, {id(self): self})  # but not this object, which is its forward
        del network.forward
        network._load_state_dict_post_hooks.clear()
        fold(network)
        network = network.to(memory_format=torch.channels_last)
        sample = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)).to(x)
        # In half precision or in TF32, rounding alone differs by more than that
        exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with torch.autocast(x.device.type, enabled=False), exact:
            wanted, got = self._unfolded(sample), network(sample)
        for name, features in wanted.items():
            difference = (features - got[name]).abs().max() / features.abs().max()
            if not difference <= TOLERANCE:
                logger.warning(f"folding its norms changes {name} by {difference:.2g} relative: it runs as it is")
                return self._unfolded
        # Not of a transformer, whose sums over its blocks autocast keeps in float32
        self.casts = not any(isinstance(module, nn.LayerNorm) for module in network.modules())
        if self.casts:
            network = network.to(dtype)  # no weight has to be cast at each call
        return torch.compile(network, dynamic=True) if self.compile else network

    def _unfolded(self, x):
        return type(self.module).forward(self.module, x)


def fold(module: nn.Module) -> None:
    """Fold every FrozenBatchNorm2d into the conv before it, in place.

    A conv's norm is the one that it holds (Detectron2's), or the next child of the same parent, as in torchvision's
    blocks; PResNet-50's bilinear interpolation between the two changes nothing, because its weights sum up to one.

    Args:
        module: changed in place: convs get the norms' scale and shift, and norms are gone or ``nn.Identity``.
    """
    for parent in list(module.modules()):
        conv = parent if isinstance(parent, nn.Conv2d) else None
        for name, child in list(parent.named_children()):
            if isinstance(child, FrozenBatchNorm2d):
                if conv is not None and conv.out_channels == child.num_features:
                    norm = child.running_mean, child.running_var, child.eps, child.weight, child.bias
                    conv.weight, conv.bias = fuse_conv_bn_weights(conv.weight, conv.bias, *norm)
                    setattr(parent, name, None if conv is parent else nn.Identity())
                conv = None
            else:
                below = child[0] if isinstance(child, nn.Sequential) and len(child) else child
                conv = below if isinstance(below, nn.Conv2d) else None
