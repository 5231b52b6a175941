"""Checkpoints of research projects: modules that nest encoder, heads, queues and copies as each project's own do.

``RESEARCH`` has a function for each, of the online (trained) network and of its moving average, two torchvision ResNets
that it may change; it returns what the project saves.
"""

import argparse

import numpy as np
import torch
from project_parts import META, Nest, ddp, lightning, mlp, optimizer, queue, state_dict_of, training, with_fc
from torch import nn


def moco(head):
    def build(q, k):
        model = Nest(**queue(), encoder_q=with_fc(q, mlp(head)), encoder_k=with_fc(k, mlp(head)))
        return training(ddp(model), arch="resnet18")

    return build


def mocov3(q, k):
    networks = {"base_encoder": with_fc(q, mlp("lBRlb")), "momentum_encoder": with_fc(k, mlp("lBRlb"))}
    return training(ddp(Nest(**networks, predictor=mlp("lBRl"))), arch="resnet18", scaler={"scale": 65536.0})


def byol_pytorch(q, k):
    online, target = Nest(net=q, projector=mlp("LBRL")), Nest(net=k, projector=mlp("LBRL"))
    return Nest(net=q, online_encoder=online, target_encoder=target, online_predictor=mlp("LBRL")).state_dict()


def byol_in_lightning(q, k):
    online, target = Nest(net=q, projector=mlp("LBRL")), Nest(net=k, projector=mlp("LBRL"))
    learner = Nest(net=q, online_encoder=online, target_encoder=target, online_predictor=mlp("LBRL"))
    return lightning(Nest(learner=learner))


def pixpro(q, k):
    def projector():
        return Nest(linear1=nn.Conv2d(8, 8, 1), bn1=nn.BatchNorm2d(8), linear2=nn.Conv2d(8, 8, 1))

    model = Nest(encoder=with_fc(q), encoder_k=with_fc(k), projector=projector(), projector_k=projector(),
                 value_transform=nn.Conv2d(8, 8, 1))  # fmt: skip
    return {"opt": argparse.Namespace(arch="resnet18"), **training(ddp(model), "model", scheduler={"last_epoch": 3})}


def pycontrast_infomin(q, k):
    def model(net):
        jigsaw = Nest(fc1=mlp("LRL"), fc2=nn.Linear(8, 8))
        return Nest(encoder=with_fc(net), head=mlp("LRL"), head_jig=jigsaw)

    content = training(ddp(model(q)), "model", contrast={"memory": torch.randn(16, 8)})
    return {**content, "model_ema": model(k).state_dict()}


def pycontrast_insdis(q, k):
    return training(ddp(Nest(encoder=with_fc(q), head=mlp("L"))), "model", contrast={"memory": torch.randn(16, 8)})


def simsiam(q, k):
    return training(ddp(Nest(encoder=with_fc(q, mlp("lBRlBRLb")), predictor=mlp("lBRL"))), arch="resnet18")


def blockwise_backbone(q):
    for i, stage in enumerate((q.layer1, q.layer2, q.layer3, q.layer4), 1):
        channels = stage[-1].conv3.out_channels
        q.add_module(f"pool_conv_block_{i}", nn.Sequential(nn.Conv2d(channels, 16, 1, bias=False), nn.BatchNorm2d(16)))
    return with_fc(q)


def blockwise(q, k):
    heads = nn.ModuleList(mlp("lBRlBRl") for _ in range(4))
    model = Nest(backbone=blockwise_backbone(q), projector_list=heads, bn=nn.BatchNorm1d(8, affine=False))
    return training(ddp(model), "model")


def barlow(q, k):
    bn = nn.BatchNorm1d(8, affine=False)
    return training(ddp(Nest(backbone=with_fc(q), projector=mlp("lBRlBRl"), bn=bn)), "model")


def vicreg(q, k):
    return training(ddp(Nest(backbone=with_fc(q), projector=mlp("LBRLBRl"))), "model")


