"""Config files and KEY VALUE pairs: merged with every key's type kept, or refused in one line that says where."""

import argparse
import copy
import datetime

import pytest
import yaml
from cases import ROOT, one_line
from detectron2.config import get_cfg as get_detectron2_cfg
from mutate import VALUES, changed_bytes, changed_values

from loco_det.cli.common.config import merge_config
from loco_det.config import add_loco_config
from loco_det.convert import add_encoder_config
from pretrain.config import get_cfg
from pretrain.files.yaml_files import parse_yaml, read_config
from pretrain.readout.config import get_cfg as get_readout_cfg

PLAIN = (type(None), bool, int, float, str, list, tuple, dict, bytes, set, datetime.date)
SNIPPETS = [
    b"&a [*a]", b"&a {b: *a}", b"<<: *a", b"<<: {a: 1}", b"!!python/object/apply:os.system [ls]", b"!!python/name:eval",
    b"!!binary aGk=", b"!!set {a, b}", b"!!omap [a: 1]", b"!!timestamp 2001-02-30", b"? [a, b]\n: 1\n", b"2001-99-99",
    b"--- 1\n--- 2\n", b"%YAML 9.9\n---\n", b"_BASE_: [a.yaml]\n", b"1:2:3:4.5", b"0x_", b"0b", b"1_", b"._",
    b"!!int a", b"!!float x", b"!!bool maybe", b"!!str [a]", b"=: 1\n", b"\t- a", b"|9\n", b"{{}: 1}", b"[" * 2000,
]  # fmt: skip


def detection_cfg():
    cfg = get_detectron2_cfg()
    add_loco_config(cfg)
    return cfg


def readout_cfg():
    cfg = get_readout_cfg()
    if "SOURCE" not in cfg.MODEL:
        add_encoder_config(cfg)
    return cfg


CONFIGS = {
    "pretraining": (get_cfg, "configs/pretrain/demo_loco.yaml"),
    "readout": (readout_cfg, "configs/readout/imagenet/linear_sweep.yaml"),
    "detection": (detection_cfg, "configs/demo_coco_loco_frozen.yaml"),
}


@pytest.fixture(scope="module")
def good():
    """Name -> default config, and the lines of a file, upon its bases, as a dict."""
    return {name: (make(), read_config(f"{ROOT}/{path}")) for name, (make, path) in CONFIGS.items()}


def changed_text(rng, data):
    data = changed_bytes(rng, data) if rng.random() < 0.6 else data
    if rng.random() < 0.5:
        at = rng.randrange(len(data) + 1)
        data = data[:at] + rng.choice(SNIPPETS) + data[at:]
    return data


def changed_file(rng, path, content):
    """Write a config that is changed as a structure or as text."""
    if rng.random() < 0.6:
        path.write_text(yaml.safe_dump(changed_values(rng, content), allow_unicode=False))
    else:
        path.write_bytes(changed_text(rng, yaml.safe_dump(content).encode()))


def is_plain(value):
    if isinstance(value, dict):
        return all(map(is_plain, value.values()))
    return all(map(is_plain, value)) if isinstance(value, list | tuple) else type(value) in (*PLAIN, datetime.datetime)


def same_types(cfg, default, path=""):
    """Every key has a value of its default's type, as far as yacs knows them."""
    assert cfg.keys() == default.keys(), path
    for key, value in default.items():
        if isinstance(value, dict):
            assert isinstance(cfg[key], dict), f"{path}{key}"
            same_types(cfg[key], value, f"{path}{key}.")
        elif value is not None and f"{path}{key}" != "SOLVER.AMP.ENABLED":
            kinds = (list, tuple) if isinstance(value, list | tuple) else (type(value),)
            assert isinstance(cfg[key], kinds), f"{path}{key}: {cfg[key]!r}"


def test_text_is_plain_values_or_one_line(each_case):
    data = yaml.safe_dump({"A": {"B": [1, 2.5, "x"], "C": None}, "D": (True, "1e5"), "E": {"F": [[1], {}]}}).encode()

    def case(rng):
        try:
            found = parse_yaml(changed_text(rng, data), "some.yaml")
        except ValueError as error:
            one_line(error, "some.yaml")
            return
        assert is_plain(found)

    each_case(case, 1500)


def test_files_upon_bases(tmp_path, good, each_case):
    path, content = tmp_path / "a.yaml", {"_BASE_": ["b.yaml", "c.yaml"], "A": {"B": 1}, "C": [1]}
    bases = {"b.yaml": {"A": {"D": 2}, "E": 1}, "c.yaml": {"_BASE_": "b.yaml", "F": {"G": "x"}}}

    def case(rng):
        for name, base in bases.items():
            (tmp_path / name).write_text(yaml.safe_dump(base))
        changed_file(rng, *rng.choice([(path, content), (tmp_path / "c.yaml", bases["c.yaml"])]))
        if not path.exists():
            path.write_text(yaml.safe_dump(content))
        try:
            found = read_config(str(path))
        except (ValueError, OSError) as error:
            one_line(error, tmp_path, most=20_000)
            return
        assert isinstance(found, dict) and "_BASE_" not in found and is_plain(found)

    each_case(case, 600)


@pytest.mark.parametrize("kind", CONFIGS)
def test_configs_keep_the_types_of_their_keys(tmp_path, good, each_case, kind):
    (default, content), path = good[kind], tmp_path / "a.yaml"

    def case(rng):
        cfg = default.clone()
        changed_file(rng, path, content)
        try:
            merge_config(cfg, argparse.Namespace(config_file=str(path), opts=[]))
        except (ValueError, OSError) as error:
            one_line(error, most=20_000)
            return
        same_types(cfg, default)
        parse_yaml(cfg.dump(), "the dump")

    each_case(case, 60)


def keys_of(cfg, prefix=""):
    for key, value in cfg.items():
        if isinstance(value, dict):
            yield from keys_of(value, f"{prefix}{key}.")
        yield prefix + key


@pytest.mark.parametrize("kind", CONFIGS)
def test_key_value_pairs_keep_the_types_of_their_keys(good, each_case, kind):
    default = good[kind][0]
    keys = list(keys_of(default))
    texts = [str(value) for value in copy.deepcopy(VALUES) if value != 10**400]
    texts += [
        "[res4, res5]",
        "(1,2)",
        "[" * 300,
        "1e-3",
        "-0x1",
        "None",
        "{'a': 1}",
        "'a",
        "1_000",
        "9" * 5000,
        "a=b",
        "--x",
    ]
    texts += [
        "random",
        "a.yaml",
        "lambda: 0",
        "__import__('os')",
        "(1",
        "[1,",
        "{1}",
        "b'a'",
        "...",
        "1j",
        "\\",
        "#",
        "&a",
    ]

    def case(rng):
        cfg, opts = default.clone(), []
        for _ in range(rng.choice([1, 1, 2, 3])):
            key = rng.choice(keys)
            key = changed_bytes(rng, key.encode()).decode(errors="replace") if rng.random() < 0.15 else key
            opts += [key, rng.choice(texts)]
        opts = opts[:-1] if rng.random() < 0.05 else opts
        try:
            merge_config(cfg, argparse.Namespace(config_file="", opts=opts))
        except ValueError as error:
            one_line(error, most=20_000)
            return
        same_types(cfg, default)
        parse_yaml(cfg.dump(), "the dump")

    each_case(case, 100)
