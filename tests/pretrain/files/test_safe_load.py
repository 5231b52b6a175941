"""Checkpoints of every format, of other programs' making, damaged and hostile: read right, or refused in one line."""

import argparse
import collections
import datetime
import importlib
import io
import json
import os
import pathlib
import pickle
import random
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from checkout import ROOT
from pickles import Calls, torch_bytes

from pretrain.files import safe_load, stand_ins
from pretrain.files.safe_load import read
from pretrain.files.stand_ins import PickledArray


def weights():
    """Tensors of the types that checkpoints have; transposed and scalar ones too."""
    generator = torch.Generator().manual_seed(0)
    conv = torch.randn(8, 3, 3, 3, generator=generator)
    conv[0, 0, 0] = torch.tensor([0.0, -0.0, 1e-45])
    half, double = conv.half(), torch.randn(4, 5, dtype=torch.float64, generator=generator)
    return {"conv": conv, "turned": double.T, "half": half, "steps": torch.tensor(7), "one": torch.tensor(0.1)}


def bits(value):
    """Type, shape and bytes, whatever holds them."""
    value = value.array if isinstance(value, PickledArray) else value
    value = value.numpy() if isinstance(value, torch.Tensor) else value
    native = value.astype(value.dtype.newbyteorder("="))
    return native.dtype.str, native.shape, native.tobytes()


def arrays():
    return {name: tensor.numpy() for name, tensor in weights().items()}


def dumped(protocol, change=lambda array: array):
    return pickle.dumps({name: change(array) for name, array in arrays().items()}, protocol=protocol)


def npz(save):
    file = io.BytesIO()
    save(file, **arrays())
    return file.getvalue()


