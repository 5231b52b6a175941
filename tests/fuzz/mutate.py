"""Good content made bad, by a seed: values of a nested structure, and bytes of a file."""

import copy

VALUES = [
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e30, -1e308, float("nan"), float("inf"), 2**31, 2**53, 2**63, 10**400,
    "", "1", "abc", "é", "\udce9", "../1.png", "a\0b", "a\nb", "\x1b[2J", "$a_{$", "1e5", [], [1], ["a"], [None], [[1]],
    [[1, 2, 3, 4, 5, 6]], [[[1, 2], [3, 4], [5, 6]]], [1, 2, 3, 4], {}, [{}], {"a": 1}, {"": None},
]  # fmt: skip
BYTES = [b"", b"\0", b"\xff", b"\x80", b"\n", b"{", b"[", b"]", b"0", b"-", b"\xff\xff\xff\x7f", b"\xef\xbb\xbf"]


def changed_values(rng, content, values=VALUES):
    """A copy of nested dicts and lists with one to three values replaced, dropped, doubled, renamed or scaled."""
    content = copy.deepcopy(content)
    for _ in range(rng.choice([1, 1, 2, 3])):
        if not content:
            break
        node, key = content, rng.choice(_keys(content))
        while isinstance(node[key], dict | list) and node[key] and rng.random() < 0.85:
            node = node[key]
            key = rng.choice(_keys(node))
        _change(rng, node, key, values)
    return content


def _keys(node):
    return list(node) if isinstance(node, dict) else range(len(node))


def _change(rng, node, key, values):
    how = rng.random()
    if how < 0.15:
        del node[key]
    elif how < 0.25 and isinstance(node, list):
        node.append(copy.deepcopy(rng.choice(node)))
    elif how < 0.25 and isinstance(key, str):
        node[rng.choice(["", f"{key} ", key.upper(), "a\nb", *node])] = node.pop(key)
    elif how < 0.4 and isinstance(node[key], int | float) and abs(node[key]) < 1e100:
        node[key] = node[key] * rng.choice([-1, 10, 1e6, 0.001])
    else:
        node[key] = copy.deepcopy(rng.choice(values))


def changed_bytes(rng, data):
    """Bytes after one to four flips, cuts, insertions, repetitions, swaps or overwritten stretches."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        start = rng.randrange(len(data) + 1)
        if rng.random() < 0.3:  # headers are where formats have their sizes and offsets
            start = min(start, rng.randrange(64))
        end = min(len(data), start + rng.choice([1, 1, 2, 4, 16, 256, len(data)]))
        _change_bytes(rng, data, start, end)
    return bytes(data)


def _change_bytes(rng, data, start, end):
    how, piece = rng.randrange(8), bytes(data[start:end])
    if how < 2 and piece:
        data[start] ^= 1 << rng.randrange(8)
    elif how == 2:
        del data[start:]
    elif how == 3:
        del data[start:end]
    elif how == 4:
        data[start:start] = rng.choice([piece, rng.choice(BYTES), rng.randbytes(rng.choice([1, 4, 16]))])
    elif how == 5:
        data[start:end] = piece * rng.choice([2, 3, 100]) if len(piece) < 1000 else piece
    elif how == 6:
        other = rng.randrange(len(data) + 1)
        data[start:end] = data[other : other + len(piece)]
    else:
        data[start:end] = rng.choice([bytes(len(piece)), b"\xff" * len(piece), rng.randbytes(len(piece))])
