"""Pictures of refined masks: before and after, where they differ most."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

from segjax.data.labels import Colour
from segjax.inference import draw
from segjax.inference.refinement import Box

SHARE = 6
"""The window's side is the image's longer side over this, within LEAST pixels and PANEL."""

LEAST = 48

COARSE: Colour = (255, 92, 57)
REFINED: Colour = (35, 214, 120)
TRUTH: Colour = (70, 160, 255)


def close_up(
    image: np.ndarray,
    coarse: np.ndarray,
    refined: np.ndarray,
    truth: np.ndarray | None = None,
    window: Box | None = None,
) -> Image.Image:
    """image | coarse | refined | truth: the whole image with a frame, then what the frame shows.

    Args:
        image: uint8 [H, W, 3].
        coarse, refined: bool [H, W], drawn as a tint and a line; or maps of classes or segments,
            int [H, W], whose borders are drawn.
        truth: the same, or None to leave that panel out.
        window: what is shown of them, by default `where_they_differ`.
    """
    window = window or where_they_differ(coarse, refined)
    rows, columns = window
    height = draw.PANEL
    scale = height / (rows.stop - rows.start)
    shape = (max(round((columns.stop - columns.start) * scale), 1), height)
    near = cv2.resize(
        image[window], shape, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
    )
    panels = [("image", _framed(image, window, height))]
    masks = [("coarse", coarse, COARSE), ("refined", refined, REFINED)]
    if truth is not None:
        masks.append(("truth", truth, TRUTH))
    for title, mask, colour in masks:
        panels.append((title, _outlined(near, _enlarged(mask[window], shape), colour)))
    return draw._row([title for title, _ in panels], [picture for _, picture in panels])


def where_they_differ(coarse: np.ndarray, refined: np.ndarray) -> Box:
    """The window with the most pixels in which two maps [H, W] differ; where none do, the one with
    the most border of the first, and the middle of an empty one."""
    height, width = coarse.shape
    side = int(np.clip(max(height, width) // SHARE, LEAST, draw.PANEL))
    rows, columns = min(side, height), min(side, width)
    counted = coarse != refined
    if not counted.any():
        counted = draw.borders(coarse)
    if not counted.any():
        top, left = (height - rows) // 2, (width - columns) // 2
    else:
        # Sums over every window of that size, by the integral of what is counted.
        whole = cv2.integral(counted.astype(np.uint8))
        sums = whole[rows:] - whole[:-rows]
        sums = sums[:, columns:] - sums[:, :-columns]
        top, left = (int(i) for i in np.unravel_index(int(sums.argmax()), sums.shape))
    return slice(top, top + rows), slice(left, left + columns)


def _framed(image: np.ndarray, window: Box, height: int) -> np.ndarray:
    """The whole image, so high, with a frame around the window."""
    scale = height / image.shape[0]
    width = max(round(image.shape[1] * scale), 1)
    form = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    small = cv2.resize(image, (width, height), interpolation=form)
    corners = [
        (round(columns * scale), round(rows * scale))
        for rows, columns in ((window[0].start, window[1].start), (window[0].stop, window[1].stop))
    ]
    for thick, colour in ((4, draw.INK), (2, draw.PAPER)):
        cv2.rectangle(small, corners[0], corners[1], colour, thick)
    return small


def _enlarged(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return draw._nearest(mask, shape[::-1])


def _outlined(image: np.ndarray, mask: np.ndarray, colour: Colour) -> np.ndarray:
    """A mask over an image: its border as a line, and for one object its inside as a tint."""
    drawn = image.copy()
    if mask.dtype == bool:
        tinted = (drawn[mask].astype(np.uint16) * 2 + np.array(colour, np.uint16)) // 3
        drawn[mask] = tinted
    edge = cv2.dilate(draw.borders(mask).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    line = cv2.dilate(draw.borders(mask).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    drawn[edge] = draw.INK
    drawn[line] = colour
    return drawn
