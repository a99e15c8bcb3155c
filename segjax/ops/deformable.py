"""Multi-scale deformable attention (Deformable DETR, Zhu et al., ICLR 2021, Sec. 4.1): the
sampling, which is what it has in place of a product of queries and keys."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import chex
import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import sampling
from segjax.structs import Array, Size

TILE = 16_000_000
"""Weights in memory at a time where values are mixed by products: of one image, all heads and all
pixels."""


def sample(value: Array, shapes: tuple[Size, ...], locations: Array, weights: Array) -> Array:
    """The values that each query asks for: per head, the weighted sum of points on all levels.

    Bilinear between pixels; beyond a level's map there are zeros. Two forms compute the same, see
    `by_gathers` and `by_products`. Sums are float32. Differentiable in all arrays.

    Args:
        value: [B, S, heads, D], the pixels of all levels, row-major, one level after another.
        shapes: (height, width) of the levels; S is their sum of pixels.
        locations: [B, N, heads, L, P, 2] (x, y), 0..1 from edge to edge of the level, any number
            outside.
        weights: [B, N, heads, L, P].

    Returns:
        [B, N, heads*D] of value's dtype.
    """
    chex.assert_equal(value.shape[1], sum(height * width for height, width in shapes))
    chex.assert_equal(locations.shape[3], len(shapes))
    chex.assert_equal_shape_prefix((locations, weights), 5)
    mixed = jax.lax.platform_dependent(
        value,
        locations,
        weights,
        tpu=functools.partial(by_products, shapes),
        default=functools.partial(by_gathers, shapes),
    )
    return mixed.reshape(*locations.shape[:2], -1)


def by_gathers(shapes: tuple[Size, ...], value: Array, locations: Array, weights: Array) -> Array:
    """Reads the four pixels around every point. Returns [B, N, heads, D]."""
    points = locations.shape[4]
    size = np.repeat(np.array(shapes, np.int32), points, axis=0)
    starts = [start for start, _ in _levels(shapes)]
    first = np.repeat(np.array(starts, np.int32), points)

    @jax.checkpoint  # the pixels and their weights are found anew for the gradient, not kept
    def one_head(value: Array, locations: Array, weights: Array) -> Array:
        queries = len(locations)
        rows, shares = sampling.corners(
            locations.reshape(queries, -1, 2).astype(jnp.float32), size[:, 0], size[:, 1], first
        )
        shares *= jnp.tile(weights.reshape(queries, -1).astype(jnp.float32), (1, 4))
        return sampling.mix_rows(value, rows, shares).astype(value.dtype)

    def one_image(*image: Array) -> Array:
        heads = tuple(x.swapaxes(0, 1) for x in image)
        # One after another on a CPU, whose cache holds the values of one.
        if jax.default_backend() == "cpu":
            return jax.lax.map(lambda head: one_head(*head), heads).swapaxes(0, 1)
        return jax.vmap(one_head, out_axes=1)(*heads)

    return sampling.each(one_image, value, locations, weights)


def by_products(shapes: tuple[Size, ...], value: Array, locations: Array, weights: Array) -> Array:
    """Multiplies the values by the weight that each query has for each pixel, some queries at a
    time: more arithmetic by far, but none of the gathers and scatters that are slow on TPUs.
    Returns [B, N, heads, D]."""
    queries, heads = locations.shape[1:3]
    tile = max(min(TILE // (heads * value.shape[1]), queries), 1)
    count = -(-queries // tile)
    # On TPUs float32 products are otherwise of bfloat16 numbers.
    exact = jax.lax.Precision.HIGHEST if value.dtype == jnp.float32 else None

    @jax.checkpoint  # the dense weights are made anew for the gradient
    def one_tile(queries: tuple[Array, Array]) -> Array:
        locations, weights = (x.astype(jnp.float32) for x in queries)
        mixed = 0.0
        for level, (start, (height, width)) in enumerate(_levels(shapes)):
            x, y = locations[..., level, :, 0], locations[..., level, :, 1]
            along, across = _hat(x * width - 0.5, width), _hat(y * height - 0.5, height)
            across *= weights[..., level, :, None]
            # Summed point by point, which fuses; as a product it would be one of depth P.
            dense = sum(
                across[..., p, :, None] * along[..., p, None, :] for p in range(x.shape[-1])
            )
            mixed += jnp.einsum(
                "bnhs,bshd->bnhd",
                dense.reshape(*dense.shape[:-2], height * width).astype(value.dtype),
                value[:, start : start + height * width],
                precision=exact,
                preferred_element_type=jnp.float32,
            )
        return mixed.astype(value.dtype)

    def tiles(x: Array) -> Array:
        filled = jnp.pad(x, [(0, 0), (0, count * tile - queries)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(filled.reshape(len(x), count, tile, *x.shape[2:]), 1, 0)

    mixed = jnp.moveaxis(jax.lax.map(one_tile, (tiles(locations), tiles(weights))), 0, 1)
    return mixed.reshape(len(value), count * tile, heads, -1)[:, :queries]


def _hat(place: Array, size: int) -> Array:
    """relu(1 - |place - i|) for the pixels i: [...] -> [..., size]. At a pixel's centre the slope
    is that to its right."""
    away = place[..., None] - jnp.arange(size, dtype=jnp.float32)
    near = (away >= -1.0) & (away < 1.0)
    return jnp.where(near, jnp.where(away < 0.0, 1.0 + away, 1.0 - away), 0.0)


def _levels(shapes: tuple[Size, ...]) -> Iterator[tuple[int, Size]]:
    """Where each level begins among the pixels of all, and its size."""
    start = 0
    for height, width in shapes:
        yield start, (height, width)
        start += height * width
