"""Erosion and dilation as OpenCV defines them, and the borders between labelled regions.

A kernel is a small array of 0 and 1, its anchor at (height // 2, width // 2): a pixel is set by a
dilation if any pixel under the kernel is, and stays set in an erosion if all are. What lies beyond
the border is neutral, it neither adds nor takes. The work grows with the rows of a kernel, not its
area: a row is made of runs, and one map of distances to the next set pixel tells for a run of any
length whether it holds one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from segjax.structs import Array

WIDEST = 127
"""Distances are kept in bytes, with room for one sum: kernels are narrower, discs have a radius
below this."""

# Kernels, on the host ---------------------------------------------------------------------------


def ellipse(width: int, height: int) -> np.ndarray:
    """OpenCV's `getStructuringElement(MORPH_ELLIPSE, (width, height))`: uint8 [height, width].

    Those of even sides are not symmetric.
    """
    middle_row, middle = height // 2, width // 2
    rows = np.arange(height) - middle_row
    reach = np.rint(middle * np.sqrt((middle_row**2 - rows**2) / max(middle_row**2, 1)))
    return (np.abs(np.arange(width) - middle) <= reach[:, None]).astype(np.uint8)


def disk(radius: int) -> np.ndarray:
    """The disc of OpenCV: `ellipse` of side 2 * radius + 1."""
    return ellipse(2 * radius + 1, 2 * radius + 1)


def _runs(kernel: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """The runs of ones: row and first column, both relative to the anchor, and length."""
    kernel = np.asarray(kernel)
    anchor_row, anchor = kernel.shape[0] // 2, kernel.shape[1] // 2
    for row, ones in enumerate(np.pad(kernel != 0, ((0, 0), (1, 1))).astype(np.int8)):
        steps = np.diff(ones)
        for first, end in zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1)):
            yield row - anchor_row, int(first) - anchor, int(end - first)


# Masks ------------------------------------------------------------------------------------------


def dilate(mask: Array, kernel: np.ndarray) -> Array:
    """Sets every pixel that has a set one under the kernel.

    Args:
        mask: bool [..., H, W].
        kernel: [h, w] of 0 and 1, not traced, w below `WIDEST`; not mirrored, as in OpenCV.

    Returns:
        bool [..., H, W].
    """
    chex.assert_type(mask, bool)
    height, width = mask.shape[-2:]
    runs = list(_runs(kernel))
    if not runs:
        return jnp.zeros_like(mask)
    longest = max(length for _, _, length in runs)
    # Room for the kernel around the mask, where nothing is set.
    above, left = max(0, *(-row for row, _, _ in runs)), max(0, *(-first for _, first, _ in runs))
    below = max(0, *(row for row, _, _ in runs))
    right = max(0, *(first for _, first, _ in runs))
    room = [(0, 0)] * (mask.ndim - 2) + [(above, below), (left, right)]
    distance = _to_next(jnp.pad(mask, room), longest)
    result = jnp.zeros_like(mask)
    for row, first, length in runs:
        y, x = above + row, left + first
        result |= distance[..., y : y + height, x : x + width] < length
    return result


def erode(mask: Array, kernel: np.ndarray) -> Array:
    """Keeps the pixels that have only set ones under the kernel. As `dilate`."""
    return ~dilate(~mask, kernel)


def _to_next(mask: Array, most: int) -> Array:
    """Steps to the next set pixel at or to the right of each, `most` or more if there is none.

    bool [..., W] -> uint8 [..., W].
    """
    assert most <= WIDEST
    return _spread(jnp.where(mask, 0, most).astype(jnp.uint8), most, axis=-1)


def _spread(distance: Array, most: int, axis: int, backwards: bool = False) -> Array:
    """min over k of distance[i + k] + k (or i - k), for all k up to `most`, which is its limit."""
    length, step = distance.shape[axis], 1
    while step < min(most, length):
        moved = jax.lax.slice_in_dim(distance, step, length, axis=axis)
        if backwards:
            moved = jax.lax.slice_in_dim(distance, 0, length - step, axis=axis)
        room = [(0, 0)] * distance.ndim
        room[axis] = (step, 0) if backwards else (0, step)
        moved = jnp.pad(moved + jnp.uint8(step), room, constant_values=most)
        distance = jnp.minimum(distance, moved)
        step *= 2
    return distance


# Borders of regions -----------------------------------------------------------------------------


def lifts(radius: int, margin: int) -> np.ndarray:
    """A disc in the form that `near_border` takes: how much narrower than its middle each row is.

    uint8 [margin + 1], from the middle row down; rows beyond the disc hold `WIDEST`.
    """
    assert radius <= margin < WIDEST
    rows = np.arange(margin + 1)
    widths = disk(radius)[radius:].sum(axis=1) // 2
    return np.where(rows <= radius, radius - np.resize(widths, margin + 1), WIDEST).astype(np.uint8)


def steps_to_change(labels: Array, axis: int, most: int) -> Array:
    """Steps along an axis, either way, to the nearest pixel of another label; at most `most`.

    Args:
        labels: [...], any dtype.
        axis: of the labels.
        most: the limit, up to `WIDEST`.

    Returns:
        uint8 of the labels' shape.
    """
    assert most <= WIDEST
    length = labels.shape[axis]
    changes = jax.lax.slice_in_dim(labels, 1, length, axis=axis) != jax.lax.slice_in_dim(
        labels, 0, length - 1, axis=axis
    )
    one = jnp.where(changes, 1, most).astype(jnp.uint8)
    after, before = [(0, 0)] * labels.ndim, [(0, 0)] * labels.ndim
    after[axis], before[axis] = (0, 1), (1, 0)
    ahead = _spread(jnp.pad(one, after, constant_values=most), most, axis)
    behind = _spread(jnp.pad(one, before, constant_values=most), most, axis, backwards=True)
    return jnp.minimum(ahead, behind)


class Steps(NamedTuple):
    """Distances to changes of label, from which `near_border` answers for discs of any radius.

    Attributes:
        across: uint8 [H + 2 * margin, W], steps along the rows.
        along: uint8 [H, W], steps along the columns.
    """

    across: Array
    along: Array


def border_steps(labels: Array, margin: int) -> Steps:
    """What `near_border` looks at.

    Pixels beyond the image are neutral if the labels are continued there by those at its edge: a
    row of a disc that is cut off at the edge is repeated outside, and rows outside are shorter than
    those inside.

    Args:
        labels: [H + 2 * margin, W + 2 * margin], any dtype.
        margin: pixels around what is asked for; the greatest radius, below `WIDEST`.
    """
    assert margin < WIDEST
    rows, columns = (slice(margin, side - margin) for side in labels.shape)
    across = steps_to_change(labels, 1, margin + 1)[:, columns]
    return Steps(across, steps_to_change(labels[:, columns], 0, margin + 1)[rows])


def near_border(steps: Steps, radius: Array | int, lift: Array) -> Array:
    """Whether the disc around a pixel holds more than one label.

    For a mask of two values these are the pixels where dilation and erosion differ.

    Args:
        steps: of `border_steps`.
        radius: of the disc, up to the margin; may be traced.
        lift: uint8 [margin + 1], `lifts(radius, margin)`; may be traced.

    Returns:
        bool [H, W].
    """
    size, lift = steps.along.shape, jnp.asarray(lift, jnp.uint8)
    margin = len(lift) - 1

    # A row of the disc holds another label than the centre if its middle pixel does, or if a change
    # lies within its width. For all rows together, the former is to say that one lies along the
    # column, and the latter is `across + lift <= radius`.
    def one(row: Array, least: Array) -> Array:
        above = jax.lax.dynamic_slice(steps.across, (margin - row, 0), size)
        below = jax.lax.dynamic_slice(steps.across, (margin + row, 0), size)
        return jnp.minimum(least, jnp.minimum(above, below) + lift[row])

    least = jax.lax.fori_loop(0, radius + 1, one, steps.along)
    return least <= jnp.asarray(radius, jnp.uint8)
