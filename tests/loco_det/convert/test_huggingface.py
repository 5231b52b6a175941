"""ResNets of Hugging Face's transformers: what the files beside the weights say is used, or the weights are refused."""

import json

import pytest
import safetensors.torch
import torch
import yaml
from frameworks import transformers_classifier, transformers_resnet
from project_parts import Nest

from loco_det.convert import convert, load_encoder, load_source

# As save_pretrained writes them, but for keys that change nothing here
CONFIG = {
    "architectures": ["ResNetForImageClassification"], "depths": [2, 2, 2, 2], "downsample_in_bottleneck": False,
    "downsample_in_first_stage": False, "embedding_size": 64, "hidden_act": "relu", "hidden_sizes": [64, 128, 256, 512],
    "layer_type": "basic", "model_type": "resnet", "num_channels": 3,
}  # fmt: skip
IMAGES = {
    "crop_pct": 0.875, "do_normalize": True, "do_resize": True, "feature_extractor_type": "ConvNextFeatureExtractor",
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "size": 224,
}  # fmt: skip
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
NARROW = "resnet50x0.25"
NARROW_CONFIG = CONFIG | {
    "depths": [3, 4, 6, 3], "embedding_size": 16, "hidden_sizes": [64, 128, 256, 512], "layer_type": "bottleneck"
}  # fmt: skip


@pytest.fixture
def saved(network, tmp_path):
    """``saved(config, images)``: a folder of save_pretrained; None: without that file."""

    def save(config=CONFIG, images=IMAGES, arch="resnet18", name="pytorch_model.bin"):
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        weights = transformers_classifier(network(arch), None)
        safetensors.torch.save_file(weights, folder / name) if "safe" in name else torch.save(weights, folder / name)
        for file, content in (("config.json", config), ("preprocessor_config.json", images)):
            if content is not None:
                (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
        return folder

    return save


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_is_converted_and_what_was_read_of_it_is_said(name, saved, network, assert_written, tmp_path):
    folder = saved(name=name)
    result = convert(folder, tmp_path / "out.pkl")
    assert_written(result.output, network())
    assert result.source.notes == [f"of the folder 'model', {name} was read"]
    assert result.source.path == folder / name
    again = convert(folder / name, tmp_path / "again.pkl")
    assert again.sha256 == result.sha256 and again.source.notes == []
    assert load_encoder(folder).source.notes == result.source.notes


def test_of_both_formats_safetensors_is_read(saved, refused):
    saved()
    (saved() / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"model/model\.safetensors: not a PyTorch checkpoint"):
        load_source(saved())
    saved(name="model.safetensors")
    notes = load_source(saved())[0].notes
    assert notes == ["of the folder 'model', model.safetensors was read (pytorch_model.bin is left)"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "model.safetensors or pytorch_model.bin; it is empty"),
        (["tf_model.h5", "config.json"], "it holds 'config.json', 'tf_model.h5'$"),
        (
            ["model.safetensors.index.json", "model-00001-of-00002.safetensors"],
            "model.safetensors is split into several",
        ),
        (["pytorch_model.bin.index.json"], "pytorch_model.bin is split into several .*max_shard_size"),
        (["snapshots/abc/model.safetensors", "refs/main"], "the hub's cache folder: .* 'snapshots/abc'"),
        (["a\x1b[31m\n.txt"], r"'a\\x1b\[31m\\n.txt'"),
    ],
)
def test_folders_without_weights(names, message, tmp_path, refused):
    folder = tmp_path / "model"
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    refused(folder, message)


def test_a_link_to_nowhere(tmp_path, refused):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").symlink_to("../blobs/gone")
    refused(tmp_path / "model", "a link to a file that is not there")


# --- config.json -----------------------------------------------------------------------------------------------------


def test_strides_in_the_first_conv(saved, network, tmp_path):
    """As downsample_in_bottleneck asks for: another network of the same shapes."""
    folder = saved(NARROW_CONFIG | {"downsample_in_bottleneck": True}, arch=NARROW)
    result = convert(folder, tmp_path / "out.pkl")
    assert yaml.safe_load((tmp_path / "out.yaml").read_text())["MODEL"]["RESNETS"]["STRIDE_IN_1X1"] is True
    assert all(d.relative < 1e-6 for stages in result.differences.values() for d in stages.values())
    net = network(NARROW)
    for name in ("layer2", "layer3", "layer4"):
        getattr(net, name)[0].conv1.stride, getattr(net, name)[0].conv2.stride = (2, 2), (1, 1)
    images = torch.randn(2, 3, 75, 58, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        got, wanted = load_encoder(folder).encoder(images), net(images)
    assert all(torch.equal(got[stage], wanted[stage]) for stage in wanted)
    saved(NARROW_CONFIG, arch=NARROW)
    assert convert(folder, tmp_path / "out.pkl").config["MODEL"]["RESNETS"]["STRIDE_IN_1X1"] is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act 'gelu', which Detectron2's ResNet cannot compute"),
        ({"downsample_in_first_stage": True}, "downsample_in_first_stage True, which Detectron2's"),
        ({"downsample_in_bottleneck": "no"}, "downsample_in_bottleneck 'no', expected true or false"),
        ({"model_type": "regnet"}, "is of a 'regnet'"),
        ({"layer_type": "bottleneck"}, r"layer_type 'bottleneck', but the weights are a resnet18's: basic"),
        ({"depths": [3, 4, 6, 3]}, r"depths \[3, 4, 6, 3\], but the weights are a resnet18's: \[2, 2, 2, 2\]"),
        ({"hidden_sizes": [256, 512, 1024, 2048]}, "hidden_sizes .*, but"),
        ({"embedding_size": 32}, "embedding_size 32, but"),
        ({"num_channels": 1}, "num_channels 1, but"),
    ],
)
def test_what_detectron2_cannot_compute_or_the_weights_contradict(change, message, saved, tmp_path):
    with pytest.raises(ValueError, match=rf"pytorch_model\.bin: config\.json beside it .*{message}") as caught:
        convert(saved(CONFIG | change), tmp_path / "out.pkl")
    assert str(caught.value).isprintable() and not (tmp_path / "out.pkl").exists()


