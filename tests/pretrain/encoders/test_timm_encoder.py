"""Networks of timm as encoders: their features, their names, and what local learning relies on."""

import copy

import pytest
import timm
import torch
from torch import nn

from pretrain.encoders import STAGE_NAMES, NamedEncoder, build_encoder, is_own_code, parse_encoder

# blocks of each stage, of which one of the first stage is the stem; channels; strides; class and register tokens
NETWORKS = {
    "test_vit": ([3, 2, 1, 1], (64,) * 4, (16,) * 4, 1),
    "test_vit3": ([4, 2, 2, 2], (96,) * 4, (16,) * 4, 1),  # with layer scale
    "vit_wee_patch16_reg1_gap_256": ([5, 4, 3, 3], (256,) * 4, (16,) * 4, 1),  # a register, and no class token
    "deit_tiny_distilled_patch16_224": ([4, 3, 3, 3], (192,) * 4, (16,) * 4, 2),
    "test_convnext": ([2, 2, 4, 2], (24, 32, 48, 64), (4, 8, 16, 32), None),
    "test_convnext2": ([2, 1, 1, 1], (32, 64, 96, 128), (4, 8, 16, 32), None),
    "regnetx_002": ([2, 1, 4, 7], (24, 56, 152, 368), (4, 8, 16, 32), None),
    "swin_tiny_patch4_window7_224": ([3, 2, 6, 2], (96, 192, 384, 768), (4, 8, 16, 32), None),
    "swinv2_tiny_window8_256": ([3, 2, 6, 2], (96, 192, 384, 768), (4, 8, 16, 32), None),
}
SMALL = ["test_vit3", "test_convnext", "regnetx_002", "swin_tiny_patch4_window7_224"]


@pytest.fixture(scope="module")
def encoders():
    """Every network, built once; tests that change one take a copy."""
    torch.manual_seed(0)
    found = {name: build_encoder(f"timm:{name}") for name in NETWORKS}
    for encoder in found.values():
        for name, p in encoder.named_parameters():
            if p.abs().max() < 1e-3 and not name.endswith("bias"):  # layer scale, tokens, norms that begin at 0
                nn.init.normal_(p)  # else they would not show in the features
    return found


def noise(*shape, seed=0, **kwargs):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(**kwargs)


