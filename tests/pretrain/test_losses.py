"""InfoNCE against a loop over anchors and against lightly's NTXentLoss; two processes against one."""

import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.losses import info_nce


def by_hand(z1, z2, temperature):
    """SimCLR, Eq. 1, anchor by anchor."""
    z = [v / v.norm() for v in torch.cat([z1, z2])]
    n, total = len(z), 0.0
    for i in range(n):
        similarity = [float(z[i] @ z[k]) / temperature for k in range(n)]
        others = sum(math.exp(s) for k, s in enumerate(similarity) if k != i)
        total -= math.log(math.exp(similarity[(i + n // 2) % n]) / others)
    return total / n


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.sampled_from([0.1, 0.5, 1.0]), st.integers(0, 100))
def test_equals_the_formula(batch, dim, temperature, seed):
    z1, z2 = torch.randn(2, batch, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert float(info_nce(z1, z2, temperature)) == pytest.approx(by_hand(z1, z2, temperature), rel=1e-10)


def test_equals_lightly():
    lightly_loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    z1, z2 = torch.randn(2, 16, 8, dtype=torch.float64)
    expected = lightly_loss.NTXentLoss(temperature=0.2)(z1, z2)
    torch.testing.assert_close(info_nce(z1, z2, 0.2), expected)


def test_half_precision_embeddings_are_compared_in_float32():
    z1, z2 = torch.randn(2, 32, 16)
    with torch.autocast("cpu", torch.bfloat16):
        loss = info_nce(z1.bfloat16(), z2.bfloat16(), 0.1)
    expected = info_nce(z1.bfloat16().float(), z2.bfloat16().float(), 0.1)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


VIEWS, WEIGHT = "torch.randn(2, 6, 3, dtype=torch.float64)", "torch.randn(3, 4, dtype=torch.float64)"
ONE_RANK = f"""
import sys, torch
from pretrain.distributed import average_gradients
from pretrain.losses import info_nce
rank, folder = int(sys.argv[1]), sys.argv[2]
torch.distributed.init_process_group("gloo", init_method=f"file://{{folder}}/store", rank=rank, world_size=2)
torch.manual_seed(0)
views, weight = {VIEWS}, {WEIGHT}.requires_grad_()
mine = views[:, rank * 3 : rank * 3 + 3]
loss = info_nce(mine[0] @ weight, mine[1] @ weight, 0.2)
loss.backward()
average_gradients([weight])
torch.save((loss.detach(), weight.grad), f"{{folder}}/{{rank}}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_have_the_gradient_of_the_whole_batch(tmp_path, request):
    root = request.config.rootpath
    commands = [[sys.executable, "-c", ONE_RANK, str(rank), str(tmp_path)] for rank in (0, 1)]
    env = {**os.environ, "PYTHONPATH": str(root)}
    processes = [subprocess.Popen(c, cwd=root, env=env, stderr=subprocess.PIPE, text=True) for c in commands]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    torch.manual_seed(0)
    views, weight = eval(VIEWS), eval(WEIGHT).requires_grad_()
    loss = info_nce(views[0] @ weight, views[1] @ weight, 0.2)
    loss.backward()
    (loss0, grad0), (loss1, grad1) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    torch.testing.assert_close((loss0 + loss1) / 2, loss.detach(), rtol=1e-12, atol=0)
    for grad in (grad0, grad1):
        torch.testing.assert_close(grad, weight.grad, rtol=1e-10, atol=1e-14)
