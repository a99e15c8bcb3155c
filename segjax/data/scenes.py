"""Shapescapes: painted landscapes with exact labels, made from a number.

A scene is a sky, hills and a ground of grass, sand and water, with discs, rings, boxes, triangles,
stars, poles and wires in front of each other. What a class looks like varies: hues overlap between
classes, so texture and outline have to be read too. Outlines, poles and wires are finer than a
ViT's patch. Everything scales with the shorter side, and is drawn from implicit functions: an
image pixel is blended by the share that a shape covers, a label is the shape at the pixel centre.
"""

from __future__ import annotations

import colorsys
import dataclasses
from typing import NamedTuple

import cv2
import numpy as np

CLASSES = (
    "sky",
    "hill",
    "grass",
    "sand",
    "water",
    "disc",
    "ring",
    "box",
    "triangle",
    "star",
    "pole",
    "wire",
)
SKY, HILL, GRASS, SAND, WATER, DISC, RING, BOX, TRIANGLE, STAR, POLE, WIRE = range(len(CLASSES))
STUFF = 5
"""Classes below this are stuff: one segment each."""

# Hues (0..1) that a thing's paint is drawn around. Each comes close to one of another class.
HUES = {
    DISC: (0.99, 0.60),
    RING: (0.06, 0.52),
    BOX: (0.78, 0.08),
    TRIANGLE: (0.46, 0.90),
    STAR: (0.14, 0.88),
}
FREQUENCY = {DISC: 1.0, RING: 1.2, BOX: 1.0, TRIANGLE: 1.2, STAR: 1.2, POLE: 1.6, WIRE: 1.0}


class Scene(NamedTuple):
    """One picture with its labels.

    Attributes:
        image: uint8 [H, W, 3] RGB.
        semantic: int16 [H, W], index into CLASSES; every pixel has one.
        segments: int32 [H, W], index into the two lists below.
        segment_class: int32 [S].
        segment_is_crowd: bool [S]; a crowd is a heap of small things under one segment.
    """

    image: np.ndarray
    semantic: np.ndarray
    segments: np.ndarray
    segment_class: np.ndarray
    segment_is_crowd: np.ndarray


@dataclasses.dataclass
class _Canvas:
    """What is painted so far. `classes` and `crowds` list all segments, also those hidden later."""

    image: np.ndarray  # float32 [H, W, 3], 0..1
    segments: np.ndarray  # int32 [H, W]
    classes: list[int]
    crowds: list[bool]

    def segment(self, label: int, crowd: bool = False) -> int:
        self.classes.append(label)
        self.crowds.append(crowd)
        return len(self.classes) - 1


def paint_scene(size: tuple[int, int], rng: np.random.Generator) -> Scene:
    """Paints a scene of `size` (height, width); all chance comes from `rng`."""
    height, width = size
    canvas, horizon = _landscape(size, rng)
    unit = min(size) / 128
    labels = list(FREQUENCY)
    weights = np.array(list(FREQUENCY.values()))
    spread = (max(size) / min(size)) ** 0.5
    count = round(int(rng.integers(4, 8)) * spread)
    kinds = rng.choice(labels, size=count, p=weights / weights.sum())
    # Far things are drawn first and stand higher; wires hang in front of most of them.
    depth = np.sort(rng.uniform(0.0, 1.0, count))
    crowd_at = rng.integers(count) if rng.random() < 0.3 else -1
    for index, (kind, near) in enumerate(zip(kinds, depth)):
        top = horizon - 0.12 * height
        centre = (top + near * (height - top), rng.uniform(0.04, 0.96) * width)
        if index == crowd_at:
            _crowd(canvas, centre, unit, rng)
        elif kind == WIRE:
            _wire(canvas, unit, rng)
        elif kind == POLE:
            foot = max(centre[0], horizon + 3 * unit), centre[1]
            _pole(canvas, foot, unit * (0.7 + 0.6 * near), rng)
        else:
            radius = unit * (0.7 + 0.6 * near) * rng.uniform(12.0, 24.0)
            shadow = canvas.segments[_inside(centre, size)] != SKY
            _solid(canvas, int(kind), canvas.segment(int(kind)), centre, radius, shadow, rng)
    image = _light(canvas.image, rng)
    return _finish(image, canvas)


def _finish(image: np.ndarray, canvas: _Canvas) -> Scene:
    seen = np.flatnonzero(np.bincount(canvas.segments.ravel(), minlength=len(canvas.classes)))
    renumber = np.zeros(len(canvas.classes), np.int32)
    renumber[seen] = np.arange(len(seen))
    segments = renumber[canvas.segments]
    segment_class = np.array(canvas.classes, np.int32)[seen]
    return Scene(
        image=image,
        semantic=segment_class.astype(np.int16)[segments],
        segments=segments,
        segment_class=segment_class,
        segment_is_crowd=np.array(canvas.crowds, bool)[seen],
    )


