"""Resizes, torch-exact. The one place that knows how frameworks differ.

`jax.image.resize` antialiases when it shrinks, takes a cubic of a = -0.5 and renormalises at
borders; torch (and so every published segmentation model of this field) does none of that: a =
-0.75, border taps clamped.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from segjax.structs import Array, Size

Taps = tuple[np.ndarray, np.ndarray]
"""A sparse matrix [m, n], row by row: indices int32 [m, T] in 0..n-1 and weights float32 [m, T]."""

MOST_GATHERS = 64
"""Above this T a dense product is the better form of `mix`; the matrix is narrow then."""


def bilinear(x: Array, size: Size, *, align_corners: bool = False) -> Array:
    """torch's `interpolate(mode="bilinear", antialias=False)`.

    Args:
        x: [..., H, W, C].
        size: (height, width) of the result.
        align_corners: corner pixels keep their values (True), or pixels are squares (False).

    Returns:
        [..., *size, C] of x's dtype, computed in float32.
    """
    return _resize(x, size, lambda out, n: taps(out, n, "bilinear", align_corners))


def bicubic(x: Array, size: Size) -> Array:
    """torch's `interpolate(mode="bicubic", align_corners=False)`.

    [..., H, W, C] -> [..., *size, C] of x's dtype, computed in float32.
    """
    return _resize(x, size, lambda out, n: taps(out, n, "bicubic"))


def bilinear_by_factor(x: Array, factor: float) -> Array:
    """torch's `interpolate(scale_factor=factor, mode="bilinear")` without recomputing the scale.

    The size is rounded down, but coordinates follow the factor itself; on an odd size halved the
    two differ.
    """
    size = int(x.shape[-3] * factor), int(x.shape[-2] * factor)
    return _resize(x, size, lambda out, n: taps(out, n, step=1 / factor))


def nearest(x: Array, size: Size) -> Array:
    """torch's `interpolate(mode="nearest")`: source index floor(dst * ratio), the ratio in float32.

    [..., H, W, C] -> [..., *size, C]; any dtype.
    """
    rows, cols = (
        np.floor(np.arange(out, dtype=np.float32) * (np.float32(n) / np.float32(out)))
        .astype(np.int32)
        .clip(max=n - 1)
        for out, n in zip(size, x.shape[-3:-1])
    )
    return jnp.take(jnp.take(x, rows, axis=-3), cols, axis=-2)


def pad_to_multiple(image: Array, multiple: int) -> Array:
    """Zero-pads [B, H, W, C] at the bottom and the right until both sides are multiples of
    `multiple`."""
    rows, cols = -image.shape[1] % multiple, -image.shape[2] % multiple
    if not rows and not cols:
        return image
    return jnp.pad(image, ((0, 0), (0, rows), (0, cols), (0, 0)))


# --------------------------------------------------------------------------------------------------
# Host: which samples make which


def taps(
    out_size: int,
    in_size: int,
    method: str = "bilinear",
    align_corners: bool = False,
    step: float | None = None,
) -> Taps:
    """Which source samples make each output sample along one axis, and how much of each.

    Args:
        out_size: samples of the result.
        in_size: samples of the source.
        method: "bilinear" (2 taps) or "bicubic" (4 taps).
        align_corners: see `bilinear`.
        step: distance between output samples in source samples; by default the ratio of the sizes.

    Returns:
        Taps [out_size, in_size]; the weights of an output sum to 1.
    """
    # Coordinates in float32, as torch computes them: in float64 they differ by up to 1e-5 pixels.
    where = np.arange(out_size, dtype=np.float32)
    if align_corners:
        where = where * np.float32((in_size - 1) / max(out_size - 1, 1))
    else:
        ratio = np.float32(in_size) / np.float32(out_size) if step is None else np.float32(step)
        where = ratio * (where + np.float32(0.5)) - np.float32(0.5)
    if method == "bilinear":
        where = np.maximum(where, 0.0)
        offsets = np.arange(2)
        base = np.minimum(np.floor(where), in_size - 1)
        share = np.minimum(where - base, 1.0)
        weights = np.stack([1 - share, share], axis=1)
    elif method == "bicubic":
        offsets = np.arange(-1, 3)
        base = np.floor(where)
        weights = _cubic((where - base)[:, None] - offsets)
    else:
        raise ValueError(f"unknown resize method '{method}'")
    indices = np.clip(base[:, None] + offsets, 0, in_size - 1)
    return indices.astype(np.int32), weights.astype(np.float32)


def matrix(indices: np.ndarray, weights: np.ndarray, in_size: int) -> np.ndarray:
    """Taps as a dense float32 [out_size, in_size] matrix."""
    dense = np.zeros((len(indices), in_size), np.float32)
    np.add.at(dense, (np.arange(len(indices))[:, None], indices), weights)
    return dense


def transposed(indices: np.ndarray, weights: np.ndarray, in_size: int) -> Taps:
    """The taps of the transposed matrix: which outputs each of the `in_size` sources went into.

    As many taps as the most used source has; those that a source doesn't need weigh 0.
    """
    used = np.nonzero(weights)
    order = np.argsort(indices[used], kind="stable")
    source, output, weight = indices[used][order], used[0][order], weights[used][order]
    uses = np.bincount(source, minlength=in_size)
    slot = np.arange(len(source)) - (np.cumsum(uses) - uses)[source]
    back = np.zeros((2, in_size, max(uses.max(), 1)), np.float32)
    back[0, source, slot], back[1, source, slot] = output, weight
    return back[0].astype(np.int32), back[1]


def _cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    t = np.abs(distance)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


# --------------------------------------------------------------------------------------------------
# Device


def mix(x: Array, indices: np.ndarray, weights: np.ndarray) -> Array:
    """The taps [m, n] applied to the middle axis: [N, n, C] -> [N, m, C], float32.

    On CPU a few gathers are ten times faster than a product with the dense matrix; a TPU prefers
    the product.
    """

    def by_product(x: Array) -> Array:
        dense = (jax.nn.one_hot(indices, x.shape[1]) * weights[..., None]).sum(axis=1)
        return jnp.einsum("mn,bnc->bmc", dense, x, precision=jax.lax.Precision.HIGHEST)

    def by_gathers(x: Array) -> Array:
        def take(t: int) -> Array:
            # Each of the N has indices of its own. Without them XLA's CPU gather works on a
            # transposed copy; with N and n merged it would cross the shards of a batch.
            own = jnp.broadcast_to(indices[:, t], (x.shape[0], len(indices)))
            return jax.vmap(lambda row, i: row.at[i].get(mode="promise_in_bounds"))(x, own)

        return sum(take(t) * weights[:, t, None] for t in range(indices.shape[1]))

    if indices.shape[1] > MOST_GATHERS:
        return by_product(x)
    return jax.lax.platform_dependent(x, tpu=by_product, default=by_gathers)


def _resize(x: Array, size: Size, axis_taps: Callable[[int, int], Taps]) -> Array:
    *lead, height, width, channels = x.shape
    if tuple(size) == (height, width):  # torch copies then, whatever the factor
        return x
    y = x.astype(jnp.float32).reshape(-1, height, width, channels)

    def rows(y: Array) -> Array:
        flat = y.reshape(-1, height, y.shape[2] * channels)
        return _mix_both_ways(flat, *axis_taps(size[0], height)).reshape(
            -1, size[0], y.shape[2], channels
        )

    def columns(y: Array) -> Array:
        flat = y.reshape(-1, width, channels)
        return _mix_both_ways(flat, *axis_taps(size[1], width)).reshape(
            -1, y.shape[1], size[1], channels
        )

    # The axis that shrinks most goes first.
    shrinks_rows = size[0] / height <= size[1] / width
    y = columns(rows(y)) if shrinks_rows else rows(columns(y))
    return y.reshape(*lead, *size, channels).astype(x.dtype)


def _mix_both_ways(x: Array, indices: np.ndarray, weights: np.ndarray) -> Array:
    """`mix`, whose gradient is a `mix` too: the transpose of a gather is a scatter, slow on every
    backend."""

    @jax.custom_vjp
    def linear(x: Array) -> Array:
        return mix(x, indices, weights)

    def transpose(_: None, slope: Array) -> tuple[Array]:
        return (mix(slope, *transposed(indices, weights, x.shape[1])),)

    linear.defvjp(lambda x: (linear(x), None), transpose)
    return linear(x)