def zipped_again(data, compression):
    """As a zip program packs a torch archive: with its own alignment, and perhaps compressed."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    return file.getvalue()


def big_endian(array):
    return array.astype(array.dtype.newbyteorder(">"))


def fortran(array):
    return np.array(array, order="F")


FORMATS = {
    "torch zip": lambda: torch_bytes(weights()),
    "torch zip, protocol 3": lambda: torch_bytes(weights(), pickle_protocol=3),
    "torch zip, stored anew": lambda: zipped_again(torch_bytes(weights()), zipfile.ZIP_STORED),
    "torch zip, compressed": lambda: zipped_again(torch_bytes(weights()), zipfile.ZIP_DEFLATED),
    "torch zip of arrays": lambda: torch_bytes(arrays()),
    "torch zip of arrays, numpy 1": lambda: spelled(torch_bytes(arrays()), b"numpy.core"),
    "torch legacy": lambda: torch_bytes(weights(), _use_new_zipfile_serialization=False),
    "torch legacy of arrays": lambda: torch_bytes(arrays(), _use_new_zipfile_serialization=False),
    "safetensors": lambda: safetensors.torch.save({k: v.contiguous() for k, v in weights().items()}),
    "npz": lambda: npz(np.savez),
    "npz, compressed": lambda: npz(np.savez_compressed),
    **{f"pickle {p}": lambda p=p: dumped(p) for p in (2, 3, 4, 5)},
    **{f"pickle {p}, Fortran order": lambda p=p: dumped(p, fortran) for p in (2, 4, 5)},
    **{f"pickle {p}, big endian": lambda p=p: dumped(p, big_endian) for p in (2, 4, 5)},
    "pickle 2, numpy 1": lambda: spelled(dumped(2), b"numpy.core"),
    "pickle 2, numpy 2": lambda: spelled(dumped(2), b"numpy._core"),
}


def spelled(data, core):
    """A file as another version of numpy writes it: ``numpy.core`` is called ``numpy._core`` since numpy 2."""
    if not data.startswith(b"PK"):
        return data.replace(b"cnumpy._core.", b"cnumpy.core.").replace(b"cnumpy.core.", b"c" + core + b".")
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            new.writestr(name, spelled(old.read(name), core) if name.endswith(".pkl") else old.read(name))
    return file.getvalue()


@pytest.fixture
def put(tmp_path):
    """Write bytes to a file; its name says nothing about its format."""

    def write(data, name="weights.bin"):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


def refusal(path, unsafe=False):
    """The one line by which a file is refused."""
    with pytest.raises(ValueError) as caught:
        read(path, unsafe)
    line = str(caught.value)
    assert line and "\n" not in line and len(line) < 400
    return line


@pytest.mark.parametrize("name", ["x.pth", "x.npz", "x"])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_bits(put, kind, name):
    found = read(put(FORMATS[kind](), name))
    assert {key: bits(value) for key, value in found.items()} == {key: bits(value) for key, value in weights().items()}


def test_a_torch_archive_is_mapped_and_not_copied(put):
    path = put(torch_bytes({"w": torch.zeros(2 << 20)}))
    read(path)["w"]  # so that nothing else is imported for the first time
    before = resident()
    content = read(path)
    assert resident() - before < 4 << 20
    assert content["w"].sum() == 0


def resident():
    """Memory of this process that is in use and its own, in bytes."""
    pages = Path("/proc/self/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * os.sysconf("SC_PAGE_SIZE")


BESIDE = {
    "Namespace": lambda: argparse.Namespace(lr=0.1, path=pathlib.PurePosixPath("/a")),
    "number of numpy": lambda: [np.float64(1.5), np.int64(3), np.bool_(True), np.float16(1)],
    "array": lambda: np.arange(3),
    "array of text": lambda: np.array(["a"]),
    "array of objects": lambda: np.array([1, "a"], dtype=object),
    "structured array": lambda: np.zeros(2, dtype=[("a", "i4")]),
    "dtype": lambda: np.dtype("f4"),
    "path": lambda: pathlib.PosixPath("/data/imagenet"),
    "OrderedDict": lambda: collections.OrderedDict(a=1),
    "defaultdict": lambda: collections.defaultdict(list, {"a": [1], "b": [2]}),
    "defaultdict of dict": lambda: collections.defaultdict(dict),
    "Counter": lambda: collections.Counter("aab"),
    "deque": lambda: collections.deque([1, 2], maxlen=3),
    "time": lambda: [datetime.datetime(2020, 1, 1), datetime.timedelta(1), datetime.date(2020, 1, 1)],
    "builtins": lambda: [{1}, frozenset([1]), slice(1), range(3), 1j, b"a", bytearray(b"a")],
    "device": lambda: torch.device("cpu"),
    "DictConfig": lambda: pytest.importorskip("omegaconf").OmegaConf.create({"lr": 0.1, "a": [1, {"b": "x"}]}),
}
PACKED = {
    "torch zip": lambda content: torch_bytes(content),
    "torch legacy": lambda content: torch_bytes(content, _use_new_zipfile_serialization=False),
    "pickle 2": lambda content: pickle.dumps(content, protocol=2),
    "pickle 4": lambda content: pickle.dumps(content, protocol=4),
    "pickle 5": lambda content: pickle.dumps(content, protocol=5),
}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("kind", BESIDE)
def test_what_training_saves_beside_the_weights_does_not_stop_reading(put, kind, packed):
    w = weights()["conv"].numpy()
    content = {"before": BESIDE[kind](), "w": w, "after": BESIDE[kind]()}
    data = PACKED[packed](content)
    found = read(put(data))
    assert list(found) == list(content) and bits(found["w"]) == bits(w)
    if b"numpy._core." in data and packed != "torch zip":  # what numpy 1 saved
        core = data.replace(b"cnumpy._core.", b"cnumpy.core.").replace(
            b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray"
        )
        if packed in ("torch legacy", "pickle 2"):  # later protocols count the bytes of a frame
            assert bits(read(put(core))["w"]) == bits(w)


def hostile(trap):
    """Objects that make the file ``trap`` when they are unpickled without care, by what they do it with."""
    code = f"open({str(trap)!r}, 'w').close()"
    return {
        "posix.system": Calls(os.system, f"touch {trap}"),
        "subprocess.Popen": Calls(subprocess.run, ["touch", str(trap)]),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "io.open": Calls(open, str(trap), "w"),
        "importlib.import_module": Calls(importlib.import_module, "antigravity"),
    }


PLACES = {
    "value": lambda bad: {"w": np.ones(1), "x": bad},
    "key": lambda bad: {bad: 1},
    "in a Namespace": lambda bad: argparse.Namespace(a=[bad]),
    "in an array": lambda bad: np.array([bad], dtype=object),
    "in a dtype's arguments": lambda bad: Calls(np.dtype, bad),
    "in an array's arguments": lambda bad: Calls(np.ndarray, bad),
    "in getattr's arguments": lambda bad: Calls(getattr, bad, "real"),
    "in an OrderedDict's arguments": lambda bad: Calls(collections.OrderedDict, bad),
    "in a defaultdict's arguments": lambda bad: Calls(collections.defaultdict, bad),
}


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("kind", hostile("trap"))
def test_a_file_that_calls_functions_is_refused_and_calls_nothing(put, tmp_path, kind, packed):
    trap = tmp_path / "trap"
    for place in PLACES.values():
        line = refusal(put(PACKED[packed](place(hostile(trap)[kind]))))
        name = "subprocess.run|commands.run" if kind == "subprocess.Popen" else kind
        assert any(name in line for name in name.split("|")) and "could run code: refused" in line
        assert "--unsafe-load" in line and not trap.exists()
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("kind", [kind for kind in hostile("trap") if "import" not in kind])
def test_the_trap_works_where_the_user_trusts_the_file(put, tmp_path, kind, packed):
    trap = tmp_path / "trap"
    read(put(PACKED[packed]({"w": 1, "x": hostile(trap)[kind]})), unsafe=True)
    assert trap.exists()


def test_an_array_of_objects_in_an_npz(put, tmp_path):
    trap, file = tmp_path / "trap", io.BytesIO()
    np.savez(file, w=np.ones(1), x=np.array([hostile(trap)["io.open"]], dtype=object))
    path = put(file.getvalue())
    assert "(Python objects)" in refusal(path) and "--unsafe-load" in refusal(path) and not trap.exists()
    read(path, unsafe=True)
    assert trap.exists()


def test_getattr_gives_nothing_away(put):
    reach = Calls(getattr, Calls(getattr, argparse.Namespace(), "__init__"), "__globals__")
    for packed in PACKED.values():
        found = read(put(packed({"w": 1, "x": reach})))
        assert found["x"] == {} and type(found["x"]).__bases__ == (stand_ins.Inert,)


def torch_zip(data, **members):
    """A torch archive around a pickle of our own."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in {"data.pkl": data, "version": b"3\n", "byteorder": b"little", **members}.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def torch_legacy(data):
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = b"".join(pickle.dumps(part, protocol=2) for part in (0x1950A86A20F9469CFC6C, 1001, system))
    return head + data + pickle.dumps([], protocol=2)


