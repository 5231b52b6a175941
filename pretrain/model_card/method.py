"""What a pretraining config is, in the field's terms."""

from collections.abc import Sequence

from fvcore.common.config import CfgNode

from ..encoders.spec import TIMM

LOCO = "LoCo (Xiong, Ren, Urtasun 2020, arXiv 2008.01342)"
GIM = "Greedy InfoMax as in the LoCo paper (GIM: arXiv 1905.11786; SimCLR's loss on every stage: arXiv 2008.01342)"
SIMCLR = "SimCLR (arXiv 2002.05709), end to end"
BARLOW = "Barlow Twins (arXiv 2103.03230), end to end"
VICREG = "VICReg (arXiv 2105.04906), end to end"
BLOCKWISE = "blockwise Barlow Twins (Siddiqui, Krueger, LeCun, Deny 2023, arXiv 2302.01647)"
RANDOM = "random initialisation, the control: nothing but BN's running statistics follows the images"


def method_of(cfg: CfgNode, stages: Sequence[str]) -> tuple[str, str]:
    """What the units and the loss make it.

    Args:
        cfg: the config.
        stages: names of the encoder's stages.

    Returns:
        tuple: short name, and the same with its source.
    """
    units, stages, loss = [list(unit) for unit in cfg.MODEL.UNITS], list(stages), cfg.LOSS.NAME
    alone = [[stage] for stage in stages]
    pairs = [list(pair) for pair in zip(stages, stages[1:], strict=False)]
    if not units:
        return "random", RANDOM
    if units == [stages]:
        return {"barlow_twins": ("Barlow Twins", BARLOW), "vicreg": ("VICReg", VICREG)}.get(loss, ("SimCLR", SIMCLR))
    if units == alone:
        short = {"barlow_twins": "blockwise Barlow Twins", "vicreg": "blockwise VICReg"}.get(loss, "GIM")
        return short, GIM if short == "GIM" else BLOCKWISE.replace("blockwise Barlow Twins", short)
    if units in (pairs, [stages[:1], *pairs]):
        short = {"barlow_twins": "LoCo with Barlow Twins' loss", "vicreg": "LoCo with VICReg's loss"}.get(loss, "LoCo")
        note = "" if units == pairs else f", with a further loss on {stages[0]} as in its supplement"
        return short, LOCO.replace("LoCo", short, 1) + note
    return "local learning", "local learning with units that have no name of their own"


def reach_of(cfg: CfgNode, stages: Sequence[str]) -> dict[str, str]:
    """Which losses reach each stage, in words.

    Returns:
        dict: stage -> text.
    """
    reach = {}
    for stage in stages:
        losses = []
        for unit in cfg.MODEL.UNITS:
            parts = [part for part in unit if part.partition("[")[0] == stage]
            losses += [f"loss_{unit[-1]}{f' ({part})' if part not in (stage, unit[-1]) else ''}" for part in parts]
        if len(losses) > 1 and cfg.MODEL.SHARED_GRADIENT == "upper":
            losses = [f"{losses[-1]} only; {', '.join(losses[:-1])} passes through"]
        reach[stage] = ", ".join(losses) or "none: as initialised"
    return reach


def loss_of(cfg: CfgNode) -> str:
    """The loss and its numbers."""
    loss, plural = cfg.LOSS, len(cfg.MODEL.UNITS) > 1
    if loss.NAME == "info_nce":
        text = f"InfoNCE (NT-Xent) of L2-normalised embeddings, temperature {loss.TEMPERATURE:g}"
    elif loss.NAME == "barlow_twins":
        text = f"Barlow Twins, λ {loss.LAMBDA:g}"
    else:
        text = "VICReg, {:g} x invariance + {:g} x variance + {:g} x covariance".format(*loss.VICREG)
    text += f", x {loss.SCALE:g}" if loss.SCALE != 1 else ""
    how = "of one unit after the other" if cfg.SOLVER.SEQUENTIAL else "plain sum over the units"
    return text + (f", {how}" if plural else "")


def schedule_of(cfg: CfgNode) -> str:
    """Optimiser and learning rate."""
    s = cfg.SOLVER
    momentum = f", momentum {s.MOMENTUM:g}" if s.OPTIMIZER in ("LARS", "SGD") else ""
    turns = f" in each of {len(cfg.MODEL.UNITS)} equal turns, stages below frozen" if s.SEQUENTIAL else ""
    bias = f" (BN and biases: x {s.BIAS_LR_FACTOR:g})" if s.BIAS_LR_FACTOR != 1 else ""
    norms = "norms, biases, tokens and position embeddings" if cfg.MODEL.ENCODER.startswith(TIMM) else "BN and biases"
    return (
        f"{s.OPTIMIZER}{momentum}, weight decay {s.WEIGHT_DECAY:g} (none on {norms}); learning rate "
        f"{s.BASE_LR * s.IMS_PER_BATCH / 256:g} = {s.BASE_LR:g} x {s.IMS_PER_BATCH} / 256{bias}, "
        f"{s.WARMUP_EPOCHS:g} epochs of linear warm-up, cosine to 0{turns}"
    )


def augmentation_of(cfg: CfgNode) -> str:
    """The two views' augmentation."""
    i = cfg.INPUT
    text = (
        f"random resized crop of {i.CROP_AREA[0]:g} to {i.CROP_AREA[1]:g} of the area to {i.CROP_SIZE} px, flip, "
        f"colour jitter {', '.join(f'{x:g}' for x in i.JITTER)} (brightness, contrast, saturation, hue) with "
        f"probability {i.JITTER_PROB:g}, grayscale {i.GRAYSCALE_PROB:g}, Gaussian blur {i.BLUR_PROB[0]:g} and "
        f"{i.BLUR_PROB[1]:g} (sigma {i.BLUR_SIGMA[0]:g} to {i.BLUR_SIGMA[1]:g} px)"
    )
    solarize = i.SOLARIZE_PROB
    return text + (f", solarisation {solarize[0]:g} and {solarize[1]:g}" if any(solarize) else "")
