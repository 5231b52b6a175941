"""Local learning: which loss reaches which stage, and the order of forward and backward passes that makes it cheap."""

import contextlib
import functools

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from .units import plan


class LocalLearner(nn.Module):
    """An encoder whose stages learn from the losses of UNITS, runs of consecutive stages.

    A unit has a decoder and a loss on its top. The loss trains the decoder and the unit's stages and nothing below: the
    gradient is stopped at the unit's input. Units may overlap; a stage in several units gets the sum of their
    gradients. With the stages res2 (and stem), res3, res4, res5:

    ==================================================  ===================================================
    units                                               method
    ==================================================  ===================================================
    [res2 res3] [res3 res4] [res4 res5]                 LoCo (Xiong, Ren, Urtasun 2020, Sec. 4)
    [res2] [res3] [res4] [res5]                         the paper's GIM: a stop-gradient between all stages;
                                                        blockwise Barlow Twins, with its decoder and loss
    [res2 res3[:1]] [res3 res4[:1]] [res4 res5[:1]]     sharing of one block (LoCo, Table 5)
    [res5]
    [res2 res3 res4 res5]                               end to end
    none                                                random: nothing learns
    ==================================================  ===================================================

    All of them run through :meth:`forward_backward`.
    """

    def __init__(
        self, encoder, units, decoders, loss, *, shared_gradient="all", noise=0.0, recompute=(), ties=(), tie_weight=0.0
    ):
        """
        Args:
            encoder: module with ``stage_names`` and ``stages``, a Sequential of blocks for each.
            units: list of units, each a list of consecutive stage names, from the image upwards. A slice such as
                "res3[:1]" stands for some of a stage's blocks.
            decoders: dict from the last name of each unit to its decoder.
            loss: function of the two views' embeddings, (B, D) and (B, D), to a scalar.
            shared_gradient: a stage of several units learns from "all" their losses, or from the "upper"most only;
                the others then reach through it the stages below (Table 5).
            noise: standard deviation of Gaussian noise on each stage's output in training, as a share of the standard
                deviation of the whole output tensor (blockwise Barlow Twins, arXiv 2302.01647).
            recompute: stages, or slices of stages, whose blocks keep only their inputs and run forward again, one by
                one, when their gradient is due.
            ties: pairs of parameters, a decoder's and the encoder's, which are tied by an L2 penalty (Table 5).
            tie_weight: the penalty is this x the sum of squared differences.

        Raises:
            ValueError: if a unit cannot be (see ``units.plan``) or an option is not known.
        """
        super().__init__()
        if shared_gradient not in ("all", "upper"):
            raise ValueError(f"shared_gradient is {shared_gradient!r}: choose all or upper")
        self.encoder = encoder
        self.decoders = nn.ModuleDict(decoders)
        self.loss = loss
        self.shared_gradient, self.noise, self.tie_weight = shared_gradient, noise, tie_weight
        self.ties = list(ties)
        self.segments, self.names, self.runs = plan(encoder, units, recompute)

    def compile(self, **kwargs):
        """torch.compile the decoders, and the segments that one loss only reaches. The compiled backward pass of the
        others would compute all gradients where the schedule asks for the input's only."""
        modules = [*self.decoders.values(), *(s.module for s in self.segments if len(s.tops) < 2)]
        limit = 8 * len(modules)  # modules share one limit, beyond which torch runs them uncompiled without a word
        torch._dynamo.config.recompile_limit = max(limit, torch._dynamo.config.recompile_limit)
        for module in modules:
            module.compile(**kwargs)

    def forward_backward(self, views, chunk=0, ready=lambda parameters: None, prepare=lambda views: views):
        """One forward pass, and the gradient of every unit's loss accumulated into ``.grad``.

        Every stage runs forward once, on a detached copy of the stage below. When a unit's loss is known, its
        gradient walks down the unit. A stage that a later loss will still reach keeps its graph and hands down only
        the gradient with respect to its input; a stage that no later loss reaches gets one backward pass with the
        sum of what it is owed, and its graph is freed before the next stage runs. So a shared stage of LoCo costs
        one forward, one input-gradient and one full backward pass, where the usual double-forward formulation has
        two of each; the gradients are the same (tests/pretrain/test_local.py).

        With ``chunk`` the embeddings of all images are computed first, ``chunk`` images at a time and without a graph;
        then the losses of the whole batch and their gradients with respect to the embeddings; then each chunk runs
        again, forward and backward from these gradients (GradCache, Gao et al. 2021, arXiv 2101.06983). The gradients
        are those of the whole batch; BN normalises each chunk by itself and updates its averages once a chunk.

        What runs forward a second time gets the same random numbers: Dropout and the like, noise, ``prepare``.

        Args:
            views: (2B, 3, H, W), the first views of B images, then the second views.
            chunk: images that go through the network at a time; 0: all.
            ready: called once a unit, with the list of parameters whose gradient is now final, before the next unit
                runs forward.
            prepare: function of views (normalisation, say), which is called with one chunk at a time.

        Returns:
            dict: name of each unit's top -> loss, a detached scalar; and "tie", if there are ties.
        """
        device = views.device.type
        dtype, enabled = torch.get_autocast_dtype(device), torch.is_autocast_enabled(device)
        # without the cache, which would hand a weight that was cast without a graph to a pass that needs one
        self._autocast = functools.partial(torch.autocast, device, dtype, enabled, cache_enabled=False)
        with self._autocast():
            losses = self._tie() if self.ties else {}
            batch = len(views) // 2
            if not 0 < chunk < batch:

                def backward(name, z):
                    loss = self.loss(*z.chunk(2))
                    losses[name] = loss.detach()
                    return loss, None

                self._step(prepare(views), backward, ready)
                return losses
            first, second = views.chunk(2)
            chunks = [slice(i, i + chunk) for i in range(0, batch, chunk)]
            states, z = [], {name: [] for name in self.decoders}
            for c in chunks:
                states.append(_random_state(views))
                self._embed(prepare(torch.cat([first[c], second[c]])), z)
            gradients = {name: self._gradient(name, torch.cat(parts, dim=1), losses) for name, parts in z.items()}
            for c, state in zip(chunks, states, strict=True):
                with _random(state, views):
                    self._step(
                        prepare(torch.cat([first[c], second[c]])),
                        lambda name, z, c=c: (z, gradients[name][:, c].flatten(0, 1).to(z.dtype)),
                        ready if c is chunks[-1] else lambda parameters: None,
                    )
        return losses

    def _step(self, views, backward, ready):
        """Forward and backward. ``backward(name, z)`` says from where: a tensor and its gradient (None: a loss)."""
        tape, h = [], views
        for segment in self.segments:
            x = h.detach().requires_grad_(segment.needs_input_gradient)
            tape.append(_Entry(x, _random_state(x) if segment.recompute else None))
            with torch.set_grad_enabled(segment.keep):
                h = self._run(segment, x)
            tape[-1].h = h if segment.keep else None
            top = segment.index
            if top in self.names:
                leaf = h.detach().requires_grad_()
                decoder = self.decoders[self.names[top]]
                start, gradient = backward(self.names[top], decoder(leaf))
                with torch.autocast(views.device.type, enabled=False):  # else some of it would be in low precision
                    torch.autograd.backward(start, gradient)
                    tape[top].gradient = leaf.grad
                    gradient = leaf = start = None  # freed, as all below, as soon as can be
                    final = self._walk_down(tape, top)
                ready([*decoder.parameters(), *final])

    def _walk_down(self, tape, top):
        """Propagate the gradient with respect to segment ``top``'s output down the unit that ends there.

        Returns the parameters whose gradient is final, because no later loss reaches them.
        """
        final = []
        for run in self.runs[top]:
            head, done = tape[run[0].index], max(run[0].tops) == top
            goes_down = run[-1].index > run[-1].bottom_of[top]
            apart = goes_down and (head.owed is not None or not done)  # what is below has had the gradients owed here
            owed, head.owed = head.owed, None
            if self.shared_gradient == "all" or done:
                owed = head.gradient if owed is None else owed + head.gradient
            if apart:
                for segment in run:
                    self._input_gradient(tape, segment, done)
            head.gradient, head.owed, owed = (owed, None, None) if done else (None, owed, None)
            if done:
                for segment in run:
                    self._full_backward(tape, segment, segment is not run[-1] or (goes_down and not apart))
                    final += segment.module.parameters()
        return final

    def _input_gradient(self, tape, segment, done):
        """Hand down the gradient with respect to the segment's input only; what is recomputed loses its graph again."""
        entry = tape[segment.index]
        h, keep = self._output(entry, segment), done or not segment.recompute
        entry.h = h if keep else None
        start = _Start.apply(h, entry)
        below = torch.autograd.grad(start, entry.x, retain_graph=keep)[0]
        tape[segment.index - 1].gradient = below

    def _full_backward(self, tape, segment, goes_down):
        """Accumulate the gradients of the segment's parameters, hand down that of its input if wanted, free it all."""
        entry, tape[segment.index] = tape[segment.index], None
        wanted = [p for p in segment.module.parameters() if p.requires_grad] + [entry.x] * goes_down
        if not wanted:
            return
        start = _Start.apply(self._output(entry, segment), entry)
        entry.h = None
        torch.autograd.backward(start, inputs=wanted)
        if goes_down:
            tape[segment.index - 1].gradient = entry.x.grad

    def _output(self, entry, segment):
        """The segment's output with its graph, which is made again if it was not kept."""
        if entry.h is not None:
            return entry.h
        with self._autocast(), torch.enable_grad(), _running_statistics_kept(segment.module):
            with _random(entry.state, entry.x):
                return self._run(segment, entry.x)

    def _run(self, segment, x):
        """The segment's output, (B, C, H, W)."""
        h = segment.module(x)
        if self.noise and self.training and segment.ends_stage:
            # as in the reference code (shoaibahmed/blockwise_ssl, model.py) the gradient flows through the deviation,
            # which is that of what this process sees at a time
            batch, channels, *sides = h.shape
            # drawn in the memory's order, channels_last: in another one the CPU takes five times as long
            noise = torch.randn(batch, *sides, channels, dtype=h.dtype, device=h.device).movedim(-1, 1)
            h = h + self.noise * h.std() * noise
        return h

    @torch.no_grad()
    def _embed(self, h, z):
        """Append the embeddings of some images, (2, B, D), to ``z`` of each unit."""
        with _running_statistics_kept(self):
            for segment in self.segments:
                h = self._run(segment, h)
                if segment.index in self.names:
                    name = self.names[segment.index]
                    z[name].append(self.decoders[name](h).unflatten(0, (2, -1)))

    def _gradient(self, name, z, losses):
        """d loss / d embeddings, (2, B, D), of one unit; adds to ``losses``."""
        loss = self.loss(*z.requires_grad_())
        losses[name] = loss.detach()
        with torch.autocast(z.device.type, enabled=False):
            return torch.autograd.grad(loss, z)[0]

    def _tie(self):
        """The L2 penalty between tied parameters, whose gradient is added to both."""
        penalty = self.tie_weight * sum((a - b).square().sum() for a, b in self.ties)
        penalty.backward()
        return {"tie": penalty.detach()}


