"""An encoder, its decoders and a local learning rule as one module."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..encoders import Encoder
from . import local
from .gradcache import embed, in_chunks
from .plan import make_plan, plan_of_one, refuse_turns
from .replay import uncached_autocast
from .segments import Segment
from .tape import Watch, unwatched
from .ties import tie_backward


class LocalLearner(nn.Module):
    """An encoder whose stages learn from the losses of *units*, runs of consecutive stages.

    A unit has a decoder and a loss on its top. The loss trains the decoder and the unit's stages and nothing below: the
    gradient is stopped at the unit's input. Units may overlap; a stage in several units gets the sum of their
    gradients. With the stages res2 (and stem), res3, res4, res5:

    =======================================================  ===================================================
    units                                                    method
    =======================================================  ===================================================
    [res2 res3] [res3 res4] [res4 res5]                      LoCo (Xiong, Ren, Urtasun 2020, Sec. 4)
    [res2] [res3] [res4] [res5]                              the paper's GIM: a stop-gradient between all stages
    [res2] [res3] [res4] [res5]                              blockwise Barlow Twins, with its decoder and loss
    [res2 res3[:1]] [res3 res4[:1]] [res4 res5[:1]] [res5]   sharing of one block (LoCo, Table 5)
    [res2 res3 res4 res5]                                    end to end
    none                                                     random: nothing learns
    =======================================================  ===================================================

    All of them run through :meth:`forward_backward`, with the schedule of local.py.

    Attributes:
        encoder, decoders, loss, noise, ties, tie_weight: see the constructor.
        plan: the encoder cut into segments, and which losses reach them.
    """

    def __init__(
        self,
        encoder: Encoder,
        units: Iterable[Sequence[str]],
        decoders: Mapping[str, nn.Module],
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        shared_gradient: str = "all",
        noise: float = 0.0,
        recompute: Iterable[str] = (),
        ties: Iterable[tuple[nn.Parameter, nn.Parameter]] = (),
        tie_weight: float = 0.0,
        split: Sequence[Sequence[str]] = (),
    ) -> None:
        """
        Args:
            encoder: an nn.Module with stages.
            units: a list of consecutive stage names for each unit. A slice such as "res3[:1]" stands for some of a
                stage's blocks.
            decoders: dict from the last name of each unit to its decoder, (2B, C, H, W) -> (2B, D).
            loss: function of the two views' embeddings, (B, D) and (B, D), to a scalar. If it is a module with
                parameters, they get gradients too, but never reach ``ready`` (see :meth:`forward_backward`): parallel
                processes would not average them.
            shared_gradient: a stage of several units learns from "all" their losses, or from the "upper"most one only.
                The gradients of the others pass through it to the stages below (Table 5).
            noise: on each stage's output in training, see :func:`add_noise`.
            recompute: stages, or slices of stages, whose blocks keep their inputs but no graph. A block runs forward
                again when a gradient is due at its output. A block whose unit has its loss in the same stage keeps its
                first graph for that loss, see local.py: in LoCo ``res5`` here changes nothing.
            ties: pairs of parameters, a decoder's and the encoder's, which an L2 penalty ties (Table 5).
            tie_weight: the penalty is this times the sum of squared differences.
            split: a list of consecutive stages or slices of stages for each device, if several devices share the
                stages (:class:`.stage_parallel.share.Share`).

        Raises:
            ValueError: if a unit or the split is not possible (see :func:`read_units` and :func:`read_split`), a stage
                or an option is not known, or the decoders are not those of the units.
        """
        super().__init__()
        self.encoder = encoder
        self.decoders = nn.ModuleDict(decoders)
        self.loss = loss
        self.shared_gradient, self.noise = shared_gradient, noise
        self.ties, self.tie_weight = list(ties), tie_weight
        self.plan = make_plan(encoder, units, recompute, shared_gradient, split)
        if decoders.keys() != self.plan.sections.keys():
            names = [", ".join(of) or "none" for of in (self.plan.sections, decoders)]
            raise ValueError(f"each unit needs one decoder of its name: units {names[0]}; decoders {names[1]}")

    @property
    def segments(self) -> list[Segment]:
        """The segments of the encoder, from the image upwards."""
        return self.plan.segments

    def compile(self, **kwargs: Any) -> None:
        """torch.compile the decoders, and the segments that one loss at most reaches.

        Compiled code always computes the parameter gradients too, so input-gradient passes would waste work. Segments
        that several losses reach stay eager.

        Args:
            kwargs: those of torch.compile.
        """
        modules = [*self.decoders.values(), *(s.module for s in self.segments if len(s.losses) < 2)]
        # torch compiles one function for 8 kinds of input (shapes, modes, ...) and silently leaves the rest uncompiled.
        # All modules here share the function, nn.Module's, and so one limit: give each module its 8.
        limit = 8 * len(modules)
        torch._dynamo.config.recompile_limit = max(limit, torch._dynamo.config.recompile_limit)
        for module in modules:
            module.compile(**kwargs)

    def forward_backward(
        self,
        views: Tensor,
        chunk: int = 0,
        ready: local.Ready = lambda parameters: None,
        prepare: Callable[[Tensor], Tensor] = lambda views: views,
        watch: Watch = unwatched,
        only: str | None = None,
    ) -> dict[str, Tensor]:
        """Accumulate the gradients of all losses into ``.grad``.

        Stages above the last loss run forward too, and so do all stages if there are no units: the running averages of
        BN follow.

        Args:
            views: (2B, 3, H, W), the first views of B images, then the second views.
            chunk: images that go through the network at a time, see :func:`in_chunks`; 0: all.
            ready: called once for each unit, before the next stage runs forward, with the list of parameters for which
                this was the last loss. Their gradients are final: parallel processes can average them while the next
                unit runs. With chunks it is called for the last chunk only.
            prepare: function of views, such as normalisation, which is called with one chunk at a time. With chunks it
                is called twice for each, both times with the same random numbers of torch.
            watch: see :func:`.local.forward_backward`.
            only: name of the unit that learns; None: all. The stages below it run in evaluation mode, with ``noise``
                on their outputs as ever, and without a graph. The stages above do not run.

        Returns:
            Name of each unit -> its loss, a detached scalar; "tie" -> the penalty, if there are ties.

        Raises:
            ValueError: if ``only`` is no unit's name, or the units cannot learn one after the other.
        """
        if only is not None:
            self.refuse_turns()
        plan = self.plan if only is None else plan_of_one(self.plan, only)
        losses: dict[str, Tensor] = {}
        noise = self.noise if self.training else 0.0

        def loss_gradient(unit: str, z: Tensor) -> Tensor:
            losses[unit], gradient = self.loss_and_gradient(z)
            return gradient

        def backward(part: Tensor, gradient_of: local.LossGradient, when_final: local.Ready) -> None:
            local.forward_backward(prepare(part), plan, self.decoders, gradient_of, when_final, noise, watch)

        with uncached_autocast(views.device):  # passes without a graph (chunk, recompute) must not fill its cache
            if self.ties:
                losses["tie"] = tie_backward(self.ties, self.tie_weight)
            if 0 < chunk < len(views) // 2:
                in_chunks(
                    views,
                    chunk,
                    lambda part: embed(prepare(part), plan, self.decoders, noise),
                    loss_gradient,
                    backward,
                    ready,
                )
            else:
                backward(views, loss_gradient, ready)
        return losses

    def refuse_turns(self) -> None:
        """Refuse units that cannot learn one after the other.

        Raises:
            ValueError: if units overlap, a stage is in none of them, or a penalty ties decoders to stages.
        """
        if self.ties:
            raise ValueError(
                "MODEL.DECODER.TIE ties decoders to stages that do not run yet: set it to 0 for units that learn one "
                "after the other (SOLVER.SEQUENTIAL)"
            )
        refuse_turns(self.plan)

    def loss_and_gradient(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, a detached scalar, of the embeddings ``z`` of both views, (2B, D), and d loss / d z."""
        z = z.detach().requires_grad_()
        loss = self.loss(*z.chunk(2))
        with torch.autocast(z.device.type, enabled=False):
            loss.backward()
        assert z.grad is not None
        return loss.detach(), z.grad
