"""Convolutions that XLA's general form serves badly, and weight standardisation."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

import chex
import jax
import jax.numpy as jnp

from segjax.structs import Array


@jax.custom_vjp
def pointwise(x: Array, kernel: Array) -> Array:
    """A 1x1 convolution as a matrix product. [..., c] and [c, C] -> [..., C].

    On CPU its gradient takes half the time of XLA's convolution. One factor of the kernel's
    gradient is transposed for it; that the narrower one is, JAX's own would not see to.
    """
    return x @ kernel


def _pointwise_backward(kept: tuple[Array, Array], slope: Array) -> tuple[Array, Array]:
    x, kernel = kept
    flat, slopes = x.reshape(-1, x.shape[-1]), slope.reshape(-1, slope.shape[-1])
    wider = kernel.shape[1] > kernel.shape[0]
    of_kernel = flat.T @ slopes if wider else (slopes.T @ flat).T
    return slope @ kernel.T, of_kernel.astype(kernel.dtype)


pointwise.defvjp(lambda x, kernel: (pointwise(x, kernel), (x, kernel)), _pointwise_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(x: Array, kernel: Array, dilation: int = 1) -> Array:
    """One k x k filter per channel as shifted multiply-adds; zero padding, stride 1.

    XLA's grouped convolution was 20 times slower on CPU (3x3, 192 channels, 32x32), and a
    convolution with one channel per group leaves a matrix unit idle anyway. Nothing is padded: the
    map is cut into bands whose pixels see the same taps, which are few where the dilation is large.
    On CPU that took a third of the time (32x64, 2048 channels, dilations 12 to 36).

    Args:
        x: [B, H, W, C].
        kernel: [k, k, 1, C], k odd.
        dilation: pixels between taps.

    Returns:
        [B, H, W, C].
    """
    k = kernel.shape[0]
    chex.assert_shape(kernel, (k, k, 1, x.shape[-1]))
    offsets = _offsets(k, dilation)
    rows = []
    for top, bottom in _bands(x.shape[1], offsets):
        columns = []
        for left, right in _bands(x.shape[2], offsets):
            total = jnp.zeros((), x.dtype)
            for (i, down), (j, across) in itertools.product(enumerate(offsets), repeat=2):
                above, before = top + down, left + across
                below, after = bottom + down, right + across
                if above >= 0 and before >= 0 and below <= x.shape[1] and after <= x.shape[2]:
                    total = total + x[:, above:below, before:after] * kernel[i, j, 0]
            columns.append(total)
        rows.append(jnp.concatenate(columns, axis=2))
    return jnp.concatenate(rows, axis=1)


def _depthwise_backward(
    dilation: int, kept: tuple[Array, Array], slope: Array
) -> tuple[Array, Array]:
    x, kernel = kept
    of_x = depthwise(slope, kernel[::-1, ::-1], dilation)
    offsets = _offsets(kernel.shape[0], dilation)
    of_kernel = jax.lax.platform_dependent(
        x,
        slope,
        cpu=functools.partial(_correlation_by_rows, offsets=offsets),
        default=functools.partial(_correlation, offsets=offsets),
    )
    return of_x, of_kernel[:, :, None].astype(kernel.dtype)


depthwise.defvjp(
    lambda x, kernel, dilation: (depthwise(x, kernel, dilation), (x, kernel)), _depthwise_backward
)


def _correlation(x: Array, slope: Array, offsets: list[int]) -> Array:
    """[k, k, C]: for every tap the sum, over all pixels of a channel, of x there times the
    slope."""
    seen = (_overlap(x.shape[1], offset) for offset in offsets)
    return jnp.stack([_along_rows(x[:, there], slope[:, here], offsets) for there, here in seen])


def _correlation_by_rows(x: Array, slope: Array, offsets: list[int]) -> Array:
    """The same, one row of pixels at a time. XLA's CPU compiler stores the products before it sums
    them; those of a row stay in the cache."""
    height = x.shape[1]

    def add_row(y: Array, total: Array) -> Array:
        here = jax.lax.dynamic_slice_in_dim(slope, y, 1, axis=1)
        for i, offset in enumerate(offsets):
            if abs(offset) < height:
                there = jax.lax.dynamic_slice_in_dim(x, y + offset, 1, axis=1)  # of the map's edge
                within = (y + offset >= 0) & (y + offset < height)  # where there is none
                total = total.at[i].add(jnp.where(within, _along_rows(there, here, offsets), 0))
        return total

    shape = len(offsets), len(offsets), x.shape[-1]
    return jax.lax.fori_loop(0, height, add_row, jnp.zeros(shape, x.dtype))


def _along_rows(x: Array, slope: Array, offsets: list[int]) -> Array:
    """[k, C]: `_correlation` for the taps of one row of the filter."""
    seen = (_overlap(x.shape[2], offset) for offset in offsets)
    return jnp.stack(
        [(x[:, :, there] * slope[:, :, here]).sum(axis=(0, 1, 2)) for there, here in seen]
    )


def _offsets(k: int, dilation: int) -> list[int]:
    """Of the taps along one axis, in pixels."""
    return [dilation * (tap - k // 2) for tap in range(k)]


def _overlap(size: int, offset: int) -> tuple[slice, slice]:
    """What of an axis is seen by looking `offset` pixels further, and from where."""
    offset = min(max(offset, -size), size)
    return slice(max(offset, 0), size + min(offset, 0)), slice(
        max(-offset, 0), size - max(offset, 0)
    )


def _bands(size: int, offsets: list[int]) -> Iterator[tuple[int, int]]:
    """(begin, end) of the stretches of an axis that see the same taps."""
    seen_from = [_overlap(size, offset)[1] for offset in offsets]
    cuts = {cut for part in seen_from for cut in (part.start, part.stop)}
    return itertools.pairwise(sorted(cuts | {0, size}))


def standardize(kernel: Array, epsilon: float = 1e-8) -> Array:
    """Zero mean, unit (biased) variance per output channel (weight standardisation, Qiao et al.,
    2019).

    Args:
        kernel: [kh, kw, in, out].
        epsilon: added to the variance.
    """
    axes = (0, 1, 2)
    mean = kernel.mean(axes)
    variance = jnp.square(kernel - mean).mean(axes)
    return (kernel - mean) * jax.lax.rsqrt(variance + epsilon)
