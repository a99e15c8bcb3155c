"""Full-resolution results of low-resolution scores, without the full-resolution [H, W, K] tensor.

Scores are resized bilinearly (half-pixel centres) a strip of output rows at a time, small enough
that a strip of all classes stays in a core's cache.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import resize
from segjax.structs import IGNORE, Array, Size

CPU_STRIP = 640_000
"""Scores in a strip of the whole batch on CPU (8 rows of 512 pixels and 150 classes): what stays in
its cache."""

ACCELERATOR_STRIP = 4 * CPU_STRIP
"""Scores in a strip of one image elsewhere, where fewer and larger steps are better."""

BLOCK = 32
"""Output columns per matrix product on the way back, see `Strips.shrink`."""

FEW = 16
"""Up to so many classes XLA's argmax is fast on CPU (tenfold slower beyond)."""

LANES = 8
"""Classes that `best_class` compares at a time on CPU when there are more than 2 * FEW."""


def resize_argmax(
    scores: Array, size: Size, class_scores: Callable[[Array], Array] = lambda tile: tile
) -> Array:
    """argmax over classes of `resize.bilinear(scores, size)`.

    Args:
        scores: [B, h, w, K].
        size: (H, W), any.
        class_scores: [..., K] of some pixels -> [..., K'], what the argmax is taken of.

    Returns:
        [B, H, W] int32; the lowest class on ties.
    """
    strips = Strips.plan(size, scores.shape)

    def source_rows(first: Array) -> Array:
        return jax.lax.dynamic_slice_in_dim(scores, first, strips.reach, axis=1)

    return strip_argmax(source_rows, strips, class_scores)


def best_class(scores: Array) -> tuple[Array, Array]:
    """The maximum over the last axis and its index (int32, the lowest on ties)."""
    few = scores.shape[-1] <= 2 * FEW
    on_cpu = _best_of_halves if few else _best_by_lanes
    return jax.lax.platform_dependent(scores, cpu=on_cpu, default=_best_by_reduction)


def _best_by_reduction(scores: Array) -> tuple[Array, Array]:
    return scores.max(axis=-1), scores.argmax(axis=-1).astype(jnp.int32)


def _best_of_halves(scores: Array) -> tuple[Array, Array]:
    """The better of the first FEW classes and the rest."""
    if scores.shape[-1] <= FEW:
        return _best_by_reduction(scores)
    (low, first), (high, second) = map(_best_by_reduction, (scores[..., :FEW], scores[..., FEW:]))
    return jnp.maximum(low, high), jnp.where(high > low, second + FEW, first)


def _best_by_lanes(scores: Array) -> tuple[Array, Array]:
    """Compares LANES classes with the next LANES, and so on: of more than FEW classes, XLA's
    argmax takes one at a time on CPU."""
    classes = scores.shape[-1]
    lanes = min(LANES, classes)
    best = scores[..., :lanes]
    label = jnp.broadcast_to(jnp.arange(lanes, dtype=jnp.int32), best.shape)
    for start in range(lanes, classes, lanes):
        start = min(start, classes - lanes)  # the last ones may come twice
        rival = scores[..., start : start + lanes]
        better = rival > best
        best = jnp.where(better, rival, best)
        label = jnp.where(better, jnp.arange(start, start + lanes, dtype=jnp.int32), label)
    highest = best.max(axis=-1)
    return highest, jnp.where(best == highest[..., None], label, classes - 1).min(axis=-1)


# --------------------------------------------------------------------------------------------------
# Strips


