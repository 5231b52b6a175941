"""What a process says of its memory."""

import torch
from torch import nn

from pretrain.engine.stage_parallel.memory import memory_line


def test_the_line_counts_what_a_process_has():
    model = nn.ModuleList([nn.Linear(1000, 250, bias=False), nn.Linear(1000, 750, bias=False, device="meta")])
    sgd, adam = torch.optim.SGD(model[0].parameters(), 0.1), torch.optim.AdamW(model[0].parameters())
    start = "process 1: 1.0 of 4.0 MB of weights, as much for gradients, and"
    assert memory_line("process 1", model, sgd) == f"{start} 1.0 MB of the optimiser's state"
    assert memory_line("process 1", model, adam) == f"{start} 2.0 MB of the optimiser's state"
