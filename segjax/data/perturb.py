"""How coarse training masks are made of exact ones: the perturbation of CascadePSP and CRM.

A refinement network learns from pairs (coarse mask, exact mask), and only the exact ones exist. The
coarse one is drawn anew each time a mask is seen, in two steps:

A. `coarse_polygon`: the outline loses detail. From every contour a tenth of its points is cut out
   in one piece, where that shortens the way most (so thin spikes vanish); of the rest a random
   tenth is kept, joined by straight lines and filled.
B. `distort`: rounds of four erosions or dilations, each in a random box with a small random kernel
   (squares, discs and ellipses 3 to 9 wide), now and then with a pixel set in the middle of the box
   that may grow into a hole or an island. They end when the mask's IoU with the polygon of step A
   falls below a target (at the latest after 250 rounds).

The target refers to the polygon, so the IoU with the exact mask is lower: 0.77 to 0.85 on average
for targets drawn from 0.8..1, as published. A target range nearer to 1 makes milder masks.

Given the same draws, masks are equal to the published code's byte for byte (as it runs with OpenCV
4, whose way to fill polygons `filled` follows under any version). See Cheng et al., CascadePSP,
CVPR 2020.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np

from segjax.errors import SegjaxError

CUT = 0.1
"""Share of a contour's points that are cut out in one piece."""

KEPT = 0.1
"""Share of the others that become corners of the polygon."""

SHORTEST = 10
"""Contours of fewer points are left out."""

ROUNDS, OPERATIONS = 250, 4
"""Most rounds of step B, and operations in each."""

SIZES = (3, 10)
"""Kernel sizes of step B, the second not included."""

SHAPE_CHOICES = {"fixed": (1, 5), "published_bug": (0, 4)}
"""Numbers of the kernel's shape that are drawn from (the second not included), see `_KERNELS`."""


class Draws(Protocol):
    """Where the chance comes from. What is drawn, and in which order, is fixed."""

    def choose(self, count: int) -> int:
        """One of 0..count-1."""

    def sample(self, count: int, size: int) -> Sequence[int]:
        """`size` different ones of 0..count-1, in any order."""

    def vertices(self, count: int) -> None:
        """Told once per polygon: the published code draws moves of its corners, and uses none."""

    def between(self, low: int, high: int) -> int:
        """One of low..high-1."""

    def share(self) -> float:
        """A number in 0..1, 1 not included."""


class GeneratorDraws:
    """Draws of a NumPy generator, as fast as Python allows: uniform numbers are fetched in bulk."""

    BULK = 128

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._waiting: list[float] = []

    def choose(self, count: int) -> int:
        return int(self.share() * count)

    def sample(self, count: int, size: int) -> Sequence[int]:
        return self._rng.choice(count, size, replace=False, shuffle=False)

    def vertices(self, count: int) -> None:
        pass

    def between(self, low: int, high: int) -> int:
        return low + int(self.share() * (high - low))

    def share(self) -> float:
        if not self._waiting:
            self._waiting = self._rng.random(self.BULK).tolist()
        return self._waiting.pop()


class PublishedDraws:
    """The draws of the published code after `random.seed(seed)` and `numpy.random.seed(seed)`."""

    def __init__(self, seed: int) -> None:
        self._python, self._numpy = random.Random(seed), np.random.RandomState(seed)

    def choose(self, count: int) -> int:
        return self._python.choice(range(count))

    def sample(self, count: int, size: int) -> Sequence[int]:
        return self._python.sample(range(count), size)

    def vertices(self, count: int) -> None:
        self._numpy.normal(size=count)

    def between(self, low: int, high: int) -> int:
        return int(self._numpy.randint(low, high))

    def share(self) -> float:
        return self._numpy.random_sample()


def perturb(
    mask: np.ndarray, iou_target: float, draws: Draws, shape_choice: str = "fixed"
) -> np.ndarray:
    """A coarse version of a mask.

    Args:
        mask: uint8 [H, W]; whatever is not 0 is foreground.
        iou_target: 0..1, the rounds end when the IoU with the polygon is below it; the published
            recipe draws it uniformly from 0.8..1 for every mask.
        draws: the source of all chance.
        shape_choice: "fixed" draws among a square, a disc and two ellipses; "published_bug" among
            the 3 x 3 square, the square, the disc and the flat ellipse, as when CascadePSP's
            published weights were trained.

    Returns:
        uint8 [H, W], 0 or 255.

    Raises:
        SegjaxError: another shape_choice.
    """
    if shape_choice not in SHAPE_CHOICES:
        raise SegjaxError(
            f"shape_choice: there is no '{shape_choice}'; take one of {', '.join(SHAPE_CHOICES)}."
        )
    return distort(coarse_polygon(mask, draws), iou_target, draws, shape_choice)


# Step A -----------------------------------------------------------------------------------------