class Strips(NamedTuple):
    """How the output is cut into strips of rows, and what each needs.

    A strip has T rows of W' columns. All strips together are a little larger than the output; what
    lies beyond repeats its last row and column.

    Attributes:
        size: (H, W) of the output.
        first: int32 [n], first source row of each strip.
        rows: float32 [n, T, R], the rows of each strip as mixes of R source rows.
        columns: taps [W', w].
        blocks: float32 [m, S, W'/m], the transposed matrix of `columns` in blocks of output
            columns, each with the S source columns it needs.
        joints: taps [w, m*S], which of the blocks' source columns are the same.
    """

    size: Size
    first: np.ndarray
    rows: np.ndarray
    columns: resize.Taps
    blocks: np.ndarray
    joints: resize.Taps

    @property
    def reach(self) -> int:
        """R."""
        return self.rows.shape[2]

    @property
    def extent(self) -> Size:
        """(n*T, W')."""
        return self.rows.shape[0] * self.rows.shape[1], len(self.columns[0])

    @staticmethod
    def plan(size: Size, shape: tuple[int, int, int, int]) -> Strips:
        """Strips for an output of `size` from scores of `shape` [B, h, w, K]."""
        batch, *source, classes = shape
        values = CPU_STRIP // batch if jax.default_backend() == "cpu" else ACCELERATOR_STRIP
        values_per_row = classes * max(size[1], source[1] * source[0] // size[0])
        count = -(-size[0] // max(values // values_per_row, 1))
        first, rows, _ = _tiles(size[0], source[0], -(-size[0] // count))
        near, mixes, columns = _tiles(size[1], source[1], min(BLOCK, size[1]))
        needed = (near[:, None] + np.arange(mixes.shape[2])).reshape(-1, 1)
        joints = resize.transposed(needed, np.ones(needed.shape, np.float32), source[1])
        return Strips(size, first, rows, columns, mixes.swapaxes(1, 2), joints)

    def mix_rows(self, source: Array, rows: Array) -> Array:
        """[B, R, w, K] and a strip's `rows` [T, R] -> [B, T, w, K] float32."""
        batch, reach, width, classes = source.shape
        flat = source.astype(jnp.float32).reshape(batch, reach, width * classes)
        return _product(rows, flat).reshape(batch, -1, width, classes)

    def mix_columns(self, x: Array) -> Array:
        """[B, T, w, K] -> [B, T, W', K]."""
        batch, tall, width, classes = x.shape
        wide = resize.mix(x.reshape(batch * tall, width, classes), *self.columns)
        return wide.reshape(batch, tall, -1, classes)

    def mix_columns_of(self, x: Array, labels: Array) -> Array:
        """`mix_columns` of one class per pixel: [B, T, w, K] and int [B, T, W'] -> [B, T, W']."""
        indices, weights = self.columns
        row = np.arange(x.shape[1])[:, None]

        def one_image(x: Array, label: Array) -> Array:
            return sum(
                x.at[row, indices[:, t], label].get(mode="clip") * weights[:, t] for t in range(2)
            )

        return jax.vmap(one_image)(x, labels)

    def shrink(self, strip: Array, rows: Array) -> Array:
        """The transpose of both mixes: [B, T, W', K] and `rows` [T, R] -> [B, R, w, K].

        Columns go first, as one small product per block: a product is where XLA stops recomputing
        what `strip` is made from.
        """
        batch, tall, _, classes = strip.shape
        count, near, block = self.blocks.shape
        blocks = jnp.broadcast_to(self.blocks, (batch * tall, *self.blocks.shape))
        narrow = _product(
            blocks.reshape(-1, near, block), strip.reshape(batch * tall * count, block, classes)
        )
        low = _product(rows.T, narrow.reshape(batch, tall, count * near * classes))
        joined = resize.mix(low.reshape(-1, count * near, classes), *self.joints)
        return joined.reshape(batch, self.reach, -1, classes)


def _tiles(length: int, source: int, tile: int) -> tuple[np.ndarray, np.ndarray, resize.Taps]:
    """One axis of `length` outputs in tiles: the first source of each int32 [n], the mixes float32
    [n, tile, R] of R sources, and the taps [n*tile, source] of all. Outputs beyond the length
    repeat the last one."""
    outputs = np.arange(-(-length // tile) * tile).clip(max=length - 1)
    indices, weights = (part[outputs] for part in resize.taps(length, source))
    apart = indices.reshape(-1, tile * 2)
    first = apart.min(axis=1)
    reach = int((apart.max(axis=1) - first).max()) + 1
    first = np.minimum(first, source - reach)
    shifted = indices - first.repeat(tile)[:, None]
    mixes = resize.matrix(shifted, weights, reach).reshape(-1, tile, reach)
    return first.astype(np.int32), mixes, (indices, weights)


def _product(matrices: Array, x: Array) -> Array:
    """[N, i, j] (or [i, j] for all) times [N, j, k], in float32."""
    if matrices.ndim == 2:
        # Repeated, or XLA would transpose `x` to merge N and k.
        matrices = jnp.broadcast_to(matrices, (x.shape[0], *matrices.shape))
    return jnp.einsum("nij,njk->nik", matrices, x, precision=jax.lax.Precision.HIGHEST)


def strip_argmax(
    source_rows: Callable[[Array], Array],
    strips: Strips,
    class_scores: Callable[[Array], Array] = lambda tile: tile,
) -> Array:
    """argmax over classes, strip by strip.

    Args:
        source_rows: first source row -> scores [B, R, w, K] of R = strips.reach rows.
        strips: the cut of the output.
        class_scores: see `resize_argmax`.

    Returns:
        [B, H, W] int32.
    """

    def one_strip(inputs: tuple[Array, Array]) -> Array:
        first, rows = inputs
        tall = strips.mix_rows(source_rows(first), rows)
        return best_class(class_scores(strips.mix_columns(tall)))[1]

    labels = jax.lax.map(one_strip, (strips.first, strips.rows))  # [n, B, T, W']
    batch, width = labels.shape[1], labels.shape[3]
    height, wide = strips.size
    return labels.swapaxes(0, 1).reshape(batch, -1, width)[:, :height, :wide]


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
    return _cross_entropy(scores, labels, with_gradient=False)[0]


def _forward(scores: Array, labels: Array) -> tuple[tuple[Array, Array, Array], Array]:
    sums, gradient = _cross_entropy(scores, labels, with_gradient=True)
    return sums, gradient.astype(scores.dtype)


def _backward(gradient: Array, cotangents: tuple[Array, Array, Array]) -> tuple[Array, None]:
    return (gradient * cotangents[0]).astype(gradient.dtype), None


resize_cross_entropy.defvjp(_forward, _backward)


def _cross_entropy(
    scores: Array, labels: Array, with_gradient: bool
) -> tuple[tuple[Array, Array, Array], Array | None]:
    batch, *_, classes = scores.shape
    strips = Strips.plan(labels.shape[1:], scores.shape)
    beyond = [(0, more - have) for more, have in zip(strips.extent, labels.shape[1:])]
    labels = jnp.pad(labels.astype(jnp.int32), [(0, 0), *beyond], constant_values=IGNORE)
    labels = labels.reshape(batch, len(strips.first), -1, strips.extent[1]).swapaxes(0, 1)
    ids = jnp.arange(classes, dtype=jnp.int32)

    def one_strip(carry: tuple[Array, Array | None], inputs: tuple[Array, ...]) -> tuple:
        sums, gradient = carry
        first, rows, label = inputs
        source = jax.lax.dynamic_slice_in_dim(scores, first, strips.reach, axis=1)
        tall = strips.mix_rows(source, rows)
        logits = strips.mix_columns(tall)  # [B, T, W', K]
        own = strips.mix_columns_of(tall, label.clip(0))
        valid = label != IGNORE
        highest, winner = best_class(logits)
        powers = jnp.exp(logits - highest[..., None])
        total = powers.sum(axis=-1)
        loss = jnp.where(valid, jnp.log(total) + highest - own, 0.0)
        each = (loss, winner == label, valid)
        sums += jnp.stack([part.sum(axis=(1, 2), dtype=jnp.float32) for part in each])
        if with_gradient:
            share = jnp.where(valid, 1.0 / total, 0.0)
            slope = strips.shrink(powers * share[..., None] - (ids == label[..., None]), rows)
            here = jax.lax.dynamic_slice_in_dim(gradient, first, strips.reach, axis=1)
            gradient = jax.lax.dynamic_update_slice_in_dim(gradient, here + slope, first, axis=1)
        return (sums, gradient), None

    # Sums per image: over a sharded batch they are joined once, not in every strip.
    start = jnp.zeros((3, batch)), jnp.zeros(scores.shape) if with_gradient else None
    (sums, gradient), _ = jax.lax.scan(one_strip, start, (strips.first, strips.rows, labels))
    return tuple(sums.sum(axis=1)), gradient
