"""SimCLR's augmentation but for crop and flip, for a batch of views on its device, with kornia."""

import math
from collections.abc import Callable, Sequence

import torch
from fvcore.common.config import CfgNode as CN

from .augment import jitter_limits


class DeviceAugment:
    """Colour jitter, grayscale, blur and solarize for a batch of cropped and flipped views.

    Each view gets its own factors and its own order of the jitter's operations (kornia.augmentation.ColorJitter draws
    one order for the whole batch). They are drawn from torch's global CPU generator on any device, so that they depend
    on its seed only.
    """

    def __init__(self, cfg: CN) -> None:
        """
        Args:
            cfg: the INPUT node of the config.

        Raises:
            ValueError: if kornia is not installed.
        """
        try:
            import kornia
        except ImportError:
            raise ValueError(
                "INPUT.ON_DEVICE True needs kornia: pip install 'kornia>=0.7', or set INPUT.ON_DEVICE False"
            ) from None
        self.cfg, self.jitter_limits = cfg, jitter_limits(cfg.JITTER)
        self.jitter = (  # those that compute what torchvision does
            kornia.enhance.adjust_brightness_accumulative,  # a factor; adjust_brightness adds
            kornia.enhance.adjust_contrast_with_mean_subtraction,  # about the mean gray; adjust_contrast: about black
            kornia.enhance.adjust_saturation_with_gray_subtraction,  # about gray; adjust_saturation scales HSV's S
            lambda views, turns: kornia.enhance.adjust_hue(views, 2 * math.pi * turns),  # in radians
        )
        self.gray, self.blur, self.solarize = (
            kornia.color.rgb_to_grayscale, kornia.filters.gaussian_blur2d, kornia.enhance.solarize,
        )  # fmt: skip

    @torch.no_grad()
    def __call__(self, views: torch.Tensor) -> torch.Tensor:
        """
        Args:
            views: (2B, 3, S, S) uint8 RGB, the first views of all images, then the second ones.

        Returns:
            (2B, 3, S, S) float32 from 0 to 255, in the memory format of ``views``.
        """
        cfg, count = self.cfg, len(views)
        views = views / 255

        def drawn(prob: float | Sequence[float]) -> torch.Tensor:
            """A random mask of the views; ``prob`` is one probability, or those of first and second views."""
            return torch.rand(count) < torch.as_tensor(prob).expand(2).repeat_interleave(count // 2)

        order = torch.rand(count, 4).argsort(1)  # each view's order of the four operations
        order[~drawn(cfg.JITTER_PROB)] = -1
        factors = [torch.empty(count).uniform_(*limits) for limits in self.jitter_limits]
        for kinds in order.T:
            for kind, operation in enumerate(self.jitter):
                _apply(operation, views, kinds == kind, factors[kind])
        _apply(self.gray, views, drawn(cfg.GRAYSCALE_PROB))
        kernel = 2 * (cfg.CROP_SIZE // 20) + 1
        sigma = torch.empty(count, 1).uniform_(*cfg.BLUR_SIGMA).expand(-1, 2)  # for y and x
        _apply(lambda x, s: self.blur(x.contiguous(), (kernel, kernel), s), views, drawn(cfg.BLUR_PROB), sigma)
        _apply(lambda x: self.solarize(x, 0.5), views, drawn(cfg.SOLARIZE_PROB))
        return views.mul_(255)


def _apply(
    operation: Callable[..., torch.Tensor], views: torch.Tensor, chosen: torch.Tensor, *parameters: torch.Tensor
) -> None:
    """Replace the views where the mask ``chosen`` is set by operation(views, *parameters), in place."""
    index = chosen.nonzero()[:, 0]
    if len(index):
        own = [parameter[index].to(views.device) for parameter in parameters]
        index = index.to(views.device)
        views[index] = operation(views[index], *own).expand(-1, 3, -1, -1)
