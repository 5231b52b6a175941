"""All losses against their formulas, written as loops, and against lightly's."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.learning.losses import barlow_twins, info_nce, vicreg


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


def vicreg_by_hand(z1, z2, weights):
    """main_vicreg.py of VICReg's authors, element by element."""
    n, d = z1.shape
    invariance = sum((float(a) - float(b)) ** 2 for a, b in zip(z1.flatten(), z2.flatten(), strict=True)) / (n * d)
    variance = covariance = 0.0
    for z in (z1, z2):
        columns = [[float(x) - float(column.mean()) for x in column] for column in z.T]
        for i, a in enumerate(columns):
            for j, b in enumerate(columns):
                c = sum(x * y for x, y in zip(a, b, strict=True)) / (n - 1)
                variance += max(0, 1 - math.sqrt(c + 1e-4)) / d / 2 if i == j else 0
                covariance += c**2 / d if i != j else 0
    return weights[0] * invariance + weights[1] * variance + weights[2] * covariance


@settings(max_examples=30, deadline=None)
@given(
    st.integers(2, 6), st.integers(1, 5), st.sampled_from([0.01, 0.5, 3.0]),
    st.sampled_from([(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]), st.integers(0, 100),
)  # fmt: skip
def test_vicreg_equals_the_formula(batch, dim, scale, weights, seed):
    z1, z2 = scale * torch.randn(2, batch, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = vicreg_by_hand(z1, z2, weights)
    assert float(vicreg(z1, z2, weights)) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])  # the hinge holds everywhere, for some dimensions, nowhere
def test_vicreg_equals_lightly_gradients_too(scale):
    lightly_loss = pytest.importorskip("lightly.loss", reason="lightly is not installed")
    ours = (scale * torch.randn(2, 16, 8, dtype=torch.float64)).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    loss = vicreg(*ours, (10.0, 20.0, 2.0))
    expected = lightly_loss.VICRegLoss(lambda_param=10.0, mu_param=20.0, nu_param=2.0)(*theirs)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(vicreg(*ours), lightly_loss.VICRegLoss()(*theirs))


def test_vicreg_gradient_in_float64():
    z = torch.randn(2, 5, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: vicreg(*z), z)


@pytest.mark.parametrize("loss", [lambda *z: barlow_twins(*z, 0.0051), vicreg])
def test_half_precision_embeddings_have_the_loss_of_float32(loss):
    z1, z2 = torch.randn(2, 32, 16)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(z1.bfloat16(), z2.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(z1.bfloat16().float(), z2.bfloat16().float()))
