"""A checkpoint of several processes, in the form of one: process 0 collects the parts, and writes the file."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm
from fvcore.common.config import CfgNode
from torch import nn

from ...files.checkpoints import checkpoint_names
from ...processes.stage_mesh import StageMesh
from ..checkpoint import AtomicCheckpointer

LATE = "late"  # gradients that the next step uses, by the names of their parameters


class StageCheckpointer(AtomicCheckpointer):
    """Writes the file that one process would write, and reads what concerns this process's stages.

    With MODEL.STAGE_PARALLEL.LATE the file also has gradients that the next step uses.
    """

    def __init__(
        self, cfg: CfgNode, model: nn.Module, mesh: StageMesh, drain: Callable[[], object], *args: Any, **kwargs: Any
    ) -> None:
        """
        Args:
            cfg, args, kwargs: as of :class:`AtomicCheckpointer`.
            model: the learner; what other processes train has no memory ("meta").
            mesh: the processes.
            drain: waits until no gradient is on its way; those left in ``.grad`` are stored.
        """
        super().__init__(cfg, model, *args, **kwargs)
        self.run["processes"] = mesh.copies
        self._mesh, self._drain = mesh, drain
        self._whole: dict[str, Any] | None = None
        groups: tuple[list[str], list[str]] = ([], [])  # the order of build_optimizer
        for name, p in model.named_parameters():
            groups[p.ndim <= 1].append(name)
        self._groups = groups

    def save(self, name: str, **kwargs: Any) -> None:
        """As :meth:`AtomicCheckpointer.save`; a collective operation."""
        self._drain()
        self._whole = self._collect(self._part())
        super().save(name, **kwargs)
        self._whole = None

    def save_final(self, iteration: int) -> None:
        """As :meth:`AtomicCheckpointer.save_final`; a collective operation."""
        if comm.all_gather(checkpoint_names(self.save_dir)[:1] != ["model_final.pth"])[0]:
            self.save("model_final", iteration=iteration)

    def whole_model(self) -> dict[str, torch.Tensor] | None:
        """All weights and running statistics, on the CPU, in process 0; None in others. A collective operation."""
        whole = self._collect({"model": self._own_model()})
        return None if whole is None else whole["model"]

    def _states(self) -> dict[str, Any]:
        assert self._whole is not None
        others = {k: obj.state_dict() for k, obj in self.checkpointables.items() if k != "optimizer"}
        optimizer = {
            "state": {i: state for i, name in self._numbered() if (state := self._whole["optimizer"].get(name))},
            "param_groups": self._param_groups(self._groups),
        }
        states = {"model": self._whole["model"], "optimizer": optimizer} | others
        return states | ({LATE: self._whole[LATE]} if self.cfg.MODEL.STAGE_PARALLEL.LATE else {})

    def _take(self, saved: Mapping[str, Any]) -> None:
        model = self.model.state_dict()
        if model.keys() != saved["model"].keys():
            raise KeyError(f"other names of weights: {sorted(model.keys() ^ saved['model'].keys())[:3]}")
        for name, tensor in model.items():
            if tensor.shape != saved["model"][name].shape:
                raise ValueError(f"{name} has another shape")
            if not tensor.is_meta:
                tensor.copy_(saved["model"][name])
        own = [[name for name in group if not model[name].is_meta] for group in self._groups]
        numbers = {name: i for i, name in enumerate([*own[0], *own[1]])}
        state = {numbers[name]: saved["optimizer"]["state"][i] for i, name in self._numbered()
                 if name in numbers and i in saved["optimizer"]["state"]}  # fmt: skip
        groups = [
            {**group, "params": [numbers[name] for name in names]}
            for group, names in zip(saved["optimizer"]["param_groups"], own, strict=True)
        ]
        self.checkpointables["optimizer"].load_state_dict({"state": state, "param_groups": groups})
        for key, obj in self.checkpointables.items():
            if key != "optimizer":
                obj.load_state_dict(saved[key])
        for name, gradient in saved.get(LATE, {}).items():
            parameter = self.model.get_parameter(name)
            if not parameter.is_meta:
                parameter.grad = gradient.to(parameter.device)

    def _numbered(self) -> list[tuple[int, str]]:
        """The parameters' names, numbered as in the state of one process's optimiser."""
        return list(enumerate([*self._groups[0], *self._groups[1]]))

    def _param_groups(self, names: tuple[list[str], list[str]]) -> list[dict[str, Any]]:
        """The options of the optimiser's groups, with the numbers of the parameters of all processes."""
        numbers = iter(range(len(names[0]) + len(names[1])))
        groups = self.checkpointables["optimizer"].state_dict()["param_groups"]
        return [{**group, "params": [next(numbers) for _ in of]} for group, of in zip(groups, names, strict=True)]

    def _own_model(self) -> dict[str, torch.Tensor]:
        return {name: tensor.cpu() for name, tensor in self.model.state_dict().items() if not tensor.is_meta}

    def _part(self) -> dict[str, Any]:
        """What this process adds to a checkpoint, by the names of parameters, on the CPU."""
        optimizer, parameters = self.checkpointables["optimizer"], dict(self.model.named_parameters())
        return {
            "model": self._own_model(),
            "optimizer": {
                name: {key: value.cpu() if torch.is_tensor(value) else value for key, value in state.items()}
                for name, p in parameters.items()
                if (state := optimizer.state.get(p))
            },
            LATE: {name: p.grad.cpu() for name, p in parameters.items() if p.grad is not None},
        }

    def _collect(self, part: dict[str, Any]) -> dict[str, Any] | None:
        """Bring the parts of the first column's processes to process 0.

        Returns:
            The whole, in the order of the learner's names; None in other processes.
        """
        mesh = self._mesh
        if mesh.copy:
            return None
        if mesh.stage:
            dist.send_object_list([part], dst=mesh.rank_of(0), group=mesh.aside)
            return None
        whole = {key: dict(values) for key, values in part.items()}
        for stage in range(1, mesh.stages):
            box: list[Any] = [None]
            dist.recv_object_list(box, src=mesh.rank_of(stage), group=mesh.aside)
            for key, values in box[0].items():
                whole[key].update(values)
        whole["model"] = {name: whole["model"][name] for name in self.model.state_dict()}
        return whole
