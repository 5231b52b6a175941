"""A run that diverges is stopped before the optimiser's step, so that no checkpoint holds the diverged weights."""

import math
from collections.abc import Mapping, Sequence

import torch

from ..processes.distributed import worst_of_processes


def refuse_divergence(
    losses: Mapping[str, torch.Tensor],
    parts: Mapping[str, Sequence[torch.nn.Parameter]],
    max_loss: float,
    iteration: int,
    group: torch.distributed.ProcessGroup | None = None,
) -> float:
    """Check losses and gradients, to be called in every process between backward pass and optimiser step.

    All processes raise together, because the largest values over all processes decide.

    Args:
        losses: name of each unit -> its loss, a scalar on the device.
        parts: name of a part of the network -> its parameters; errors name the part.
        max_loss: SOLVER.MAX_LOSS.
        iteration: for the error message.
        group: the processes that divide the batch; None: all.

    Returns:
        The L2 norm of the whole gradient.

    Raises:
        FloatingPointError: if a loss is not finite or above ``max_loss``, or a gradient is not finite.
    """
    grads = {part: [p.grad for p in params if p.grad is not None] for part, params in parts.items()}
    norms = {part: torch.nn.utils.get_total_norm(g) for part, g in grads.items() if g}
    worst = worst_of_processes([*losses.values(), *norms.values()], group)
    worst_norms = dict(zip(norms, worst[len(losses) :], strict=True))
    wrong = [
        f"loss_{name} is {'not finite' if math.isinf(loss) else f'{loss:.4g}, above SOLVER.MAX_LOSS {max_loss:g}'}"
        for name, loss in zip(losses, worst, strict=False)
        if math.isinf(loss) or loss > max_loss
    ] or [f"the gradient of {part} is not finite" for part, norm in worst_norms.items() if math.isinf(norm)]
    if wrong:
        raise FloatingPointError(
            f"{', '.join(wrong)} at iteration {iteration}: start anew with a lower SOLVER.BASE_LR or a longer "
            "warm-up; the checkpoints until then are kept"
        )
    return math.hypot(*worst_norms.values())
