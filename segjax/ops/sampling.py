"""Reading maps at points between their pixels, and the choice of points (PointRend, Kirillov et
al., CVPR 2020).

A point is (x, y), 0..1 from the left (top) edge of the map to its right (bottom) edge; the centre
of pixel i of n lies at (i + 0.5) / n. Values are bilinear, and beyond the map there are zeros, as
of `torch.nn.functional.grid_sample` without `align_corners`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import chex
import jax
import jax.numpy as jnp
import numpy as np

from segjax.structs import Array

FEW = 64
"""Of up to so many channels a CPU multiplies one after another in `mix_rows`' slopes."""


def sample_points(maps: Array, points: Array) -> Array:
    """All maps of an image at the same points.

    Args:
        maps: [B, h, w, Q].
        points: [B, P, 2] (x, y), without gradient.

    Returns:
        [B, P, Q] float32.
    """
    chex.assert_equal_shape_prefix((maps, points), 1)
    size, channels = maps.shape[1:3], maps.shape[3]

    def one_image(maps: Array, points: Array) -> Array:
        rows, weights = corners(jax.lax.stop_gradient(points)[:, None], *size)
        return mix_rows(maps.reshape(-1, channels), rows, weights)

    return each(one_image, maps, points)


def sample_own_points(maps: Array, points: Array) -> Array:
    """Every map at points of its own.

    Args:
        maps: [N, h, w].
        points: [N, P, 2] (x, y), without gradient.

    Returns:
        [N, P] float32.
    """
    chex.assert_equal_shape_prefix((maps, points), 1)

    def one_map(map_: Array, points: Array) -> Array:
        rows, weights = corners(jax.lax.stop_gradient(points)[:, None], *map_.shape)
        return mix_rows(map_.reshape(-1, 1), rows, weights)[:, 0]

    return jax.vmap(one_map)(maps, points)


def sample_membership(segments: Array, points: Array, count: int) -> Array:
    """The binary masks of all segments at the same points, straight from the index map.

    Args:
        segments: integer [B, H, W], the segment of every pixel; or [B, L, H, W], L layers: a
            segment is where any layer holds its index.
        points: [B, P, 2] (x, y).
        count: S.

    Returns:
        [B, P, S] float32, 0..1, of the segments 0..S-1.
    """
    ids = jnp.arange(count)
    # Corner by corner, which fuses.
    return sum(
        weights[..., None] * (found[..., None] == ids).any(axis=1)
        for found, weights in _corner_segments(segments, points)
    )


def sample_own_membership(segments: Array, index: Array, points: Array) -> Array:
    """The binary masks of some segments, each at points of its own.

    Args:
        segments: integer [B, H, W] or [B, L, H, W], see `sample_membership`.
        index: integer [B, N], which segments; what is below 0 is an empty mask.
        points: [B, N, P, 2] (x, y).

    Returns:
        [B, N, P] float32, 0..1.
    """
    chex.assert_equal_shape_prefix((index, points), 2)
    batch, count, each_has, _ = points.shape
    own = jnp.repeat(index, each_has, axis=1)[:, None]
    shares = sum(
        weights * ((found == own) & (own >= 0)).any(axis=1)
        for found, weights in _corner_segments(segments, points.reshape(batch, -1, 2))
    )
    return shares.reshape(batch, count, each_has)


def _corner_segments(segments: Array, points: Array) -> Iterator[tuple[Array, Array]]:
    """Of the four pixels around the points [B, P, 2] one after another: what each layer holds
    there [B, L, P], and its weight [B, P]."""
    size = segments.shape[-2:]
    flat = segments.reshape(len(segments), -1, size[0] * size[1])
    read = jax.vmap(lambda flat, rows: flat.at[:, rows].get(mode="promise_in_bounds"))
    all_rows, all_weights = (jnp.split(x, 4, axis=-1) for x in corners(points, *size))
    for rows, weights in zip(all_rows, all_weights):
        yield read(flat, rows), weights


def uncertain(logits: Array, points: Array, keep: int) -> Array:
    """The points whose logits are nearest to 0 (PointRend, Sec. 3.1).

    Args:
        logits: [N, M], of N masks at M points each; without gradient.
        points: [N, M, 2].
        keep: how many.

    Returns:
        [N, keep, 2].
    """
    _, chosen = jax.lax.top_k(-jnp.abs(jax.lax.stop_gradient(logits)), keep)
    return jnp.take_along_axis(points, chosen[..., None], axis=1, mode="promise_in_bounds")


# --------------------------------------------------------------------------------------------------
# Mixes of rows