@pytest.mark.parametrize("sides", [(224, 224), (90, 135)])
@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_timms(encoders, name, sides):
    """Also of oblong images whose sides are no multiples of a patch, at the end of each stage."""
    encoder, (blocks, channels, strides, prefix) = encoders[name].eval(), NETWORKS[name]
    assert encoder.stage_names == STAGE_NAMES and encoder.prefix_tokens == prefix
    assert [len(stage) for stage in encoder.stages] == blocks
    assert (encoder.channels, encoder.strides) == (channels, strides)
    options = {"dynamic_img_pad": True, "dynamic_img_size": True} if prefix is not None else {}
    net = timm.create_model(name, num_classes=0, **options, **({"strict_img_size": False} if "swin" in name else {}))
    missing, unexpected = net.eval().load_state_dict(encoder.network.state_dict(), strict=False)
    assert not unexpected and all(
        key.split(".")[0] in ("norm", "fc_norm", "attn_pool", "head", "final_conv") for key in missing
    )
    if "swin" in name:
        net.patch_embed.dynamic_img_pad = True
    x = noise(2, 3, *sides)
    ends = [sum(blocks[: k + 1]) - 2 for k in range(4)] if prefix is not None else [-4, -3, -2, -1]
    with torch.no_grad():
        features = encoder(x)
        everything = net.forward_intermediates(x, intermediates_only=True)
    assert list(features) == list(STAGE_NAMES)
    for h, end in zip(features.values(), ends, strict=True):
        torch.testing.assert_close(h, everything[end], rtol=0, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_stages_hold_every_parameter_once_and_all_get_a_gradient(encoders, name):
    encoder = copy.deepcopy(encoders[name]).train()
    of_stages = [p for stage in encoder.stages for p in stage.parameters()]
    assert len(of_stages) == len({id(p) for p in of_stages})
    assert {id(p) for p in of_stages} == {id(p) for p in encoder.parameters()}
    assert {id(b) for stage in encoder.stages for b in stage.buffers()} == {id(b) for b in encoder.buffers()}
    h = encoder(noise(2, 3, 64, 64))["res5"]
    (h * noise(*h.shape, seed=1)).sum().backward()
    without = [key for key, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert all(key.endswith("k_bias") for key in without), without


@pytest.mark.parametrize("name", SMALL)
def test_blocks_in_a_row_are_the_network_and_leave_their_input_alone(encoders, name):
    encoder = copy.deepcopy(encoders[name]).double().train()
    images = noise(2, 3, 64, 64, dtype=torch.float64)
    x, wanted = images, copy.deepcopy(encoder)(images)  # in training mode it changes the running statistics
    for stage_name, stage in zip(encoder.stage_names, encoder.stages, strict=True):
        assert type(stage) is nn.Sequential
        for block in stage:
            before, version = x.clone(), x._version
            h = block(x)
            assert torch.equal(x, before) and x._version == version and h.data_ptr() != x.data_ptr()
            x = h
        map_of_x = x if encoder.prefix_tokens is None else x[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
        assert torch.equal(map_of_x, wanted[stage_name]) and x.dtype == torch.float64


@pytest.mark.parametrize("name", SMALL)
def test_training_has_no_dropout_and_no_stochastic_depth(encoders, name):
    encoder = copy.deepcopy(encoders[name]).train()
    state = torch.get_rng_state()
    encoder(noise(2, 3, 64, 64))
    assert torch.equal(state, torch.get_rng_state())
    assert not any(type(module).__name__ == "DropPath" for module in encoder.modules())


def test_stages_follow_what_is_done_to_the_encoder(encoders):
    encoder = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(encoders["regnetx_002"]))
    kinds = {type(m) for stage in encoder.stages for m in stage.modules()}
    assert nn.SyncBatchNorm in kinds
    vit = copy.deepcopy(encoders["test_vit"])
    stages = vit.stages
    vit.network.cls_token = nn.Parameter(torch.full((1, 1, 64), 3.0))
    stages[0](noise(1, 3, 32, 32)).sum().backward()
    assert vit.network.cls_token.grad is not None  # also in stages that were made before


@pytest.mark.parametrize("name", SMALL)
def test_channels_last_and_bfloat16(encoders, name):
    encoder, x = copy.deepcopy(encoders[name]).eval(), noise(1, 3, 96, 96)
    with torch.no_grad():
        wanted = encoder(x)
        encoder, x = (t.to(memory_format=torch.channels_last) for t in (encoder, x))
        last = encoder(x)
        with torch.autocast("cpu", torch.bfloat16):
            half = encoder(x)
    for stage, h in wanted.items():
        assert torch.allclose(last[stage], h, rtol=1e-4, atol=1e-4 * h.abs().max().item()), stage
        assert (half[stage] - h).abs().max() < 0.1 * h.abs().max(), stage
    if name.startswith("swin"):
        assert all(h.is_contiguous(memory_format=torch.channels_last) for h in last.values())  # nothing is copied


def test_names_of_timm_are_no_code_of_the_users():
    encoder = parse_encoder("timm:vit_small_patch14_reg4_dinov2.lvd142m")
    assert isinstance(encoder, NamedEncoder) and encoder.timm_name == "vit_small_patch14_reg4_dinov2.lvd142m"
    assert not encoder.is_own_code and not is_own_code(encoder.name) and parse_encoder(str(encoder)) == encoder
    assert parse_encoder("my.module.build").timm_name is None


@pytest.mark.parametrize(
    "name, message",
    [
        ("convnext_timy", "has no such network: did you mean convnext_tiny or "),
        ("", "has no such network$"),
        ("vit_small_patch14_reg4_dinov2.lvd142m", "begins at random: leave out the tag of weights"),
        ("eva02_tiny_patch14_224", "the stages of timm's eva.py are not known here: .* vision_transformer.py, deit.py"),
    ],
)
def test_refusals(name, message):
    with pytest.raises(ValueError, match=message) as caught:
        build_encoder(f"timm:{name}")
    assert "\n" not in str(caught.value) and repr(f"timm:{name}") in str(caught.value)
