"""A learner of a few thousand parameters, all rules and all options."""

import copy
import functools

import torch
from torch import nn

from pretrain.encoders import STAGE_NAMES
from pretrain.learning.decoders import Decoder
from pretrain.learning.learner import LocalLearner
from pretrain.learning.losses import barlow_twins, info_nce, vicreg

LOSSES = {
    "info_nce": functools.partial(info_nce, temperature=0.2),
    "barlow_twins": functools.partial(barlow_twins, lambd=0.005),
    "vicreg": vicreg,
}
LOCO = [["res2", "res3"], ["res3", "res4"], ["res4", "res5"]]
RULES = {
    "loco": LOCO,
    "loco with a fourth loss": [["res2"], *LOCO],
    "gim": [[name] for name in STAGE_NAMES],
    "end to end": [list(STAGE_NAMES)],
    "deep supervision": [list(STAGE_NAMES[:k]) for k in range(1, 5)],
    "three stages deep": [["res2"], ["res2", "res3", "res4"], ["res3", "res4", "res5"]],
    "a unit inside another": [["res3"], ["res2", "res3", "res4"]],
    "top two stages only": [["res4", "res5"]],
    "lower stages only": [["res2", "res3"]],
    "sharing of one block": [["res2", "res3[:1]"], ["res3", "res4[:1]"], ["res4", "res5[:1]"], ["res5"]],
    "overlap from below": [["res2", "res3"], ["res3[-1:]", "res4"], ["res4[1:]", "res5"]],
    "none": [],
}
OPTIONS = {
    "plain": {},
    "upper gradient only": {"shared_gradient": "upper"},
    "noise": {"noise": 0.25},
    "recompute all": {"recompute": STAGE_NAMES},
    "recompute some": {"recompute": ["res2", "res3[:1]", "res4[1:]"], "noise": 0.1},
}


def block(i, o, stride):
    return nn.Sequential(nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))


class TinyEncoder(nn.Module):
    """Four stages of two blocks with BN, as a ResNet's, in a few thousand parameters."""

    stage_names = STAGE_NAMES
    channels = (4, 6, 8, 8)

    def __init__(self):
        super().__init__()
        widths = [3, *self.channels]
        self.stages = nn.ModuleList(
            nn.Sequential(block(i, o, 2), block(o, o, 1)) for i, o in zip(widths, self.channels, strict=False)
        )


def make(units, encoder=None, bottleneck=False, loss="info_nce", ties=0.0, pool_features=0, **options):
    torch.manual_seed(0)
    encoder = encoder or TinyEncoder()
    width = dict(zip(encoder.stage_names, encoder.channels, strict=True))
    decoders, tied = {}, []
    keys = {"bottleneck": bottleneck, "prefix_tokens": getattr(encoder, "prefix_tokens", None)}
    for unit in units:
        decoders[unit[-1]] = Decoder(width[unit[-1][:4]], hidden_dim=16, out_dim=8, pool_features=pool_features, **keys)
    if ties:  # the first unit's decoder begins with a copy of the next stage
        stage = copy.deepcopy(encoder.stages[1])
        decoders["res2"] = nn.Sequential(stage, Decoder(width["res3"], bottleneck=bottleneck, hidden_dim=16, out_dim=8))
        for p in stage.parameters():
            nn.init.normal_(p, std=0.2)
        tied = zip(stage.parameters(), encoder.stages[1].parameters(), strict=True)
    return LocalLearner(encoder, units, decoders, LOSSES[loss], ties=tied, tie_weight=ties, **options).double()