def dino(q, k):
    def network(net):
        last = Nest(weight_g=torch.ones(8, 1), weight_v=torch.randn(8, 8))
        return ddp(Nest(backbone=with_fc(net), head=Nest(mlp=mlp("LRLRL"), last_layer=last))).state_dict()

    return {"student": network(q), "teacher": network(k), "optimizer": optimizer(np.float64(0.1)), "epoch": 3,
            "args": argparse.Namespace(arch="resnet18"), "dino_loss": {"center": torch.zeros(1, 8)}}  # fmt: skip


def simclrv2(q, k):
    """Modules by position, and an nn.Sequential of each norm with its ReLU."""

    def block(b):
        norms = [nn.Sequential(b.bn1, nn.ReLU()), nn.Sequential(b.bn2, nn.ReLU()), nn.Sequential(b.bn3, nn.Identity())]
        parts = {"net": nn.Sequential(b.conv1, norms[0], b.conv2, norms[1], b.conv3, norms[2])}
        if b.downsample:
            bn = nn.Sequential(b.downsample[1], nn.Identity())
            parts["projection"] = Nest(shortcut=b.downsample[0], bn=bn)
        return Nest(**parts)

    stem = nn.Sequential(q.conv1, nn.Sequential(q.bn1, nn.ReLU()), nn.MaxPool2d(3, 2, 1))
    stages = [Nest(blocks=nn.Sequential(*map(block, stage))) for stage in (q.layer1, q.layer2, q.layer3, q.layer4)]
    return {"resnet": Nest(net=nn.Sequential(stem, *stages), fc=q.fc).state_dict(),
            "head": Nest(layers=mlp("lBRlBRlB")).state_dict()}  # fmt: skip


def simclr(q, k):
    for stage in (q.layer1, q.layer2, q.layer3, q.layer4):
        for block in stage:  # its shortcut is made first
            if block.downsample:
                block._modules = {"downsample": block.downsample, **block._modules}
    return {"state_dict": q.state_dict()}


def swav(prototypes):
    def build(q, k):
        net = with_fc(q)
        several = Nest(**{f"prototypes{i}": nn.Linear(8, 8, bias=False) for i in range(prototypes)})
        net.projection_head, net.prototypes = mlp("LBRL"), several if prototypes > 1 else nn.Linear(8, 8, bias=False)
        return {**training(ddp(net)), "optimizer": optimizer(np.float64(0.1))}

    return build


def densecl(q, k):
    def pair(net):
        return nn.Sequential(with_fc(net), Nest(mlp=mlp("LRL"), mlp2=mlp("CRC")))

    encoder_q = pair(q)
    networks = {"encoder_q": encoder_q, "backbone": encoder_q[0], "encoder_k": pair(k)}
    return {"meta": META, **training(Nest(**networks, **queue(), **queue(2)))}


def densecl_extracted(q, k):
    return {"state_dict": with_fc(q).state_dict(), "author": "DenseCL"}


def byol_convert(q, k):
    """Older than BN's counters; convs are permuted views of TensorFlow's kernels."""
    weights = {name: tensor for name, tensor in q.state_dict().items() if "num_batches" not in name}
    for name, tensor in weights.items():
        if tensor.dim() == 4:
            weights[name] = tensor.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)
    return weights


RESEARCH = {
    "moco": moco("LRL"),
    "moco-v1": moco("L"),
    "mocov3": mocov3,
    "byol-pytorch": byol_pytorch,
    "byol-pytorch-lightning": byol_in_lightning,
    "pixpro": pixpro,
    "pycontrast": pycontrast_infomin,
    "pycontrast-insdis": pycontrast_insdis,
    "simsiam": simsiam,
    "blockwise": blockwise,
    "blockwise-backbone": lambda q, k: blockwise_backbone(q).state_dict(),
    "barlow": barlow,
    "vicreg": vicreg,
    "dino": dino,
    "simclrv2": simclrv2,
    "simclr": simclr,
    "swav": swav(1),
    "swav-released": state_dict_of(swav(1), "state_dict"),
    "deepclusterv2": swav(3),
    "openmmlab-densecl": densecl,
    "densecl": densecl_extracted,
    "barlow-backbone": lambda q, k: with_fc(q).state_dict(),
    "byol": byol_convert,
}
