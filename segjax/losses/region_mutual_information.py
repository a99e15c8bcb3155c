"""Region mutual information (Zhao, Wang, Yang, Cai; NeurIPS 2019) of the nodes of a class tree, as
HSSN trains it on people.

A class is right if it predicts how labels lie around a pixel, not the pixel alone: the label of a
neighbourhood is taken as a Gaussian vector, and the loss is the entropy that is left of it once the
predicted neighbourhood is known. Facts follow github.com/0liliulei/HieraSeg.

Letters: V nodes; a pooled map has h' x w' cells and N neighbourhoods of R x R = D cells.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from segjax.errors import SegjaxError
from segjax.ops import resize
from segjax.ops.hierarchy import Tree, levels_of
from segjax.structs import IGNORE, Array, Size

RIDGE = 1e-3
"""Added to the diagonals of the covariances, which are sums over N."""

EPSILON = 1e-8
"""Inside the logarithms."""

SHIFT = 1e-5
"""Relative to a Gram matrix's diagonal: what keeps rounding from making it indefinite."""


def region_mutual_information(
    logits: Array,
    labels: Array,
    tree: Tree,
    radius: int = 3,
    pool: int = 3,
    weight: float = 0.5,
) -> Array:
    """The loss of logits resized bilinearly to the labels, summed over nodes.

    Labels and probabilities are max-pooled. Of each image and node, with A, P and C the covariances
    (summed over N) of label and predicted neighbourhoods and between them,

        sum of log(diag(cholesky(A - C (P + r I)^-1 C^T + r I)) + 1e-8) / D,   r = 1e-3.

    Differentiable in `logits`, safe in float32 (the definition in float32 is not, see
    `_conditional_scales`), and without a full-resolution tensor of nodes: pooling compares maps as
    small as its result, and nodes are treated one after another. Images meet in their mean alone.

    Args:
        logits: [B, h, w, V] of any float dtype; computed in float32.
        labels: [B, H, W] leaf ids. A pixel that is IGNORE belongs to no node and counts as
            predicted with probability 0.
        radius: R, cells along a side of a neighbourhood.
        pool: pixels along a side of a cell.
        weight: factor of the sum (lambda).

    Returns:
        float32 scalar.

    Raises:
        SegjaxError: the labels have no whole neighbourhood.
    """
    size = labels.shape[1:]
    row_pixels, col_pixels = (_cells(length, pool) for length in size)
    if min(row_pixels.shape[1], col_pixels.shape[1]) < radius:
        raise SegjaxError(
            f"labels: {size[0]}x{size[1]} pixels hold no neighbourhood of {radius}x{radius} cells"
            f" of {pool} pixels; crop larger."
        )
    seen = jnp.stack([labels[:, rows][:, :, cols] for rows in row_pixels for cols in col_pixels])
    levels = jnp.stack(levels_of(seen.astype(jnp.int32), tree))  # [levels, pool^2, B, h', w']
    pooled = jnp.moveaxis(_pooled(logits, seen != IGNORE, size, pool), -1, 0)
    at_level = np.repeat(np.arange(len(tree.sizes)), tree.sizes)
    within = np.concatenate([np.arange(classes) for classes in tree.sizes])

    @jax.checkpoint
    def of_node(inputs: tuple[Array, Array, Array]) -> Array:
        logit, level, index = inputs
        # A probability less a half, with more digits; centring takes the constant away.
        predicted = 0.5 * jnp.tanh(0.5 * logit)
        target = (levels[level] == index).any(axis=0).astype(jnp.float32)
        scales = _conditional_scales(target, predicted, radius)
        return jnp.log(scales + EPSILON).sum(axis=-1).mean()

    return weight * jax.lax.map(of_node, (pooled, at_level, within)).sum() / radius**2


# --------------------------------------------------------------------------------------------------
# Covariances


