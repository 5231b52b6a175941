"""Losses and gradients of two processes against those of one with the whole batch."""

from pathlib import Path

import torch
from tiny_learner import LOSSES, RULES, make

ONE_RANK = """
import sys, torch
from pretrain.processes.distributed import GradientReducer
sys.path.append(sys.argv[3])
from tiny_learner import LOSSES, RULES, make
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
views = torch.randn(2, 6, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
mine, found = views[:, rank * 3 : rank * 3 + 3].flatten(0, 1), {}
for loss in LOSSES:
    for rule, units in RULES.items():
        for chunk in (0, 2):
            learner, reducer = make(units, loss=loss).eval(), GradientReducer()
            losses = learner.forward_backward(mine, chunk=chunk, ready=reducer)
            reducer.wait()
            found[loss, rule, chunk] = losses, {n: p.grad for n, p in learner.named_parameters()}
torch.save(found, f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_have_the_losses_and_gradients_of_the_whole_batch(run_two_ranks, tmp_path):
    """All rules and losses, whole and in chunks; BN in evaluation mode, because gloo cannot synchronise it."""
    run_two_ranks(ONE_RANK, tmp_path, Path(__file__).parent, OMP_NUM_THREADS="1")
    views = torch.randn(2, 6, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).flatten(0, 1)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert len(ranks[0]) == 2 * len(LOSSES) * len(RULES)
    for (loss, rule, chunk), (losses, gradients) in ranks[0].items():
        learner = make(RULES[rule], loss=loss).eval()
        expected = learner.forward_backward(views)
        others, same = ranks[1][loss, rule, chunk]
        for name in expected:
            mean = (losses[name] + others[name]) / 2
            torch.testing.assert_close(mean, expected[name], rtol=1e-12, atol=1e-12)
        whole = sum(p.grad.norm() for p in learner.parameters() if p.grad is not None)
        for name, p in learner.named_parameters():
            for gradient in (gradients[name], same[name]):
                assert (gradient is None) == (p.grad is None), (loss, rule, chunk, name)
                if gradient is not None:
                    assert (gradient - p.grad).norm() <= 1e-10 * p.grad.norm() + 1e-14 * whole, (loss, rule, name)
