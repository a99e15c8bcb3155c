"""Region painting: the plain loop, the properties that make it a painting, and its tiled form."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from segjax.ops import dense, painting, resize

GRIDS = [((1, 1), (2, 2)), ((1, 5), (4, 4)), ((4, 1), (2, 3)), ((3, 4), (1, 1)), ((5, 3), (4, 4))]


def draw(grid, region, classes=3, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(batch, *grid, 9 * region[0] * region[1]))
    scores = rng.normal(size=(batch, *grid, classes))
    return jnp.asarray(logits, jnp.float32), jnp.asarray(scores, jnp.float32)


@functools.partial(jax.jit, static_argnums=2)
def painted(logits, scores, region):
    return painting.paint(scores, painting.associate(logits, region))


def plain_painting(logits, scores, region):
    """Cell by cell, as the paper says it."""
    batch, rows, cols, classes = scores.shape
    h, w = region
    painted = np.zeros((batch, rows * h, cols * w, classes))
    for b, i, j, a, c in np.ndindex(batch, rows, cols, h, w):
        weight, total = 0.0, np.zeros(classes)
        for n in range(9):
            y, x = i + n // 3 - 1, j + n % 3 - 1
            if 0 <= y < rows and 0 <= x < cols:
                share = np.exp(logits[b, i, j, n * h * w + a * w + c])
                weight, total = weight + share, total + share * scores[b, y, x]
        painted[b, i * h + a, j * w + c] = total / weight
    return painted


@pytest.mark.parametrize("grid, region", GRIDS, ids=str)
def test_painting_is_a_softmax_mix_of_the_neighbours_on_the_grid(grid, region):
    logits, scores = draw(grid, region)
    expected = plain_painting(
        np.asarray(logits, np.float64), np.asarray(scores, np.float64), region
    )
    np.testing.assert_allclose(painted(logits, scores, region), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grid, region", GRIDS, ids=str)
def test_association_is_a_partition_of_unity_on_the_grid(grid, region):
    associate = jax.jit(painting.associate, static_argnums=1)
    association = np.asarray(associate(draw(grid, region)[0], region))
    np.testing.assert_allclose(association.sum(3), 1.0, rtol=1e-6)
    outside = ~painting.border_mask(*grid)
    assert (association.transpose(1, 2, 3, 0, 4, 5)[outside] == 0).all()


@pytest.mark.parametrize("grid, region", GRIDS, ids=str)
def test_painting_constant_scores_gives_the_constant(grid, region):
    constant = painted(draw(grid, region)[0], jnp.full((2, *grid, 3), 2.5), region)
    np.testing.assert_allclose(constant, 2.5, rtol=1e-6)


def test_painting_commutes_with_shifts_of_the_token_grid():
    logits, scores = draw((6, 7), (2, 3))
    here = painted(logits, scores, (2, 3))
    shifted = painted(*(jnp.roll(x, (1, 2), (1, 2)) for x in (logits, scores)), (2, 3))
    # Tokens that are inside, with all their neighbours, before and after.
    chex.assert_trees_all_close(
        shifted[:, 2 * 2 : 5 * 2, 3 * 3 : 6 * 3],
        here[:, 1 * 2 : 4 * 2, 1 * 3 : 4 * 3],
        rtol=1e-5,
    )


def test_gradients_match_finite_differences():
    logits, scores = draw((2, 3), (2, 2), classes=2, batch=1)
    form = functools.partial(painted, region=(2, 2))
    check_grads(form, (logits, scores), order=1, modes=("fwd", "rev"), rtol=2e-2, atol=2e-2)


def test_neighbours_outside_get_no_gradient():
    logits, scores = draw((1, 2), (2, 2))
    gradient = jax.grad(lambda x: jnp.sin(painted(x, scores, (2, 2))).sum())(logits)
    outside = ~painting.border_mask(1, 2)
    per_neighbour = np.asarray(gradient).reshape(2, 1, 2, 9, 4).transpose(1, 2, 3, 0, 4)
    assert np.isfinite(gradient).all() and (per_neighbour[outside] == 0).all()


def assert_labels_are_the_argmax_at_full_resolution(grid, region, size, classes=7):
    """Except where the two highest scores differ by rounding."""
    logits, scores = draw(grid, region, classes)

    @jax.jit
    def both_ways(logits, scores):
        association = painting.associate(logits, region)
        full = resize.bilinear(painting.paint(scores, association), size)
        return full, painting.painted_labels(scores, association, size)

    full, labels = (np.asarray(x) for x in both_ways(logits, scores))
    chex.assert_shape(labels, (2, *size))
    best = np.sort(full, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-5
    np.testing.assert_array_equal(labels[clear], full.argmax(-1)[clear])
    assert clear.mean() > 0.99


@pytest.mark.parametrize("strip", [None, 700], ids=["one strip", "strips of few rows"])
@pytest.mark.parametrize(
    "grid, region, size",
    [
        ((5, 3), (4, 4), (80, 48)),  # the usual factor
        ((5, 3), (4, 4), (77, 50)),  # ragged
        ((4, 6), (2, 3), (5, 7)),  # smaller than the painted grid
        ((1, 1), (4, 4), (33, 16)),  # one token
        ((3, 4), (1, 1), (48, 64)),
    ],
    ids=str,
)
def test_tiled_labels_are_the_argmax_at_full_resolution(grid, region, size, strip, monkeypatch):
    if strip:
        monkeypatch.setattr(dense, "CPU_STRIP", strip)
    assert_labels_are_the_argmax_at_full_resolution(grid, region, size)


@given(
    grid=st.tuples(*[st.integers(1, 6)] * 2),
    region=st.tuples(*[st.integers(1, 5)] * 2),
    size=st.tuples(*[st.integers(1, 70)] * 2),
)
@settings(max_examples=5, deadline=None, derandomize=True)
def test_tiled_labels_for_any_sizes(grid, region, size):
    before, dense.CPU_STRIP = dense.CPU_STRIP, 1500
    try:
        assert_labels_are_the_argmax_at_full_resolution(grid, region, size)
    finally:
        dense.CPU_STRIP = before


def test_equal_scores_are_labelled_with_the_lowest_class():
    logits, _ = draw((2, 3), (4, 4))
    scores = jnp.stack([jnp.zeros((2, 2, 3)), *[jnp.ones((2, 2, 3))] * 10], axis=-1)
    association = painting.associate(logits, (4, 4))
    # Identical planes stay identical through painting and resizing, bit by bit.
    np.testing.assert_array_equal(painting.painted_labels(scores, association, (16, 24)), 1)


def test_tiled_labels_hold_a_tenth_of_the_memory():
    scores = jax.ShapeDtypeStruct((1, 32, 32, 150), jnp.float32)
    association = jax.ShapeDtypeStruct((1, 32, 32, 9, 4, 4), jnp.float32)
    labels = jax.jit(lambda s, a: painting.painted_labels(s, a, (512, 512)))
    compiled = labels.lower(scores, association).compile()
    full_resolution = 512 * 512 * 150 * 4
    assert compiled.memory_analysis().temp_size_in_bytes < full_resolution / 10


def test_owners_are_the_token_itself_where_the_centre_wins():
    logits = jnp.zeros((1, 2, 3, 9, 2, 2)).at[:, :, :, 4].set(5.0)
    owners = painting.owner_regions(painting.associate(logits.reshape(1, 2, 3, -1), (2, 2)))
    np.testing.assert_array_equal(owners[0], np.arange(6).reshape(2, 3).repeat(2, 0).repeat(2, 1))


def test_owners_follow_the_strongest_neighbour():
    logits = jnp.zeros((1, 2, 3, 9, 2, 2)).at[0, 1, 1, 2, 0, 1].set(9.0)  # up and right of token 4
    owners = painting.owner_regions(painting.associate(logits.reshape(1, 2, 3, -1), (2, 2)))
    assert owners[0, 2, 3] == 2