def _conditional_scales(target: Array, predicted: Array, radius: int) -> Array:
    """diag(cholesky(A - C (P + r I)^-1 C^T + r I)) of maps [B, h', w'] -> [B, D].

    Sums over a crop reach thousands, and float32 has nothing left of r there. So no covariance is
    ever inverted or subtracted. With the columns of X and Y all neighbourhoods, the wanted numbers
    are the last D of the diagonal of the Cholesky factor L of the Gram matrix of the rows of

        [X  sqrt(r) I  0        ]
        [Y  0          sqrt(r) I]

    and that diagonal is known once T L is, T being any lower-triangular matrix: it is multiplied by
    T's. So the rows, not the matrix, are made nearly orthonormal by such T, in three steps: to
    finite differences (neighbours are alike, their differences hardly), then twice by the inverse
    of the factor of a rounded Gram matrix (Cholesky QR). Since T may be any, it has no gradient.
    """
    units = jnp.eye(radius**2).reshape(-1, radius, radius)
    ridge = jnp.sqrt(RIDGE) * _differences(units, radius)[..., 0].T
    ridge = jnp.kron(jnp.eye(2), ridge)
    rows = jnp.concatenate([_centred(_differences(x, radius)) for x in (predicted, target)], axis=1)
    rows = jnp.concatenate([rows, jnp.broadcast_to(ridge, (len(rows), *ridge.shape))], axis=2)
    identity = jnp.eye(len(ridge))
    scales = jnp.ones(())
    for _ in range(2):
        gram = jax.lax.stop_gradient(_product(rows, rows.mT))
        factor = jnp.linalg.cholesky(gram * (1.0 + SHIFT * identity))
        inverse = jax.lax.linalg.triangular_solve(
            factor, jnp.broadcast_to(identity, factor.shape), left_side=True, lower=True
        )
        rows = _product(inverse, rows)
        scales /= _diagonal(inverse)
    scales *= _diagonal(jnp.linalg.cholesky(_product(rows, rows.mT)))
    return scales[:, radius**2 :]


def _differences(x: Array, radius: int) -> Array:
    """All differences of orders (i, j), 0..R-1 each, of R x R neighbours: [B, h', w'] -> [B, D, N].

    They are the neighbours times a lower-triangular matrix whose diagonal is 1 (both row-major).
    """

    def along(x: Array, axis: int) -> list[Array]:
        kept = x.shape[axis] - radius + 1
        orders = [x]
        for _ in range(radius - 1):
            orders.append(jnp.diff(orders[-1], axis=axis))
        return [jax.lax.slice_in_dim(order, 0, kept, axis=axis) for order in orders]

    both = [part for rows in along(x, 1) for part in along(rows, 2)]
    return jnp.stack(both, axis=1).reshape(len(x), radius**2, -1)


def _centred(x: Array) -> Array:
    """`x` less its mean over the last axis, and less what rounding leaves of it."""
    x = x - x.mean(axis=-1, keepdims=True)
    return x - x.mean(axis=-1, keepdims=True)


def _product(x: Array, y: Array) -> Array:
    return jnp.matmul(x, y, precision=jax.lax.Precision.HIGHEST)


def _diagonal(x: Array) -> Array:
    return jnp.diagonal(x, axis1=-2, axis2=-1)


# --------------------------------------------------------------------------------------------------
# Pooling


