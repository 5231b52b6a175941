"""Chunks against the whole batch."""

import copy

import pytest
import torch
from double_forward import assert_same, naive_embeddings, naive_losses
from tiny_learner import LOCO, LOSSES, RULES, TinyEncoder, make
from torch import nn


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("loss", LOSSES)
def test_chunks_have_the_gradients_of_the_whole_batch(rule, loss):
    """GradCache: with BN in evaluation mode the batch may be cut at will; the last chunk is smaller."""
    units, views = RULES[rule], torch.randn(10, 3, 32, 32, dtype=torch.float64)
    learner = make(units, loss=loss, recompute=["res3"]).eval()
    reference = copy.deepcopy(learner)
    assert_same(learner, reference, learner.forward_backward(views, chunk=2), naive_losses(reference, units, views))


@pytest.mark.parametrize("noise", [0.0, 0.25])
def test_chunks_in_training_normalise_by_themselves(noise):
    """The gradient is that of a network whose BN sees one chunk at a time, under the loss of the whole batch."""
    learner = make(LOCO, noise=noise)
    reference = copy.deepcopy(learner)
    views = torch.randn(8, 3, 32, 32, dtype=torch.float64)
    state = torch.get_rng_state()
    losses = learner.forward_backward(views, chunk=2)
    parts = {name: [] for name in losses}
    for c in (slice(0, 2), slice(2, 4)):
        piece = torch.cat([half[c] for half in views.chunk(2)])
        for name, z in naive_embeddings(reference, LOCO, piece, state).items():
            parts[name].append(z.unflatten(0, (2, -1)))
        torch.set_rng_state(state)
        for size in (16, 8, 4, 2):  # as much noise as the four stages have drawn
            torch.randn(4, {16: 4, 8: 6, 4: 8, 2: 8}[size], size, size, dtype=torch.float64)
        state = torch.get_rng_state()
    expected = {name: reference.loss(*torch.cat(z, dim=1)) for name, z in parts.items()}
    assert_same(learner, reference, losses, expected)
    assert learner.encoder.stages[0][0][1].num_batches_tracked == 2


def test_chunks_and_whole_batch_see_the_same_dropout():
    """With one image a chunk the embeddings of the first pass must be those that the second pass goes back through."""
    encoder = TinyEncoder()
    encoder.stages[1][1].append(nn.Dropout(0.5))
    learner, seen = make([["res2", "res3"]], encoder), []
    learner.decoders["res3"].register_forward_hook(lambda _, __, z: seen.append(z.detach()))
    learner.forward_backward(torch.randn(8, 3, 32, 32, dtype=torch.float64), chunk=2)
    assert len(seen) == 4 and torch.equal(seen[0], seen[2]) and torch.equal(seen[1], seen[3])
    assert not torch.equal(seen[0], seen[1])


def test_views_are_prepared_a_chunk_at_a_time():
    views, sizes = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8), []
    learner = make(LOCO).eval()
    reference = copy.deepcopy(learner)

    def prepare(piece):
        sizes.append(len(piece))
        return piece.double() / 128 - 1

    losses = learner.forward_backward(views, chunk=2, prepare=prepare)
    assert sizes == [4, 4, 2] * 2
    assert_same(learner, reference, losses, naive_losses(reference, LOCO, views.double() / 128 - 1))


def test_a_chunk_is_prepared_twice_with_the_same_random_numbers():
    drawn = []

    def prepare(piece):
        drawn.append(torch.rand(()))
        return piece

    make(LOCO).forward_backward(torch.randn(8, 3, 32, 32, dtype=torch.float64), chunk=2, prepare=prepare)
    assert drawn[:2] == drawn[2:] and drawn[0] != drawn[1]
