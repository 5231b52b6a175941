"""Labelled folders, and the view of an image that evaluations look at."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from pretrain.readout import labelled
from pretrain.readout.labelled import (
    Labelled,
    central_crop,
    hold_out,
    labelled_splits,
    list_labelled,
    subset,
    warn_of_images,
)


@pytest.mark.parametrize(("height", "width"), [(400, 300), (301, 500), (100, 100), (20, 33)])
def test_central_crop_is_torchvisions(height, width):
    from torchvision.transforms import v2

    y, x = np.mgrid[:height, :width]
    waves = 9 * y / height, 9 * x / width, (x + y) / 60
    image = np.stack([128 + 100 * np.sin(wave) for wave in waves], 2).astype(np.uint8)
    expected = v2.Compose([v2.Resize(64, antialias=True), v2.CenterCrop(56)])(torch.from_numpy(image).permute(2, 0, 1))
    difference = np.abs(central_crop(image, 56).astype(int) - expected.permute(1, 2, 0).numpy())
    assert difference.mean() < 3  # of 256 levels: torchvision places its crop at whole pixels of the resized image


def test_central_crop_is_antialiased():
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)  # 64 pixels to one: std / 8
    assert central_crop(noise, 56).std() == pytest.approx(noise.std() / 8, rel=0.05)


@pytest.mark.parametrize("size", [1, 7, 32, 96, 160, 224])
@pytest.mark.parametrize("shape", [(50, 70, 3), (60000, 1, 3)])
def test_central_crop_has_any_size(shape, size):
    assert central_crop(np.zeros(shape, np.uint8), size).shape == (size, size, 3)


def test_class_folders(config, write_images, tmp_path):
    train, test = write_images(tmp_path / "train", 3, 2), write_images(tmp_path / "test", 3, 1)
    (train / "notes.txt").write_text("no class")
    (test / "class0" / "0.png").unlink()
    (test / "class0").rmdir()  # TEST may have fewer classes: labels stay those of TRAIN
    first, second = labelled_splits(config(train, test).KNN)
    assert first.labels == [0, 0, 1, 1, 2, 2] and first.class_names == ["class0", "class1", "class2"]
    assert first.paths[2] == str(train / "class1" / "0.png")
    assert second.labels == [1, 2] and labelled_splits(config(train).KNN)[1] is None


def test_errors_say_what_is_wrong(config, write_images, tmp_path):
    train = write_images(tmp_path / "train", 2, 1)
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flat" / "0.png")
    (tmp_path / "hollow" / "cat").mkdir(parents=True)
    for train_, test, error, message in [
        (tmp_path / "nowhere", "", FileNotFoundError, "nowhere: no such folder of labelled images"),
        (tmp_path / "flat", "", FileNotFoundError, "flat: no sub-folders; labelled images lie in one sub-folder for"),
        (tmp_path / "hollow", "", FileNotFoundError, "hollow/cat: no images"),
        (write_images(tmp_path / "one", 1, 2), "", ValueError, "one: only one class, class0"),
        (train, tmp_path / "nowhere", FileNotFoundError, "no such folder"),
        (train, write_images(tmp_path / "more", 4, 1), ValueError,
         "more: 2 classes that the training folder does not have: class2, class3$"),
        (train, f"{train}/../train", ValueError, 'is the folder TRAIN itself: .* in kNN, TEST "" has each image class'),
    ]:  # fmt: skip
        with pytest.raises(error, match=message) as caught:
            labelled_splits(config(train_, test).KNN)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("share", "expected"), [(0.0, [0, 0, 0, 0]), (0.1, [0, 1, 1, 3]), (0.5, [0, 1, 4, 15]),
                                                 (0.99, [0, 1, 7, 29])])  # fmt: skip
def test_a_share_of_each_class_is_held_out(share, expected):
    labels = [0] + [1] * 2 + [2] * 8 + [3] * 30  # of one image none can be spared
    labelled = Labelled([f"{i}.png" for i in range(41)], labels, list("abcd"))
    rest, held_out = hold_out(labelled, share, seed=0)
    assert sorted(rest.tolist() + held_out.tolist()) == list(range(41))
    assert [subset(labelled, held_out).labels.count(c) for c in range(4)] == expected
    assert subset(labelled, held_out).paths == [f"{i}.png" for i in held_out.tolist()]
    again = hold_out(labelled, share, seed=0)[1]
    assert torch.equal(again, held_out) and held_out.dtype == torch.long
    if 0 < share < 0.99:
        assert not torch.equal(hold_out(labelled, share, seed=1)[1], held_out)


def test_held_out_images_of_a_folder(folders):
    labelled = list_labelled(folders[0])
    rest, held_out = (subset(labelled, part) for part in hold_out(labelled, 0.25, seed=0))
    assert sorted(held_out.labels) == [0, 1, 2, 3, 4, 5] and len(rest.paths) == 18
    assert not {*rest.paths} & {*held_out.paths} and rest.class_names == labelled.class_names


def test_classes_without_test_images_and_small_images_are_named(write_images, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(labelled, "LOOKED_AT", 9)
    train, test = write_images(tmp_path / "train", 6, 2), write_images(tmp_path / "test", 6, 1)
    shutil.rmtree(test / "class2")
    (train / "class0/0.png").write_bytes(b"no image")
    parts = list_labelled(train), list_labelled(test, list_labelled(train).class_names)
    warn_of_images(*parts, 36)  # they are 40 x 50
    one, two = caplog.messages
    assert one == "1 of 6 classes have training images but no test images: class2"
    assert "8 of 9 images looked at are smaller than the 41 pixels of INPUT.CROP_SIZE 36 and are enlarged" in two
    assert two.endswith("png with 40")
    caplog.clear()
    warn_of_images(*parts[:1], None, 35)  # scaled to 40; each is classified by the others
    assert not caplog.messages