# The landscape ------------------------------------------------------------------------------------


def _landscape(size: tuple[int, int], rng: np.random.Generator) -> tuple[_Canvas, float]:
    """Sky, hills and ground; returns the canvas and the height of the horizon in pixels."""
    height, width = size
    unit = min(size) / 128
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    horizon = rng.uniform(0.28, 0.5) * height
    mood = _mood(rng)

    canvas = _Canvas(_sky(size, horizon, mood, rng), np.zeros(size, np.int32), [], [])
    for label in range(STUFF):
        canvas.segment(label)

    if rng.random() < 0.85:
        rise = rng.uniform(0.08, 0.22) * height
        ridge = rng.uniform(0.25, 0.9) + 1.1 * _profile(rng, width, 34 * unit, octaves=4)
        _blend(canvas, y - (horizon - rise * np.maximum(ridge, 0)), HILL, _hill(size, mood, rng))

    edge = horizon + 2.0 * unit * _profile(rng, width, 24 * unit, octaves=3)
    grass, sand = _grass(size, rng), _sand(size, rng)
    kind = rng.choice(["coast", "lake", "path", "dunes"])
    rough = _noise(rng, size, 30 * unit, octaves=3)
    if kind == "dunes":
        _blend(canvas, y - edge, SAND, sand)
        patches = (rough + rng.uniform(-0.25, 0.1)) * 30 * unit
        _blend(canvas, np.minimum(_steep(patches), y - edge), GRASS, grass)
        return canvas, horizon

    _blend(canvas, y - edge, GRASS, grass)
    water = _water(size, mood, rng)
    if kind == "coast":
        slope = rng.uniform(-0.3, 0.3)
        shore = horizon + rng.uniform(0.12, 0.5) * (height - horizon) + slope * (x - width / 2)
        wet = shore - y + 9 * unit * rough
    elif kind == "lake":
        middle = rng.uniform(0.2, 0.8) * width, rng.uniform(0.45, 0.8) * height
        across, deep = rng.uniform(0.2, 0.42) * width, rng.uniform(0.08, 0.2) * height
        far = np.hypot((x - middle[0]) / across, (y - middle[1]) / deep)
        wet = (1 - far) * deep + 7 * unit * rough
    else:
        down = np.clip((y - horizon) / (height - horizon), 0, 1)
        centre = width * (rng.uniform(0.3, 0.7) + rng.uniform(-0.5, 0.5) * down)
        centre = centre + unit * rng.uniform(4, 12) * np.sin(down * rng.uniform(3, 8))
        wet = (1.5 * unit + 0.13 * width * down**1.3) - np.abs(x - centre) + 4 * unit * rough
        _blend(canvas, np.minimum(_steep(wet), y - edge), SAND, sand)
        return canvas, horizon
    beach = (
        rng.uniform(4, 11) * unit * (0.5 + 1.2 * np.abs(_noise(rng, size, 30 * unit, octaves=3)))
    )
    _blend(canvas, np.minimum(_steep(wet + beach), y - edge), SAND, sand)
    _blend(canvas, np.minimum(_steep(wet), y - edge), WATER, water)
    return canvas, horizon