WRAPPED = {"torch zip": torch_zip, "torch legacy": torch_legacy, "pickle": bytes}


def short(text):
    return b"X" + struct.pack("<I", len(text)) + text


_OBJECT = b"cnumpy\ndtype\n" + short(b"O") + b"\x89\x88\x87R"  # numpy.dtype("O", False, True)
_EIGHT = b"c_codecs\nencode\n" + short(b"A" * 8) + short(b"latin1") + b"\x86R"
_POINTERS = b"cnumpy\nndarray\nK\x01\x85" + _OBJECT + _EIGHT + b"\x87R"  # an array of objects over these bytes
_MAKE = b"numpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\n"
# What makes the real numpy follow pointers of the file's choice, or take a great deal of memory
NUMPY_ATTACKS = {
    "pointers in a buffer": _POINTERS,
    "an array of an array of pointers": b"cnumpy\nndarray\n" + _POINTERS + b"\x85R",
    "a scalar object": b"cnumpy._core.multiarray\nscalar\n" + _OBJECT + short(b"abc") + b"\x86R",
    "pointers in a state": b"c" + _MAKE + b"K\x00\x85" + short(b"b") + b"\x87R(K\x01K\x01\x85" + _OBJECT + b"\x89"
    + _EIGHT + b"tb",
    "pointers by _frombuffer": b"cnumpy._core.numeric\n_frombuffer\n(" + _EIGHT + _OBJECT + b"K\x01\x85"
    + short(b"C") + b"tR",
    "a huge array": b"c" + _MAKE + b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85" + short(b"d") + b"\x87R",
    "a huge shape": b"c" + _MAKE + b"K\x00\x85" + short(b"b") + b"\x87R(K\x01\x8a\x06\x00\x00\x00\x00\x00\x01\x85"
    + b"cnumpy\ndtype\n" + short(b"f4") + b"\x89\x88\x87R\x89" + _EIGHT + b"tb",
}  # fmt: skip
DEEP = 50_000
_LONG = struct.pack("<Q", 1 << 40)
BOMBS = {
    "memo": b"\x80\x02}r\xff\xff\xff\x7f.",
    "string": b"\x80\x04\x8d" + _LONG + b"abc.",
    "bytearray": b"\x80\x05\x96" + _LONG + b"abc.",
    "bytearray that memory can hold": b"\x80\x05\x96" + struct.pack("<Q", 700 << 20) + b"abc.",
    "frame": b"\x80\x04\x95" + _LONG + b"abc.",
    "dictionaries": b"\x80\x02" + (b"}" + short(b"a")) * DEEP + b"}" + b"s" * DEEP + b".",
    "lists": b"\x80\x02" + b"]" * DEEP + b"a" * (DEEP - 1) + b".",
    "keys": b"\x80\x02}(" + b"".join(short(b"%d" % i) + b"K\x01" for i in range(DEEP)) + b"u.",
}
_CHILD = """
import resource, sys
from pretrain.files.safe_load import read
base = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (base + (1 << 30), base + (1 << 30)))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        print("read", type(read(path)).__name__)
    except ValueError as error:
        print("refused", error)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert most - before < 200 << 10, (path, most - before)  # KB
"""


