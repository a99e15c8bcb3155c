"""The implicit query of CRM (Shen et al., CVPR 2022, Sec. 3.3): a small network answers at any
point from the map's four cells around it, each answer weighing as much as the area opposite it
(the local ensemble of LIIF, Chen et al., CVPR 2021).

Coordinates run from -1 to 1 over an axis; the centre of cell i of n lies at -1 + (2i + 1) / n. What
the network sees of a point and a cell are the cell's features and six numbers: the point relative
to the cell's centre (y, x), the point itself, and the size of the pixel asked for.

Two savings leave the answers as they are. The first layer acts on features and on positions
separately, so on features once per cell (`project`) and not four times per point; and on a grid of
points its share of the positions is a row's plus a column's.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from segjax.ops import resize
from segjax.structs import Array

SHIFT = 1e-6
"""Added to every point in the search for its cells, which settles ties."""

LEAST_AREA = 1e-9
"""Added to every area."""

QUERIES = 2**14
"""Points that are answered together where memory counts: what they need stays in a CPU's cache."""


class Network(NamedTuple):
    """The weights, of any float dtype; the computation is in float32.

    Attributes:
        features: [C, D], what the first layer makes of a cell's features.
        positions: [6, D], and of the point relative to the cell (y, x), the point (y, x), and the
            pixel's size (y, x); None for a network that sees features alone.
        bias: [D], of the first layer.
        layers: (kernel [in, out], bias [out]) of the others, with a ReLU before each; the last
            gives one number.
    """

    features: Array
    positions: Array | None
    bias: Array
    layers: tuple[tuple[Array, Array], ...]


def project(features: Array, network: Network) -> Array:
    """What the first layer makes of every cell: [..., C] -> float32 [..., D]."""
    return _dot(features.astype(jnp.float32), network.features)


# --------------------------------------------------------------------------------------------------
# Where points lie


class Axis(NamedTuple):
    """Points along one axis of the map.

    Attributes:
        cells: int32 [2, ...], the cell before each point and the one after it; beyond the map's
            ends both are the last one.
        away: float32 [2, ...], the point relative to the centre of each, in half cells.
        place: float32 [...], the point's coordinate.
        pixel: float32 [...], the size of the pixel asked for, in half cells.
    """

    cells: Array
    away: Array
    place: Array
    pixel: Array

    def inputs(self) -> Array:
        """What the network sees of this axis beside the two cells: [2, ..., 3]."""
        return jnp.stack(jnp.broadcast_arrays(self.away, self.place, self.pixel), axis=-1)

    def part(self, first: Array, length: int, offset: Array | int = 0) -> Axis:
        """`length` points from `first` on, over a map that lacks the first `offset` cells."""
        slices = functools.partial(jax.lax.dynamic_slice_in_dim, axis=-1)
        cells, *others = (slices(jnp.asarray(x), first, length) for x in self)
        return Axis(cells - offset, *others)


def centres(n: int) -> np.ndarray:
    """float32 [n], the centres of n cells."""
    return np.float32(2 / n) * np.arange(n, dtype=np.float32) + np.float32(1 / n - 1)


def axis_at(place: Array, pixel: Array, cells: int) -> Axis:
    """Points along an axis of `cells` cells.

    NumPy arrays are computed with on the host, without fused multiply-adds: where a point lies
    halfway between two cells, rounding decides.

    Args:
        place: float32 [...], -1..1.
        pixel: float32 [...], the size of the pixel asked for.
    """
    xp = np if isinstance(place, np.ndarray) else jnp
    found = []
    for sign in (-1, 1):
        moved = place + np.float32(sign / cells + SHIFT)
        moved = xp.clip(moved, np.float32(SHIFT - 1), np.float32(1 - SHIFT))
        index = ((moved + np.float32(1)) * np.float32(cells) - np.float32(1)) / np.float32(2)
        found.append(xp.rint(index).astype(np.int32))
    index = xp.stack(found)
    away = (place - xp.asarray(centres(cells))[index]) * np.float32(cells)
    return Axis(index, away, place, pixel * np.float32(cells))


def grid_axis(n: int, cells: int) -> Axis:
    """The centres of n pixels that fill an axis of `cells` cells: NumPy arrays, [2, n] and [n]."""
    place = centres(n)
    return axis_at(place, np.full_like(place, 2 / n), cells)


def shares(y: Array, x: Array) -> Array:
    """What each cell's answer weighs: the area between the point and the cell opposite.

    Args:
        y, x: `Axis.away` of both axes with a second axis for the other's cells: [2, 1, ...] and
            [1, 2, ...], broadcast against each other.

    Returns:
        [2, 2, ...], which sum to 1 over the first two axes.
    """
    areas = jnp.abs(y * x) + LEAST_AREA
    return areas[::-1, ::-1] / areas.sum(axis=(0, 1))


# --------------------------------------------------------------------------------------------------
# A grid of points