def _mood(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Colours of the zenith and of the horizon: day, evening, or overcast."""
    moods = (
        ((0.30, 0.55, 0.90), (0.78, 0.89, 0.97)),
        ((0.22, 0.38, 0.72), (0.98, 0.78, 0.58)),
        ((0.62, 0.68, 0.75), (0.84, 0.86, 0.87)),
        ((0.38, 0.66, 0.88), (0.93, 0.93, 0.86)),
    )
    high, low = np.array(moods[rng.choice(4, p=[0.4, 0.2, 0.15, 0.25])], np.float32)
    jitter = rng.uniform(-0.05, 0.05, (2, 3)).astype(np.float32)
    return high + jitter[0], low + jitter[1]


def _sky(size, horizon, mood, rng: np.random.Generator) -> np.ndarray:  # noqa: ANN001
    unit = min(size) / 128
    down = np.clip(np.arange(size[0], dtype=np.float32) / max(horizon, 1), 0, 1)[:, None, None]
    image = mood[0] + (mood[1] - mood[0]) * down**1.4
    clouds = _noise(rng, size, (12 * unit, 34 * unit), octaves=4)
    cover = np.clip(1.6 * clouds + rng.uniform(-0.6, 0.1), 0, 0.9)[..., None]
    return image * (1 - cover) + cover * (0.35 + 0.65 * mood[1])


def _hill(size, mood, rng: np.random.Generator) -> np.ndarray:  # noqa: ANN001
    unit = min(size) / 128
    paints = ((0.42, 0.48, 0.38), (0.47, 0.41, 0.42), (0.36, 0.42, 0.50))
    paint = np.array(paints[rng.integers(3)], np.float32)
    folds = _noise(rng, size, (20 * unit, 7 * unit), octaves=4)
    haze = rng.uniform(0.05, 0.3)
    return (paint * (1 - haze) + mood[1] * haze) * (1 + 0.38 * folds[..., None])


def _grass(size, rng: np.random.Generator) -> np.ndarray:  # noqa: ANN001
    unit = min(size) / 128
    paint = _hsv(rng.uniform(0.22, 0.33), rng.uniform(0.5, 0.75), rng.uniform(0.42, 0.66))
    blades = _noise(rng, size, (5 * unit, 1.6 * unit))
    tufts = _noise(rng, size, 24 * unit, octaves=2)
    light = 1 + 0.42 * blades + 0.18 * tufts
    return paint * light[..., None] + np.array((0.05, 0.02, -0.02)) * tufts[..., None]


def _sand(size, rng: np.random.Generator) -> np.ndarray:  # noqa: ANN001
    unit = min(size) / 128
    paint = _hsv(rng.uniform(0.08, 0.13), rng.uniform(0.28, 0.45), rng.uniform(0.75, 0.92))
    grain = _noise(rng, size, 1.2 * unit)
    y = np.arange(size[0], dtype=np.float32)[:, None]
    warp = 9 * _noise(rng, size, 26 * unit, octaves=2)
    ripples = np.sin(y / (rng.uniform(1.1, 1.8) * unit) + warp)
    return paint * (1 + 0.10 * grain + 0.06 * ripples)[..., None]


def _water(size, mood, rng: np.random.Generator) -> np.ndarray:  # noqa: ANN001
    unit = min(size) / 128
    paint = _hsv(rng.uniform(0.50, 0.61), rng.uniform(0.5, 0.75), rng.uniform(0.45, 0.7))
    paint = 0.72 * paint + 0.28 * mood[0]
    waves = _noise(rng, size, (2.2 * unit, 15 * unit), octaves=2)
    glint = np.clip(waves - 0.42, 0, 1) * 1.6
    return paint * (1 + 0.30 * waves)[..., None] + glint[..., None] * mood[1]


# Things -------------------------------------------------------------------------------------------


def _solid(canvas, kind, segment, centre, radius, shadow, rng: np.random.Generator) -> None:  # noqa: ANN001
    """A disc, ring, box, triangle or star of about `radius` pixels."""
    window, x, y = _window(canvas, centre, 1.6 * radius)
    if x.size == 0:
        return
    if shadow:
        _shadow(canvas, centre, radius)
    lean = rng.uniform(-0.35, 0.35) if kind in (BOX, TRIANGLE) else rng.uniform(0, 2 * np.pi)
    u = np.cos(lean) * x + np.sin(lean) * y
    v = np.cos(lean) * y - np.sin(lean) * x
    paint = _hsv(
        rng.choice(HUES[kind]) + rng.normal(0, 0.022),
        rng.uniform(0.6, 0.95),
        rng.uniform(0.65, 0.98),
    )
    accent = _hsv(rng.uniform(0, 1), rng.uniform(0.0, 0.25), rng.uniform(0.85, 1.0))
    if kind == DISC:
        aspect = rng.uniform(0.85, 1.18)
        far = np.hypot(u * aspect, v / aspect) / radius
        inside = (1 - far) * radius
        toward = np.hypot(x / radius + 0.35, y / radius + 0.4)
        colour = paint * (1.22 - 0.52 * toward)[..., None]
        colour += 0.55 * np.exp(-((toward / 0.28) ** 2))[..., None]
    elif kind == RING:
        far, turn = np.hypot(u, v), np.arctan2(v, u)
        thick = rng.uniform(0.2, 0.28) * radius
        inside = thick - np.abs(far - (radius - thick))
        bands = np.sin(turn * rng.integers(3, 6)) > 0.25
        colour = np.where(bands[..., None], accent, paint)
        colour = colour * (0.75 + 0.35 * np.clip(inside / thick, 0, 1))[..., None]
    elif kind == BOX:
        half_u, half_v = radius * rng.uniform(0.6, 1.0), radius * rng.uniform(0.55, 0.95)
        inside = np.minimum(half_u - np.abs(u), half_v - np.abs(v))
        course = max(radius * rng.uniform(0.24, 0.4), 2.0)
        row = np.floor(v / course)
        joint = np.minimum(np.mod(v, course), np.mod(u + row * course, 2 * course))
        colour = paint * np.where(joint < 0.2 * course, 0.55, 1.0)[..., None]
        colour = colour * (1 + 0.12 * np.sign(u))[..., None]
    elif kind == TRIANGLE:
        slope = rng.uniform(1.2, 2.2)
        side = (v * 1.0 + radius) - slope * np.abs(u)
        inside = np.minimum(side / np.hypot(1, slope), 0.7 * radius - v)
        stripes = np.sin(v / radius * rng.uniform(9, 14)) > 0
        colour = paint * np.where(stripes[..., None], 1.0, 0.62)
        colour = colour * np.where(u > 0, 0.86, 1.08)[..., None]
    else:
        points = int(rng.integers(5, 8))
        wedge = 2 * np.pi / points
        turn = np.mod(np.arctan2(v, u), wedge) - wedge / 2
        far = np.hypot(u, v)
        along, across = far * np.cos(turn), far * np.abs(np.sin(turn))
        # From the notch (on the axis) to the tip (half a wedge away), a straight edge.
        notch = radius * rng.uniform(0.42, 0.55)
        tip = np.array((radius * np.cos(wedge / 2), radius * np.sin(wedge / 2)))
        edge = tip - np.array((notch, 0.0))
        normal = np.array((edge[1], -edge[0])) / np.hypot(*edge)
        inside = -((along - notch) * normal[0] + across * normal[1])
        colour = paint * np.where(turn > 0, 1.12, 0.78)[..., None]
    _apply(canvas, window, inside, segment, colour)


def _pole(canvas, centre, unit, rng: np.random.Generator) -> None:  # noqa: ANN001
    """A thin post, banded or plain, standing on `centre`; some carry a crossbar."""
    segment = canvas.segment(POLE)
    tall = rng.uniform(34, 80) * unit
    half = rng.uniform(2.4, 4.2) * unit
    lean = rng.normal(0, 0.07)
    window, x, y = _window(canvas, (centre[0] - tall / 2, centre[1]), tall)
    if x.size == 0:
        return
    y = y + tall / 2  # 0 at the top, `tall` at the foot
    u = x + (y - tall / 2) * lean
    inside = np.minimum(half - np.abs(u), np.minimum(y, tall - y))
    if rng.random() < 0.45:
        at, reach = rng.uniform(0.05, 0.25) * tall, rng.uniform(9, 17) * unit
        inside = np.maximum(inside, np.minimum(0.8 * half - np.abs(y - at), reach - np.abs(u)))
    if rng.random() < 0.6:
        bright = np.mod(y, 13 * unit) < 6.5 * unit
        paint = np.array(((0.80, 0.16, 0.14), (0.16, 0.18, 0.22))[rng.integers(2)])
        colour = np.where(bright[..., None], np.array((0.95, 0.94, 0.9)), paint)
    else:
        colour = np.broadcast_to(_hsv(0.07, 0.45, rng.uniform(0.25, 0.5)), (*x.shape, 3))
    colour = colour * (1 - 0.3 * np.clip(u / half, -1, 1))[..., None]
    _apply(canvas, window, inside, segment, colour)


def _wire(canvas, unit, rng: np.random.Generator) -> None:  # noqa: ANN001
    """A slack rope across the picture."""
    height, width = canvas.segments.shape
    segment = canvas.segment(WIRE)
    start, stop = rng.uniform(-0.1, 0.3) * width, rng.uniform(0.7, 1.1) * width
    left, right = rng.uniform(0.05, 0.75, 2) * height
    sag = rng.uniform(0.02, 0.25) * height
    half = rng.uniform(2.0, 3.2) * unit
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    t = (x - start) / (stop - start)
    rope = left + (right - left) * t + 4 * sag * t * (1 - t)
    slope = ((right - left) + 4 * sag * (1 - 2 * t)) / (stop - start)
    inside = half - np.abs(y - rope) / np.hypot(1, slope)
    inside = np.minimum(inside, np.minimum(x - start, stop - x))
    twist = np.sin((x + 2 * y) / (1.8 * unit))
    colour = _hsv(rng.uniform(0.55, 0.7), 0.3, rng.uniform(0.1, 0.25)) + 0.06 * twist[..., None]
    _apply(canvas, (slice(None), slice(None)), inside, segment, colour)


def _crowd(canvas, centre, unit, rng: np.random.Generator) -> None:  # noqa: ANN001
    """A heap of small discs or stars, labelled as one segment."""
    kind = int(rng.choice([DISC, STAR]))
    segment = canvas.segment(kind, crowd=True)
    for _ in range(int(rng.integers(7, 16))):
        at = centre[0] + 6 * unit * rng.normal(), centre[1] + 11 * unit * rng.normal()
        _solid(canvas, kind, segment, at, unit * rng.uniform(3.5, 6.0), False, rng)


def _shadow(canvas, centre, radius) -> None:  # noqa: ANN001
    window, x, y = _window(
        canvas, (centre[0] + 0.85 * radius, centre[1] + 0.2 * radius), 1.4 * radius
    )
    if x.size:
        far = np.hypot(x / (1.15 * radius), y / (0.42 * radius))
        canvas.image[window] *= 1 - 0.45 * np.clip(1.15 - far, 0, 1)[..., None]


# Paint and light ----------------------------------------------------------------------------------


def _apply(canvas, window, inside, segment, colour) -> None:  # noqa: ANN001
    """Lays `colour` where `inside` (signed distance to the outline in pixels) is positive."""
    cover = np.clip(inside + 0.5, 0, 1)[..., None].astype(np.float32)
    canvas.image[window] += cover * (
        np.clip(colour, 0, 1).astype(np.float32) - canvas.image[window]
    )
    canvas.segments[window][inside > 0] = segment


def _blend(canvas, inside, segment, colour) -> None:  # noqa: ANN001
    _apply(canvas, (slice(None), slice(None)), inside, segment, colour)


def _steep(field: np.ndarray) -> np.ndarray:
    """Scales a field so that it measures distance in pixels near its zero line."""
    dy, dx = np.gradient(field)
    return field / np.maximum(np.hypot(dy, dx), 0.15)


def _light(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Uneven light, colour cast, exposure and sensor noise; returns uint8."""
    height, width = image.shape[:2]
    turn = rng.uniform(0, 2 * np.pi)
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None]
    slope = rng.uniform(0, 0.35) * (np.cos(turn) * x + np.sin(turn) * y)
    shade = slope + 0.12 * _noise(rng, (height, width), 0.5 * min(height, width))
    cast = (1 + rng.uniform(-0.05, 0.05, 3)).astype(np.float32)
    exposed = image * (rng.uniform(0.82, 1.15) * (1 + shade))[..., None] * cast
    exposed = cv2.pow(np.clip(exposed, 0, 1), rng.uniform(0.8, 1.15))
    grain = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0.004, 0.02)
    return np.round(np.clip(exposed + grain, 0, 1) * 255).astype(np.uint8)