def in_a_child(paths):
    """Read files in another process, which may take 1 GB of address space and use 200 MB; returns a line for each."""
    command = [sys.executable, "-W", "ignore", "-c", _CHILD, *map(str, paths)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, (done.returncode, done.stdout[-500:], done.stderr[-500:])
    lines = done.stdout.splitlines()
    assert len(lines) == len(paths) and all(line.startswith(("read ", "refused ")) for line in lines), lines
    return dict(zip([path.name for path in paths], lines, strict=True))


def npy(shape):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + b"1234"


def zipped(compression=zipfile.ZIP_STORED, **members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)
    return file.getvalue()


def overlapping(entries):
    """A zip archive whose directory names one member many times."""
    data = zipped(zipfile.ZIP_DEFLATED, a_npy=bytes(1 << 20))
    directory = data.index(b"PK\x01\x02")
    end = data.index(b"PK\x05\x06")
    entry = data[directory:end]
    counts = struct.pack("<HHII", entries, entries, entries * len(entry), directory)
    return data[:directory] + entry * entries + data[end : end + 8] + counts + data[end + 20 :]


def claims_a_huge_storage():
    """A legacy file whose only storage has 2e11 values by its name, and 4 by its data."""
    data = torch_bytes({"w": torch.zeros(4)}, _use_new_zipfile_serialization=False)
    size = b"K\x04Nt"  # (..., 4, None) in the storage's name
    assert data.count(size) == 1
    return data.replace(size, b"\x8a\x05\x00\x00\x00\x00\x30Nt")


def test_bombs_and_attacks_by_numpy_take_no_memory_and_do_not_crash(put):
    paths = {}
    for kind, data in NUMPY_ATTACKS.items():
        for wrapping, wrap in WRAPPED.items():
            paths[put(wrap(b"\x80\x02" + data + b"."), f"{wrapping} numpy {kind}")] = "read|refused a damaged"
    for kind, data in BOMBS.items():
        for wrapping, wrap in WRAPPED.items():
            anything = "read (dict|list)|refused (a damaged|asks for more)"
            paths[put(wrap(data), f"{wrapping} {kind}")] = "read dict" if kind == "memo" else anything
    zeros = bytes(100_000_000)
    paths[put(zipped(zipfile.ZIP_DEFLATED, **{"a/data_pkl": zeros}), "zip bomb")] = "refused .* unpacks to 100 MB"
    paths[put(zipped(zipfile.ZIP_DEFLATED, a_npy=zeros), "npz bomb")] = "refused .* unpacks to 100 MB"
    paths[put(overlapping(1000), "overlapping")] = "refused .* unpacks to 1049 MB"
    paths[put(zipped(a_npy=npy((10**12,))), "npz shape")] = "refused (asks for more memory|a damaged)"
    paths[put(claims_a_huge_storage(), "huge storage")] = "refused a damaged"
    many = torch.zeros(1).expand(10**6, 10**6)  # 10^12 values by its strides, one in memory
    paths[put(torch_bytes({"w": many}), "expanded")] = "read dict"
    paths[put(torch_bytes({"w": many}, _use_new_zipfile_serialization=False), "expanded legacy")] = "read dict"
    lines = in_a_child(list(paths))
    for path, expected in paths.items():
        assert re.match(expected, lines[path.name]), (path.name, lines[path.name])


def test_no_array_is_made_of_anything_but_numbers(put):
    for kind, data in NUMPY_ATTACKS.items():
        path = put(b"\x80\x02" + data + b".")
        try:
            found = read(path)
        except ValueError:
            continue
        assert not isinstance(found, np.ndarray) and getattr(found, "array", None) is None, kind


def test_reading_changes_no_type_for_the_next_file(put):
    """State may be given to an object, not to a type: it would stay."""
    for kind in (b"argparse\nNamespace", b"numpy\nndarray", b"numpy\ndtype", b"numpy._core.numeric\n_frombuffer"):
        for wrap in WRAPPED.values():
            line = refusal(put(wrap(b"\x80\x02c" + kind + b"\nN}" + short(b"evil") + b"K\x01s\x86b.")))
            assert "damaged" in line
    for changed in (argparse.Namespace, stand_ins.PickledArray, stand_ins.PickledDtype, stand_ins._from_buffer):
        assert not hasattr(changed, "evil")


def lying_safetensors():
    one = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    headers = {
        "longer": ({"a": one}, b"1234", 10**15),
        "as long as a pickle": ({"a": one}, b"1234", 0x80),
        "shorter": ({"a": one}, b"1234", 20),
        "into the data": ({"a": one}, b"1" * 1000, 300),
        "offsets": ({"a": {**one, "data_offsets": [0, 400]}}, b"1234", None),
        "backwards": ({"a": {**one, "data_offsets": [4, 0]}}, b"1234", None),
        "overlapping": ({"a": one, "b": one}, b"1234", None),
        "shape": ({"a": {**one, "shape": [10**12]}}, b"1234", None),
        "overflow": ({"a": {**one, "shape": [2**62, 4]}}, b"1234", None),
        "type": ({"a": {**one, "dtype": "F9"}}, b"1234", None),
        "no data": ({"a": one}, b"", None),
        "more data": ({"a": one}, b"12345678", None),
        "no header": ({}, b"1234", None),
    }
    for kind, (header, data, length) in headers.items():
        text = json.dumps(header).encode()
        yield kind, struct.pack("<Q", len(text) if length is None else length) + text + data
    yield "not JSON", struct.pack("<Q", 5) + b"{nope"
    yield "deep", struct.pack("<Q", 100_005) + b'{"a":' + b"[" * 100_000


@pytest.mark.parametrize(("kind", "data"), list(lying_safetensors()))
def test_a_safetensors_file_that_lies(put, kind, data):
    line = refusal(put(data))
    assert "damaged" in line or line.startswith("not a PyTorch checkpoint")


DAMAGED = {
    "torch zip": FORMATS["torch zip"],
    "torch zip, compressed": FORMATS["torch zip, compressed"],
    "torch legacy": FORMATS["torch legacy"],
    "safetensors": FORMATS["safetensors"],
    "npz": FORMATS["npz"],
    "npz, compressed": FORMATS["npz, compressed"],
    "pickle 2": FORMATS["pickle 2"],
    "pickle 5": FORMATS["pickle 5"],
}


def outcome(path):
    """What is read, as bits, or the line that refuses it; any other error fails the test."""
    try:
        content = read(path)
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
        return str(error)
    if not isinstance(content, dict):
        return repr(content)
    return {k: bits(v) if isinstance(v, (torch.Tensor, np.ndarray, PickledArray)) and hasattr(v, "shape") else None
            for k, v in content.items()}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_truncated_file_is_refused(put, kind):
    data = DAMAGED[kind]()
    generator = random.Random(0)
    for length in {1, 7, 39, 40, 41, len(data) - 1, *(generator.randrange(1, len(data)) for _ in range(60))}:
        assert isinstance(outcome(put(data[:length])), str), length


@pytest.mark.parametrize("kind", DAMAGED)
def test_one_flipped_bit(put, kind):
    """Zip archives have checksums, so that another bit is noticed or does not matter.

    The other formats have none: no reader can notice a flip in their data, and all that can be asked is one line or a
    result.
    """
    data = DAMAGED[kind]()
    whole = {key: bits(value) for key, value in read(put(data)).items()}
    generator = random.Random(0)
    for position in sorted(generator.sample(range(len(data)), 80)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << generator.randrange(8)
        found = outcome(put(bytes(flipped)))
        if kind.startswith(("torch zip", "npz")):
            assert isinstance(found, str) or found == whole, position


@pytest.mark.parametrize("kind", ["torch zip", "npz"])
def test_a_flip_in_the_data_of_a_zip_is_caught(put, kind):
    data = DAMAGED[kind]()
    place = data.index(weights()["conv"].numpy().tobytes())
    for offset in range(0, 800, 41):
        flipped = bytearray(data)
        flipped[place + offset] ^= 4
        assert "checksum" in refusal(put(bytes(flipped)))


@pytest.mark.parametrize("kind", [kind for kind in DAMAGED if kind.startswith(("torch zip", "npz"))])
def test_a_flip_in_the_directory_of_a_zip(put, kind):
    """Beyond checksums: the length of a comment (hides what follows), a folder (torch reads nothing)."""
    data = DAMAGED[kind]()
    whole = {key: bits(value) for key, value in read(put(data)).items()}
    for entry in re.finditer(b"PK\x01\x02", data):
        for offset, bit in ((24, 16), (32, 1), (33, 1), (33, 128), (38, 16)):
            flipped = bytearray(data)
            flipped[entry.start() + offset] ^= bit
            found = outcome(put(bytes(flipped)))
            assert isinstance(found, str) or found == whole, (entry.start(), offset)


def test_files_that_are_none(put, tmp_path):
    assert refusal(put(b"")) == "the file is empty"
    assert refusal(tmp_path) == "a folder, expected a checkpoint file"
    for data in (b"weights of a network\n" * 50, b"\x89PNG\r\n\x1a\n" + bytes(100), b"{}", b"\x1f\x8b" + bytes(90)):
        assert refusal(put(data)).startswith("not a PyTorch checkpoint")
    assert "a zip archive, and none of its files" in refusal(put(zipped(readme_txt=b"hello")))
    assert "TorchScript" in refusal(put(script()))
    assert "pickle_protocol" in refusal(put(torch_bytes(weights(), pickle_protocol=4)))
    assert bits(read(put(torch_bytes(weights(), pickle_protocol=4)), unsafe=True)["conv"]) == bits(weights()["conv"])
    refused = refusal(put(pickle.dumps({"net": torch.nn.ReLU}, protocol=0)))
    assert "more than tensors (pickles.Calls" not in refused


def script():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), file)
    return file.getvalue()


def test_names_that_are_no_file(tmp_path, monkeypatch):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for name in ("loop", "gone", "nowhere", "nowhere/file", "x" * 5000, "nul\0l"):
        with pytest.raises(FileNotFoundError, match="^no such file$"):
            read(tmp_path / name if "\0" not in name else str(tmp_path / name))
    os.mkfifo(tmp_path / "pipe")  # to open it would wait for a writer
    for name in (tmp_path / "pipe", "/dev/zero", "/dev/null"):
        assert refusal(name) == "a device, expected a checkpoint file"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "self").symlink_to(tmp_path / "folder")
    assert refusal(tmp_path / "folder" / "self" / "self") == "a folder, expected a checkpoint file"
    (tmp_path / "secret").write_bytes(b"x")

    def denied(*args, **kwargs):  # permissions do not stop root, so the test does
        raise PermissionError(13, "Permission denied", str(args[0]))

    monkeypatch.setattr(safe_load, "open", denied, raising=False)
    assert refusal(tmp_path / "secret") == "cannot be read (Permission denied)"


def test_a_long_name_in_a_pickle_is_shortened(put):
    line = refusal(put(b"\x80\x02c" + b"numpy.core" * 200 + b"\nx\n."))
    assert "could run code: refused" in line and "…" in line
