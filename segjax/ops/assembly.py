"""Labels of a whole image from the low-resolution scores of its windows, tile by tile.

Everything between the scores of a network and the logits at an image's own size is linear and
separable: windows are resized, laid at their places, averaged where they overlap, cropped, the
whole is resized again and perhaps mirrored. With S the scores of a grid of windows, stacked by rows
and columns,

    logits = L_rows  S  L_columns^T        for each class.

A row of L_rows has a few entries, and neighbouring rows share them. So `taps` finds them on the
host, `blocks` cuts them into small dense matrices, one per tile of output pixels, and the device
does two small matrix products per tile. The full-resolution [H, W, K] tensor never exists.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import resize
from segjax.structs import Array

ROW_TILE, COLUMN_TILE = 16, 32
"""Output pixels per tile: what fits a CPU's cache and still makes matrix products."""

_MULTIPLE = 8
"""Block widths are rounded up to this, so that images of different sizes share compiled code."""

# --------------------------------------------------------------------------------------------------
# Host: one axis of an image


class Blocks(NamedTuple):
    """A matrix [length, source] as dense blocks, one per tile of `tile` outputs.

    Attributes:
        indices: int32 [..., tiles, M], the source entries that a tile needs.
        weights: float32 [..., tiles, tile, M]; 0 where an output doesn't use an entry, and for
            outputs beyond the length.
    """

    indices: np.ndarray | Array
    weights: np.ndarray | Array


