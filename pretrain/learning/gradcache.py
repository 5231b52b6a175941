"""GradCache (Gao et al. 2021, arXiv 2101.06983): the gradients of a large batch, a few images at a time."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .local import LossGradient, Ready
from .plan import Plan
from .replay import RandomState, running_statistics_kept

Embeddings = dict[str, Tensor]  # name of a unit -> (2B, D): the first views of B images, then the second views


def in_chunks(
    views: Tensor,
    chunk: int,
    embed_chunk: Callable[[Tensor], Embeddings],
    loss_gradient: LossGradient,
    backward: Callable[[Tensor, LossGradient, Ready], None],
    ready: Ready,
) -> None:
    """Accumulate the gradients of all losses, in three steps.

    1. Every chunk runs forward without a graph, for its embeddings.
    2. The losses need the embeddings of all images, and give a gradient with respect to each embedding.
    3. Every chunk runs forward again, with the same random numbers, and backward from its part of these gradients.

    The gradients of the parameters are those of the whole batch. Only BN, and the noise's standard deviation, see one
    chunk at a time: BN updates its averages once a chunk.

    Args:
        views: (2B, 3, H, W), the first views of B images, then the second views.
        chunk: images at a time.
        embed_chunk: from the views of a chunk, (2b, 3, H, W), to the embeddings of all units.
        loss_gradient: from all embeddings of a unit to the gradient of its loss.
        backward: the schedule for the views of a chunk, a function that gives the gradients of its embeddings, and a
            function that is called when gradients are final.
        ready: that function for the last chunk. With the chunks before, no gradient is final.
    """
    first, second = views.chunk(2)
    chunks = [slice(start, start + chunk) for start in range(0, len(first), chunk)]
    states, embeddings = [], []
    for part in chunks:
        states.append(RandomState.now(views.device))
        embeddings.append(embed_chunk(torch.cat([first[part], second[part]])))
    gradients = {name: loss_gradient(name, _join([z[name] for z in embeddings])) for name in embeddings[0]}
    for part, state in zip(chunks, states, strict=True):
        # z is not needed: step 2 has computed the gradient. The default keeps this chunk's part for this function.
        def gradient_of_part(name: str, z: Tensor, part: slice = part) -> Tensor:
            return _rows(gradients[name], part)

        with state.restored():
            both_views = torch.cat([first[part], second[part]])
            backward(both_views, gradient_of_part, ready if part is chunks[-1] else lambda parameters: None)


@torch.no_grad()
def embed(views: Tensor, plan: Plan, decoders: nn.ModuleDict, noise: float = 0.0) -> Embeddings:
    """Embeddings of views, (2b, 3, H, W), in all units, without a graph; BN's averages stay as they are."""
    z: Embeddings = {}
    h = views
    modules = nn.ModuleList([*(segment.module for segment in plan.segments), *decoders.values()])
    with running_statistics_kept(modules):
        for segment in plan.segments:
            h = segment.forward(h, noise)
            if segment.top_of is not None:
                z[segment.top_of] = decoders[segment.top_of](h)
    return z


def _join(chunks: list[Tensor]) -> Tensor:
    """Put the embeddings of chunks, (2b, D) each, together to those of the batch, (2B, D)."""
    return torch.cat([z.unflatten(0, (2, -1)) for z in chunks], dim=1).flatten(0, 1)


def _rows(z: Tensor, part: slice) -> Tensor:
    """The rows of some images: from (2B, D) to (2b, D)."""
    return z.unflatten(0, (2, -1))[:, part].flatten(0, 1)
