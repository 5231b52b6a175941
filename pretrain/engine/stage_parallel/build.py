"""The part of a learner that one process trains: only this part gets to its device."""

from fvcore.common.config import CfgNode

from ...learning.build import assemble_learner, place_learner
from ...learning.learner import LocalLearner
from ...learning.stage_parallel.share import Share, refuse_impossible
from ...processes.distributed import broadcast_state
from ...processes.stage_mesh import StageMesh
from .memory import give_back_all


def build_share(cfg: CfgNode, mesh: StageMesh) -> Share:
    """Build the whole learner on the CPU, drop what other processes train, and move the rest to MODEL.DEVICE.

    The initial weights are those of process 0, which are those of one process with the same seed. The memory of what is
    dropped goes back to the system.

    Args:
        cfg: with MODEL.STAGE_PARALLEL.SPLIT.
        mesh: the processes.

    Raises:
        ValueError: if several devices cannot train the learner as one would, or a name is not known.
    """
    learner = assemble_learner(cfg, mesh.data)
    refuse_learner(learner, cfg.MODEL.STAGE_PARALLEL.LATE)
    share = Share(learner, mesh.stage, cfg.MODEL.STAGE_PARALLEL.LATE)
    broadcast_state(learner, mesh.everyone)
    share.drop_others()
    place_learner(learner, cfg)
    give_back_all()
    return share


def refuse_learner(learner: LocalLearner, late: bool) -> None:
    """Refuse what several devices cannot train as one would.

    Args:
        learner: built with a split.
        late: MODEL.STAGE_PARALLEL.LATE.

    Raises:
        ValueError: naming the keys, and saying why.
    """
    try:
        refuse_impossible(learner, late)
    except ValueError as error:
        raise ValueError(f"MODEL.STAGE_PARALLEL: {error}") from None
