"""The light detector on stored features, on images, and on what it can learn."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from loco_det.config import add_loco_config
from loco_det.engine.trainer import Trainer
from loco_det.modeling.light_detector import LightDetector
from loco_det.modeling.packed import pack, unpack


def config(*options):
    cfg = get_cfg()
    add_loco_config(cfg)
    cfg.merge_from_file("configs/evaluate/light_small.yaml")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.LIGHT_HEAD.WIDTH", 32, *options])
    return cfg


def built(*options):
    torch.manual_seed(0)
    return Trainer.build_model(config(*options))


@pytest.fixture(scope="module")
def model():
    return built()


def image(seed, height=64, width=96):
    return torch.randint(256, (3, height, width), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def stored(model, pixels):
    features = {name: pack(maps[0]) for name, maps in model.extract(pixels[None]).items()}
    return {"features": features, "image_size": tuple(pixels.shape[1:])}


def test_packed_features_are_half_a_step_off_at_most():
    features = (
        torch.randn(5, 7, 9, generator=torch.Generator().manual_seed(0))
        * torch.tensor([0, 1e-3, 1, 7, 1e4])[:, None, None]
    )
    features[2].relu_()
    packed = pack(features)
    error = (unpack(packed) - features).abs().amax((1, 2))
    assert (error <= packed.step * 0.501).all() and error[0] == 0 and packed.values.dtype == torch.uint8
    zeros = features[2] == 0
    assert (unpack(packed)[2][zeros] == 0).all()
    assert packed.step[4] == (features[4].max() - features[4].min()) / 255


def test_features_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="not finite"):
        pack(torch.full((1, 2, 2), torch.nan))


def test_stages_are_those_of_the_stride_and_above(model):
    assert model.head_in_features == ["res3", "res4", "res5"]
    assert built("MODEL.LIGHT_HEAD.FINEST_STRIDE", 4).head_in_features == ["res2", "res3", "res4", "res5"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.BACKBONE.FREEZE_AT", 2], "set MODEL.BACKBONE.FREEZE_AT 5"),
        (["MODEL.LIGHT_HEAD.FINEST_STRIDE", 6], "FINEST_STRIDE 6: the backbone's stages have strides res2 4"),
        (["MODEL.LIGHT_HEAD.WIDTH", 40], "WIDTH 40 is no multiple of 32"),
    ],
)
def test_what_it_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        built(*options)


def test_features_are_the_backbones(model):
    """Of the padded and normalised image, in Mask R-CNN's way."""
    pixels = image(0, 50, 70)
    padded = torch.zeros(1, 3, 64, 96)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config().MODEL.PIXEL_MEAN, config().MODEL.PIXEL_STD))
    padded[0, :, :50, :70] = (pixels - mean) / std
    wanted = type(model.backbone).forward(model.backbone, padded)
    got = model.extract(pixels[None])
    assert list(got) == model.head_in_features and got["res3"].shape[2:] == (8, 12)
    for name, features in got.items():
        assert torch.allclose(features, wanted[name], atol=1e-4 * wanted[name].abs().max())


def test_the_head_sees_stored_features_as_those_of_the_image(model):
    """To the precision of the storage, alone or beside a larger image."""
    images = [image(0), image(1, 96, 128)]
    model.eval()
    seen = []
    handle = model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model([{"image": pixels} for pixels in images])
    model([stored(model, pixels) for pixels in images])
    model([{"image": images[0]}])
    handle.remove()
    for direct, cached, alone in zip(*seen, strict=True):
        assert direct.shape == cached.shape
        limit = (direct.amax((2, 3)) - direct.amin((2, 3))) / 255
        assert ((direct - cached).abs().amax((2, 3)) <= limit).all()
        height, width = alone.shape[2:]
        assert torch.equal(direct[:1, :, :height, :width], alone)
        assert direct[0, :, height:].abs().sum() == 0


def test_detections_have_the_size_of_the_original_image(model):
    model.eval()
    found = model([{**stored(model, image(0)), "height": 128, "width": 192}])[0]["instances"]
    assert found.image_size == (128, 192)


def test_the_normalizer_is_in_the_state(model):
    """Detectron2's is not, and a resumed run would have another loss."""
    other = built()
    with torch.no_grad():
        before = float(other.normalizer)
        assert float(other._ema_update("loss_normalizer", 100, 300)) == pytest.approx(0.9 * before + 0.1 * 100)
    assert "normalizer" in other.state_dict()


def test_it_learns_two_images_by_heart():
    """A bright square on noise, of one of two classes by its colour; found again, and nothing else."""
    model = built("MODEL.ROI_HEADS.NUM_CLASSES", 2)
    records = []
    for k in range(2):
        pixels = image(k) // 4
        pixels[k, 16:48, 24 + 8 * k : 56 + 8 * k] = 255
        objects = Instances((64, 96), gt_boxes=Boxes(torch.tensor([[24.0 + 8 * k, 16, 56 + 8 * k, 48]])))
        objects.gt_classes = torch.tensor([k])
        records.append({**stored(model, pixels), "instances": objects})
    optimizer = torch.optim.AdamW(model.head.parameters(), 3e-3)
    model.train()
    with EventStorage():
        for _ in range(60):
            loss = sum(model(records).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    model.eval()
    for k, found in enumerate(model(records)):
        best = found["instances"][0]
        assert best.pred_classes.item() == k
        assert (best.pred_boxes.tensor - records[k]["instances"].gt_boxes.tensor).abs().max() < 6


def test_in_bfloat16_its_outputs_are_float32(model):
    from loco_det.modeling.precision import train_in_bfloat16

    other = built()
    train_in_bfloat16(other)
    assert isinstance(other, LightDetector)
    other.train()
    seen = []
    other.head.register_forward_hook(lambda module, args, output: seen.extend(output))
    objects = Instances((64, 96), gt_boxes=Boxes(torch.tensor([[8.0, 8, 40, 40]])), gt_classes=torch.tensor([0]))
    with EventStorage():
        losses = other([{**stored(other, image(0)), "instances": objects}])
    assert all(level.dtype == torch.float32 for part in seen for level in part)
    assert all(torch.isfinite(loss) for loss in losses.values())
