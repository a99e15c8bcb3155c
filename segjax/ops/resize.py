"""Resizes, torch-exact. The one place that knows how frameworks differ.

`jax.image.resize` antialiases when it shrinks, takes a cubic of a = -0.5 and renormalises at
borders; torch (and so every published segmentation model of this field) does none of that: a =
-0.75, border taps clamped.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from segjax.structs import Array, Size


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
    """torch's `interpolate(mode="bicubic", align_corners=False)`. [..., H, W, C] -> [..., *size,
    C]."""
    return _resize(x, size, lambda out, n: taps(out, n, "bicubic"))


def bilinear_by_factor(x: Array, factor: float) -> Array:
    """torch's `interpolate(scale_factor=factor, mode="bilinear")` without recomputing the scale.

    The size is rounded down, but coordinates follow the factor itself; on an odd size halved the
    two differ.
    """
    size = int(x.shape[-3] * factor), int(x.shape[-2] * factor)
    return _resize(x, size, lambda out, n: taps(out, n, "bilinear", step=1 / factor))


def nearest(x: Array, size: Size) -> Array:
    """Source index floor(dst * src_size / dst_size), as torch's "nearest" and OpenCV's
    INTER_NEAREST.

    [..., H, W, C] -> [..., *size, C]; any dtype.
    """
    rows = (np.arange(size[0]) * x.shape[-3]) // size[0]
    cols = (np.arange(size[1]) * x.shape[-2]) // size[1]
    return jnp.take(jnp.take(x, rows, axis=-3), cols, axis=-2)


def pad_to_multiple(image: Array, multiple: int) -> Array:
    """Zero-pads [B, H, W, C] at the bottom and the right until both sides are multiples of
    `multiple`."""
    rows, cols = -image.shape[1] % multiple, -image.shape[2] % multiple
    if not rows and not cols:
        return image
    return jnp.pad(image, ((0, 0), (0, rows), (0, cols), (0, 0)))


def taps(
    out_size: int,
    in_size: int,
    method: str = "bilinear",
    align_corners: bool = False,
    step: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Which source samples make each output sample along one axis, and how much of each.

    Args:
        out_size: samples of the result.
        in_size: samples of the source.
        method: "bilinear" (2 taps) or "bicubic" (4 taps).
        align_corners: see `bilinear`.
        step: distance between output samples in source samples; by default the ratio of the sizes.

    Returns:
        indices int32 [out_size, T] in 0..in_size-1 and weights float32 [out_size, T]; weights sum
        to 1.
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


def matrix(out_size: int, in_size: int, indices: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The taps as a dense float32 [out_size, in_size] matrix."""
    dense = np.zeros((out_size, in_size), np.float32)
    np.add.at(dense, (np.arange(out_size)[:, None], indices), weights)
    return dense


def _cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    t = np.abs(distance)
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
    return np.where(t <= 1, near, np.where(t < 2, far, 0.0))


def _resize(x: Array, size: Size, axis_taps) -> Array:  # noqa: ANN001
    """Two matrix products: fast on every backend in both directions, unlike a gather's
    transpose."""
    height, width = x.shape[-3:-1]
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    y = x.astype(jnp.float32)
    # The axis that shrinks most goes first.
    for axis in sorted((0, 1), key=lambda axis: size[axis] / x.shape[axis - 3]):
        n = (height, width)[axis]
        if (out := size[axis]) == n and axis_taps(out, n)[1][:, 0].min() == 1.0:
            continue
        rows_or_cols = matrix(out, n, *axis_taps(out, n))
        y = product(("Oh,...hwc->...Owc", "Ow,...hwc->...hOc")[axis], rows_or_cols, y)
    return y.astype(x.dtype)
