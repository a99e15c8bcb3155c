"""The saved forms of the implicit query against the plain one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import implicit

CHANNELS, HIDDEN = 12, 8


def draw_network(positions=True, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32)

    layers = tuple((normal(HIDDEN, n), normal(n)) for n in (HIDDEN, HIDDEN, 1))
    places = normal(6, HIDDEN) if positions else None
    return implicit.Network(normal(CHANNELS, HIDDEN), places, normal(HIDDEN), layers)


def draw_features(size, batch=2, seed=1):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=(batch, *size, CHANNELS)), jnp.float32)


def plain(features, network, coord, cell):
    """Point by point and cell by cell: coord, cell [Q, 2] -> [B, Q]."""
    size = np.array(features.shape[1:3], np.float32)
    centres = [implicit.centres(n) for n in features.shape[1:3]]
    places = np.zeros((6, HIDDEN)) if network.positions is None else network.positions
    layers = ((np.concatenate([network.features, places]), network.bias), *network.layers)
    answers, areas = [], []
    for sign in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        moved = np.clip(coord + np.float32(sign) / size + np.float32(1e-6), -1 + 1e-6, 1 - 1e-6)
        index = np.floor((moved + 1) * size / 2).astype(int)
        centre = np.stack([centres[i][index[:, i]] for i in (0, 1)], axis=1)
        away = (coord - centre) * size
        found = np.asarray(features)[:, index[:, 0], index[:, 1]]
        beside = np.broadcast_to(
            np.concatenate([away, coord, cell * size], 1), (*found.shape[:2], 6)
        )
        x = np.concatenate([found, beside], axis=-1)
        for i, (kernel, bias) in enumerate(layers):
            x = (np.maximum(x, 0) if i else x) @ np.asarray(kernel) + np.asarray(bias)
        answers.append(x[..., 0])
        areas.append(np.abs(away[:, 0] * away[:, 1]) + 1e-9)
    return sum(p * area for p, area in zip(answers, areas[::-1])) / sum(areas)


def grid(size):
    """The points of a grid and the sizes of their pixels, [H * W, 2] each."""
    coord = np.stack(np.meshgrid(*map(implicit.centres, size), indexing="ij"), -1).reshape(-1, 2)
    return coord, np.broadcast_to(np.float32([2 / n for n in size]), coord.shape)


def on_grid(features, network, size, ensemble=True):
    axes = map(implicit.grid_axis, size, features.shape[1:3])
    return implicit.grid_logits(implicit.project(features, network), network, *axes, ensemble)


@pytest.mark.parametrize("positions", [True, False])
@pytest.mark.parametrize(
    "cells, size", [((6, 9), (12, 18)), ((5, 4), (37, 61)), ((1, 1), (3, 2)), ((7, 8), (7, 8))]
)
def test_a_grid_is_the_plain_form(cells, size, positions):
    features, network = draw_features(cells), draw_network(positions)
    wanted = plain(features, network, *grid(size)).reshape(2, *size)
    found = jax.jit(on_grid, static_argnums=2)(features, network, size)
    # Where grids coincide the areas at the far ends are rounding alone.
    inner = np.s_[:, :-1, :-1] if cells == size else np.s_[:]
    np.testing.assert_allclose(found[inner], wanted[inner], atol=1e-5)


def test_points_anywhere_are_the_plain_form():
    rng = np.random.default_rng(3)
    features, network = draw_features((6, 9)), draw_network()
    coord = rng.uniform(-1, 1, (50, 2)).astype(np.float32)
    cell = rng.uniform(0.01, 0.2, (50, 2)).astype(np.float32)
    both = [np.broadcast_to(x, (2, *x.shape)) for x in (coord, cell)]
    y, x = (implicit.axis_at(both[0][..., i], both[1][..., i], (6, 9)[i]) for i in (0, 1))
    projected = implicit.project(features, network)
    answers = jax.jit(implicit.point_answers)(projected, network, y, x)
    np.testing.assert_allclose(answers.logits, plain(features, network, coord, cell), atol=1e-5)
    np.testing.assert_array_equal(answers.positions[0, :, 2, 2:4], coord)


def test_a_part_of_a_grid_has_the_answers_of_the_whole():
    """Rows cut out at run time, over a map without its first cells."""
    features, network = draw_features((10, 6)), draw_network()
    whole = on_grid(features, network, (33, 20))
    rows, columns = implicit.grid_axis(33, 10), implicit.grid_axis(20, 6)
    projected = implicit.project(features, network)

    def some(first, offset):
        fewer = jax.lax.dynamic_slice_in_dim(projected, offset, 6, axis=1)
        part = rows.part(first, 8, offset)
        return implicit.grid_logits(fewer, network, part, columns)

    np.testing.assert_allclose(jax.jit(some)(12, 3), whole[:, 12:20], atol=1e-5)


def test_shares_sum_to_one_and_the_nearest_cell_weighs_most():
    rows, columns = implicit.grid_axis(40, 7), implicit.grid_axis(30, 5)
    weights = implicit.shares(rows.away[:, None, :, None], columns.away[None, :, None])
    np.testing.assert_allclose(weights.sum(axis=(0, 1)), 1, rtol=1e-6)
    apart = np.abs(rows.away)[:, None, :, None] + 0 * weights
    np.testing.assert_array_equal(
        weights[0, 0][apart[0, 0] < apart[1, 0]] >= weights[1, 0][apart[0, 0] < apart[1, 0]], True
    )


def test_without_the_ensemble_features_are_interpolated():
    """A network that is linear in its features alone then gives the same as with it."""
    features = draw_features((5, 7))
    rng = np.random.default_rng(0)
    kernel = jnp.asarray(rng.normal(size=(HIDDEN, 1)), jnp.float32)
    positive = jnp.full((HIDDEN,), 100.0)  # the ReLU passes everything
    network = draw_network(positions=False)._replace(
        bias=positive, layers=((kernel, jnp.zeros(1)),)
    )
    both = [on_grid(features, network, (23, 31), ensemble) for ensemble in (True, False)]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-4, atol=1e-3)
    seen = draw_network()
    one = on_grid(features, seen, (23, 31), False)
    assert one.shape == (2, 23, 31) and not np.allclose(one, on_grid(features, seen, (23, 31)))


def test_gradients_are_those_of_plain_gathers():
    features, network = draw_features((4, 5), batch=1), draw_network()
    rows, columns = implicit.grid_axis(9, 4), implicit.grid_axis(12, 5)
    away = jnp.asarray(np.random.default_rng(5).normal(size=(1, 9, 12)), jnp.float32)

    def saved(features):
        projected = implicit.project(features, network)
        return (implicit.grid_logits(projected, network, rows, columns) * away).sum()

    def plainly(features):
        traced = [implicit.Axis(*map(jnp.asarray, axis)) for axis in (rows, columns)]
        projected = implicit.project(features, network)
        return (implicit.grid_logits(projected, network, *traced) * away).sum()

    found, wanted = (jax.jit(jax.grad(f))(features) for f in (saved, plainly))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
