"""Average pooling onto a grid of any size."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from segjax.structs import Array, Size


def adaptive_average(x: Array, size: Size) -> Array:
    """torch's `adaptive_avg_pool2d`: the mean over a grid of cells.

    Cell i of n on an axis of length s covers the samples floor(i * s / n) .. ceil((i + 1) * s / n),
    the last one not included; so cells overlap where n doesn't divide s, and n may exceed s.

    Args:
        x: [B, H, W, C].
        size: (rows, columns) of the result.

    Returns:
        [B, *size, C] of x's dtype, computed in float32.
    """
    rows, cols = (_means(n, s) for n, s in zip(size, x.shape[1:3], strict=True))
    pooled = jnp.einsum(
        "ih,bhwc,jw->bijc",
        rows,
        x.astype(jnp.float32),
        cols,
        precision=jax.lax.Precision.HIGHEST,
    )
    return pooled.astype(x.dtype)


def _means(cells: int, length: int) -> np.ndarray:
    """float32 [cells, length]: row i holds the share of each sample in the mean of cell i."""
    cell, sample = np.arange(cells)[:, None], np.arange(length)
    covers = (sample >= cell * length // cells) & (sample < -(-(cell + 1) * length // cells))
    return (covers / covers.sum(axis=1, keepdims=True)).astype(np.float32)
