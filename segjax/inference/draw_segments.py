"""Pictures of panoptic results: every segment in its class's colour, with a border and a name."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from segjax.data.labels import Colour, LabelSpace
from segjax.inference import draw

NAMED = 0.004
"""A segment is named if it covers at least this share of the picture."""


def segment_colours(classes: Sequence[int], space: LabelSpace) -> list[Colour]:
    """A colour for each segment: the class's own for stuff, and shades of it for things."""
    seen: dict[int, int] = {}
    colours = []
    for label in classes:
        number = seen.get(label, 0)
        seen[label] = number + 1
        colour = space.palette[label]
        colours.append(_shade(colour, number) if space.is_thing[label] else colour)
    return colours


def _shade(colour: Colour, number: int) -> Colour:
    """The number-th variation of a colour; the 0th is the colour."""
    if not number:
        return colour
    hue, light, full = colorsys.rgb_to_hls(*(value / 255 for value in colour))
    # The golden ratio spreads any number of values evenly.
    step = (number * 0.618034) % 1 - 0.5
    light = float(np.clip(light + 0.35 * step, 0.2, 0.85))
    values = colorsys.hls_to_rgb((hue + 0.06 * step) % 1, light, max(full, 0.25))
    return tuple(round(255 * value) for value in values)


def segment_overlay(
    image: np.ndarray,
    segment_map: np.ndarray,
    classes: Sequence[int],
    space: LabelSpace,
    alpha: float = 0.6,
    names: bool = True,
) -> np.ndarray:
    """Lays segments over an image.

    Args:
        image: uint8 [H, W, 3].
        segment_map: int [H, W], 0 for no segment, else 1 + the segment's place in `classes`.
        classes: of each segment.
        space: what the classes mean.
        alpha: share of the colours, 0..1.
        names: write the class name on every segment that is large enough.

    Returns:
        uint8 [H, W, 3].
    """
    colours = segment_colours(classes, space)
    picture = draw.overlay(image, segment_map.astype(np.int32) - 1, colours, alpha)
    thick = max(round(max(segment_map.shape) / 600), 1)
    edge = draw.borders(segment_map)
    if thick > 1:
        edge = cv2.dilate(edge.astype(np.uint8), np.ones((thick, thick), np.uint8)) > 0
    picture[edge] = draw.PAPER
    return _named(picture, segment_map, classes, space) if names else picture


def _named(
    picture: np.ndarray, segment_map: np.ndarray, classes: Sequence[int], space: LabelSpace
) -> np.ndarray:
    canvas = Image.fromarray(picture)
    pen = ImageDraw.Draw(canvas)
    font = draw._font(int(np.clip(max(segment_map.shape) / 40, 10, 40)))
    areas = np.bincount(segment_map.ravel(), minlength=len(classes) + 1)
    for number, label in enumerate(classes, 1):
        if areas[number] < NAMED * segment_map.size:
            continue
        # Where the segment is widest; the picture's border counts as one of its own.
        inside = np.pad((segment_map == number).astype(np.uint8), 1)
        distance = cv2.distanceTransform(inside, cv2.DIST_L2, 3)[1:-1, 1:-1]
        y, x = np.unravel_index(int(distance.argmax()), distance.shape)
        pen.text(
            (int(x), int(y)),
            space.names[label],
            fill=draw.PAPER,
            font=font,
            anchor="mm",
            stroke_width=2,
            stroke_fill=draw.INK,
        )
    return np.array(canvas)


def side_by_side(
    image: np.ndarray,
    segment_map: np.ndarray,
    classes: Sequence[int],
    space: LabelSpace,
    truth: tuple[np.ndarray, Sequence[int]] | None = None,
) -> Image.Image:
    """image | truth | prediction with titles, over a legend of the classes in them.

    Args:
        image: uint8 [H, W, 3].
        segment_map, classes: the prediction, see `segment_overlay`.
        space: what the classes mean.
        truth: the same of the truth, or None to leave that panel out.
    """
    factor = max(round(draw.PANEL / max(image.shape[:2])), 1)
    big = draw.enlarged(image, factor)

    def panel(segments: np.ndarray, classes: Sequence[int]) -> np.ndarray:
        return segment_overlay(big, draw.enlarged(segments, factor), classes, space, 0.7)

    shown = [("image", big)]
    maps = [_class_map(segment_map, classes)]
    if truth is not None:
        shown.append(("truth", panel(*truth)))
        maps.insert(0, _class_map(*truth))
    shown.append(("prediction", panel(segment_map, classes)))
    row = draw._row([title for title, _ in shown], [picture for _, picture in shown])
    return draw._below(row, draw.legend(draw._entries(maps, space), row.width))


def _class_map(segment_map: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    return np.array([-1, *classes])[segment_map]
