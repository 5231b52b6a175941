"""Local learning: which loss reaches which stage, and the order of forward and backward passes that makes it cheap."""

import torch
from torch import nn


class LocalLearner(nn.Module):
    """An encoder whose stages learn from the losses of UNITS, runs of consecutive stages.

    A unit has a decoder and a loss on its top stage. The loss trains the decoder and the unit's stages and nothing
    below: the gradient is stopped at the unit's input. Units may overlap; a stage in several units gets the sum of
    their gradients. With the stages res2 (and stem), res3, res4, res5:

    ==================================================  ===================================================
    units                                               method
    ==================================================  ===================================================
    [res2 res3] [res3 res4] [res4 res5]                 LoCo (Xiong, Ren, Urtasun 2020, Sec. 4)
    [res2] [res3] [res4] [res5]                         the paper's GIM: a stop-gradient between all stages
    [res2 res3 res4 res5]                               end-to-end SimCLR
    none                                                random: nothing learns
    ==================================================  ===================================================

    All of them run through :meth:`forward_backward`.
    """

    def __init__(self, encoder, units, decoders, loss):
        """
        Args:
            encoder: module with ``stages`` and ``stage_names``.
            units: list of units, each a list of consecutive stage names, from the image upwards.
            decoders: dict from the name of each unit's top stage to its decoder.
            loss: function of the two views' embeddings, (B, D) and (B, D), to a scalar.

        Raises:
            ValueError: if a unit is not a run of consecutive stages, or two units have the same top stage.
        """
        super().__init__()
        self.encoder = encoder
        self.decoders = nn.ModuleDict(decoders)
        self.loss = loss
        self.bottom_of = {}  # index of a unit's top stage -> index of its bottom stage
        names = list(encoder.stage_names)
        for unit in units:
            if not unit or unit[0] not in names or unit != names[names.index(unit[0]) :][: len(unit)]:
                raise ValueError(f"unit {unit} is not a run of consecutive stages of {names}")
            top = names.index(unit[-1])
            if top in self.bottom_of:
                raise ValueError(f"two units end at {unit[-1]}: a stage can be the top of one unit only")
            self.bottom_of[top] = top - len(unit) + 1

    def forward_backward(self, views):
        """One forward pass, and the gradient of every unit's loss accumulated into ``.grad``.

        Every stage runs forward once, on a detached copy of the stage below. When a unit's loss is known, its
        gradient walks down the unit. A stage that a later loss will still reach keeps its graph and hands down only
        the gradient with respect to its input; a stage that no later loss reaches gets one backward pass with the
        sum of what it is owed, and its graph is freed before the next stage runs. So a shared stage of LoCo costs
        one forward, one input-gradient and one full backward pass, where the usual double-forward formulation has
        two of each; the gradients are the same (tests/pretrain/test_local.py).

        Args:
            views: (2B, 3, H, W), the first views of B images, then the second views.

        Returns:
            dict: name of each unit's top stage -> loss, a detached scalar.
        """
        losses = {}
        graph = []  # of each stage: input, output, gradient that it is owed from losses so far
        x = views
        for k, (name, stage) in enumerate(zip(self.encoder.stage_names, self.encoder.stages, strict=True)):
            x = x.detach().requires_grad_(any(low < k <= top for top, low in self.bottom_of.items()))
            with torch.set_grad_enabled(self._last_loss(k) is not None):
                h = stage(x)
            graph.append([x, h, None])
            if k in self.bottom_of:
                leaf = h.detach().requires_grad_()
                loss = self.loss(*self.decoders[name](leaf).chunk(2))
                with torch.autocast(views.device.type, enabled=False):  # else the loss's own gradient is in bfloat16
                    loss.backward()
                    self._walk_down(graph, k, leaf.grad)
                losses[name] = loss.detach()
            x = h
        return losses

    def _last_loss(self, k):
        """Index of the last stage whose loss reaches stage k; None if no loss does."""
        return max((top for top, low in self.bottom_of.items() if low <= k <= top), default=None)

    def _walk_down(self, graph, top, grad):
        """Propagate ``grad``, d loss / d output of stage ``top``, through the unit that ends there."""
        for k in range(top, self.bottom_of[top] - 1, -1):
            x, h, owed = graph[k]
            goes_down, done = k > self.bottom_of[top], self._last_loss(k) == top
            params = list(self.encoder.stages[k].parameters())
            if done and owed is None:  # only this loss reaches the stage: the ordinary backward pass
                torch.autograd.backward(h, grad, inputs=[*params, x] if goes_down else params)
                below = x.grad
            else:
                below = torch.autograd.grad(h, x, grad, retain_graph=True)[0] if goes_down else None
                owed = grad if owed is None else owed + grad
                if done:
                    torch.autograd.backward(h, owed, inputs=params)
            graph[k] = None if done else [x, h, owed]
            grad = below
