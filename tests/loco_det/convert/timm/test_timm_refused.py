"""What is refused of a checkpoint with a network that timm computes, in one line; and conversions that are broken."""

import json
from argparse import Namespace

import pytest
import torch
import torchvision
from projects_timm import DINOV2, PROJECTS, REGISTERS, VIT, vit
from safetensors.torch import save_file
from small_networks import WIDTH, weights_of

from loco_det.convert import VerificationError, convert, load_encoder
from loco_det.convert.timm import matching, names, proof


def without(weights, *parts):
    return {name: value for name, value in weights.items() if not any(part in name for part in parts)}


@pytest.mark.parametrize("key", ["dinov2", "dinov2-registers"])
def test_a_dropped_layer_scale(refused, key):
    refused(without(PROJECTS[key](), ".ls1.", ".ls2."), "no layer scale .* it was dropped")


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("dinov2", "blocks.1.ls2.gamma"),
        ("convnext", "stages.1.0.gamma"),
        ("convnext", "stages.0.0.norm.bias"),
        ("convnextv2", "stages.2.3.grn.gamma"),
        ("torchvision-vit", "encoder_layer_1.self_attention.in_proj_bias"),
        ("swin", "layers.2.blocks.1.attn.relative_position_bias_table"),
        ("dino-released", "blocks.0.attn.qkv.bias"),
        ("beitv2", "blocks.1.gamma_1"),
    ],
)
def test_a_missing_tensor(refused, key, part):
    content = PROJECTS[key]()
    weights = content.get("model", content)
    assert part in " ".join(weights)
    for name in [name for name in weights if part in name]:
        del weights[name]
    refused(content, r"(\d missing|cannot read its names)")


@pytest.mark.parametrize("key", ["dino-released", "dinov2", "dinov2-registers"])
def test_a_missing_position_embedding(refused, key):
    refused(without(PROJECTS[key](), "pos_embed"), "no position embeddings")


def test_missing_registers(refused, tmp_path):
    """A file of another network then: its positions are of a class token and patches, as DINOv2's without registers."""
    weights = without(PROJECTS["dinov2-registers"](), "register_tokens")
    refused(weights, "pos_embed is 1x1370x64, and .* is 1x1369x64", arch=REGISTERS)


def test_too_few_registers(refused):
    weights = PROJECTS["dinov2-registers"]()
    weights["register_tokens"] = weights["register_tokens"][:, :3]
    refused(weights, "none of the sizes known")


@pytest.mark.parametrize(
    ("patch", "tokens", "arch", "message"),
    [
        (14, 197, VIT, "patches of 14 pixels, and .* has 16"),
        (16, 145, VIT, r"pos_embed is 1x145x64, and .*'s is 1x197x64"),
        (16, 145, "auto", "none of the sizes known"),
        (14, 1370, DINOV2, "missing"),
        (14, 197, "auto", "none of the sizes known"),
        (16, 150, "auto", "none of the sizes known: name"),
    ],
)
def test_another_patch_or_image_size(refused, patch, tokens, arch, message):
    weights = vit()
    weights["patch_embed.proj.weight"] = torch.randn(WIDTH, 3, patch, patch)
    weights["pos_embed"] = torch.randn(1, tokens, WIDTH)
    refused(weights, message, arch=arch)


def test_another_patch_of_dinov2(refused):
    weights = PROJECTS["dinov2"]()
    weights["patch_embed.proj.weight"] = torch.randn(WIDTH, 3, 16, 16)
    refused(weights, "patches of 16 pixels .* while timm's have 14 and 518")


def test_another_width_or_depth(refused):
    weights = weights_of(VIT, num_classes=0, embed_dim=32)
    refused(weights, "2 blocks of 32 channels")
    refused(weights, "of another shape", arch=VIT)
    refused(vit(depth=4), "4 blocks of 64 channels")
    refused(vit(depth=4), r"24 left over \(blocks.2", arch=VIT)


def test_a_vit_for_a_resnet_and_a_resnet_for_a_vit(refused):
    refused(vit(), f"this is a {VIT}, not the resnet50 that was asked for", arch="resnet50")
    refused(vit(), f"this is a {VIT}, not the no.such.network that was asked for", arch="no.such.network")
    refused(vit(depth=4), "this is a vision transformer, not the vit_smal that was asked for", arch="vit_smal")
    resnet = torchvision.models.resnet18().state_dict()
    refused(resnet, f"this is a resnet18, not the {VIT} that was asked for", arch=VIT)
    refused({**vit(), "arch": "convnext_tiny"}, "not a convnext_tiny")


@pytest.mark.parametrize(
    "key", ["dino-released", "mae", "mocov3", "convnext", "swin", "beitv2", "torchvision-vit", "timm"]
)
def test_an_unknown_name(refused, key):
    content = PROJECTS[key]()
    weights = content.get("model", content.get("state_dict", content))
    prefix = "module.base_encoder." if key == "mocov3" else ""
    weights[f"{prefix}adapter.weight"] = torch.zeros(3)
    refused(content, r"1 left over \(adapter.weight\)")


