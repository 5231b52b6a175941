"""What lies around a checkpoint, or in its place, is said: archives with their files' names, pointers, web pages."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pytest
import safetensors.torch
import torch

from pretrain.files import archives
from pretrain.files.safe_load import read


def torch_bytes():
    file = io.BytesIO()
    torch.save({"conv1.weight": torch.zeros(2)}, file)
    return file.getvalue()


def zipped(members, compression=zipfile.ZIP_STORED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tarred(members):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def refusal(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError) as caught:
        read(path)
    assert "\n" not in str(caught.value) and [p.name for p in path.parent.iterdir()] == [path.name]
    return str(caught.value)


MEMBERS = {"moco/README.md": b"hello", "moco/m.pth": torch_bytes()}
UNPACK = "not a checkpoint but a {} archive with 'moco/m.pth' in it: unpack it first, and name the checkpoint"


@pytest.mark.parametrize("name", ["drive.zip", "m.pth"])  # told by content
@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("zip", zipped(MEMBERS)),
        ("zip", zipped(MEMBERS, zipfile.ZIP_DEFLATED)),
        ("tar", tarred(MEMBERS)),
        ("gzip-compressed tar", gzip.compress(tarred(MEMBERS))),
        ("bzip2-compressed tar", bz2.compress(tarred(MEMBERS))),
        ("xz-compressed tar", lzma.compress(tarred(MEMBERS))),
    ],
)
def test_an_archive_names_the_checkpoint_in_it(tmp_path, kind, content, name):
    assert refusal(tmp_path / name, content) == UNPACK.format(kind)


@pytest.mark.parametrize(
    ("kind", "magic"), [("7-Zip", b"7z\xbc\xaf'\x1c"), ("RAR", b"Rar!\x1a\x07\x01\x00"), ("Zstandard", b"(\xb5/\xfd")]
)
def test_an_archive_that_python_cannot_list(tmp_path, kind, magic):
    line = refusal(tmp_path / "m.pth", magic + bytes(50))
    assert line == f"not a checkpoint but a {kind} archive: unpack it first, and name the checkpoint in it"


def test_a_compressed_file_is_no_archive(tmp_path):
    for opener, kind in ((gzip, "gzip"), (bz2, "bzip2"), (lzma, "xz")):
        line = refusal(tmp_path / "m.pth.gz", opener.compress(torch_bytes()))
        assert line == f"not a checkpoint but a {kind}-compressed file: unpack it first, and name 'm.pth'"


def test_a_few_names_only_and_not_those_that_macos_adds(tmp_path):
    names = ["__MACOSX/._a.pth", "._a.pth", "x.txt", *(f"{i}.ckpt" for i in range(5))]
    line = refusal(tmp_path / "a.zip", zipped(dict.fromkeys(names, b"x")))
    assert "with '0.ckpt', '1.ckpt', '2.ckpt' and 2 more in it" in line
    line = refusal(tmp_path / "a.zip", zipped({"a.txt": b"", "b.jpg": b""}))
    assert "none of its files has a checkpoint's name ('a.txt', 'b.jpg')" in line
    assert refusal(tmp_path / "a.zip", zipped({})) == "not a checkpoint but an empty zip archive"
    line = refusal(tmp_path / "a.zip", zipped({"\x1b[31m" + "x" * 900 + "\nevil.pth": b""}))
    assert line.isprintable() and len(line) < 300


def test_torchs_and_numpys_own_zip_archives_are_none(tmp_path):
    whole = torch_bytes()
    for content in (whole, whole[: len(whole) // 2], zipped({"a.npy": b"x"}), b"PK\x03\x04" + bytes(90)):
        (tmp_path / "m.zip").write_bytes(content)
        assert archives.other_file(tmp_path / "m.zip", content[:40]) is None
    (tmp_path / "m.zip").write_bytes(whole)
    assert list(read(tmp_path / "m.zip")) == ["conv1.weight"]


@pytest.mark.parametrize("magic", [b"PK", b"\x1f\x8b\x08"])
def test_a_safetensors_header_of_a_length_that_begins_as_an_archive(tmp_path, magic):
    wanted = {"conv1.weight": torch.ones(2)}
    data, length = safetensors.torch.save(wanted), int.from_bytes(magic, "little")
    start = int.from_bytes(data[:8], "little")
    content = length.to_bytes(8, "little") + data[8 : 8 + start].ljust(length) + data[8 + start :]
    (tmp_path / "m.safetensors").write_bytes(content)
    assert torch.equal(read(tmp_path / "m.safetensors")["conv1.weight"], wanted["conv1.weight"])


def test_numpys_arrays_beside_a_checkpoint_are_an_archive(tmp_path):
    assert "with 'm.pth' in it" in refusal(tmp_path / "a.zip", zipped({"mean.npy": b"x", "m.pth": torch_bytes()}))


def test_damaged_archives(tmp_path):
    packed = gzip.compress(tarred({"x.txt": bytes(range(256)) * 999}), 0)
    assert "with 'm.pth' in it" in refusal(tmp_path / "a", gzip.compress(tarred({"m.pth": b"x" * 9999}))[:-9])
    assert "damaged gzip archive" in refusal(tmp_path / "a", packed[:50])
    assert "damaged xz archive" in refusal(tmp_path / "a", lzma.compress(tarred(MEMBERS))[:40])
    assert "'x.txt'" in refusal(tmp_path / "a", tarred({"x.txt": b"x" * 9999})[:2000])


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MOST_READ", 2**20)
    packed = gzip.compress(tarred({"zeros.txt": bytes(8 * 2**20), "m.pth": b""}))
    assert "none of its files has a checkpoint's name ('zeros.txt')" in refusal(tmp_path / "a.tar.gz", packed)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "not the checkpoint but Git LFS's"),
        (b"<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning", "a web page, not a checkpoint"),
        (b"\n <html>" + bytes(60), "a web page, not a checkpoint"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "an HDF5 file"),
    ],
)
def test_what_stands_in_a_checkpoints_place(tmp_path, content, line):
    assert refusal(tmp_path / "pytorch_model.bin", content).startswith(line)
