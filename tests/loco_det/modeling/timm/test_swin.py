"""Swin's windows on maps that they do not divide, against torchvision's Swin and timm's own at its own sizes."""

import pytest
import timm
import torch
from noise import noise
from timm.models.swin_transformer import SwinTransformer
from torchvision.models.swin_transformer import SwinTransformer as TorchvisionSwin

from loco_det.modeling.timm.network import build_network, run
from loco_det.modeling.timm.swin import PaddedSwinBlock, pad_before_shift

DEPTHS, HEADS = (2, 2, 4, 2), (1, 2, 4, 8)


def torchvision_name(name):
    """timm's name of a tensor -> torchvision's."""
    if name.startswith("patch_embed."):
        return name.replace("patch_embed.proj", "features.0.0").replace("patch_embed.norm", "features.0.2")
    _, stage, part, *rest = name.split(".")
    if part == "downsample":
        return ".".join(["features", str(2 * int(stage)), *rest])
    block, *rest = rest
    last = ".".join(rest).replace("mlp.fc1", "mlp.0").replace("mlp.fc2", "mlp.3")
    return f"features.{2 * int(stage) + 1}.{block}.{last}"


def both():
    torch.manual_seed(0)
    ours = SwinTransformer(embed_dim=8, depths=DEPTHS, num_heads=HEADS, num_classes=0, strict_img_size=False,
                           drop_path_rate=0.0)  # fmt: skip
    theirs = TorchvisionSwin([4, 4], 8, list(DEPTHS), list(HEADS), [7, 7], stochastic_depth_prob=0.0)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    weights = {torchvision_name(k): v for k, v in ours.state_dict().items() if not k.startswith("norm.")}
    missing = theirs.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    assert all("relative_position_index" in k or k.startswith(("norm.", "head.")) for k in missing.missing_keys)
    return ours.double().eval(), theirs.double().eval()


def torchvision_maps(network, x):
    maps = []
    for layer in network.features:
        x = layer(x)
        maps.append(x.permute(0, 3, 1, 2))
    return maps[1::2]


@torch.no_grad()
@pytest.mark.parametrize("size", [(224, 224), (224, 448), (160, 256), (96, 352), (64, 64)])
def test_maps_are_torchvisions_at_every_size(size):
    ours, theirs = both()
    x = noise(2, 3, *size).double()
    wanted = torchvision_maps(theirs, x)
    before = run(ours, x)
    pad_before_shift(ours)
    for got, map_ in zip(run(ours, x), wanted, strict=True):
        assert (got - map_).abs().max() < 1e-10 * map_.abs().max()
    if size == (160, 256):  # where timm's mask lets tokens attend across the edge of the image
        assert max((got - map_).abs().max() / map_.abs().max() for got, map_ in zip(before, wanted, strict=True)) > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("name, size", [
    ("swin_tiny_patch4_window7_224", (224, 224)), ("swin_tiny_patch4_window7_224", (224, 448)),
    ("swinv2_cr_tiny_ns_224", (224, 224)), ("swinv2_tiny_window8_256", (256, 256)),
    ("swinv2_tiny_window8_256", (256, 512)),
])  # fmt: skip
def test_maps_are_timms_where_windows_divide(name, size):
    torch.manual_seed(0)
    network = build_network(name).eval()
    options = {} if name.startswith("swinv2_cr") else {"window_size": 8 if "window8" in name else 7}
    reference = timm.create_model(name, num_classes=0, img_size=size, **options).eval()
    missing = reference.load_state_dict(network.state_dict(), strict=False)
    assert all(key.startswith(("norm.", "head.")) for key in missing.missing_keys) and not missing.unexpected_keys
    x = noise(1, 3, *size)
    for got, wanted in zip(run(network, x), run(reference, x), strict=True):
        assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert any(isinstance(m, PaddedSwinBlock) for m in network.modules()) is not name.startswith("swinv2_cr")
