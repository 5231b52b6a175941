"""Both losses against their formulas, written as loops, and against lightly's; two processes against one."""

import importlib.util
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.learning.losses import barlow_twins, info_nce


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


def barlow_by_hand(z1, z2, lambd):
    """Barlow Twins, Eq. 1 and 2, element by element."""
    standardised = [[[(float(x) - float(col.mean())) / math.sqrt(float(col.var(correction=0)) + 1e-5) for x in col]
                     for col in z.T] for z in (z1, z2)]  # fmt: skip
    total = 0.0
    for i, a in enumerate(standardised[0]):
        for j, b in enumerate(standardised[1]):
            c = sum(x * y for x, y in zip(a, b, strict=True)) / len(z1)
            total += (1 - c) ** 2 if i == j else lambd * c**2
    return total


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 6), st.integers(1, 5), st.sampled_from([0.0, 0.0051, 1.0]), st.integers(0, 100))
def test_barlow_twins_equals_the_formula(batch, dim, lambd, seed):
    z1, z2 = torch.randn(2, batch, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    assert float(barlow_twins(z1, z2, lambd)) == pytest.approx(barlow_by_hand(z1, z2, lambd), rel=1e-10)


def test_barlow_twins_equals_lightly_gradients_too():
    lightly_loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    ours, theirs = (torch.randn(2, 16, 8, dtype=torch.float64).requires_grad_() for _ in range(2))
    theirs.data = ours.data.clone()
    loss, expected = barlow_twins(*ours, 0.0051), lightly_loss.BarlowTwinsLoss(lambda_param=0.0051)(*theirs)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)


ONE_RANK = """
import importlib.util, sys, torch
from pretrain.distributed import GradientReducer
rank, folder, file = int(sys.argv[1]), sys.argv[2], sys.argv[3]
spec = importlib.util.spec_from_file_location("rules", file)
rules = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rules)
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
views = torch.randn(2, 6, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
mine, found = views[:, rank * 3 : rank * 3 + 3].flatten(0, 1), {}
for loss in rules.LOSSES:
    for rule, units in rules.RULES.items():
        for chunk in (0, 2):
            learner, reducer = rules.make(units, loss=loss).eval(), GradientReducer()
            losses = learner.forward_backward(mine, chunk=chunk, ready=reducer)
            reducer.wait()
            found[loss, rule, chunk] = losses, {n: p.grad for n, p in learner.named_parameters()}
torch.save(found, f"{folder}/{rank}.pt")
torch.distributed.destroy_process_group()
"""


def test_two_processes_have_the_losses_and_gradients_of_the_whole_batch(tmp_path, request):
    """All rules, both losses, whole and in chunks; BN in evaluation mode, because gloo cannot synchronise it."""
    root = request.config.rootpath
    file = root / "tests" / "pretrain" / "learning" / "test_local.py"
    commands = [[sys.executable, "-c", ONE_RANK, str(rank), str(tmp_path), str(file)] for rank in (0, 1)]
    env = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    processes = [subprocess.Popen(c, cwd=root, env=env, stderr=subprocess.PIPE, text=True) for c in commands]
    for process in processes:
        _, error = process.communicate(timeout=180)
        assert process.returncode == 0, error
    spec = importlib.util.spec_from_file_location("rules", file)
    rules = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(rules)
    views = torch.randn(2, 6, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).flatten(0, 1)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert len(ranks[0]) == 2 * 2 * len(rules.RULES)
    for (loss, rule, chunk), (losses, gradients) in ranks[0].items():
        learner = rules.make(rules.RULES[rule], loss=loss).eval()
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