def grid_logits(
    projected: Array, network: Network, rows: Axis, columns: Axis, ensemble: bool = True
) -> Array:
    """The network's answers wherever a row and a column cross.

    Args:
        projected: [B, h, w, D], see `project`.
        network: the rest of it.
        rows, columns: H and W points over the h and w cells.
        ensemble: take the mean of the answers beside the four cells. Otherwise take the mean of
            their features, with the same weights (which is bilinear interpolation), and ask once,
            with the point relative to the nearest cell.

    Returns:
        float32 [B, H, W].
    """
    down, across = rows.inputs(), columns.inputs()  # [2, H, 3], [2, W, 3]
    weights = shares(
        jnp.asarray(rows.away)[:, None, :, None], jnp.asarray(columns.away)[None, :, None]
    )  # [2, 2, H, W]
    if not ensemble:
        down, across = _of_nearest(down), _of_nearest(across)
    tall = _take(projected, rows.cells, axis=1)  # [B, 2, H, w, D]
    x = _take(tall, columns.cells, axis=3)  # [B, 2, H, 2, W, D]
    weights = weights.swapaxes(1, 2)  # [2, H, 2, W]
    if not ensemble:
        x = (x * weights[..., None]).sum(axis=(1, 3), keepdims=True)
    if network.positions is not None:
        x = x + _dot(down, network.positions[0::2])[:, :, None, None]
        x = x + _dot(across, network.positions[1::2])
    answers = _answers(x, network)
    return (answers * weights).sum(axis=(1, 3)) if ensemble else answers[:, 0, :, 0]


# --------------------------------------------------------------------------------------------------
# Any points


class Answers(NamedTuple):
    """What the network says at points, and from what; cells in the order (before, before), (before,
    after), (after, before), (after, after) of (y, x).

    Attributes:
        logits: float32 [B, Q].
        by_cell: float32 [B, Q, 4].
        positions: float32 [B, Q, 4, 6], what the network saw beside each cell's features.
    """

    logits: Array
    by_cell: Array
    positions: Array


def point_answers(projected: Array, network: Network, y: Axis, x: Axis) -> Answers:
    """The network's answers at any points, the mean of those beside the four cells.

    Args:
        projected: [B, h, w, D], see `project`.
        network: the rest of it.
        y, x: [B, Q] points, see `axis_at`.
    """
    batch, _, width, depth = projected.shape
    chex.assert_equal_shape((y.cells, x.cells))
    four = (2, 2, *y.cells.shape[1:])
    cells = jnp.asarray(y.cells)[:, None] * width + jnp.asarray(x.cells)[None]  # [2, 2, B, Q]
    cells = jnp.moveaxis(cells.reshape(4, batch, -1), 0, -1)
    both = [jnp.broadcast_to(part, (*four, 3)) for part in (y.inputs()[:, None], x.inputs()[None])]
    positions = jnp.stack(both, axis=-1).reshape(4, batch, -1, 6)
    positions = jnp.moveaxis(positions, 0, 2)
    flat = projected.reshape(batch, -1, depth)
    found = jax.vmap(lambda features, at: features[at])(flat, cells)  # [B, Q, 4, D]
    if network.positions is not None:
        found = found + _dot(positions, network.positions)
    by_cell = _answers(found, network)
    weights = shares(jnp.asarray(y.away)[:, None], jnp.asarray(x.away)[None])
    weights = jnp.moveaxis(weights.reshape(4, batch, -1), 0, -1)
    return Answers((by_cell * weights).sum(axis=-1), by_cell, positions)


# --------------------------------------------------------------------------------------------------
# Steps


def _answers(x: Array, network: Network) -> Array:
    """What the first layer found, without its bias, to numbers: [..., D] -> [...]."""
    x = x + network.bias
    for kernel, bias in network.layers:
        x = _dot(jax.nn.relu(x), kernel) + bias
    return x[..., 0]


def _of_nearest(inputs: Array) -> Array:
    """[2, n, 3] -> [1, n, 3], beside the nearer of the two cells."""
    before, after = inputs
    return jnp.where(jnp.abs(before[:, :1]) <= jnp.abs(after[:, :1]), before, after)[None]


def _dot(x: Array, kernel: Array) -> Array:
    return jnp.matmul(x, kernel.astype(jnp.float32), precision=jax.lax.Precision.HIGHEST)


def _take(x: Array, indices: Array, axis: int) -> Array:
    """`jnp.take`, whose gradient for indices known at compile time is made of gathers too: the
    transpose of a gather is a scatter, slow on every backend."""
    if isinstance(indices, jax.Array):
        return jnp.take(x, indices, axis=axis, mode="clip")

    @jax.custom_vjp
    def taken(x: Array) -> Array:
        return jnp.take(x, indices, axis=axis, mode="clip")

    def transpose(_: None, slope: Array) -> tuple[Array]:
        lead, rest = x.shape[:axis], x.shape[axis + 1 :]
        flat = slope.reshape(int(np.prod(lead)), indices.size, int(np.prod(rest)))
        ones = np.ones((indices.size, 1), np.float32)
        back = resize.transposed(indices.reshape(-1, 1), ones, x.shape[axis])
        return (resize.mix(flat, *back).reshape(x.shape),)

    taken.defvjp(lambda x: (taken(x), None), transpose)
    return taken(x)
