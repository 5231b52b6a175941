"""What the files in ``configs/`` were called before: command lines, a ``_BASE_`` and stored runs may still say so."""

import errno
import os

from .shipped_configs import CONFIGS, find_config, nearest_name, shipped_names

# Old name -> name of today, below configs/ and without .yaml. What a * stands for is the same on both sides; the first
# line that fits counts
RENAMED = {
    "_base_*": "detection/_base_*",
    "cpu_loco_frozen": "detection/cpu_frozen/resnet18_loco",
    "table2/_base_coco": "detection/coco_frozen/_base",
    "table2/_base_cityscapes": "detection/cityscapes_frozen/_base",
    "table2/_base_shufflenetv2_50": "detection/_base_shufflenetv2_50",
    "table2/coco_*": "detection/coco_frozen/*",
    "table2/cityscapes_*": "detection/cityscapes_frozen/*",
    "table3/_base_coco_10k": "detection/coco_10k_finetune/_base",
    "table3/_base_coco_1k": "detection/coco_1k_finetune/_base",
    "table3/coco_10k_*": "detection/coco_10k_finetune/*",
    "table3/coco_1k_*": "detection/coco_1k_finetune/*",
    "finetune/_base_coco_*": "detection/coco_finetune_*/_base",
    "finetune/coco_resnet50_c4_2x_moco": "detection/coco_finetune_c4_2x/resnet50_moco_v1_200ep",
    "finetune/coco_resnet50_c4_2x_*": "detection/coco_finetune_c4_2x/resnet50_*",
    "finetune/coco_resnet50_fpn_1x_*": "detection/coco_finetune_fpn_1x/resnet50_*",
    "finetune/coco_resnet50_fpn_2x_*": "detection/coco_finetune_fpn_2x/resnet50_*",
    "pretrain/cpu_loco": "pretrain/cpu/resnet18_loco",
    "pretrain/_base_ablation": "pretrain/imagenet/_base_resnet50_100ep",
    "pretrain/_base_*": "pretrain/imagenet/_base_*",
    "pretrain/presnet50_*": "pretrain/imagenet/presnet50_*_100ep",
    "pretrain/resnet50_random": "pretrain/imagenet/resnet50_random",
    "pretrain/resnet50_barlow": "pretrain/imagenet/resnet50_barlow_1000ep",
    "pretrain/resnet50_barlow_300": "pretrain/imagenet/resnet50_barlow_300ep",
    "pretrain/resnet50_blockwise_*": "pretrain/imagenet/resnet50_blockwise_*_300ep",
    "pretrain/resnet50_*": "pretrain/imagenet/resnet50_*_800ep",
    "pretrain/shufflenetv2_50_*": "pretrain/imagenet/shufflenetv2_50_*_800ep",
    "pretrain/table4_end_to_end": "pretrain/imagenet/resnet50_simclr_100ep",
    "pretrain/table4_local_none": "pretrain/imagenet/resnet50_gim_100ep",
    "pretrain/table4_local_conv_sharing": "pretrain/imagenet/resnet50_loco_100ep",
    "pretrain/table4_*": "pretrain/ablations/decoder/*",
    "pretrain/table5_no_sharing": "pretrain/ablations/decoder/local_conv",  # one file for a row of two tables
    "pretrain/table5_share_1_stage": "pretrain/imagenet/resnet50_loco_100ep",
    "pretrain/table5_share_*": "pretrain/ablations/sharing/*",
    "pretrain/table5_*": "pretrain/ablations/sharing/*",
    "readout/_base_imagenet": "readout/imagenet/_base",
    "readout/imagenet_*": "readout/imagenet/*",
}


def name_of_today(path: str | os.PathLike[str]) -> str | None:
    """What a config is called today whose name was another one.

    Args:
        path: of a file in a folder ``configs/``, which need not be there.

    Returns:
        str: such as ``configs/detection/coco_frozen/resnet50_loco_800ep.yaml``; None if no file was renamed so.
    """
    _, _, name = os.path.abspath(path).rpartition("/configs/")
    name, ending = os.path.splitext(name)
    for old, new in RENAMED.items():
        beginning = old.removesuffix("*")
        if name == old or beginning != old and name.startswith(beginning):
            today = f"{new.replace('*', name[len(beginning) :])}.yaml"
            return f"configs/{today}" if ending == ".yaml" and (CONFIGS / today).is_file() else None
    return None


def moved_to(path: str | os.PathLike[str]) -> str | None:
    """Where a config is today that is no longer at this path: the file in the same ``configs/``.

    Args:
        path: as of :func:`name_of_today`.

    Returns:
        str: absolute; None if it was not renamed, or is not there either.
    """
    today = name_of_today(path)
    found = os.path.join(os.path.abspath(path).rpartition("/configs/")[0], today) if today else ""
    return found if os.path.isfile(found) else None


def refuse_missing(name: str, overlay: bool = False) -> None:
    """Refuse a config that is neither a file nor a shipped one.

    Args:
        name: of a command line, as for :func:`find_config`.
        overlay: whether it is merged over another config.

    Raises:
        FileNotFoundError: with the name that it has today, or that of the nearest shipped config.
    """
    path = find_config(name)
    if os.path.exists(path) or "://" in path:
        return
    if today := name_of_today(path):
        raise FileNotFoundError(errno.ENOENT, f"no such file, it is {today} now", name)
    names = [shipped for shipped in shipped_names() if shipped.startswith("overlays/")] if overlay else shipped_names()
    if near := nearest_name(name, names):
        hint = f"did you mean {near}?"
    else:
        short = ", ".join(shipped.removeprefix("overlays/").removesuffix(".yaml") for shipped in names)
        hint = f"name a file, or one of: {short}" if overlay else "loco-det configs lists the shipped ones"
    raise FileNotFoundError(f"{name}: no such file, and no shipped {'overlay' if overlay else 'config'}: {hint}")
