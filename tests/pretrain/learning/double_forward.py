"""The textbook formulation of local learning, and comparisons with it: each unit runs forward by itself."""

import copy

import torch
from tiny_learner import make


def blocks_of(part, encoder):
    """(stage, block) pairs of "res3" or "res3[:1]"."""
    name, _, cut = part.partition("[")
    k = list(encoder.stage_names).index(name)
    return [(k, i) for i in eval(f"list(range({len(encoder.stages[k])}))" + (f"[{cut}" if cut else ""))]


def naive_embeddings(learner, units, views, state=None):
    """Each unit runs its own forward pass from the image on, on a detached input: the textbook formulation."""
    encoder, found = learner.encoder, {}
    spans = {unit[-1]: [b for part in unit for b in blocks_of(part, encoder)] for unit in units}
    by_height = sorted(spans, key=lambda top: spans[top][-1])
    last_unit = {b: top for top in by_height for b in spans[top]}
    for top, span in spans.items():
        x = views
        if state is not None:
            torch.set_rng_state(state)  # every stage's noise is the same, whichever unit looks at it
        for k, stage in enumerate(encoder.stages):
            for i, module in enumerate(stage):
                if (k, i) == span[0]:
                    x = x.detach()
                if learner.shared_gradient == "upper" and last_unit.get((k, i)) != top:
                    module = copy.deepcopy(module).requires_grad_(False)  # the gradient passes, but trains nothing
                x = module(x)
                if i == len(stage) - 1 and learner.noise and learner.training:
                    if x.dim() == 4:
                        noise = torch.randn(x.permute(0, 2, 3, 1).shape, dtype=x.dtype).permute(0, 3, 1, 2)
                    else:
                        noise = torch.randn(x.shape, dtype=x.dtype)  # tokens
                    x = x + learner.noise * x.std() * noise
                if (k, i) == span[-1]:
                    found[top] = learner.decoders[top](x)
                    break
            if top in found:
                break
    return found


def naive_losses(learner, units, views, state=None):
    losses = {n: learner.loss(*z.chunk(2)) for n, z in naive_embeddings(learner, units, views, state).items()}
    if learner.ties:
        losses["tie"] = learner.tie_weight * sum(((a - b) ** 2).sum() for a, b in learner.ties)
    return losses


def assert_same(learner, reference, losses, expected):
    if expected:
        sum(expected.values()).backward()
    assert losses.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(losses[name], loss.detach(), rtol=1e-12, atol=1e-14)
    whole = sum(q.grad.norm() for q in reference.parameters() if q.grad is not None)
    for (name, p), q in zip(learner.named_parameters(), reference.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:  # a bias that a normalisation follows has no gradient but rounding
            assert (p.grad - q.grad).norm() <= 1e-10 * q.grad.norm() + 1e-15 * whole, name


def assert_same_gradients(units, encoder=None, bottleneck=False, size=32, training=True, **options):
    learner = make(units, encoder, bottleneck, **options).train(training)
    reference = copy.deepcopy(learner)
    views = torch.randn(8, 3, size, size, dtype=torch.float64)
    state = torch.get_rng_state()
    losses = learner.forward_backward(views)
    assert_same(learner, reference, losses, naive_losses(reference, units, views, state))
