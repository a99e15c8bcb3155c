"""Tiled argmax and cross entropy against the plain forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import dense, resize
from segjax.structs import IGNORE

SHAPES = [
    ((8, 12), (32, 48)),
    ((9, 5), (71, 40)),
    ((20, 16), (7, 9)),
    ((1, 1), (40, 3)),
    ((16, 16), (16, 16)),
]


def plain_cross_entropy(scores, labels):
    logits = resize.bilinear(scores.astype(jnp.float32), labels.shape[1:])
    valid = labels != IGNORE
    picked = jnp.take_along_axis(
        jax.nn.log_softmax(logits),
        jnp.where(valid, labels, 0)[..., None].astype(jnp.int32),
        axis=-1,
    )[..., 0]
    right = valid & (logits.argmax(-1) == labels)
    return -jnp.where(valid, picked, 0.0).sum(), right.sum(), valid.sum()


def draw(old, new, classes=6, batch=2, low=IGNORE):
    rng = np.random.default_rng(0)
    scores = jnp.asarray(3 * rng.normal(size=(batch, *old, classes)), jnp.float32)
    return scores, jnp.asarray(rng.integers(low, classes, (batch, *new)), jnp.int16)


@pytest.mark.parametrize("old, new", SHAPES, ids=str)
def test_argmax_by_strips_is_the_argmax(old, new):
    scores, _ = draw(old, new)
    full = np.asarray(resize.bilinear(scores, new))
    labels = np.asarray(dense.resize_argmax(scores, new))
    best = np.sort(full, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-5
    np.testing.assert_array_equal(labels[clear], full.argmax(-1)[clear])
    assert clear.mean() > 0.99


def test_both_forms_of_a_strip_agree():
    """CPU loops over classes, accelerators reduce over them."""
    wide = jax.random.normal(jax.random.key(0), (2, 6, 10, 9))
    indices, weights = resize.taps(dense.LABEL_STRIP, 10)
    np.testing.assert_array_equal(
        dense._running_argmax(wide, indices, weights), dense._wide_argmax(wide, indices, weights)
    )


def test_ties_go_to_the_lowest_class():
    assert dense.resize_argmax(jnp.zeros((1, 3, 3, 4)), (6, 6)).max() == 0


@pytest.mark.parametrize("old, new", SHAPES, ids=str)
def test_cross_entropy_by_strips_has_the_plain_value_and_gradient(old, new):
    scores, labels = draw(old, new)
    chex.assert_trees_all_close(
        dense.resize_cross_entropy(scores, labels),
        jax.tree.map(jnp.float32, plain_cross_entropy(scores, labels)),
        rtol=1e-5,
    )

    def gradient(form):
        return jax.jit(jax.grad(lambda s: 0.7 * form(s, labels)[0]))(scores)

    ours, plain = gradient(dense.resize_cross_entropy), gradient(plain_cross_entropy)
    assert jnp.linalg.norm(ours - plain) <= 1e-5 * jnp.linalg.norm(plain)


def test_unlabelled_pixels_contribute_nothing():
    scores, labels = draw((4, 4), (16, 16))
    nothing = jnp.full_like(labels, IGNORE)
    value, gradient = jax.value_and_grad(lambda s: dense.resize_cross_entropy(s, nothing)[0])(
        scores
    )
    assert value == 0
    chex.assert_trees_all_equal(gradient, jnp.zeros_like(scores))


def test_huge_scores_stay_finite():
    scores, labels = draw((4, 4), (16, 16))
    value, gradient = jax.value_and_grad(lambda s: dense.resize_cross_entropy(s, labels)[0])(
        1e4 * scores
    )
    assert jnp.isfinite(value) and jnp.isfinite(gradient).all()


def test_half_precision_scores_are_computed_in_float32():
    scores, labels = draw((4, 4), (16, 16))
    scores = scores.astype(jnp.bfloat16)
    exact = dense.resize_cross_entropy(scores.astype(jnp.float32), labels)
    chex.assert_trees_all_equal(dense.resize_cross_entropy(scores, labels), exact)
    gradient = jax.grad(lambda s: dense.resize_cross_entropy(s, labels)[0])(scores)
    assert gradient.dtype == jnp.bfloat16


def test_a_sharded_batch_gives_the_same_sums():
    devices = jax.devices()[:2]
    if len(devices) < 2:
        pytest.skip("needs two (fake) devices")
    scores, labels = draw((4, 4), (16, 16), batch=4)
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    form = jax.jit(dense.resize_cross_entropy)
    chex.assert_trees_all_close(
        form(jax.device_put(scores, split), jax.device_put(labels, split)),
        form(scores, labels),
        rtol=1e-6,
    )


def test_neither_direction_holds_full_resolution_classes():
    scores = jax.ShapeDtypeStruct((1, 64, 64, 150), jnp.float32)
    labels = jax.ShapeDtypeStruct((1, 256, 256), jnp.int16)

    def temporary(form):
        step = jax.jit(jax.value_and_grad(lambda s, y: form(s, y)[0]))
        return step.lower(scores, labels).compile().memory_analysis().temp_size_in_bytes

    full_resolution = 256 * 256 * 150 * 4
    assert temporary(dense.resize_cross_entropy) < full_resolution
    assert temporary(dense.resize_cross_entropy) < temporary(plain_cross_entropy) / 3
