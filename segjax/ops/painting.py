"""Region painting (RegProxy, Zhang et al., CVPR 2022, Sec. 3.2 and 3.3).

Tokens lie on a grid [Ht, Wt]; each token's cell is cut into h x w sub-cells. For every sub-cell an
association gives the probability of belonging to each of the 3x3 tokens around its own; painting
mixes the tokens' scores with it.
"""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import dense
from segjax.structs import Array, Size

product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def neighbourhoods(x: Array) -> Array:
    """The 3x3 tokens around every token, row-major (the centre is index 4), zeros outside.

    [B, Ht, Wt, C] -> [B, Ht, Wt, 9, C].
    """
    rows, cols = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [padded[:, i : i + rows, j : j + cols] for i in range(3) for j in range(3)]
    return jnp.stack(shifts, axis=3)


def border_mask(rows: int, cols: int) -> np.ndarray:
    """bool [Ht, Wt, 9]: whether that neighbour lies on the grid."""
    row, col, n = np.ogrid[:rows, :cols, :9]
    row, col = row + n // 3 - 1, col + n % 3 - 1
    return (row >= 0) & (row < rows) & (col >= 0) & (col < cols)


def associate(logits: Array, region: Size) -> Array:
    """Softmax over the neighbours of each sub-cell, those outside the grid left out.

    Args:
        logits: [B, Ht, Wt, 9*h*w], channel n*h*w + a*w + b for neighbour n and sub-cell (a, b).
        region: (h, w).

    Returns:
        [B, Ht, Wt, 9, h, w] float32 probabilities, exactly 0 (and without gradient) outside the
        grid.
    """
    batch, rows, cols, channels = logits.shape
    chex.assert_equal(channels, 9 * region[0] * region[1])
    logits = logits.astype(jnp.float32).reshape(batch, rows, cols, 9, *region)
    inside = border_mask(rows, cols)[..., None, None]
    # The centre is always inside, so the maximum is finite.
    return jax.nn.softmax(jnp.where(inside, logits, -jnp.inf), axis=3)


def paint(region_scores: Array, association: Array) -> Array:
    """Mixes the scores of the 3x3 regions around every sub-cell.

    Args:
        region_scores: [B, Ht, Wt, K].
        association: [B, Ht, Wt, 9, h, w], see `associate`.

    Returns:
        [B, Ht*h, Wt*w, K] of region_scores' dtype.
    """
    chex.assert_equal_shape_prefix((region_scores, association), 3)
    batch, rows, cols, classes = region_scores.shape
    h, w = association.shape[-2:]
    around = neighbourhoods(region_scores)
    shares = association.astype(around.dtype).reshape(batch, rows, cols, 9, h * w)
    cells = product("bijnm,bijnk->bijmk", shares, around)
    fine = cells.reshape(batch, rows, cols, h, w, classes).swapaxes(2, 3)
    return fine.reshape(batch, rows * h, cols * w, classes)


def painted_labels(region_scores: Array, association: Array, size: Size) -> Array:
    """argmax over classes of `resize.bilinear(paint(...), size)`, painting only what a strip of
    rows needs.

    Args:
        region_scores: [B, Ht, Wt, K].
        association: [B, Ht, Wt, 9, h, w].
        size: (H, W) of the labels, any.

    Returns:
        [B, H, W] int32.
    """
    batch, rows, cols, classes = region_scores.shape
    h, w = association.shape[-2:]
    strips = dense.Strips.plan(size, (batch, rows * h, cols * w, classes))
    padded = jnp.pad(region_scores.astype(jnp.float32), ((0, 0), (1, 1), (1, 1), (0, 0)))
    # [B, Ht*h, Wt, w, 9]: one fine row after another.
    shares = association.transpose(0, 1, 4, 2, 5, 3).reshape(batch, rows * h, cols, w, 9)

    def painted_rows(first: Array) -> Array:
        share = jax.lax.dynamic_slice_in_dim(shares, first, strips.reach, axis=1)
        token_row = (first + jnp.arange(strips.reach)) // h
        around = [
            jnp.take(padded, token_row + n // 3, axis=1, mode="clip")[:, :, n % 3 : n % 3 + cols]
            for n in range(9)
        ]
        painted = product("brjwn,brjnk->brjwk", share, jnp.stack(around, axis=3))
        return painted.reshape(batch, strips.reach, cols * w, classes)

    return dense.strip_argmax(painted_rows, strips)


def owner_regions(association: Array) -> Array:
    """The token that each sub-cell belongs to most: row-major index into the token grid.

    [B, Ht, Wt, 9, h, w] -> [B, Ht*h, Wt*w] int32.
    """
    batch, rows, cols, _, h, w = association.shape
    n = association.argmax(axis=3).astype(jnp.int32)
    row = jnp.arange(rows)[:, None, None, None] + n // 3 - 1
    col = jnp.arange(cols)[:, None, None] + n % 3 - 1
    return (row * cols + col).transpose(0, 1, 3, 2, 4).reshape(batch, rows * h, cols * w)
