"""3x3 convolutions with 16 products for every 36 (Winograd's F(2x2, 3x3); Lavin and Gray, CVPR
2016)."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp

from segjax.structs import Array

TILES = 1024
"""Output tiles of 2 x 2 pixels that are worked on at a time: enough for a matrix product to be
fast, and few enough for what is transformed (16 values of each channel per tile) to be small."""

WIDE = 128
"""With fewer channels, in or out, the products are too narrow to pay for the transforms."""


def conv3x3(x: Array, kernel: Array) -> Array:
    """A 3x3 convolution with stride 1 and zeros around.

    On CPU, and where channels are many, in Winograd's form: exact algebra, float32 rounding of
    another kind (1e-6 of the largest value). Meant for evaluation; what a gradient through it would
    hold is four times the input.

    Args:
        x: [B, H, W, c].
        kernel: [3, 3, c, C].

    Returns:
        [B, H, W, C].
    """
    chex.assert_shape(kernel, (3, 3, x.shape[-1], None))
    if min(kernel.shape[2:]) < WIDE or x.dtype != jnp.float32:
        return direct(x, kernel)
    return jax.lax.platform_dependent(x, kernel, cpu=_in_strips, default=direct)


def direct(x: Array, kernel: Array) -> Array:
    """The same as XLA has it."""
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _in_strips(x: Array, kernel: Array) -> Array:
    """Strips of rows of tiles, one after another."""
    batch, height, width, _ = x.shape
    across, down = -(-width // 2), -(-height // 2)
    strips = -(-batch * down * across // TILES)
    rows = -(-down // strips)
    strips = -(-down // rows)
    beyond = ((1, 2 * rows * strips + 1 - height), (1, 2 * across + 1 - width))
    padded = jnp.pad(x, ((0, 0), *beyond, (0, 0)))
    weights = [[part[0, 0] for part in _of_kernel(row, 1)] for row in _of_kernel(kernel, 0)]

    def one(strip: Array) -> Array:
        part = jax.lax.dynamic_slice_in_dim(padded, 2 * rows * strip, 2 * rows + 2, axis=1)
        return _tiles(part, weights)

    if strips == 1:
        y = _tiles(padded, weights)
    else:
        y = jax.lax.map(one, jnp.arange(strips)).swapaxes(0, 1)
    return y.reshape(batch, -1, 2 * across, kernel.shape[-1])[:, :height, :width]


def _tiles(x: Array, weights: list[list[Array]]) -> Array:
    """[B, 2R + 2, 2T + 2, c] -> [B, 2R, 2T, C]."""
    inputs = [_of_input(part, 2) for part in _of_input(x, 1)]
    products = [
        [part @ weight for part, weight in zip(*row, strict=True)]
        for row in zip(inputs, weights, strict=True)
    ]
    halves = zip(*(_of_products(row) for row in products))  # even and odd columns
    columns = [jnp.stack(_of_products(half), axis=2) for half in halves]  # [B, R, 2, T, C]
    y = jnp.stack(columns, axis=4)
    return y.reshape(y.shape[0], 2 * y.shape[1], 2 * y.shape[3], -1)


# Along one axis, four numbers stand for a tile of two outputs: those of its four inputs times those
# of the three weights, and the outputs are their sums.


def _of_kernel(kernel: Array, axis: int) -> tuple[Array, Array, Array, Array]:
    a, b, c = (jax.lax.slice_in_dim(kernel, i, i + 1, axis=axis) for i in range(3))
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _of_input(x: Array, axis: int) -> tuple[Array, Array, Array, Array]:
    """Tiles overlap by two samples."""
    even, odd = (jax.lax.slice_in_dim(x, i, None, 2, axis) for i in range(2))
    (a, c), (b, d) = (
        (jax.lax.slice_in_dim(y, 0, -1, axis=axis), jax.lax.slice_in_dim(y, 1, None, axis=axis))
        for y in (even, odd)
    )
    return a - c, b + c, c - b, b - d


def _of_products(m: tuple[Array, ...] | list[Array]) -> tuple[Array, Array]:
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]
