"""A detector as our evaluators want it: its masks are not pasted into images, which takes long, but encoded at once."""

from typing import Any

from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances, ROIMasks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .masks import PastedMasks


def without_pasting(model: nn.Module) -> nn.Module:
    """The detector for an evaluator of this package, or the detector itself where Detectron2's own way has to stay.

    Args:
        model: a detector; not changed.

    Returns:
        :class:`Unpasted`; or the model, if it is on a GPU, where pasting is fast, or no Mask R-CNN of Detectron2.
    """
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    plain = type(inner) is GeneralizedRCNN and not inner._forward_hooks and not inner._forward_pre_hooks
    return Unpasted(inner) if plain and inner.device.type == "cpu" else model


class Unpasted(nn.Module):
    """Detectron2's Mask R-CNN on the CPU, whose "pred_masks" are :class:`PastedMasks`; all else is the same."""

    def __init__(self, model: GeneralizedRCNN) -> None:
        super().__init__()
        self.model = model
        self.training = model.training  # Detectron2's inference puts this mode back

    def forward(self, inputs: list[dict[str, Any]]) -> list[dict[str, Instances]]:
        """Detect objects, as ``GeneralizedRCNN`` in eval mode.

        Args:
            inputs: dataset dicts with "image" and perhaps "height" and "width" of the output.
        """
        found = self.model.inference(inputs, do_postprocess=False)
        return [{"instances": unpasted(raw, record)} for raw, record in zip(found, inputs, strict=True)]


def unpasted(raw: Instances, record: dict[str, Any]) -> Instances:
    """Detectron2's ``detector_postprocess`` without pasting.

    Args:
        raw: what the network returns for an image, with "pred_masks" (N, 1, M, M) or none; boxes are changed in place.
        record: its dataset dict, perhaps with "height" and "width" of the output.
    """
    if raw.has("pred_masks"):
        raw.pred_masks = _UnpastedROIMasks(raw.pred_masks[:, 0])
    height, width = raw.image_size
    return detector_postprocess(raw, record.get("height", height), record.get("width", width))


class _UnpastedROIMasks(ROIMasks):
    """What ``detector_postprocess`` pastes by calling its ``to_bitmasks``."""

    def __getitem__(self, item: Any) -> "_UnpastedROIMasks":
        return _UnpastedROIMasks(self.tensor[item])

    def to_bitmasks(self, boxes: Boxes, height: int, width: int, threshold: float = 0.5) -> Any:
        """An object with :class:`PastedMasks` as its ``tensor``, as a ``BitMasks`` has one."""
        return _Bitmasks(PastedMasks(self.tensor, boxes.tensor, (height, width)))


class _Bitmasks:
    def __init__(self, tensor: PastedMasks) -> None:
        self.tensor = tensor
