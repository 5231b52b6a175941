"""Eight road users as stylised silhouettes: lists of polygons, so that one matrix mirrors, rotates and scales them.

A pictogram is a list of ``(role, polygon)`` in painting order. A polygon is (N, 2) float, with x to the right and y
down. The whole is about one unit high and centred on the origin, and every vehicle faces right. The proportions are
random, so that no two cars are the same. The role decides the colour; ``HOLE`` erases what is below.

Every function takes the random generator and ``thin``, the least width of a thin part, in units of the pictogram.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

HOLE, BODY, DARK, GLASS, TRIM, SKIN = range(6)
NUM_ROLES = 6
Pictogram = list[tuple[int, np.ndarray]]


def _box(x0, y0, x1, y1):
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float)


def _disc(x, y, r, n=20):
    angle = np.arange(n) * (2 * np.pi / n)
    return np.stack([x + r * np.cos(angle), y + r * np.sin(angle)], 1)


def _bar(p, q, width):
    """A straight bar from p to q, a little longer than the distance, so that joined bars leave no gap."""
    p, q = np.array(p, float), np.array(q, float)
    along = (q - p) / max(np.linalg.norm(q - p), 1e-6) * width / 2
    across = np.array([-along[1], along[0]])
    p, q = p - along * 0.6, q + along * 0.6
    return np.array([p + across, q + across, q - across, p - across])


def _bars(role, points, width):
    return [(role, _bar(p, q, width)) for p, q in pairwise(points)]


def _ring(x, y, r, width):
    return [(DARK, _disc(x, y, r)), (HOLE, _disc(x, y, r - width))]


def _wheels(xs, y, r):
    return [part for x in xs for part in ((DARK, _disc(x, y, r)), (TRIM, _disc(x, y, r * 0.45, 12)))]


def person(rng: np.random.Generator, thin: float) -> Pictogram:
    stride, spread, wide = rng.uniform(0.02, 0.16), rng.uniform(0.03, 0.2), rng.uniform(0.85, 1.2)
    limb = max(0.08, thin)
    parts = []
    for side in (-1, 1):
        hip, knee = (side * 0.055, 0.02), (side * (0.06 + stride * 0.5), 0.25)
        parts += _bars(TRIM, [hip, knee, (side * (0.06 + stride), 0.46)], limb * 1.15)
        parts += [(DARK, _bar((side * (0.06 + stride), 0.47), (side * (0.06 + stride) + 0.06, 0.47), limb * 0.8))]
        elbow = (side * (0.14 * wide + spread * 0.6), -0.12)
        parts += _bars(BODY, [(side * 0.13 * wide, -0.25), elbow], limb)
        parts += _bars(SKIN, [elbow, (side * (0.14 * wide + spread), rng.uniform(-0.2, 0.04))], limb * 0.9)
    torso = np.array([(-0.16, -0.29), (0.16, -0.29), (0.11, 0.07), (-0.11, 0.07)]) * (wide, 1)
    parts += [(BODY, torso), (SKIN, _bar((0, -0.34), (0, -0.28), 0.08)), (SKIN, _disc(0, -0.4, 0.1))]
    return parts + [(DARK, _disc(0, -0.43, 0.085)[10:])] * int(rng.random() < 0.6)  # hair: the upper half disc


def rider(rng: np.random.Generator, thin: float) -> Pictogram:
    tube, limb, r = max(0.045, thin), max(0.08, thin), rng.uniform(0.18, 0.21)
    hip, shoulder = (-0.14, -0.05), (rng.uniform(0.0, 0.12), -0.28)
    rear, front, pedal, head = (-0.3, 0.28), (0.3, 0.28), (-0.02, 0.28), (0.23, 0.0)
    parts = _ring(*rear, r, max(0.055, thin)) + _ring(*front, r, max(0.055, thin))
    parts += _bars(TRIM, [rear, pedal, head, (-0.13, 0.04), rear], tube) + _bars(TRIM, [front, (0.2, -0.08)], tube)
    parts += _bars(SKIN, [hip, (0.1, 0.1), (0.02, 0.3)], limb * 1.2)
    parts += [(BODY, _bar(hip, shoulder, 0.19))]
    parts += _bars(SKIN, [shoulder, (shoulder[0] + 0.08, -0.12), (0.24, -0.08)], limb)
    parts += [(SKIN, _disc(shoulder[0] + 0.06, -0.4, 0.09))]
    return parts + [(DARK, _disc(shoulder[0] + 0.06, -0.42, 0.1)[10:])]  # helmet


def car(rng: np.random.Generator, thin: float) -> Pictogram:
    roof, back, front = rng.uniform(-0.36, -0.28), rng.uniform(-0.9, -0.6), rng.uniform(0.4, 0.6)
    rear_top, front_top = back + rng.uniform(0.1, 0.3), front - rng.uniform(0.2, 0.35)
    body = [(-0.95, 0.02), (back, -0.06), (front, -0.06), (0.88, 0.0), (0.97, 0.1), (0.95, 0.28), (-0.95, 0.28)]
    cabin = [(back, -0.04), (rear_top, roof), (front_top, roof), (front, -0.04)]
    post = rng.uniform(-0.1, 0.05) + (rear_top + front_top) / 2
    parts = [(BODY, np.array(body)), (BODY, np.array(cabin))]
    for x0, x1, x2, x3 in ((back + 0.09, rear_top + 0.05, post - 0.03, post - 0.03),
                           (post + 0.03, post + 0.03, front_top - 0.03, front - 0.1)):  # fmt: skip
        parts += [(GLASS, np.array([(x0, -0.05), (x1, roof + 0.06), (x2, roof + 0.06), (x3, -0.05)]))]
    parts += [(TRIM, _box(0.82, 0.07, 0.95, 0.14)), (DARK, _box(-0.97, 0.22, 0.97, 0.29))]
    return parts + _wheels((-0.56, 0.58), 0.27, rng.uniform(0.16, 0.19))


def truck(rng: np.random.Generator, thin: float) -> Pictogram:
    top, cab_top, split = rng.uniform(-0.56, -0.42), rng.uniform(-0.36, -0.2), rng.uniform(0.3, 0.42)
    nose = rng.uniform(0.0, 0.2)  # 0: a flat front; else a bonnet
    cab = [(split + 0.07, cab_top), (0.85 - nose, cab_top), (0.94 - nose, 0.0), (0.98, 0.02), (0.98, 0.27)]
    parts = [(DARK, _box(-1.0, 0.2, 0.96, 0.31)), (BODY, _box(-1.0, top, split, 0.22))]
    parts += [(TRIM, np.array(cab + [(split + 0.07, 0.27)]))]
    glass = [(split + 0.2, cab_top + 0.06), (0.8 - nose, cab_top + 0.06), (0.87 - nose, 0.0), (split + 0.2, 0.0)]
    parts += [(GLASS, np.array(glass))]
    return parts + _wheels((-0.76, rng.uniform(-0.46, -0.36), 0.68), 0.31, rng.uniform(0.14, 0.17))


def bus(rng: np.random.Generator, thin: float) -> Pictogram:
    half, top, cut = rng.uniform(0.9, 1.1), rng.uniform(-0.5, -0.4), rng.uniform(0.04, 0.12)
    hull = [(-half + cut, top), (half - cut, top), (half, top + cut), (half, 0.28), (-half, 0.28), (-half, top + cut)]
    parts = [(BODY, np.array(hull)), (TRIM, _box(-half, 0.06, half, rng.uniform(0.1, 0.16)))]
    edges = np.linspace(-half + 0.06, half - 0.3, rng.integers(4, 7))
    parts += [(GLASS, _box(a + 0.025, top + 0.12, b - 0.025, -0.06)) for a, b in pairwise(edges)]
    parts += [
        (GLASS, _box(half - 0.28, top + 0.12, half - 0.14, 0.24)),
        (GLASS, _box(half - 0.08, top + 0.12, half, 0)),
    ]
    return parts + _wheels((-half * 0.6, half * 0.5), 0.27, rng.uniform(0.14, 0.17))


def train(rng: np.random.Generator, thin: float) -> Pictogram:
    tail, nose, top = -rng.uniform(1.3, 1.7), rng.uniform(0.3, 0.6), rng.uniform(-0.4, -0.32)
    parts = _bars(DARK, [(-0.75, top), (-0.6, top - 0.15), (-0.45, top)], max(0.04, thin))  # the pantograph
    parts += [(DARK, _box(tail + 0.05, 0.2, 1.45, 0.3)), (DARK, _box(-0.08, top + 0.06, 0.08, 0.22))]
    parts += [(BODY, _box(tail, top, -0.04, 0.22))]
    front = [(0.04, top), (1.6 - nose, top), (1.62 - nose * 0.4, top + 0.2), (1.65, 0.1), (1.6, 0.22), (0.04, 0.22)]
    parts += [(BODY, np.array(front)), (TRIM, _box(tail, 0.04, -0.04, 0.11)), (TRIM, _box(0.04, 0.04, 1.6, 0.11))]
    for start, stop in ((tail + 0.08, -0.1), (0.1, 1.45 - nose)):
        edges = np.linspace(start, stop, rng.integers(4, 6))
        parts += [(GLASS, _box(a, top + 0.1, b - 0.08, -0.04)) for a, b in pairwise(edges)]
    screen = [(1.5 - nose, top + 0.08), (1.58 - nose, top + 0.08), (1.6 - nose * 0.45, -0.04), (1.5 - nose, -0.04)]
    parts += [(GLASS, np.array(screen))]
    return parts + [
        (DARK, _disc(x, 0.3, 0.085, 12)) for x in (tail + 0.25, tail + 0.45, -0.4, -0.2, 0.3, 0.5, 1.1, 1.3)
    ]


def motorcycle(rng: np.random.Generator, thin: float) -> Pictogram:
    r, tube = rng.uniform(0.22, 0.26), max(0.06, thin)
    rear, front, bars = (-0.5, 0.2), (0.5, 0.2), (0.27, -0.28)
    tyre = max(0.09, thin)
    parts = _ring(*rear, r, tyre) + _ring(*front, r, tyre)
    parts += [(TRIM, _disc(*rear, 0.07, 10)), (TRIM, _disc(*front, 0.07, 10))]
    parts += _bars(TRIM, [front, bars], tube) + _bars(DARK, [rear, (-0.1, 0.12)], max(0.08, thin))
    parts += _bars(DARK, [(0.17, -0.3), bars], tube)
    parts += [(DARK, np.array([(-0.22, 0.0), (0.25, -0.02), (0.2, 0.3), (-0.18, 0.3)]))]  # engine
    parts += [(TRIM, _bar((-0.55, 0.3), (0.05, 0.28), max(0.07, thin)))]  # exhaust
    tank = [(-0.08, -0.04), (0.0, -0.2), (0.26, -0.2), (0.34, -0.08), (0.24, 0.06), (-0.08, 0.06)]
    tail = [(-0.62, -0.16 + rng.uniform(-0.06, 0.03)), (-0.06, -0.08), (-0.02, 0.06), (-0.3, 0.06)]
    parts += [(BODY, np.array(tank)), (BODY, np.array(tail)), (DARK, _bar((-0.42, -0.14), (-0.06, -0.09), 0.07))]
    return parts + [(TRIM, _disc(0.37, -0.17, 0.075, 12))]


def bicycle(rng: np.random.Generator, thin: float) -> Pictogram:
    r, tube, tyre = rng.uniform(0.27, 0.31), max(0.05, thin), max(0.055, thin)
    rear, front, pedal, seat, head = (-0.45, 0.2), (0.45, 0.2), (-0.03, 0.22), (-0.17, -0.16), (0.28, -0.2)
    parts = _ring(*rear, r, tyre) + _ring(*front, r, tyre)
    parts += _bars(BODY, [rear, pedal, seat, rear], tube) + _bars(BODY, [seat, head, pedal], tube)
    parts += _bars(BODY, [front, head, (0.25, -0.34)], tube) + _bars(BODY, [seat, (-0.2, -0.29)], tube)
    reach = rng.uniform(0.08, 0.18)
    parts += [
        (DARK, _bar((0.25, -0.34), (0.25 + reach, -0.34), tube)),
        (DARK, _bar((-0.29, -0.3), (-0.12, -0.3), 0.06)),
    ]
    return parts + [(TRIM, _disc(*pedal, max(0.06, thin), 10))]


# The eight "thing" classes of Cityscapes in its order, so that one class list serves every layout
PICTOGRAMS: dict[str, Callable[[np.random.Generator, float], Pictogram]] = {
    draw.__name__: draw for draw in (person, rider, car, truck, bus, train, motorcycle, bicycle)
}
CLASSES = tuple(PICTOGRAMS)
