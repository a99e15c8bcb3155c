"""CascadePSP's way with label maps, its procedure for ADE20K.

Every class is split into pieces that lie apart, each piece is refined in its surroundings, and the
surest piece gets a pixel. Facts follow github.com/hkchengrex/CascadePSP (scripts/ade20K and
eval_post_ade.py).

`refinement.refine_labels` is the plain way; this one repeats the official figures, with a
cascade_psp whose `steps` are "global" and whose `min_side` is 224.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

import cv2
import numpy as np

from segjax.inference.refinement import Box, Progress, check_sizes, refine
from segjax.metrics import boundary
from segjax.structs import System, Variables
from segjax.systems.refiner import part_of

LEAST = 32 * 32
"""Pixels that a class, and a piece, must have more of to be refined."""

SPREAD = 0.125
"""A piece's box is enlarged on each side by this share of its height or width."""

HALF = 0.51
"""The weight of the classes of LARGE."""

LARGE = (
    *(1, 2, 3, 4, 6, 7, 10, 12, 14, 17, 22, 26, 27, 29, 30, 47, 49, 52, 53, 55, 60, 61, 62, 69),
    *(80, 85, 92, 95, 97, 102, 106, 110, 114, 129, 141),
)
"""Ids of ADE20K (1..150; mostly stuff such as wall, sky and floor) whose certainty counts half."""

_OFFSETS = np.arange(-5, 5)
_DISC = ((_OFFSETS[:, None] ** 2 + _OFFSETS**2) <= 25).astype(np.uint8)


class Piece(NamedTuple):
    """A part of a class that lies apart from the others.

    Attributes:
        label: the class.
        mask: bool [h, w], what the piece holds of its box.
        box: its surroundings, which are refined.
    """

    label: int
    mask: np.ndarray
    box: Box


def pieces(labels: np.ndarray, skip: Collection[int] = (0,)) -> Iterator[Piece]:
    """The pieces of a label map int [H, W] that are large enough, class by class.

    Parts of a class nearer to each other than about ten pixels are one piece. As the official disc
    has its anchor beside its middle, a piece misses the first row and column of its pixels.
    """
    for label, count in zip(*np.unique(labels, return_counts=True)):
        if label in skip or count <= LEAST:
            continue
        grown = cv2.dilate((labels == label).astype(np.uint8), _DISC)
        count, numbers = cv2.connectedComponents(grown, connectivity=8)
        for number in range(1, count):
            whole = cv2.erode((numbers == number).astype(np.uint8), _DISC)
            mask = (whole > 0) & (labels == label)  # without the gaps that were bridged
            if whole.sum(dtype=np.int64) > LEAST and mask.any():
                box = surroundings(mask)
                yield Piece(int(label), mask[box], box)


def surroundings(mask: np.ndarray) -> Box:
    """The box of a mask [H, W], enlarged by SPREAD. As in the official code it ends before the last
    row and column that it should have; where that leaves nothing, it has one."""
    found = []
    for axis, side in zip((1, 0), mask.shape):
        used = np.flatnonzero(mask.any(axis=axis))
        first, last = int(used[0]), int(used[-1])
        more = (last - first) * SPREAD
        start, end = int(max(first - more, 0)), int(min(last + more, side - 1))
        found.append(slice(start, max(end, start + 1)))
    return found[0], found[1]


def refine_pieces(
    system: System,
    variables: Variables,
    image: np.ndarray,
    labels: np.ndarray,
    *,
    skip: Collection[int] = (0,),
    weights: Mapping[int, float] | None = None,
    max_memory: int | None = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """A label map whose pieces are refined one by one.

    A pixel keeps its label at a confidence of 0.5, and goes to the first piece whose probability
    (in 255ths, as the official files hold it) times the weight of its class is the highest above
    that.

    Args:
        image: uint8 [H, W, 3] RGB.
        labels: int [H, W].
        skip: labels that mean nothing; their pixels are open to the pieces.
        weights: of classes, 1 where left out; by default HALF for LARGE, which is for ADE20K's ids.
        max_memory, progress: as of `refinement.refine`.

    Returns:
        [H, W] of the dtype of `labels`.

    Raises:
        SegjaxError: as of `refinement.refine`.
    """
    check_sizes(image, labels, "the label map")
    weights = dict.fromkeys(LARGE, HALF) if weights is None else weights
    refined, best = labels.copy(), np.full(labels.shape, 0.5)
    found = list(pieces(labels, skip))
    done, total = 0, sum(piece.mask.size for piece in found)
    for piece in found:
        probability = refine(
            system,
            variables,
            np.ascontiguousarray(image[piece.box]),
            piece.mask,
            max_memory=max_memory,
            progress=part_of(progress, done, piece.mask.size, total),
        )
        sure = boundary.grey(probability) / 255 * weights.get(piece.label, 1.0)
        wins = sure > best[piece.box]
        refined[piece.box][wins] = piece.label
        best[piece.box][wins] = sure[wins]
        done += piece.mask.size
    return refined
