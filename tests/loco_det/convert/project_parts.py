"""What the modules and checkpoints of all projects are made of."""

import torch
from torch import nn


class Nest(nn.Module):
    """A module with these children; tensors become buffers, as queues are."""

    def __init__(self, **children):
        super().__init__()
        for name, child in children.items():
            if isinstance(child, nn.Module):
                self.add_module(name, child)
            else:
                self.register_buffer(name, child)


def ddp(model):
    """The names of DistributedDataParallel."""
    return Nest(module=model)


def mlp(layers):
    """A head: L linear, l without bias, B norm, b norm without affine parameters, C 1x1 conv, R ReLU."""
    make = {
        "L": lambda: nn.Linear(8, 8), "l": lambda: nn.Linear(8, 8, bias=False), "R": nn.ReLU,
        "B": lambda: nn.BatchNorm1d(8), "b": lambda: nn.BatchNorm1d(8, affine=False), "C": lambda: nn.Conv2d(8, 8, 1),
    }  # fmt: skip
    return nn.Sequential(*(make[layer]() for layer in layers))


def with_fc(net, fc=None):
    """A ResNet with another classifier; Identity where projects remove it."""
    net.fc = fc or nn.Identity()
    return net


def children(net):
    """The ResNet as lightly's tutorials take it."""
    return nn.Sequential(*list(net.children())[:-1])


def queue(n=""):
    return {f"queue{n}": torch.randn(8, 16), f"queue{n}_ptr": torch.zeros(1, dtype=torch.long)}


def optimizer(lr=0.1):
    """The state of one that has made a step: momentum by parameter, and the learning rate of the script."""
    layer = nn.Linear(2, 2)
    sgd = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9)
    layer(torch.ones(1, 2)).sum().backward()
    sgd.step()
    return sgd.state_dict()


def training(model, key="state_dict", **more):
    """What most scripts save."""
    return {"epoch": 3, key: model.state_dict(), "optimizer": optimizer(), **more}


def lightning(model, **more):
    """What pytorch_lightning's Trainer saves."""
    return {
        "epoch": 3, "global_step": 12, "pytorch-lightning_version": "2.6.0", "state_dict": model.state_dict(),
        "loops": {}, "callbacks": {}, "optimizer_states": [optimizer()], "lr_schedulers": [], **more,
    }  # fmt: skip


def state_dict_of(build, key):
    """What a user keeps of a training file: one dictionary of it."""
    return lambda q, k: build(q, k)[key]


META = {"epoch": 3, "iter": 9, "cfg": "model = dict(type='DenseCL')", "seed": 1, "time": "today"}  # OpenMMLab's
