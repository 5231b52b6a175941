"""YAML as data: what is refused, what is read as fvcore reads it, and that nothing in it runs."""

import ast
import os
import textwrap
from pathlib import Path

import pytest
import yaml
from detectron2.config import get_cfg
from fvcore.common.config import CfgNode
from hypothesis import given, settings
from hypothesis import strategies as st

from loco_det.config import add_loco_config
from pretrain.files.yaml_files import MOST_BYTES, merge_config_file, parse_yaml, read_config

CONFIGS = Path(__file__).resolve().parents[3] / "configs"
TAGS = {
    "apply": "!!python/object/apply:os.system ['touch {marker}']",
    "new": "!!python/object/new:subprocess.Popen [[touch, {marker}]]",
    "object": "!!python/object:loco_det.engine.outputs.Nothing {{}}",
    "name": "!!python/name:os.system",
    "module": "!!python/module:antigravity",
    "own": "!os.system x",
    "in a list": "[1, !!python/object/apply:os.system ['touch {marker}']]",
    "as a key": "{{? !!python/object/apply:os.system ['touch {marker}'] : 1}}",
}


@pytest.mark.parametrize("kind", TAGS)
def test_tags_that_make_objects_are_refused(tmp_path, kind):
    text = f"A: 1\nB: {TAGS[kind].format(marker=tmp_path / 'marker')}\n"
    with pytest.raises(ValueError, match=r"file.yaml, line 2, column \d+: the tag !\S+ is refused"):
        parse_yaml(text, "file.yaml")
    assert not (tmp_path / "marker").exists()


def test_tuples_are_data():
    assert parse_yaml("A: !!python/tuple [1, 2]", "f") == {"A": (1, 2)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n  A: 1\nSOLVER: {}\nMODEL:\n  B: 2\n", "f.yaml, line 4, column 1: duplicate key MODEL, first in"),
        ("A:\n  B:\n    C: 1\n    C: 1\n", "f.yaml, line 4, column 5: duplicate key C, first in line 3"),
        ("A: {B: 1, C: 2, B: 3}", "duplicate key B, "),
        ("A: [1, 2", r"f.yaml, line 1, column 9: .*; write"),
        ("A:\tB: 1", "write .*no tabs"),
        ("A: 1\n--- \nB: 2\n", "but found another document"),
        ("&a [*a]", "nested too deeply, or within themselves"),
        ("A: &a {B: *a}", "nested too deeply, or within themselves"),
        ("[" * 5000, "nested too deeply, or within themselves"),
        ("? " * 3000, "nested too deeply, or within themselves"),
        ("{[1]: 2}", "unhashable"),
        ("A: " + "x" * MOST_BYTES, "too large for a config"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
        ("A: 2025-13-41", "month must be"),
        ("\x00", "special characters are not allowed"),
    ],
)
def test_what_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_yaml(text, "f.yaml")
    assert str(error.value).startswith("f.yaml") and len(str(error.value).splitlines()) == 1


def test_aliases_do_not_explode():
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    with pytest.raises(ValueError, match="its aliases stand for more than"):
        parse_yaml(bomb, "f")
    assert parse_yaml("A: &a [1, 2]\nB: *a\nC: {<<: {D: 3}, E: 4}\n", "f") == {
        "A": [1, 2], "B": [1, 2], "C": {"D": 3, "E": 4}
    }  # fmt: skip


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONFIGS)))
def test_every_config_as_fvcore_reads_it(path):
    assert read_config(path) == CfgNode.load_yaml_with_base(str(path))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_subnormal=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(values)
def test_whatever_pyyaml_writes_is_read_as_pyyaml_reads_it(value):
    text = yaml.safe_dump(value, allow_unicode=True)
    assert parse_yaml(text.encode(), "f") == parse_yaml(text, "f") == yaml.safe_load(text)


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.yaml").write_text(textwrap.dedent(text))
    return str(folder / "a.yaml")


def test_bases_upon_each_other(tmp_path):
    path = write(
        tmp_path,
        a="_BASE_: [b.yaml, ~/nowhere/../c.yaml]\nM: {X: 1}\n".replace("~/nowhere/../", ""),
        b="M: {X: 2, Y: 2}\nN: 5\n",
        c="_BASE_: d.yaml\nM: {Y: 3}\n",
        d="M: {Y: 4, Z: 4}\n",
    )
    assert read_config(path) == CfgNode.load_yaml_with_base(path) == {"M": {"X": 1, "Y": 3, "Z": 4}, "N": 5}


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({"a": "_BASE_: a.yaml"}, ValueError, r"a.yaml: its _BASE_ leads back to it \(a.yaml -> a.yaml\)"),
        ({"a": "_BASE_: b.yaml", "b": "_BASE_: ../{name}/a.yaml"}, ValueError, "a.yaml -> b.yaml -> a.yaml"),
        ({"a": "_BASE_: gone.yaml"}, FileNotFoundError, "no such _BASE_, which .*a.yaml names"),
        ({"a": "_BASE_: 3"}, ValueError, "_BASE_ is 3, but must be the path"),
        ({"a": "_BASE_: http://127.0.0.1:9/x.yaml"}, ValueError, "but must be the path of a file of this machine"),
        ({"a": "[1]"}, ValueError, "a list, but a config has lines KEY: VALUE"),
        ({"a": "_BASE_: b.yaml\nM: {X: 1}", "b": "M: 1"}, ValueError, "M is a block, but a value in its _BASE_"),
        ({"a": "_BASE_: b.yaml", "b": "A: 1\nA: 2"}, ValueError, "b.yaml, line 2, column 1: duplicate key A"),
        ({"a": "_BASE_: b.yaml", "b": "A: !!python/name:os.system"}, ValueError, "b.yaml, line 1, .*the tag"),
    ],
)
def test_bases_that_cannot_be(tmp_path, files, error, message):
    path = write(tmp_path, **{name: text.format(name=tmp_path.name) if "{name}" in text else text
                              for name, text in files.items()})  # fmt: skip
    with pytest.raises(error, match=message):
        read_config(path)