@pytest.mark.parametrize("text", ["{", "[1]", "\x00", '{"model_type"', "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
def test_a_damaged_file_beside_it(name, text, saved):
    folder = saved()
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=f": {name} beside it (cannot be read|holds no JSON object)") as caught:
        load_source(folder)
    assert "\n" not in str(caught.value)


def test_without_the_files_transformers_defaults_are_taken_and_said(saved):
    source, _ = load_source(saved(None, None) / "pytorch_model.bin")
    assert [note.split(":")[0] for note in source.notes] == [
        "no config.json beside it", "no preprocessor_config.json beside it"
    ]  # fmt: skip
    assert source.conventions[1:3] == IMAGENET and not source.conventions.stride_in_1x1


def test_another_place_that_is_named(saved, network, save):
    """As the backbone of a detector; its strides are in the config of the detector's backbone."""
    folder = saved({"model_type": "detr", "backbone_config": NARROW_CONFIG | {"downsample_in_bottleneck": True}})
    weights = Nest(backbone=Nest(model=transformers_resnet(network(NARROW)))).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"--prefix backbone\.model\.$"):
        load_source(folder)
    source, _ = load_source(folder, prefix="backbone.model.")
    assert source.conventions.stride_in_1x1 and source.conventions[1:3] == IMAGENET


# --- preprocessor_config.json ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "mean", "std"),
    [
        ({}, *IMAGENET),
        ({"rescale_factor": 0.00392156862745098}, *IMAGENET),
        ({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.25, 0.5]}, (127.5,) * 3, (127.5, 63.75, 127.5)),
        ({"image_mean": 0.5, "image_std": 0.25}, (127.5,) * 3, (63.75,) * 3),
        ({"do_normalize": False}, (0,) * 3, (255,) * 3),
        ({"do_rescale": False, "image_mean": [123.5, 116, 103], "image_std": [1, 1, 1]}, (123.5, 116, 103), (1,) * 3),
        ({"rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1], "image_std": [1, 1, 1]}, (127.5,) * 3, (127.5,) * 3),
    ],
)
def test_pixels(change, mean, std, saved, tmp_path):
    convert(saved(images=IMAGES | change), tmp_path / "out.pkl")
    model = yaml.safe_load((tmp_path / "out.yaml").read_text())["MODEL"]
    assert (tuple(model["PIXEL_MEAN"]), tuple(model["PIXEL_STD"])) == (mean, std)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_mean": None}, "no three numbers for mean and std .image_mean None"),
        ({"image_std": [0.2, 0.2]}, "image_std .0.2, 0.2"),
        ({"image_std": [0.2, 0, 0.2]}, "image_std .0.2, 0, 0.2"),
        ({"image_mean": ["a", "b", "c"]}, "image_mean"),
        ({"image_mean": [True, True, True]}, "image_mean"),
        ({"image_mean": [float("nan")] * 3}, "image_mean"),
        ({"image_mean": [10**400] * 3}, "image_mean"),
        ({"rescale_factor": 0}, "rescale_factor 0"),
        ({"rescale_factor": "x"}, "rescale_factor 'x'"),
        ({"do_flip_channel_order": True}, "do_flip_channel_order True, which is not known"),
    ],
)
def test_pixels_that_are_not_known(change, message, saved):
    with pytest.raises(ValueError, match=f"preprocessor_config.json beside it has .*{message}") as caught:
        load_source(saved(images=IMAGES | change))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


# --- networks that look alike ----------------------------------------------------------------------------------------

STAGE = "encoder.stages.0.layers.0."
CONV = f"{STAGE}layer.0.convolution.weight"
RELATIVES = {
    "a RegNet": [f"regnet.{CONV}", "regnet.embedder.embedder.convolution.weight"],
    "RT-DETR": [CONV, "embedder.embedder.0.convolution.weight"],
    "another network of transformers": ["convnext.encoder.stages.0.layers.0.dwconv.weight"],
    "is not a name of transformers' ResNet": [CONV, f"{STAGE}layer.2.attention.0.weight"],
    "no bn1.running_mean": [CONV, "embedder.embedder.convolution.weight"],
}


@pytest.mark.parametrize("message", RELATIVES)
def test_relatives_are_refused_by_name(message, refused):
    refused({name: torch.zeros(4, 3, 7, 7) for name in RELATIVES[message]}, message)


def test_a_classifier_whose_prefix_was_taken_away(network, save, assert_same_bits):
    weights = transformers_classifier(network(), None)
    source, got = load_source(save({name.removeprefix("resnet."): value for name, value in weights.items()}))
    assert (source.location, source.dropped) == ("", {"classifier": 2})
    assert_same_bits(got, network())


def test_other_names_in_the_encoder_are_refused(saved, network, refused):
    weights = transformers_resnet(network()).state_dict()
    refused({**weights, "encoder.stages.4.layers.0.layer.0.convolution.weight": torch.zeros(2)}, "1 left over .layer5")
    refused({**weights, "pooler.weight": torch.zeros(2)}, "1 names in its encoder at '' .*pooler.weight")
