"""Both losses against their formulas, written as loops, and against lightly's."""

import math

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