def test_an_empty_file_and_a_byte_order_mark(tmp_path):
    (tmp_path / "a.yaml").write_text("# a remark\n")
    with pytest.raises(ValueError, match="a.yaml: nothing, but a config has lines"):
        read_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfA: 1\r\nB: 1e-3\r\n")
    assert read_config(tmp_path / "a.yaml") == {"A": 1, "B": "1e-3"}


def test_detectron2s_versions(tmp_path):
    cfg, theirs = get_cfg(), get_cfg()
    add_loco_config(cfg)
    path = write(tmp_path, a="MODEL:\n  WEIGHT: w.pkl\nTEST:\n  AUG_ON: True\n")  # of version 1
    merge_config_file(cfg, path)
    theirs.merge_from_file(path)
    assert (cfg.MODEL.WEIGHTS, cfg.TEST.AUG.ENABLED) == (theirs.MODEL.WEIGHTS, theirs.TEST.AUG.ENABLED) == ("w.pkl", 1)
    for version in (3, "x"):
        with pytest.raises((ValueError, AssertionError)):
            merge_config_file(get_cfg(), write(tmp_path, a=f"VERSION: {version}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("MODEL:\n", "a.yaml: MODEL is empty, but must be a group of keys such as "),
        ("MODEL: 3", "a.yaml: MODEL is 3, but must be a group"),
        ("MODEL: {FPN: [1]}", r"a.yaml: MODEL.FPN is \[1\], but must be a group"),
        ("1: 2", "a.yaml: the key 1 is not text"),
        ("MODEL: {2: 3}", "a.yaml: the key MODEL.2 is not text"),
    ],
)
def test_groups_and_keys_that_are_none(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        merge_config_file(get_cfg(), write(tmp_path, a=text))


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.yaml")
    with pytest.raises(ValueError, match="a.yaml: a pipe, expected a file"):
        read_config(tmp_path / "a.yaml")


FORBIDDEN = {"yaml.load", "yaml.safe_load", "yaml.unsafe_load", "yaml.full_load", "pickle.load", "pickle.loads",
             "pickle.Unpickler", "eval", "exec", "importlib.import_module"}  # fmt: skip
METHODS = {"merge_from_file", "load_yaml_with_base", "load_cfg"}  # of CfgNode
ALLOWED = {f"pretrain/files/{name}.py" for name in ("yaml_files", "safe_load", "checkpoint_formats")}


def _is_unsafe(call):
    name = ast.unparse(call.func)
    safely = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in call.keywords)
    return name in FORBIDDEN or name.split(".")[-1] in METHODS or (name == "torch.load" and not safely)


def test_files_are_read_safely_everywhere():
    """In one place each: ``yaml.load``, ``pickle.load`` or a plain ``torch.load`` elsewhere would be a way around."""
    root, found = CONFIGS.parent, []
    for path in [path for part in ("loco_det", "pretrain", "tools") for path in (root / part).rglob("*.py")]:
        name = path.relative_to(root).as_posix()
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        found += [f"{name}: {ast.unparse(call)}" for call in calls if _is_unsafe(call) and name not in ALLOWED]
    assert sorted(found) == [
        "loco_det/__init__.py: importlib.import_module(f'loco_det.{module}')",  # of the public API
        "loco_det/cli/common/late_compiler.py: importlib.import_module(COMPILER)",  # of torch, twice
        "loco_det/cli/common/late_compiler.py: importlib.import_module(COMPILER)",
        "loco_det/cli/main.py: importlib.import_module(f'loco_det.cli.{module}')",
        "loco_det/data/cityscapes.py: importlib.import_module(f'cityscapesscripts{name}')",  # names of its own
        "pretrain/__init__.py: importlib.import_module(f'pretrain.{_MODULES[name]}')",  # of the public API
        "pretrain/encoders/base.py: importlib.import_module(module)",  # of an encoder that the user has named
    ]


@pytest.mark.parametrize("text", ["a: !!timestamp x", "a: !!bool maybe", "!!timestamp 1", "a: !!int x", "a: !!float x"])
def test_a_tag_of_yaml_before_another_kind_of_value(text):
    with pytest.raises(ValueError, match=r"^a\.yaml: ") as error:
        parse_yaml(text, "a.yaml")
    assert "\n" not in str(error.value)


def test_a_base_that_can_be_no_file(tmp_path):
    (tmp_path / "a.yaml").write_text('_BASE_: "b\\0.yaml"\n')
    with pytest.raises(ValueError, match=r"a\.yaml: _BASE_ is 'b\\x00\.yaml', but must be the path of a file"):
        read_config(str(tmp_path / "a.yaml"))