def corners(
    points: Array, height: int | np.ndarray, width: int | np.ndarray, first: int | np.ndarray = 0
) -> tuple[Array, Array]:
    """The four pixels around every point and their bilinear weights, 0 outside the map.

    Args:
        points: [N, M, 2] (x, y). Weights are differentiable in them; where a point is at a pixel's
            centre the slope is that to its right (below).
        height, width: of the map; or int [M], where column m of the points reads a map of its own.
        first: int or int [M], the row at which that map begins in a table that has many.

    Returns:
        (rows, weights), int32 and float32 [N, 4*M]: row-major pixels, all left upper corners first.
    """
    place = [points[..., axis] * np.float32(n) - 0.5 for axis, n in enumerate((width, height))]
    low = [jnp.floor(x) for x in place]
    part = [x - start for x, start in zip(place, low)]
    rows, weights = [], []
    for down in (0, 1):
        for right in (0, 1):
            column, row = low[0] + right, low[1] + down
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            column = column.astype(jnp.int32).clip(0, width - 1)
            row = row.astype(jnp.int32).clip(0, height - 1)
            along = part[0] if right else 1.0 - part[0]
            across = part[1] if down else 1.0 - part[1]
            rows.append((first + row * width + column).astype(jnp.int32))
            weights.append(jnp.where(inside, along * across, 0.0))
    return jnp.concatenate(rows, axis=-1), jnp.concatenate(weights, axis=-1)


@jax.custom_vjp
def mix_rows(table: Array, rows: Array, weights: Array) -> Array:
    """Weighted sums of rows of a table, without a tensor of all those rows on the way there or
    back.

    Args:
        table: [S, D].
        rows: int32 [N, K], each in 0..S-1.
        weights: [N, K].

    Returns:
        [N, D] float32.
    """
    terms = (
        weights[:, k, None].astype(jnp.float32) * _rows(table, rows[:, k])
        for k in range(rows.shape[1])
    )
    return functools.reduce(jnp.add, terms)


def _rows(table: Array, rows: Array) -> Array:
    return jnp.asarray(table).at[rows].get(mode="promise_in_bounds").astype(jnp.float32)


def _mix_forward(table: Array, rows: Array, weights: Array) -> tuple[Array, tuple[Array, ...]]:
    return mix_rows(table, rows, weights), (table, rows, weights)


def _mix_backward(kept: tuple[Array, ...], slope: Array) -> tuple[Array, None, Array]:
    of_table, of_weights = jax.lax.platform_dependent(
        *kept, slope, cpu=_slopes_on_cpu, default=_slopes
    )
    return of_table, None, of_weights


mix_rows.defvjp(_mix_forward, _mix_backward)


def _slopes(table: Array, rows: Array, weights: Array, slope: Array) -> tuple[Array, Array]:
    """The slopes of table and weights, each in one step."""
    start = jnp.zeros(table.shape, jnp.float32)
    given = weights[..., None].astype(jnp.float32) * slope[:, None]
    of_table = start.at[rows].add(given, mode="promise_in_bounds")
    of_weights = (_rows(table, rows) * slope[:, None]).sum(axis=-1)
    return of_table.astype(table.dtype), of_weights.astype(weights.dtype)


def _slopes_on_cpu(table: Array, rows: Array, weights: Array, slope: Array) -> tuple[Array, Array]:
    """The same. What the rows are given is made as it is added, so that it isn't in memory; and
    XLA's sums over the last axis of something gathered are slow here."""

    def add(n: Array, sums: Array) -> Array:
        given = weights[n, :, None].astype(jnp.float32) * slope[n]
        return sums.at[rows[n]].add(given, mode="promise_in_bounds")

    start = jnp.zeros(table.shape, jnp.float32)
    of_table = jax.lax.fori_loop(0, len(rows), add, start).astype(table.dtype)
    channels = table.shape[1]
    if channels > FEW:
        return of_table, _slopes(table, rows, weights, slope)[1]
    terms = (slope[:, d, None] * _rows(table[:, d], rows) for d in range(channels))
    return of_table, functools.reduce(jnp.add, terms).astype(weights.dtype)


def each(function: Callable[..., Array], *arrays: Array) -> Array:
    """`function` of each of the images: one after another on a CPU, whose cache holds the tables
    of one; else side by side, so that images spread over devices stay where they are."""
    if jax.default_backend() == "cpu" and jax.device_count() == 1:
        return jax.lax.map(lambda image: function(*image), arrays)
    return jax.vmap(function)(*arrays)
