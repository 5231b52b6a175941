"""A light one-stage detector on a frozen backbone, whose features may have been computed beforehand.

It ranks encoders in minutes: nothing but a small head learns, and where the features are stored a step of training does
not run the backbone at all. Its AP is not that of a Mask R-CNN.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.modeling.postprocessing import detector_postprocess
from torch import nn

from .packed import unpack
from .timm.build import BUILDERS

NAME = "LightDetector"  # MODEL.META_ARCHITECTURE
LATERAL_NORM = "BN"  # features of any scale are alike behind it
NORM = "GN"  # of the towers, where BN would need statistics of its own for each stage
CONVS = 2  # of either tower, 3x3


class LightHead(nn.Module):
    """A 1x1 convolution for each stage, a sum from coarse to fine, and FCOS's two towers (:paper:`fcos`)."""

    def __init__(self, stages: Sequence[ShapeSpec], width: int, classes: int) -> None:
        """
        Args:
            stages: channels and strides of the stages that it reads, the finest first.
            width: channels of its convolutions, a multiple of 32.
            classes: number of classes.
        """
        super().__init__()
        self.laterals = nn.ModuleList(
            Conv2d(stage.channels, width, 1, bias=False, norm=get_norm(LATERAL_NORM, width)) for stage in stages
        )
        levels = [ShapeSpec(channels=width, stride=stage.stride) for stage in stages]
        self.towers = FCOSHead(input_shape=levels, num_classes=classes, conv_dims=[width] * CONVS, norm=NORM)

    def forward(self, features: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], ...]:
        """
        Args:
            features: of each stage, (B, C, H, W).

        Returns:
            Of each stage: logits of the classes (B, classes, H, W), box deltas (B, 4, H, W), centerness (B, 1, H, W).
        """
        maps = [lateral(stage) for lateral, stage in zip(self.laterals, features, strict=True)]
        for k in reversed(range(len(maps) - 1)):
            maps[k] = maps[k] + F.interpolate(maps[k + 1], size=maps[k].shape[2:], mode="nearest")
        return self.towers(maps)


@META_ARCH_REGISTRY.register()
class LightDetector(FCOS):
    """FCOS of Detectron2 with :class:`LightHead` on the stages of a frozen backbone.

    Matching, losses and inference are Detectron2's. An image's features are those of the image alone, whatever is in
    its batch, so that stored ones are the same.

    Attributes:
        head_in_features: names of the stages that the head reads, the finest first.
    """

    normalizer: torch.Tensor

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: the config. The backbone is the bottom-up part of MODEL.BACKBONE.

        Raises:
            ValueError: if the backbone is not frozen, or no stage has a stride of MODEL.LIGHT_HEAD.FINEST_STRIDE.
        """
        built: Any = build_backbone(cfg)
        backbone = getattr(built, "bottom_up", built)
        if any(parameter.requires_grad for parameter in backbone.parameters()):
            everything = 99 if cfg.MODEL.BACKBONE.NAME in BUILDERS else 5
            raise ValueError(f"the light head is for a frozen backbone: set MODEL.BACKBONE.FREEZE_AT {everything}")
        if getattr(backbone, "plain", False) and built is not backbone:  # a plain ViT of timm, its map at stride 16
            from .timm.levels import PlainLevels  # here: timm takes a second

            backbone = PlainLevels(backbone, cfg.MODEL.LIGHT_HEAD.FINEST_STRIDE)
        shapes, finest = backbone.output_shape(), cfg.MODEL.LIGHT_HEAD.FINEST_STRIDE
        stages = sorted((n for n in shapes if shapes[n].stride >= finest), key=lambda name: shapes[name].stride)
        if not stages or shapes[stages[0]].stride != finest:
            strides = ", ".join(f"{name} {shape.stride}" for name, shape in shapes.items())
            raise ValueError(f"MODEL.LIGHT_HEAD.FINEST_STRIDE {finest}: the backbone's stages have strides {strides}")
        if (width := cfg.MODEL.LIGHT_HEAD.WIDTH) % 32 or width < 32:
            raise ValueError(f"MODEL.LIGHT_HEAD.WIDTH {width} is no multiple of 32, the number of its norms' groups")
        classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        super().__init__(
            backbone=backbone,
            head=LightHead([shapes[name] for name in stages], width, classes),
            head_in_features=stages,
            num_classes=classes,
            test_score_thresh=cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
            max_detections_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
            pixel_mean=cfg.MODEL.PIXEL_MEAN,
            pixel_std=cfg.MODEL.PIXEL_STD,
        )
        self.strides = {name: shapes[name].stride for name in stages}
        self.channels = {name: shapes[name].channels for name in stages}
        self.register_buffer("normalizer", torch.tensor(300.0))  # objects' points in a batch, a moving average

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """As Detectron2's detectors.

        Args:
            batched_inputs: dataset dicts with "image", (C, H, W) uint8; or with "features", stage ->
                :class:`~loco_det.modeling.packed.Packed`, and "image_size", height and width of the resized image.
        """
        maps = [self._maps(record) for record in batched_inputs]
        features = [_stacked([one[name] for one in maps]) for name in self.head_in_features]
        predictions = self.head(features)
        if self.training:
            objects = [record["instances"].to(self.device) for record in batched_inputs]
            with torch.jit.optimized_execution(False):  # it would round otherwise after the first steps than in them
                return self.forward_training(None, features, predictions, objects)
        sizes = [tuple(record.get("image_size") or record["image"].shape[1:]) for record in batched_inputs]
        found = self.forward_inference(_Sizes(sizes), features, predictions)
        return [
            {"instances": detector_postprocess(raw, record.get("height", size[0]), record.get("width", size[1]))}
            for raw, record, size in zip(found, batched_inputs, sizes, strict=True)
        ]

    def _maps(self, record):
        if "features" in record:
            return {name: unpack(record["features"][name], self.device) for name in self.head_in_features}
        return {name: stage[0] for name, stage in self.extract(record["image"][None]).items()}

    @torch.no_grad()
    def extract(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """The backbone's features in float32.

        Args:
            images: of one size, (B, C, H, W) uint8. They are padded to multiples of the coarsest stride.

        Returns:
            Name of each stage that the head reads -> (B, channels, padded H / stride, padded W / stride).
        """
        pixels = (images.to(self.device) - self.pixel_mean) / self.pixel_std
        height, width = self.padded(*images.shape[2:])
        pixels = F.pad(pixels, (0, width - images.shape[3], 0, height - images.shape[2]))
        with torch.autocast(pixels.device.type, enabled=False):
            features = self.backbone(pixels)
        return {name: features[name] for name in self.head_in_features}

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The size to which an image is padded, height and width."""
        coarsest = max(self.strides.values())
        return tuple(int(-(-side // coarsest) * coarsest) for side in (height, width))  # type: ignore[return-value]

    def _ema_update(self, name: str, value: float, initial_value: float, momentum: float = 0.9) -> torch.Tensor:
        # Detectron2 keeps it in an attribute, which no checkpoint holds
        self.normalizer.mul_(momentum).add_(value * (1 - momentum))
        return self.normalizer.clone()


class _Sizes:
    """All that FCOS's inference reads of Detectron2's ImageList."""

    def __init__(self, image_sizes: list[tuple[int, int]]) -> None:
        self.image_sizes = image_sizes


def _stacked(maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Maps (C, H, W) of a stage as (B, C, largest H, largest W), with zeros at the right and the bottom."""
    height, width = (max(one.shape[side] for one in maps) for side in (1, 2))
    return torch.stack([F.pad(one, (0, width - one.shape[2], 0, height - one.shape[1])) for one in maps])