def taps(
    length: int,
    inner: int,
    starts: Sequence[int],
    window: int,
    cells: int,
    mirrored: bool = False,
    covers: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """How one axis of the logits follows from the scores of the windows along that axis.

    Args:
        length: pixels of the result.
        inner: pixels of the image that was cut into windows; the result is it, resized.
        starts: first pixel of each window; together they cover the image.
        window: pixels of a window; what lies beyond the image is dropped.
        cells: scores per window.
        mirrored: the image was mirrored along this axis before it was cut.
        covers: pixels that the scores of a window stand for, if more than the window.

    Returns:
        indices int32 and weights float32, both [length, T]: entry k*cells + i is score i of window
        k. Weights of a row sum to 1.
    """
    cell_indices, cell_weights = resize.taps(covers or window, cells)
    cell_weights = cell_weights.astype(np.float64)
    pixels = np.arange(inner)[:, None]
    covers = (pixels >= np.asarray(starts)) & (pixels < np.asarray(starts) + window)
    count = covers.sum(axis=1)
    if not count.all():
        raise ValueError(f"windows of {window} at {tuple(starts)} do not cover {inner} pixels.")
    most = int(count.max())
    # The windows over each pixel, first ones first; where there are fewer, the rest weigh nothing.
    which = np.argsort(~covers, axis=1, kind="stable")[:, :most]
    used = np.take_along_axis(covers, which, axis=1)
    within = np.clip(pixels - np.asarray(starts)[which], 0, window - 1)
    indices = which[..., None] * cells + cell_indices[within]  # [inner, most, 2]
    weights = cell_weights[within] * (used / count[:, None])[..., None]
    indices, weights = indices.reshape(inner, -1), weights.reshape(inner, -1)
    if length != inner:
        outer_indices, outer_weights = resize.taps(length, inner)
        weights = (weights[outer_indices] * outer_weights[..., None]).reshape(length, -1)
        indices = indices[outer_indices].reshape(length, -1)
    if mirrored:
        indices, weights = indices[::-1], weights[::-1]
    return indices.astype(np.int32), weights.astype(np.float32)


def blocks(indices: np.ndarray, weights: np.ndarray, tile: int, length: int = 0) -> Blocks:
    """The taps [n, T] of an axis as `Blocks` of tiles of `tile` outputs.

    Args:
        indices: int32 [n, T].
        weights: float32 [n, T].
        tile: ROW_TILE or COLUMN_TILE.
        length: outputs in all, a multiple of `tile`; those from n on are 0. By default the next
            multiple.
    """
    given = len(indices)
    length = length or -(-given // tile) * tile
    parts = []
    for first in range(0, length, tile):
        index, weight = indices[first : first + tile], weights[first : first + tile]
        needed, slot = np.unique(index[weight != 0], return_inverse=True)
        dense = np.zeros((tile, len(needed)), np.float32)
        row = np.nonzero(weight)[0]
        np.add.at(dense, (row, slot.reshape(-1)), weight[weight != 0])
        parts.append((needed, dense))
    width = max(max(len(needed) for needed, _ in parts), 1)
    return _widened(parts, -(-width // _MULTIPLE) * _MULTIPLE)


def _widened(parts: list[tuple[np.ndarray, np.ndarray]], width: int) -> Blocks:
    indices = np.zeros((len(parts), width), np.int32)
    weights = np.zeros((len(parts), parts[0][1].shape[0], width), np.float32)
    for tile, (needed, dense) in enumerate(parts):
        indices[tile, : len(needed)] = needed
        weights[tile, :, : len(needed)] = dense
    return Blocks(indices, weights)


def stack(axes: Sequence[Blocks]) -> Blocks:
    """The blocks of several images, equally long, as one with a leading dimension."""
    width = max(axis.indices.shape[-1] for axis in axes)

    def widen(array: np.ndarray) -> np.ndarray:
        pad = [(0, 0)] * (array.ndim - 1) + [(0, width - array.shape[-1])]
        return np.pad(array, pad)

    return Blocks(
        np.stack([widen(axis.indices) for axis in axes]),
        np.stack([widen(axis.weights) for axis in axes]),
    )


# --------------------------------------------------------------------------------------------------
# Device


class Copy(NamedTuple):
    """The scores of one test-time copy (one scale, mirrored or not) of B images.

    Attributes:
        scores: [B, ny*h, nx*w, K], see `join_windows`.
        rows: blocks over the first axis, with leading B.
        columns: blocks over the second.
    """

    scores: Array
    rows: Blocks
    columns: Blocks


def join_windows(scores: Array, grid: tuple[int, int]) -> Array:
    """[B, ny*nx, h, w, K], windows row-major -> [B, ny*h, nx*w, K] for grid = (ny, nx)."""
    batch, _, h, w, classes = scores.shape
    ny, nx = grid
    apart = scores.reshape(batch, ny, nx, h, w, classes)
    return apart.swapaxes(2, 3).reshape(batch, ny * h, nx * w, classes)


class Decision(Protocol):
    """How a system's scores become those of classes where softmax and argmax are not the way."""

    def of_copy(self, logits: Array) -> Array:
        """Resized scores of one copy [..., V] -> what is averaged over copies, [..., V]."""

    def of_classes(self, mean: Array) -> Array:
        """The mean over copies [..., V] -> scores of the classes [..., K]."""

    def of_nodes(self, mean: Array) -> Array:
        """The mean over copies [..., V] -> scores of all channels [..., V] that agree."""


def labels(copies: Sequence[Copy], decision: Decision | None = None) -> Array:
    """The class of every pixel: the argmax of `scores`, which is never held in full.

    Args:
        copies: of the same images; all give the same output size [H, W].
        decision: of the system, if it has one of its own.

    Returns:
        int32 [B, H, W], the lowest class on ties.
    """
    return _by_tiles(copies, best_class, decision)


def scores(copies: Sequence[Copy], decision: Decision | None = None) -> Array:
    """The logits of a single copy, or the mean of the softmax probabilities of several; or what the
    decision makes of them.

    Returns:
        float32 [B, H, W, K].
    """
    return _by_tiles(copies, lambda tile: tile, decision)


def nodes(copies: Sequence[Copy], decision: Decision) -> Array:
    """The scores of all channels that a decision reads, float32 [B, H, W, V]."""
    return _by_tiles(copies, lambda tile: tile, _Nodes(decision))


class _Nodes(NamedTuple):
    """A decision that stops at the channels."""

    decision: Decision

    def of_copy(self, logits: Array) -> Array:
        return self.decision.of_copy(logits)

    def of_classes(self, mean: Array) -> Array:
        return self.decision.of_nodes(mean)

    def of_nodes(self, mean: Array) -> Array:
        return self.decision.of_nodes(mean)


def probabilities(copies: Sequence[Copy], decision: Decision | None = None) -> Array:
    """Like `scores`, but probabilities for a single copy too; a decision's scores over their sum.
    float32 [B, H, W, K]."""
    if decision is not None:
        return _by_tiles(copies, lambda tile: tile / tile.sum(axis=-1, keepdims=True), decision)
    if len(copies) > 1:
        return scores(copies)
    return _by_tiles(copies, lambda tile: jax.nn.softmax(tile, axis=-1), None)


def best_class(scores: Array) -> Array:
    """argmax over the last axis as int32, the lowest class on ties.

    XLA's argmax on a CPU is fast for a few classes and more than ten times slower for many, so
    classes are taken 16 at a time.
    """
    best = label = None
    for first in range(0, scores.shape[-1], 16):
        part = scores[..., first : first + 16]
        score, here = part.max(axis=-1), part.argmax(axis=-1).astype(jnp.int32) + first
        better = None if best is None else score > best
        best = score if best is None else jnp.where(better, score, best)
        label = here if label is None else jnp.where(better, here, label)
    return label


def _by_tiles(
    copies: Sequence[Copy], finish: Callable[[Array], Array], decision: Decision | None
) -> Array:
    """`finish` of every strip [ROW_TILE, W, K] of the averaged scores, put together."""
    if decision is not None:
        of_copy, of_classes = decision.of_copy, decision.of_classes
    elif len(copies) > 1:
        of_copy, of_classes = functools.partial(jax.nn.softmax, axis=-1), _as_it_is
    else:
        of_copy = of_classes = _as_it_is
    copies = jax.tree.map(jnp.asarray, list(copies))
    batch, strips = copies[0].rows.indices.shape[:2]
    width = copies[0].columns.indices.shape[1] * COLUMN_TILE
    classes = copies[0].scores.shape[-1]
    images = jnp.repeat(jnp.arange(batch, dtype=jnp.int32), strips)
    rows = [jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), copy.rows) for copy in copies]

    def strip(inputs: tuple[Array, list[Blocks]]) -> Array:
        image, rows = inputs
        total = sum(
            of_copy(_strip_logits(copy, image, row)) for copy, row in zip(copies, rows, strict=True)
        )
        return finish(of_classes(total / len(copies)))

    # An accelerator wants more than one strip at a time, a CPU wants it in its cache.
    budget = 0 if jax.default_backend() == "cpu" else 2**27
    at_once = budget // (4 * ROW_TILE * width * classes)
    inputs = (images, rows)
    out = jax.lax.map(strip, inputs, batch_size=at_once if at_once > 1 else None)
    return out.reshape(batch, strips * ROW_TILE, width, *out.shape[3:])


def _as_it_is(tile: Array) -> Array:
    return tile


def _strip_logits(copy: Copy, image: Array, rows: Blocks) -> Array:
    """Rows of one strip, [ROW_TILE, W, K]."""
    exact = jax.lax.Precision.HIGHEST
    source = copy.scores[image, rows.indices].astype(jnp.float32)  # [M, nx*w, K]
    strip = jnp.einsum("ym,mjk->yjk", rows.weights, source, precision=exact)
    columns = jax.tree.map(lambda x: x[image], copy.columns)
    near = strip[:, columns.indices]  # [ROW_TILE, tiles, M, K]
    logits = jnp.einsum("xum,yxmk->yxuk", columns.weights, near, precision=exact)
    return logits.reshape(ROW_TILE, -1, logits.shape[-1])
