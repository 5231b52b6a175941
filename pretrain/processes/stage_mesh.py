"""Which process of a run has which stages, and the groups of processes that send each other something."""

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh


@dataclass(frozen=True)
class StageMesh:
    """Processes as a table: a row for each run of stages, a column for each part of the batch.

    Attributes:
        stages: number of rows; the lowest stages are row 0.
        copies: number of columns: as many processes have the same stages, and divide the batch.
        stage: row of this process.
        copy: column of this process.
        up: this process's column, for activations: each direction has a group of its own, because NCCL sends and
            receives between two processes one after the other.
        down: the same column, for gradients.
        aside: the same column, for small tensors on the CPU, and objects.
        data: this process's row, which averages gradients and shares losses.
        data_objects: the same row, for objects.
        everyone: all processes, for tensors on the CPU.
    """

    stages: int
    copies: int
    stage: int
    copy: int
    up: dist.ProcessGroup
    down: dist.ProcessGroup
    aside: dist.ProcessGroup
    data: dist.ProcessGroup
    data_objects: dist.ProcessGroup
    everyone: dist.ProcessGroup

    @classmethod
    def of(cls, stages: int, device: str) -> "StageMesh":
        """Form the groups of this run's processes; a collective operation.

        Args:
            stages: number of runs of stages.
            device: MODEL.DEVICE.

        Raises:
            ValueError: if the processes cannot be divided so.
        """
        count = dist.get_world_size() if dist.is_initialized() else 1
        if count % stages or count < stages:
            raise ValueError(
                f"MODEL.STAGE_PARALLEL.DEVICES is {stages}, but there {'is' if count == 1 else 'are'} {count} "
                f"process{'' if count == 1 else 'es'}: start {stages}, or a multiple of it (--num-gpus {stages})"
            )
        copies = count // stages
        mesh = init_device_mesh(device.partition(":")[0], (stages, copies), mesh_dim_names=("stage", "data"))
        columns = [list(range(copy, count, copies)) for copy in range(copies)]
        rows = [list(range(stage * copies, (stage + 1) * copies)) for stage in range(stages)]
        up, data = mesh.get_group("stage"), mesh.get_group("data")
        return cls(
            stages=stages,
            copies=copies,
            stage=mesh.get_local_rank("stage"),
            copy=mesh.get_local_rank("data"),
            up=up,
            down=_own_group(columns),
            aside=_own_group(columns, "gloo"),
            data=data,
            data_objects=_own_group(rows, "gloo"),
            everyone=_own_group([list(range(count))], "gloo"),
        )

    def rank_of(self, stage: int) -> int:
        """The process that has some stages, in this process's column."""
        return stage * self.copies + self.copy


def _own_group(ranks: list[list[int]], backend: str | None = None) -> dist.ProcessGroup:
    """Form groups, and return the one that this process is in."""
    group, _ = dist.new_subgroups_by_enumeration(ranks, backend=backend)
    assert isinstance(group, dist.ProcessGroup)
    return group
