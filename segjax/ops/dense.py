"""Full-resolution results of low-resolution scores, without the full-resolution [H, W, K] tensor.

Scores are resized bilinearly (half-pixel centres) a strip of output rows at a time. Inside a strip
classes are the
outer axis: the class loop of argmax and softmax then runs over contiguous pixels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import resize
from segjax.structs import IGNORE, Array, Size

LABEL_STRIP = 32
LOSS_STRIP = 16
"""Output rows per strip, the fastest on CPU of 4 to 64 for each use."""

product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def resize_argmax(scores: Array, size: Size) -> Array:
    """argmax over classes of `resize.bilinear(scores, size)`.

    Args:
        scores: [B, h, w, K].
        size: (H, W), any.

    Returns:
        [B, H, W] int32; the lowest class on ties.
    """
    _, height, width, classes = scores.shape
    strips = Strips.plan(size, (height, width), LABEL_STRIP)
    by_class = scores.astype(jnp.float32).transpose(0, 3, 1, 2)

    def source_rows(first: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(by_class, first, strips.reach, axis=2)

    return strip_argmax(source_rows, strips, classes)


class Strips(NamedTuple):
    """How output rows are cut into strips, and what each needs.

    Attributes:
        size: (H, W) of the output.
        reach: R, source rows that a strip needs.
        first: int32 [n], first source row of each strip.
        indices: int32 [n, T, 2], row taps relative to `first`; rows beyond H repeat the last
            one.
        weights: float32 [n, T, 2].
        columns: float32 [W, w], the column interpolation as a matrix.
    """

    size: Size
    reach: int
    first: np.ndarray
    indices: np.ndarray
    weights: np.ndarray
    columns: np.ndarray

    @staticmethod
    def plan(size: Size, source: Size, rows: int) -> Strips:
        """Strips of `rows` (T) output rows."""
        indices, weights = resize.taps(size[0], source[0])
        cut = np.minimum(np.arange(-(-size[0] // rows) * rows), size[0] - 1).reshape(-1, rows)
        indices, weights = indices[cut], weights[cut]
        first = indices.min(axis=(1, 2))
        reach = int((indices.max(axis=(1, 2)) - first).max()) + 1
        first = np.minimum(first, source[0] - reach).astype(np.int32)
        columns = resize.matrix(size[1], source[1], *resize.taps(size[1], source[1]))
        return Strips(size, reach, first, indices - first[:, None, None], weights, columns)

    def scan_inputs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return self.first, self.indices, self.weights


def strip_argmax(source_rows: Callable[[Array], Array], strips: Strips, classes: int) -> Array:
    """argmax over classes, strip by strip.

    Args:
        source_rows: first source row -> scores [B, K, R, w] of R = strips.reach rows.
        strips: the cut of the output.
        classes: K.

    Returns:
        [B, H, W] int32.
    """

    def one_strip(inputs: tuple[Array, Array, Array]) -> Array:
        first, indices, weights = inputs
        wide = product("bkrw,Ww->bkrW", source_rows(first), strips.columns)
        return jax.lax.platform_dependent(
            wide, indices, weights, cpu=_running_argmax, default=_wide_argmax
        )

    labels = jax.lax.map(one_strip, strips.scan_inputs())  # [n, B, T, W]
    batch, width = labels.shape[1], labels.shape[3]
    return labels.swapaxes(0, 1).reshape(batch, -1, width)[:, : strips.size[0]]


def _running_argmax(wide: Array, indices: Array, weights: Array) -> Array:
    """[B, K, R, W] and row taps -> [B, T, W]; one class plane at a time, so that all stays in
    cache."""
    batch, classes, _, width = wide.shape

    def take(k: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        score, label = best
        plane = blend_rows(
            jax.lax.dynamic_index_in_dim(wide, k, axis=1, keepdims=False), indices, weights
        )
        better = plane > score
        return jnp.where(better, plane, score), jnp.where(better, k, label)

    shape = batch, len(indices), width
    start = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.int32)
    return jax.lax.fori_loop(0, classes, take, start)[1]


def _wide_argmax(wide: Array, indices: Array, weights: Array) -> Array:
    """The same on accelerators, which prefer one large reduction to many small steps."""
    return blend_rows(wide, indices, weights).argmax(axis=1).astype(jnp.int32)


def blend_rows(rows: Array, indices: Array, weights: Array) -> Array:
    """[..., R, W] and taps [T, 2] -> [..., T, W]."""
    upper, lower = (jnp.take(rows, indices[:, i], axis=-2) for i in (0, 1))
    return upper * weights[:, :1] + lower * weights[:, 1:]


# --------------------------------------------------------------------------------------------------
# Cross entropy


@jax.custom_vjp
def resize_cross_entropy(scores: Array, labels: Array) -> tuple[Array, Array, Array]:
    """Softmax cross entropy of `resize.bilinear(scores, labels' size)`, summed.

    Differentiable in `scores`. The gradient is made in the same pass over the strips as the value,
    at the resolution of the scores; so neither direction holds a full-resolution tensor of classes.

    Args:
        scores: [B, h, w, K] logits of any float dtype; computed in float32.
        labels: [B, H, W] integers in 0..K-1, or IGNORE.

    Returns:
        float32 scalars: the sum of the losses of all labelled pixels, how many of them are right
        (the label's score is the highest, the lowest class winning ties), and how many there are.
    """
    sums, _ = _cross_entropy_strips(scores, labels, with_gradient=False)
    return sums


def _forward(scores: Array, labels: Array) -> tuple[tuple[Array, Array, Array], Array]:
    sums, gradient = _cross_entropy_strips(scores, labels, with_gradient=True)
    return sums, gradient.astype(scores.dtype)


def _backward(gradient: Array, cotangents: tuple[Array, Array, Array]) -> tuple[Array, None]:
    return (gradient * cotangents[0]).astype(gradient.dtype), None


resize_cross_entropy.defvjp(_forward, _backward)


def _cross_entropy_strips(
    scores: Array, labels: Array, with_gradient: bool
) -> tuple[tuple[Array, Array, Array], Array]:
    batch, height, width, classes = scores.shape
    size = labels.shape[1:]
    strips = Strips.plan(size, (height, width), LOSS_STRIP)
    by_class = scores.astype(jnp.float32).transpose(0, 3, 1, 2)
    rows = len(strips.first) * LOSS_STRIP
    labels = jnp.pad(
        labels.astype(jnp.int32), ((0, 0), (0, rows - size[0]), (0, 0)), constant_values=IGNORE
    )
    labels = labels.reshape(batch, -1, LOSS_STRIP, size[1]).swapaxes(0, 1)
    ids = jnp.arange(classes, dtype=jnp.int32)[:, None, None]

    def one_strip(carry: tuple[Array, Array], inputs: tuple[Array, ...]) -> tuple[tuple, None]:
        sums, gradient = carry
        first, indices, weights, label = inputs
        source = jax.lax.dynamic_slice_in_dim(by_class, first, strips.reach, axis=2)
        wide = product("bkrw,Ww->bkrW", source, strips.columns)
        logits = blend_rows(wide, indices, weights)  # [B, K, T, W]
        valid = label != IGNORE
        is_label = ids == label[:, None]
        highest = logits.max(axis=1)
        powers = jnp.exp(logits - highest[:, None])
        total = powers.sum(axis=1)
        own = jnp.where(is_label, logits, 0.0).sum(axis=1)
        loss = jnp.where(valid, jnp.log(total) + highest - own, 0.0).sum()
        winner = jnp.where(logits == highest[:, None], ids, classes).min(axis=1)
        right = (valid & (winner == label)).sum(dtype=jnp.float32)
        sums = sums[0] + loss, sums[1] + right, sums[2] + valid.sum(dtype=jnp.float32)
        if with_gradient:
            slope = jnp.where(valid[:, None], powers / total[:, None] - is_label, 0.0)
            spread = _tap_matrix(indices, weights, strips.reach)
            slope = product("bktW,tr->bkrW", slope, spread)
            slope = product("bkrW,Ww->bkrw", slope, strips.columns)
            here = jax.lax.dynamic_slice_in_dim(gradient, first, strips.reach, axis=2)
            gradient = jax.lax.dynamic_update_slice_in_dim(gradient, here + slope, first, axis=2)
        return (sums, gradient), None

    zero = jnp.zeros((), jnp.float32)
    start = (zero, zero, zero), jnp.zeros_like(by_class) if with_gradient else zero
    inputs = (*strips.scan_inputs(), labels)
    (sums, gradient), _ = jax.lax.scan(one_strip, start, inputs)
    return sums, gradient.transpose(0, 2, 3, 1) if with_gradient else gradient


def _tap_matrix(indices: Array, weights: Array, reach: int) -> Array:
    """Row taps [T, 2] as a matrix [T, R]."""
    return (jax.nn.one_hot(indices, reach) * weights[..., None]).sum(axis=1)
