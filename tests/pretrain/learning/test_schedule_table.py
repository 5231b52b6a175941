"""The table in the docstring of local.py against what LoCo's passes do."""

import weakref

import torch
from tiny_learner import LOCO, make

from pretrain.encoders import STAGE_NAMES
from pretrain.learning import local


def table_of_the_docstring():
    """Loss -> stage -> what happens to the stage."""
    lines = local.__doc__.splitlines()
    rules = [i for i, line in enumerate(lines) if line.startswith("=======  ")]
    edges = [i for i, c in enumerate(lines[rules[0]]) if c == "=" and (i == 0 or lines[rules[0]][i - 1] == " ")]
    cut = [[line[a:b].strip() for a, b in zip(edges, [*edges[1:], None], strict=True)] for line in lines]
    assert cut[rules[0] + 1] == ["loss of", *STAGE_NAMES]
    found = {}
    for name, *cells in cut[rules[1] + 1 : rules[2]]:
        if name:
            row = found[name] = dict.fromkeys(STAGE_NAMES, "")
        for stage, cell in zip(STAGE_NAMES, cells, strict=True):
            row[stage] = f"{row[stage]} {cell}".strip()
    return found


class Recorder:
    """Watches the stages of a learner: forward passes, gradients that are computed, tensors that a graph holds."""

    def __init__(self, learner):
        self.row = {stage: [] for stage in STAGE_NAMES}
        self.rows = {}
        self.saved = {stage: weakref.WeakSet() for stage in STAGE_NAMES}
        for stage, blocks in zip(STAGE_NAMES, learner.encoder.stages, strict=True):
            for block in blocks:
                self.watch_forward(stage, block, first=block is blocks[0])
            for parameter in blocks.parameters():
                parameter.register_post_accumulate_grad_hook(lambda _, stage=stage: self.note(stage, "full backward"))

    def watch_forward(self, stage, block, first):
        forward = block.forward

        class Saved:
            def __init__(_, tensor):
                _.tensor = tensor
                self.saved[stage].add(_)

        def watched(x):
            if first:
                self.note(stage, "forward")
                if x.requires_grad:
                    x.register_hook(lambda _: self.note(stage, "gradient at the input"))
            with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
                return forward(x)

        block.forward = watched

    def note(self, stage, event):
        if event not in self.row[stage]:
            self.row[stage].append(event)

    def end_row(self, loss):
        """What happened since the last row, in the words of the table."""
        row = self.rows[loss] = dict.fromkeys(STAGE_NAMES, "")
        for stage, events in self.row.items():
            words = [event for event in events if event != "gradient at the input"]
            if "full backward" in words:
                words += [] if self.saved[stage] else ["freed"]
            elif "gradient at the input" in events:
                words += ["input gradient"] if self.saved[stage] else ["input gradient", "freed"]
            row[stage] = ", ".join(words)
        self.row = {stage: [] for stage in STAGE_NAMES}


def test_the_table_of_the_docstring_is_what_happens():
    learner, losses = make(LOCO), iter(["res3", "res4", "res5"])
    recorder = Recorder(learner)
    learner.forward_backward(
        torch.randn(8, 3, 32, 32, dtype=torch.float64), ready=lambda _: recorder.end_row(next(losses))
    )
    assert recorder.rows == table_of_the_docstring()


def test_in_a_row_forward_passes_go_up_and_backward_passes_go_down():
    learner, order = make(LOCO), []
    for stage, blocks in zip(STAGE_NAMES, learner.encoder.stages, strict=True):
        blocks[0].register_forward_hook(lambda *_, stage=stage: order.append(f"{stage} forward"))
        last = list(blocks[0].parameters())[-1]
        last.register_post_accumulate_grad_hook(lambda _, stage=stage: order.append(f"{stage} full backward"))
    learner.forward_backward(torch.randn(8, 3, 32, 32, dtype=torch.float64), ready=lambda _: order.append("ready"))
    assert order == [
        *("res2 forward", "res3 forward", "res2 full backward", "ready"),
        *("res4 forward", "res3 full backward", "ready"),
        *("res5 forward", "res5 full backward", "res4 full backward", "ready"),
    ]  # fmt: skip