def _noise(rng, size, cell, octaves: int = 1) -> np.ndarray:  # noqa: ANN001
    """Smooth noise [H, W], about -1..1.

    `cell` is the size of its features in pixels, one number or (height, width); every further
    octave has half the size and amplitude.
    """
    cells = np.broadcast_to(np.asarray(cell, float), (2,))
    total = np.zeros(size, np.float32)
    for octave in range(octaves):
        step = np.maximum(cells / 2**octave, 1.0)
        grid = [int(np.ceil(n / s)) + 3 for n, s in zip(size, step)]
        coarse = rng.uniform(-1, 1, grid).astype(np.float32)
        fine = [int(np.ceil(g * s)) for g, s in zip(grid, step)]
        fine = cv2.resize(coarse, (fine[1], fine[0]), interpolation=cv2.INTER_CUBIC)
        corner = [int(s) for s in step]
        total += fine[corner[0] : corner[0] + size[0], corner[1] : corner[1] + size[1]] / 2**octave
    return total


def _profile(rng: np.random.Generator, length: int, cell: float, octaves: int) -> np.ndarray:
    """Smooth noise along a line, [length]."""
    return _noise(rng, (1, length), (1, cell), octaves)[0]


def _window(canvas, centre, reach):  # noqa: ANN001, ANN202
    """The part of the canvas within `reach` of `centre`: slices, and x, y from the centre."""
    height, width = canvas.segments.shape
    top, bottom = int(max(centre[0] - reach, 0)), int(min(max(centre[0] + reach + 2, 0), height))
    left, right = int(max(centre[1] - reach, 0)), int(min(max(centre[1] + reach + 2, 0), width))
    y, x = np.mgrid[top : max(bottom, top), left : max(right, left)].astype(np.float32)
    return (slice(top, bottom), slice(left, right)), x - centre[1], y - centre[0]


def _inside(centre: tuple[float, float], size: tuple[int, int]) -> tuple[int, int]:
    return tuple(int(np.clip(c, 0, n - 1)) for c, n in zip(centre, size))


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, value), np.float32)
