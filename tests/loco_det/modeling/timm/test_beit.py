"""BEiT on images of any size: timm's own at its own size, and tables of relative positions that are interpolated."""

import timm
import torch
import torch.nn.functional as F

from loco_det.modeling.timm.backbone import TimmBackbone

NAME = "beit_base_patch16_224"


def network_of_timm():
    """Two blocks, with tables that are not all 0 as in timm's initialisation, in float64."""
    torch.manual_seed(0)
    network = timm.create_model(NAME, num_classes=0).double().eval()
    network.blocks = network.blocks[:2]
    with torch.no_grad():
        for block in network.blocks:
            block.attn.relative_position_bias_table.normal_()
            block.attn.q_bias.normal_()
            block.gamma_1.fill_(0.7)
    return network


def backbone_of(network):
    backbone = TimmBackbone(NAME).double().eval()
    backbone.network.blocks = backbone.network.blocks[:2]
    backbone.network.load_state_dict({k: v for k, v in network.state_dict().items() if not k.startswith("fc_norm")})
    backbone._levels = [type(level)(**{**vars(level), "index": 1}) for level in backbone._levels]
    return backbone


def test_its_own_size_is_timms():
    network, images = network_of_timm(), torch.randn(2, 3, 224, 224, dtype=torch.float64)
    backbone = backbone_of(network)
    with torch.no_grad():
        wanted = network.forward_intermediates(images, indices=[1], intermediates_only=True)[0]
        got = backbone(images)["last_feat"]
    assert torch.allclose(got, wanted, rtol=1e-9, atol=1e-9)


def test_another_size_has_the_interpolated_table():
    """The bias of a pair is that of its distance; the three entries of the class token stay."""
    backbone = backbone_of(network_of_timm())
    attention = backbone.network.blocks[0].attn
    with torch.no_grad():
        backbone(torch.randn(1, 3, 100, 150, dtype=torch.float64))
        bias = attention._bias()[0]
    rows, columns = 7, 10  # of patches, padded
    table = attention.relative_position_bias_table.detach()
    square = table[:-3].T.reshape(1, -1, 27, 27)
    resized = F.interpolate(square, size=(2 * rows - 1, 2 * columns - 1), mode="bicubic")[0]
    assert bias.shape[1:] == (71, 71)
    for (y, x), (other_y, other_x) in (((0, 0), (6, 9)), ((3, 4), (3, 4)), ((6, 2), (1, 8))):
        got = bias[:, 1 + y * columns + x, 1 + other_y * columns + other_x]
        assert torch.allclose(got, resized[:, y - other_y + rows - 1, x - other_x + columns - 1])
    assert torch.equal(bias[:, 0, 0], table[-1]) and torch.equal(bias[:, 0, 5], table[-3])
    assert torch.equal(bias[:, 5, 0], table[-2])


def test_a_table_learns_at_another_size():
    backbone = backbone_of(network_of_timm()).train()
    backbone(torch.randn(1, 3, 64, 96, dtype=torch.float64))["last_feat"].square().mean().backward()
    for block in backbone.network.blocks:
        assert block.attn.relative_position_bias_table.grad.abs().sum() > 0