@pytest.mark.parametrize("key", ["dino", "mocov3", "lightly-train"])
def test_an_unknown_name_beside_the_network(refused, key):
    content = PROJECTS[key]()
    content.get("student", content.get("state_dict"))["adapter.weight"] = torch.zeros(3)
    refused(content, r"1 names beside its network .*adapter.weight")


def test_names_that_would_write_to_the_terminal(refused, save):
    with pytest.raises(ValueError) as caught:
        convert(save({**vit(), "\x1b]0;owned\x07": torch.zeros(3)}), "out.pkl")
    assert "\x1b" not in str(caught.value)


def test_an_unknown_dictionary(refused):
    refused({**PROJECTS["mae"](), "lora": {"weight": torch.zeros(3)}}, "1 tensors in 'lora'")


def test_a_classifier_without_a_source(refused):
    refused(weights_of(VIT), "nothing says whose it is: name its project with --source")


def test_beit_of_unknown_version(refused):
    refused(PROJECTS["beit"](), "BEiT or BEiT v2, .*beit_.*beitv2_.*--source beit or --source beitv2")


def test_heads_that_shapes_do_not_show(refused):
    weights = weights_of("vit_small_patch16_224", num_classes=0, depth=12)
    content = {"state_dict": {f"module.base_encoder.{name}": v for name, v in weights.items()}}
    refused(content, "12 heads")
    refused(content, "12 heads", arch="vit_small_patch16_224")
    weights["pos_embed"][:, 0] = 0
    refused(weights, "fixed position embeddings: MAE's with 6 heads, or MoCo v3's with 12")


@pytest.mark.parametrize(
    ("names_of", "message"),
    [
        (["vit.embeddings.cls_token", "vit.embeddings.patch_embeddings.projection.weight"], "transformers"),
        (["visual.transformer.resblocks.0.attn.in_proj_weight"], "CLIP"),
        (["storage_tokens", "blocks.0.attn.proj.weight"], "DINOv3"),
    ],
)
def test_names_of_others(refused, names_of, message):
    refused({name: torch.zeros(3, 3) for name in names_of}, message)


def test_not_what_was_asked_for(refused):
    refused(PROJECTS["mae"](), "not laid out as mocov3", source="mocov3")
    refused(PROJECTS["mae"](), "no moving average", ema=True)
    refused(PROJECTS["dino"](), "0 networks with the prefix 'nothing'", prefix="nothing")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(refused, value):
    weights = vit()
    weights["blocks.1.mlp.fc1.weight"][0, 0] = value
    refused(weights, "NaN or infinite values in 1 tensors")


