"""A 3x3 convolution of maps of several resolutions on the grid of the finest, without enlarging the
coarse ones (CRM's alignment, Shen et al., CVPR 2022).

Enlarging is linear and so is the convolution, so they change places: a coarse map is multiplied by
the kernel's nine matrices at its own resolution, and the products are interpolated to where the
finest map's cells take them from, along columns and then along rows. A map of half the resolution
needs a quarter of the multiplications then, one of a quarter a sixteenth.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import resize
from segjax.structs import Array

ROWS = 16
"""Rows of the result that are made together."""


class Rows(NamedTuple):
    """Which rows of a coarse map make those of the fine grid, in n blocks of ROWS.

    Attributes:
        first: int32 [n], the first of the `reach` rows of the map that a block needs.
        indices, weights: [n, ROWS + 2, 2], taps from those rows of each row of the block, and of
            the ones before and after it.
    """

    first: Array
    indices: Array
    weights: Array


def reach(factor: int, height: int) -> int:
    """How many rows of a coarse map a block needs at most, if it has `height` rows, each at least
    `factor` rows of the fine grid from the next."""
    return min((ROWS + 1) // factor + 3, height)


def rows_of(indices: np.ndarray, weights: np.ndarray, factor: int, height: int) -> Rows:
    """Blocks from the taps of single rows.

    Args:
        indices, weights: [n * ROWS + 2, 2], beginning with the row before the first block; weights
            of 0 for rows that the grid does not have.
        factor, height: see `reach`.
    """
    blocks = np.arange(0, len(indices) - 2, ROWS)[:, None] + np.arange(ROWS + 2)
    indices, weights = indices[blocks], weights[blocks]
    lowest = np.where(weights > 0, indices, height).min(axis=(1, 2))
    first = np.minimum(lowest, height - reach(factor, height))
    inside = (indices - first[:, None, None]).clip(0, reach(factor, height) - 1)
    return Rows(first.astype(np.int32), inside.astype(np.int32), weights)


def convolution(
    fine: Array,
    coarse: Sequence[Array],
    kernel: Array,
    first: Array,
    rows: Sequence[Rows],
    columns: Sequence[resize.Taps],
    then: Callable[[Array], Array],
    factors: Sequence[int] = (2, 4),
) -> Array:
    """A 3x3 convolution of all maps side by side, with zeros around, and what comes after it.

    Args:
        fine: [h, w, c], 0 where the grid has no cells.
        coarse: [h', w', c'] each.
        kernel: [3, 3, c + sum of c', C].
        first: int32, the row of `fine` that the first block begins with. Rows beyond its end count
            as 0.
        rows: of each coarse map.
        columns: of each coarse map, taps [w + 2, w'] of the columns of `fine` and of the ones
            before and after.
        then: [w, ROWS, C] -> [w, ROWS, D], what is done with a block.
        factors: see `reach`.

    Returns:
        [n * ROWS, w, D].
    """
    channels = [x.shape[-1] for x in (fine, *coarse)]
    chex.assert_shape(kernel, (3, 3, sum(channels), None))
    own, *others = jnp.split(kernel, np.cumsum(channels[:-1]), axis=2)
    own = own.swapaxes(0, 1)  # a block is [w, ROWS]: columns come first
    # [dx, c', dy * C]
    others = [k.transpose(1, 2, 0, 3).reshape(3, k.shape[2], -1) for k in others]
    padded = jnp.pad(fine, ((1, ROWS + 2), (0, 0), (0, 0)))

    def block(inputs: tuple[Array, tuple[Rows, ...]]) -> Array:
        start, tables = inputs
        x = jax.lax.dynamic_slice_in_dim(padded, start, ROWS + 2).swapaxes(0, 1)
        y = jax.lax.conv_general_dilated(
            x[None], own, (1, 1), ((1, 1), (0, 0)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )[0]
        for x, matrices, table, taps, factor in zip(
            coarse, others, tables, columns, factors, strict=True
        ):
            few = jax.lax.dynamic_slice_in_dim(x, table.first, reach(factor, x.shape[0]))
            y = y + _interpolated(few, matrices, (table.indices, table.weights), taps)
        return then(y)

    starts = first + ROWS * jnp.arange(len(rows[0].first))
    found = jax.lax.map(block, (starts, tuple(rows)))  # [n, w, ROWS, D]
    return found.swapaxes(1, 2).reshape(-1, *found.shape[1:2], found.shape[3])


def _interpolated(x: Array, matrices: Array, rows: resize.Taps, columns: resize.Taps) -> Array:
    """A coarse map's share of a block.

    Args:
        x: [R, w', c'].
        matrices: [3, c', 3 * C], of the kernel's columns.
        rows: taps [ROWS + 2, R].
        columns: taps [w + 2, w'].

    Returns:
        [w, ROWS, C].
    """
    high, wide, _ = x.shape
    products = jnp.stack([x.swapaxes(0, 1) @ matrix for matrix in matrices])  # [3, w', R, 3 * C]
    y = resize.mix(products.reshape(1, 3 * wide, -1), *_shifted(columns, wide))
    y = y.reshape(-1, high, 3, matrices.shape[2] // 3).swapaxes(1, 2)  # [w, 3, R, C]
    return resize.mix(y.reshape(len(y), 3 * high, -1), *_shifted(rows, high))


def _shifted(taps: resize.Taps, length: int) -> resize.Taps:
    """Taps [n + 2, length] -> [n, 3 * length] of what each output, the one before it and the one
    after it take, from three inputs in a row."""
    indices, weights = taps
    count = len(indices) - 2
    return (
        jnp.concatenate([indices[i : i + count] + i * length for i in range(3)], axis=1),
        jnp.concatenate([weights[i : i + count] for i in range(3)], axis=1),
    )
