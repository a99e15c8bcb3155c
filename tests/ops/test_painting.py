"""Region painting: the plain loop, the properties that make it a painting, and its tiled form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from segjax.ops import painting, resize

GRIDS = [((1, 1), (2, 2)), ((1, 5), (4, 4)), ((4, 1), (2, 3)), ((3, 4), (1, 1)), ((5, 3), (4, 4))]


def draw(grid, region, classes=3, batch=2, seed=0):
    keys = jax.random.split(jax.random.key(seed))
    logits = 2 * jax.random.normal(keys[0], (batch, *grid, 9 * region[0] * region[1]))
    return logits, jax.random.normal(keys[1], (batch, *grid, classes))


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
    painted = painting.paint(scores, painting.associate(logits, region))
    expected = plain_painting(
        np.asarray(logits, np.float64), np.asarray(scores, np.float64), region
    )
    np.testing.assert_allclose(painted, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grid, region", GRIDS, ids=str)
def test_association_is_a_partition_of_unity_on_the_grid(grid, region):
    association = painting.associate(draw(grid, region)[0], region)
    chex.assert_trees_all_close(
        association.sum(3), jnp.ones_like(association[:, :, :, 0]), rtol=1e-6
    )
    outside = ~painting.border_mask(*grid)
    assert (np.asarray(association).transpose(1, 2, 3, 0, 4, 5)[outside] == 0).all()


@pytest.mark.parametrize("grid, region", GRIDS, ids=str)
def test_painting_constant_scores_gives_the_constant(grid, region):
    association = painting.associate(draw(grid, region)[0], region)
    painted = painting.paint(jnp.full((2, *grid, 3), 2.5), association)
    chex.assert_trees_all_close(painted, jnp.full_like(painted, 2.5), rtol=1e-6)


def test_painting_commutes_with_shifts_of_the_token_grid():
    logits, scores = draw((6, 7), (2, 3))
    painted = painting.paint(scores, painting.associate(logits, (2, 3)))
    shifted = painting.paint(
        jnp.roll(scores, (1, 2), (1, 2)),
        painting.associate(jnp.roll(logits, (1, 2), (1, 2)), (2, 3)),
    )
    # Tokens that are inside, with all their neighbours, before and after.
    chex.assert_trees_all_close(
        shifted[:, 2 * 2 : 5 * 2, 3 * 3 : 6 * 3],
        painted[:, 1 * 2 : 4 * 2, 1 * 3 : 4 * 3],
        rtol=1e-5,
    )


def test_gradients_match_finite_differences():
    logits, scores = draw((2, 3), (2, 2), classes=2, batch=1)

    def painted(logits, scores):
        return painting.paint(scores, painting.associate(logits, (2, 2)))

    check_grads(painted, (logits, scores), order=1, modes=("fwd", "rev"), rtol=2e-2, atol=2e-2)


def test_neighbours_outside_get_no_gradient():
    logits, scores = draw((1, 2), (2, 2))
    gradient = jax.grad(
        lambda x: jnp.sin(painting.paint(scores, painting.associate(x, (2, 2)))).sum()
    )(logits)
    outside = ~painting.border_mask(1, 2)
    per_neighbour = np.asarray(gradient).reshape(2, 1, 2, 9, 4).transpose(1, 2, 3, 0, 4)
    assert np.isfinite(gradient).all() and (per_neighbour[outside] == 0).all()


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
def test_tiled_labels_are_the_argmax_at_full_resolution(grid, region, size):
    logits, scores = draw(grid, region, classes=7)
    association = painting.associate(logits, region)
    full = np.asarray(resize.bilinear(painting.paint(scores, association), size))
    labels = jax.jit(painting.painted_labels, static_argnums=2)(scores, association, size)
    chex.assert_shape(labels, (2, *size))
    best = np.sort(full, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-5
    np.testing.assert_array_equal(np.asarray(labels)[clear], full.argmax(-1)[clear])
    assert clear.mean() > 0.99


def test_tiled_labels_hold_a_tenth_of_the_memory():
    scores = jax.ShapeDtypeStruct((1, 32, 32, 150), jnp.float32)
    association = jax.ShapeDtypeStruct((1, 32, 32, 9, 4, 4), jnp.float32)

    def full(scores, association):
        return resize.bilinear(painting.paint(scores, association), (512, 512)).argmax(-1)

    def temporary(function):
        compiled = jax.jit(function).lower(scores, association).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    tiled = temporary(lambda s, a: painting.painted_labels(s, a, (512, 512)))
    assert tiled < temporary(full) / 10


def test_owners_are_the_token_itself_where_the_centre_wins():
    logits = jnp.zeros((1, 2, 3, 9, 2, 2)).at[:, :, :, 4].set(5.0)
    owners = painting.owner_regions(painting.associate(logits.reshape(1, 2, 3, -1), (2, 2)))
    np.testing.assert_array_equal(owners[0], np.arange(6).reshape(2, 3).repeat(2, 0).repeat(2, 1))


def test_owners_follow_the_strongest_neighbour():
    logits = jnp.zeros((1, 2, 3, 9, 2, 2)).at[0, 1, 1, 2, 0, 1].set(9.0)  # up and right of token 4
    owners = painting.owner_regions(painting.associate(logits.reshape(1, 2, 3, -1), (2, 2)))
    assert owners[0, 2, 3] == 2
