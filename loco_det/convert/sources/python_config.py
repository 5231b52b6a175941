"""A config that is Python source, as OpenMMLab's are, read as data: parsed, and never executed."""

import ast
import operator
import re
from collections.abc import Iterator
from typing import Any

LONGEST = 2 * 2**20  # characters of a config; the longest of MMPretrain's have 30 thousand


class Unknown:
    """Stands for a value that only executing the config could tell."""

    def __repr__(self):
        return "a value that is computed"


UNKNOWN = Unknown()
_CONSTANTS = {"true": True, "false": False, "null": None}  # a config in JSON
_ARITHMETIC = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def assignments(text: str) -> list[tuple[str, object]]:
    """What a config assigns to names, in its order; a name may come more than once.

    Args:
        text: Python source, also of several files in a row, each after a line with its path (mmcv's ``Config.text``);
            or one object of JSON.

    Returns:
        list of (name, value): values are numbers, text, lists, dictionaries, or ``UNKNOWN``.

    Raises:
        ValueError: if it is not Python.
    """
    if len(text) > LONGEST:
        raise ValueError("too long")
    text = re.sub(r"^[^=()\[\]{}#'\",]*\.(py|json|ya?ml)[ \t]*$", "", text, flags=re.MULTILINE)
    try:
        pairs: list[tuple[str, Any]] = []
        names: dict[str, Any] = {}
        for statement in ast.parse(text).body:
            for name, value in _assigned(statement, names):
                names[name] = value
                pairs.append((name, value))
        return pairs
    except SyntaxError as error:
        raise ValueError(f"line {error.lineno}") from None
    except (RecursionError, MemoryError):
        raise ValueError("too deeply nested") from None


def entries(value: object, _seen: set | None = None) -> Iterator[tuple[object, object, dict]]:
    """Yield (key, value, dictionary that it is in) of every dictionary in a value, outer ones first, each one once."""
    seen = set() if _seen is None else _seen
    if not isinstance(value, (dict, list)) or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, dict):
        for key, inner in dict.items(value):
            yield key, inner, value
    for inner in dict.values(value) if isinstance(value, dict) else value:
        yield from entries(inner, seen)


def _assigned(statement, names):
    """(name, value) of the names that a statement assigns to; what it changes otherwise is unknown from there on.

    No branch is taken and no loop is run: a change in there is one that may be.
    """
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Dict):  # JSON
        value = _value(statement.value, names)
        return [(key, inner) for key, inner in value.items()] if isinstance(value, dict) else []
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
    if isinstance(statement, (ast.Assign, ast.AnnAssign)) and all(isinstance(target, ast.Name) for target in targets):
        value = _value(statement.value, names) if statement.value else UNKNOWN
        return [(target.id, value) for target in targets]
    if isinstance(statement, (ast.Import, ast.ImportFrom)):
        return []
    return [(name, UNKNOWN) for name in sorted(set(map(_base, _changed(statement))) - {None})]


def _changed(statement):
    """Yield the expressions in a statement that it assigns to, deletes, or calls a method of."""
    for node in ast.walk(statement):
        if isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del)):
            yield node
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.func


def _base(node):
    """``config`` of ``config["model"].backbone``."""
    while isinstance(node, (ast.Subscript, ast.Attribute)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _value(node, names):
    """The value of an expression, as far as it is written out."""
    match node:
        case ast.Constant():
            return node.value
        case ast.Name():
            return names.get(node.id, _CONSTANTS.get(node.id, UNKNOWN))
        case ast.List() | ast.Tuple():
            return [_value(element, names) for element in node.elts]
        case ast.Dict():
            return _dictionary(zip(node.keys, node.values, strict=True), names)
        case ast.Call(func=ast.Name(id="dict"), args=[]):
            return _dictionary([(word.arg, word.value) for word in node.keywords], names)
        case ast.Call(func=ast.Name(id="list" | "tuple"), args=[argument], keywords=[]):
            value = _value(argument, names)
            return value if isinstance(value, list) else UNKNOWN
        case ast.Subscript():
            return _item(_value(node.value, names), _value(node.slice, names))
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            value = _value(node.operand, names)
            return UNKNOWN if not _is_number(value) else -value if isinstance(node.op, ast.USub) else value
        case ast.BinOp():
            return _calculated(node.op, _value(node.left, names), _value(node.right, names))
    return UNKNOWN


def _dictionary(pairs, names):
    """A dictionary of (key, value expression); a key None is ``**value``."""
    result = {}
    for key, node in pairs:
        value, key = _value(node, names), _value(key, names) if isinstance(key, ast.AST) else key
        if key is None and not isinstance(value, dict):
            return UNKNOWN
        if key is not None and not isinstance(key, (str, int)):
            return UNKNOWN
        result.update(value if key is None else {key: value})
    return result


def _item(container, key):
    try:
        return container[key] if isinstance(container, (dict, list)) else UNKNOWN
    except (KeyError, IndexError, TypeError):
        return UNKNOWN


def _calculated(op, left, right):
    if isinstance(left, list) and isinstance(right, list) and isinstance(op, ast.Add):
        return [*left, *right] if len(left) + len(right) < LONGEST else UNKNOWN
    if not (_is_number(left) and _is_number(right) and type(op) in _ARITHMETIC):
        return UNKNOWN
    try:
        return _ARITHMETIC[type(op)](left, right)
    except ArithmeticError:
        return UNKNOWN


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