def _cells(length: int, pool: int) -> np.ndarray:
    """int [pool, cells]: the k-th pixel of each cell along an axis, as torch's max-pooling with
    padding pool // 2 cuts them. Where a cell sticks out it repeats a pixel it has."""
    count = (length + 2 * (pool // 2) - pool) // pool + 1
    first = pool * np.arange(count) - pool // 2
    return (first + np.arange(pool)[:, None]).clip(0, length - 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _pooled(logits: Array, valid: Array, size: Size, pool: int) -> Array:
    """The highest logit of each cell after a bilinear resize.

    The k-th pixels of all cells make a map as small as the result, and so the resized map is never
    whole. (A sigmoid keeps order: pooled logits stand for pooled probabilities.)

    Args:
        logits: [B, h, w, V].
        valid: bool [pool^2, B, h', w'], the pixels of a cell that take part.
        size: (H, W) of the resized map.

    Returns:
        float32 [B, h', w', V]; -inf where none does.
    """
    return _highest(logits, valid, size, pool)[0]


def _highest(logits: Array, valid: Array, size: Size, pool: int) -> tuple[Array, Array]:
    """The pooled logits and which pixel of its cell has each, the first one of equals."""
    row_taps, col_taps = _cell_taps(logits.shape[1:3], size, pool)
    shape = *valid.shape[1:], logits.shape[3]
    numbers = np.arange(pool, dtype=np.uint8)

    def of_row(carry: tuple[Array, Array], inputs: tuple[Array, ...]) -> tuple:
        k, valid, *taps = inputs
        tall = _mix(logits.astype(jnp.float32), 1, taps)

        def of_column(carry: tuple[Array, Array], inputs: tuple[Array, ...]) -> tuple:
            highest, winner = carry
            l, valid, *taps = inputs
            rival = jnp.where(valid[..., None], _mix(tall, 2, taps), -jnp.inf)
            winner = jnp.where(rival > highest, pool * k + l, winner)
            return (jnp.maximum(highest, rival), winner), None

        return jax.lax.scan(of_column, carry, (numbers, valid, *col_taps))

    # Loops, or XLA works out the winner anew for each use. Where pixels are equal, as at borders,
    # differently fused arithmetic then finds several.
    start = jnp.full(shape, -jnp.inf), jnp.zeros(shape, jnp.uint8)
    by_row = valid.reshape(pool, pool, *valid.shape[1:])
    return jax.lax.scan(of_row, start, (numbers, by_row, *row_taps))[0]


def _pooled_forward(
    logits: Array, valid: Array, size: Size, pool: int
) -> tuple[Array, tuple[Array, Array]]:
    highest, winner = _highest(logits, valid, size, pool)
    return highest, (winner, logits)


def _pooled_backward(
    size: Size, pool: int, saved: tuple[Array, Array], slope: Array
) -> tuple[Array, None]:
    winner, logits = saved
    batch, height, width, nodes = logits.shape
    row_taps, col_taps = _cell_taps((height, width), size, pool)
    row_taps, col_taps = _transposed(row_taps, height), _transposed(col_taps, width)
    numbers = np.arange(pool, dtype=np.uint8)

    def of_row(gradient: Array, inputs: tuple[Array, ...]) -> tuple[Array, None]:
        k, *taps = inputs

        def of_column(tall: Array, inputs: tuple[Array, ...]) -> tuple[Array, None]:
            l, *taps = inputs
            return tall + _mix(jnp.where(winner == pool * k + l, slope, 0.0), 2, taps), None

        tall = jnp.zeros((batch, slope.shape[1], width, nodes))
        tall, _ = jax.lax.scan(of_column, tall, (numbers, *col_taps))
        return gradient + _mix(tall, 1, taps), None

    gradient, _ = jax.lax.scan(of_row, jnp.zeros(logits.shape), (numbers, *row_taps))
    return gradient.astype(logits.dtype), None


_pooled.defvjp(_pooled_forward, _pooled_backward)


def _cell_taps(source: Size, size: Size, pool: int) -> list[resize.Taps]:
    """For rows and columns, the taps of the k-th pixels of all cells: indices and weights
    [pool, cells, 2]."""
    every = [resize.taps(length, n) for length, n in zip(size, source)]
    pixels = [_cells(length, pool) for length in size]
    return [(indices[at], weights[at]) for (indices, weights), at in zip(every, pixels)]


def _transposed(taps: resize.Taps, length: int) -> resize.Taps:
    """`resize.transposed` of the taps of every k, as many for all: [pool, length, T]."""
    each = [resize.transposed(*of_pixel, length) for of_pixel in zip(*taps)]
    most = max(indices.shape[1] for indices, _ in each)
    filled = [
        [np.pad(part, ((0, 0), (0, most - part.shape[1]))) for part in of_pixel]
        for of_pixel in each
    ]
    return tuple(np.stack(part) for part in zip(*filled))


def _mix(x: Array, axis: int, taps: Sequence[Array]) -> Array:
    """`resize.mix` along axis 1 or 2 of [B, h, w, V]."""
    lead, after = x.shape[:axis], x.shape[axis + 1 :]
    flat = x.reshape(int(np.prod(lead)), x.shape[axis], int(np.prod(after)))
    return resize.mix(flat, *taps).reshape(*lead, -1, *after)
