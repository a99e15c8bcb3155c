"""3x3 convolutions with 16 products for every 36 (Winograd's F(2x2, 3x3); Lavin and Gray, CVPR
2016)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from segjax.structs import Array

VALUES = 2**19
"""Most values of one position of all tiles of 2 x 2 output pixels that are worked on at a time:
enough for a matrix product to be fast, and few enough for what is transformed (16 positions) to be
small."""

WIDE = 128
"""With fewer channels, in or out, the products are too narrow to pay for the transforms."""

WORTH = 2**29
"""Multiply-adds below which what is saved (some milliseconds) is not worth the longer compilation
(two thirds of a second)."""

Four = tuple[Array, Array, Array, Array]

Square = list[list[Array]]
"""4 x 4 matrices, one of each position in a tile."""


def conv3x3(x: Array, kernel: Array, dilation: int = 1) -> Array:
    """A 3x3 convolution with stride 1 and `dilation` zeros around.

    On CPU, where channels are many and the map is large, in Winograd's form, and so are both
    gradients: exact algebra, float32 rounding of another kind (1e-6 of the largest value; 3e-6 in
    the kernel's gradient). It takes half the time that XLA's form takes (2560 to 512 channels,
    32x64).

    Args:
        x: [B, H, W, c].
        kernel: [3, 3, c, C].
        dilation: pixels between taps.

    Returns:
        [B, H, W, C].
    """
    chex.assert_shape(kernel, (3, 3, x.shape[-1], None))
    narrow = min(kernel.shape[2:]) < WIDE
    if narrow or 9 * x.size * kernel.shape[3] < WORTH or x.dtype != jnp.float32:
        return direct(x, kernel, dilation)
    return _wide(x, kernel, dilation)


def direct(x: Array, kernel: Array, dilation: int = 1) -> Array:
    """The same as XLA has it."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        ((dilation, dilation), (dilation, dilation)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _wide(x: Array, kernel: Array, dilation: int) -> Array:
    def cpu(x: Array, kernel: Array) -> Array:
        y = _convolved(phases(x, dilation), _weights(kernel))
        return joined(y, dilation, x.shape[1:3])

    default = functools.partial(direct, dilation=dilation)
    return jax.lax.platform_dependent(x, kernel, cpu=cpu, default=default)


def _wide_backward(dilation: int, kept: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    def cpu(x: Array, kernel: Array, slope: Array) -> tuple[Array, Array]:
        slope = phases(slope, dilation)
        of_x = _convolved(slope, _reversed(_weights(kernel)))
        of_kernel = _correlated(phases(x, dilation), slope)
        return joined(of_x, dilation, x.shape[1:3]), of_kernel

    def default(x: Array, kernel: Array, slope: Array) -> tuple[Array, Array]:
        return jax.vjp(functools.partial(direct, dilation=dilation), x, kernel)[1](slope)

    return jax.lax.platform_dependent(*kept, slope, cpu=cpu, default=default)


_wide.defvjp(lambda x, kernel, dilation: (_wide(x, kernel, dilation), (x, kernel)), _wide_backward)


def phases(x: Array, step: int) -> Array:
    """Every step-th pixel of every step-th row as a map of its own, filled up with zeros: a
    dilated convolution is a plain one of each. [B, H, W, C] -> [B * step * step, ceil(H / step),
    ceil(W / step), C]."""
    if step == 1:
        return x
    batch, height, width, channels = x.shape
    rows, cols = -(-height // step), -(-width // step)
    x = jnp.pad(x, ((0, 0), (0, rows * step - height), (0, cols * step - width), (0, 0)))
    x = x.reshape(batch, rows, step, cols, step, channels).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(batch * step * step, rows, cols, channels)


def joined(x: Array, step: int, size: Sequence[int]) -> Array:
    """The inverse of `phases`; `size` is (H, W)."""
    if step == 1:
        return x
    _, rows, cols, channels = x.shape
    x = x.reshape(-1, step, step, rows, cols, channels).transpose(0, 3, 1, 4, 2, 5)
    return x.reshape(-1, rows * step, cols * step, channels)[:, : size[0], : size[1]]


# --------------------------------------------------------------------------------------------------
# Strips of rows of tiles, one after another


def _convolved(x: Array, weights: Square) -> Array:
    """`conv3x3` without dilation."""
    batch, height, width, _ = x.shape
    outputs = weights[0][0].shape[1]
    rows, strips, across = _strips(x.shape, outputs)
    x = _filled(x, 1, 2 * rows * strips + 1, 2 * across + 1)

    def strip(number: Array | int) -> Array:
        part = jax.lax.dynamic_slice_in_dim(x, 2 * rows * number, 2 * rows + 2, axis=1)
        inputs = [_of_input(row, 2) for row in _of_input(part, 1)]
        products = [
            [values @ weight for values, weight in zip(*row, strict=True)]
            for row in zip(inputs, weights, strict=True)
        ]
        halves = zip(*(_of_products(row) for row in products))  # even and odd columns
        columns = [jnp.stack(_of_products(half), axis=2) for half in halves]  # [B, R, 2, T, C]
        return jnp.stack(columns, axis=4).reshape(batch, 2 * rows, 2 * across, outputs)

    y = strip(0) if strips == 1 else jax.lax.map(strip, jnp.arange(strips)).swapaxes(0, 1)
    return y.reshape(batch, -1, 2 * across, outputs)[:, :height, :width]


def _correlated(x: Array, slope: Array) -> Array:
    """The kernel's gradient [3, 3, c, C] of `_convolved`, of x [B, H, W, c] and slope [B, H, W,
    C]."""
    rows, strips, across = _strips(x.shape, slope.shape[-1])
    x = _filled(x, 1, 2 * rows * strips + 1, 2 * across + 1)
    slope = _filled(slope, 0, 2 * rows * strips, 2 * across)

    def strip(number: Array | int) -> Square:
        part = jax.lax.dynamic_slice_in_dim(x, 2 * rows * number, 2 * rows + 2, axis=1)
        onto = jax.lax.dynamic_slice_in_dim(slope, 2 * rows * number, 2 * rows, axis=1)
        inputs = [_of_input(row, 2) for row in _of_input(part, 1)]
        outputs = [_of_slope(row, 2) for row in _of_slope(onto, 1)]
        return [
            [_over_pixels(*pair) for pair in zip(*row, strict=True)]
            for row in zip(inputs, outputs, strict=True)
        ]

    def add_strip(number: Array, total: Square) -> Square:
        return jax.tree.map(jnp.add, total, strip(number))

    products = strip(0)
    if strips > 1:
        products = jax.lax.fori_loop(1, strips, add_strip, products)
    taps = zip(*(_of_kernel_products(row) for row in products))
    return jnp.stack([jnp.stack(_of_kernel_products(column)) for column in taps], axis=1)


def _weights(kernel: Array) -> Square:
    """[3, 3, c, C] -> 4 x 4 of [c, C]."""
    return [[part[0, 0] for part in _of_kernel(row, 1)] for row in _of_kernel(kernel, 0)]


def _reversed(weights: Square) -> Square:
    """Those of the kernel turned by 180 degrees with inputs and outputs exchanged: the four of an
    axis are then the same in another order."""
    return [[weights[i][j].T for j in (3, 1, 2, 0)] for i in (3, 1, 2, 0)]


def _strips(shape: tuple[int, ...], outputs: int) -> tuple[int, int, int]:
    """Rows of tiles in a strip, strips, and tiles across."""
    batch, height, width, channels = shape
    down, across = -(-height // 2), -(-width // 2)
    strips = -(-batch * down * across * max(channels, outputs) // VALUES)
    rows = -(-down // strips)
    return rows, -(-down // rows), across


def _filled(x: Array, before: int, bottom: int, right: int) -> Array:
    """Zeros above and to the left, and down to row `bottom` and column `right` of x."""
    after = bottom - x.shape[1], right - x.shape[2]
    return jnp.pad(x, ((0, 0), *((before, more) for more in after), (0, 0)))


def _over_pixels(x: Array, slope: Array) -> Array:
    """[..., c] and [..., C] -> [c, C]."""
    return x.reshape(-1, x.shape[-1]).T @ slope.reshape(-1, slope.shape[-1])


# --------------------------------------------------------------------------------------------------
# Along one axis, four numbers stand for a tile of two outputs: those of its four inputs times those
# of the three weights, and the outputs are their sums. The gradients go through the transposes.


def _of_kernel(kernel: Array, axis: int) -> Four:
    a, b, c = (jax.lax.slice_in_dim(kernel, i, i + 1, axis=axis) for i in range(3))
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _of_kernel_products(m: Sequence[Array]) -> tuple[Array, Array, Array]:
    return m[0] + (m[1] + m[2]) / 2, (m[1] - m[2]) / 2, (m[1] + m[2]) / 2 + m[3]


def _of_input(x: Array, axis: int) -> Four:
    """Tiles overlap by two samples."""
    even, odd = (jax.lax.slice_in_dim(x, i, None, 2, axis) for i in range(2))
    (a, c), (b, d) = (
        (jax.lax.slice_in_dim(y, 0, -1, axis=axis), jax.lax.slice_in_dim(y, 1, None, axis=axis))
        for y in (even, odd)
    )
    return a - c, b + c, c - b, b - d


def _of_products(m: Sequence[Array]) -> tuple[Array, Array]:
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _of_slope(slope: Array, axis: int) -> Four:
    even, odd = (jax.lax.slice_in_dim(slope, i, None, 2, axis) for i in range(2))
    return even, even + odd, even - odd, -odd