def coarse_polygon(mask: np.ndarray, draws: Draws) -> np.ndarray:
    """The mask with an outline of few corners; the mask itself where no contour is long enough.

    uint8 [H, W] -> uint8 [H, W], 0 or 255.
    """
    mask = np.where(np.asarray(mask) > 0, np.uint8(255), np.uint8(0))
    contours, _ = cv2.findContours(mask, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    polygons = [_thinned(contour, draws) for contour in contours if len(contour) >= SHORTEST]
    polygons = [polygon for polygon in polygons if len(polygon)]
    return filled(mask.shape, polygons) if polygons else mask


def _thinned(contour: np.ndarray, draws: Draws) -> np.ndarray:
    """The corners int32 [n, 2] (x, y) that are left of a contour [N, 1, 2]."""
    points = contour[:, 0]
    cut = int(len(points) * CUT)
    step = points[cut:] - points[: len(points) - cut]
    nearest = np.argsort((step**2).sum(axis=1), kind="stable")
    start = nearest[draws.choose(math.ceil(0.1 * len(nearest)))]
    points = np.concatenate([points[:start], points[start + cut :]])
    corners = np.sort(draws.sample(len(points), int(len(points) * KEPT)))
    if cv2.moments(contour)["m00"] != 0:
        draws.vertices(len(corners))
    return points[corners.astype(np.intp)]


def filled(size: tuple[int, int], polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Fills polygons together, even-odd, as `drawContours` of OpenCV 4 does.

    A row is filled between its crossings with the edges, each rounded (halves to the right) in
    16-bit fixed point, and the outlines are drawn on top. OpenCV 5 rounds towards the inside.

    Args:
        size: (height, width).
        polygons: each int32 [n, 2], corners (x, y) inside of the picture, n >= 1.

    Returns:
        uint8 [height, width], 0 or 255.
    """
    before = np.concatenate([np.roll(polygon, 1, axis=0) for polygon in polygons]).astype(np.int64)
    after = np.concatenate(polygons).astype(np.int64)
    slanted = before[:, 1] != after[:, 1]
    before, after = before[slanted], after[slanted]
    run, rise = (after - before).T
    slope = np.sign(run) * np.sign(rise) * ((np.abs(run) << 16) // np.maximum(np.abs(rise), 1))
    top = np.where((rise > 0)[:, None], before, after)
    rows = np.abs(rise)  # an edge crosses its upper row, but not its lower one
    edge = np.repeat(np.arange(len(rows)), rows)
    below = np.arange(len(edge)) - np.repeat(np.cumsum(rows) - rows, rows)
    y, x = top[edge, 1] + below, (top[edge, 0] << 16) + below * slope[edge]
    order = np.lexsort((x, y))
    y, x = y[order], (x[order] + (1 << 15)) >> 16
    image = np.zeros(size, np.uint8)
    for row, left, right in zip(y[::2].tolist(), x[::2].tolist(), x[1::2].tolist()):
        image[row, left : right + 1] = 255
    return cv2.polylines(image, list(polygons), True, 255)


# Step B -----------------------------------------------------------------------------------------


def distort(
    image: np.ndarray, iou_target: float, draws: Draws, shape_choice: str = "fixed"
) -> np.ndarray:
    """Erodes and dilates random boxes until the IoU with `image` is below the target.

    Args:
        image: uint8 [H, W], 0 or 255; returned as it is where a side is 2 or less.
        iou_target: 0..1.
        draws: the source of all chance.
        shape_choice: see `perturb`.

    Returns:
        uint8 [H, W], 0 or 255.
    """
    height, width = image.shape
    current = np.where(image > 127, np.uint8(255), np.uint8(0))
    if height <= 2 or width <= 2:
        return current
    first, last = SHAPE_CHOICES[shape_choice]
    between, share = draws.between, draws.share
    area = cv2.countNonZero(image)
    for _ in range(ROUNDS):
        for _ in range(OPERATIONS):
            left, top = between(0, width), between(0, height)
            right, bottom = between(left + 1, width + 1), between(top + 1, height + 1)
            if share() < 0.25:
                current[(top + bottom) // 2, (left + right) // 2] = 255 * between(0, 2)
            change = cv2.dilate if share() < 0.5 else cv2.erode
            size = between(*SIZES)
            kernel = _KERNELS[size, between(first, last)]
            box = current[top:bottom, left:right]  # its border acts as the picture's
            box[:] = change(box, kernel)
        both = cv2.countNonZero(cv2.bitwise_and(current, image))
        either = cv2.countNonZero(current) + area - both
        if (both + 1e-6) / (either + 1e-6) < iou_target:
            break
    return current


def _kernels(size: int) -> tuple[np.ndarray, ...]:
    """What the numbers 0..4 stand for: square 3 x 3, square, disc, flat and upright ellipse."""
    disc, square = cv2.MORPH_ELLIPSE, cv2.MORPH_RECT
    half = size // 2
    shapes = (
        (square, (3, 3)),  # OpenCV's own where the published code gave none
        (square, (size, size)),
        (disc, (size, size)),
        (disc, (size, half)),
        (disc, (half, size)),
    )
    return tuple(cv2.getStructuringElement(*shape) for shape in shapes)


_KERNELS = {
    (size, choice): kernel for size in range(*SIZES) for choice, kernel in enumerate(_kernels(size))
}