class _Entry:
    """What a segment leaves on its way forward: input, state of the random generators if it is recomputed, output if it
    is kept; then the gradient with respect to its output of the loss at hand, and the sum of what it is owed from
    losses before."""

    def __init__(self, x, state):
        self.x, self.state = x, state
        self.h = self.gradient = self.owed = None


class _Start(torch.autograd.Function):
    """Backward starts with the entry's gradient, and nobody but the engine holds it then: it is freed at once."""

    @staticmethod
    def forward(ctx, h, entry):
        ctx.entry = entry
        return h.new_zeros(())

    @staticmethod
    def backward(ctx, _):
        gradient, ctx.entry.gradient = ctx.entry.gradient, None
        return gradient, None


@contextlib.contextmanager
def _running_statistics_kept(module):
    """BN normalises as it would, but leaves its running statistics: what runs forward again must not count twice."""
    norms = [m for m in module.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _random_state(x):
    """State of torch's random generators of the CPU and of the device of ``x``."""
    return torch.get_rng_state(), torch.cuda.get_rng_state(x.device) if x.is_cuda else None


@contextlib.contextmanager
def _random(state, x):
    """Draw the numbers that followed ``state``, and leave the generators as they are."""
    with torch.random.fork_rng([x.device] if x.is_cuda else []):
        torch.set_rng_state(state[0])
        if x.is_cuda:
            torch.cuda.set_rng_state(state[1], x.device)
        yield