def folder_of(tmp_path, settings, weights=None, name=VIT, **card):
    folder = tmp_path / "hub"
    folder.mkdir(parents=True)
    weights = {key: value.contiguous() for key, value in (weights or weights_of(VIT)).items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": name, "pretrained_cfg": settings, **card}))
    return folder / "model.safetensors"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mean": [0.5, 0.5], "std": [0.5, 0.5, 0.5]}, "expected three numbers"),
        ({"mean": [123.7, 116.3, 103.5], "std": [58.4, 57.1, 57.4]}, "of pixels from 0 to 1"),
        ({"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.0, 0.5]}, "divides nothing"),
        ({"mean": None, "std": [0.5, 0.5, 0.5]}, "has mean None"),
    ],
)
def test_mean_and_std_that_are_none(refused, tmp_path, settings, message):
    refused(folder_of(tmp_path, settings), message)


def test_mean_and_std_that_contradict_the_project(refused, tmp_path):
    path = folder_of(tmp_path, {"mean": [0.5] * 3, "std": [0.5] * 3}, PROJECTS["dinov2"](), DINOV2)
    refused(path, "contradictory: DINOv2.*'s mean .123.675.*config.json beside it says mean .127.5")


def test_a_config_json_of_another_network(refused, tmp_path):
    path = folder_of(tmp_path, {"mean": [0.5] * 3, "std": [0.5] * 3}, name="vit_base_patch16_224")
    refused(path, "not a vit_base_patch16_224")
    refused(path, f"calls its network 'vit_base_patch16_224', and '{VIT}' was asked for", arch=VIT)


def test_settings_that_weights_do_not_show(refused, tmp_path):
    """Another number of heads has the same names and shapes; timm writes it to config.json, its train.py to args."""
    half = {"mean": [0.5] * 3, "std": [0.5] * 3}
    given = {"num_classes": 1000, "global_pool": "token", "img_size": [224, 224], "num_heads": 2, "act_layer": None}
    path = folder_of(tmp_path, half, model_args=given)
    refused(path, f"config.json beside it has settings that {VIT} may not have .'num_heads' 2.: not converted")
    args = Namespace(mean=[0.5] * 3, std=[0.5] * 3, model_kwargs={"norm_eps": 1e-3})
    content = {"state_dict": weights_of(VIT), "arch": VIT, "args": args}
    refused(content, "its args has settings that .* .'norm_eps' 0.001.")
    del given["num_heads"]
    assert convert(folder_of(tmp_path / "plain", half, model_args=given), tmp_path / "plain.pkl").differences


def test_readouts_say_that_they_cannot(save):
    with pytest.raises(ValueError, match="the converter takes it, and readouts take ResNets"):
        load_encoder(save(vit()))


# --- broken conversions: the proof has to see each -----------------------------------------------------------------


def broken(monkeypatch, save, tmp_path, key, change, message, **options):
    """The conversion of a project, whose renamed weights are changed, is refused, and leaves nothing."""
    path, before = save(PROJECTS[key]()), names.to_timm

    def renamed(weights, family, network):
        result = before(weights, family, network)
        change(result)
        return result

    monkeypatch.setattr(matching, "to_timm", renamed)
    with pytest.raises(VerificationError, match=message):
        convert(path, tmp_path / "out.pkl", **options)
    assert not list(tmp_path.glob("out*"))


def set_to(name, value):
    return lambda weights: weights.update({name: torch.full_like(weights[name], value)})


def exchanged(one, other):
    return lambda weights: weights.update({one: weights[other], other: weights[one]})


@pytest.mark.parametrize(
    ("key", "change"),
    [
        ("dinov2", set_to("blocks.1.ls1.gamma", 1.0)),
        ("dinov2-registers", set_to("blocks.1.ls2.gamma", 1.0)),
        ("dinov2-registers", set_to("reg_token", 0.0)),
        ("dino-released", set_to("pos_embed", 0.0)),
        ("mae-released", exchanged("blocks.0.norm1.bias", "blocks.0.norm2.bias")),
        ("mocov3", lambda weights: weights.update(pos_embed=weights["pos_embed"].roll(1, 1))),
        ("beitv2", set_to("blocks.0.gamma_2", 1.0)),
        ("beitv2", lambda w: w.update({k: v.flip(0) for k, v in w.items() if k.endswith("_table")})),
        ("convnext", set_to("stages.3.blocks.0.gamma", 1.0)),
        ("convnextv2", exchanged("stages.0.blocks.0.mlp.grn.bias", "stages.0.blocks.1.mlp.grn.bias")),
        ("swin", exchanged("layers.1.blocks.0.attn.qkv.weight", "layers.1.blocks.1.attn.qkv.weight")),
        ("torchvision-swin", lambda w: w.update({k: v.flip(0) for k, v in w.items() if k.endswith("_table")})),
        ("torchvision-vit", exchanged("blocks.0.norm1.weight", "blocks.0.norm2.weight")),
        ("torchvision-regnet-y", exchanged("s1.b1.conv1.bn.running_mean", "s1.b1.conv2.bn.running_mean")),
    ],
)
def test_a_wrong_renaming(monkeypatch, save, tmp_path, key, change):
    broken(monkeypatch, save, tmp_path, key, change, "differs from the source network")


@pytest.mark.parametrize("key", ["convnext", "dinov2"])
def test_a_branch_that_is_silent_at_the_beginning_of_training(monkeypatch, save, tmp_path, key):
    """Behind a layer scale of 1e-6 nothing that is wrong shows, if it stays so."""
    kernel = {"convnext": "stages.3.blocks.0.mlp.fc1.weight", "dinov2": "blocks.1.mlp.fc1.weight"}[key]
    content = PROJECTS[key]()
    for name, value in content.get("model", content).items():
        value.mul_(1e-6 if name.endswith("gamma") else 1)
    monkeypatch.setitem(PROJECTS, key, lambda: content)
    convert(save(content), tmp_path / "good.pkl")
    change = lambda weights: weights.update({kernel: weights[kernel].flip(0)})  # noqa: E731
    broken(monkeypatch, save, tmp_path, key, change, r"differs from the source network .*\(opened mode\)")


def test_exchanged_registers(monkeypatch, save, tmp_path):
    """Tokens without positions: no map shows which of them is the class token's, and the bits do."""
    before = proof.fill

    def fill(backbone, path):
        before(backbone, path)
        tokens = backbone.network.reg_token.data
        tokens.copy_(tokens.flip(1))

    monkeypatch.setattr(proof, "fill", fill)
    with pytest.raises(VerificationError, match="reg_token of the written file is not the source's"):
        convert(save(PROJECTS["dinov2-registers"]()), tmp_path / "out.pkl")


@pytest.mark.parametrize("key", ["PIXEL_MEAN", "PIXEL_STD", "FORMAT"])
def test_a_wrong_mean_or_std_in_the_written_config(monkeypatch, save, tmp_path, key):
    before = proof.network_config

    def config(*arguments):
        made = before(*arguments)
        if key == "FORMAT":
            made["INPUT"]["FORMAT"] = "BGR"
        else:
            made["MODEL"][key] = [value / 255 for value in made["MODEL"][key]]
        return made

    monkeypatch.setattr(proof, "network_config", config)
    with pytest.raises(VerificationError, match="differs from the source network"):
        convert(save(vit()), tmp_path / "out.pkl")
