"""Tiled argmax and cross entropy against the plain forms."""

import os
import subprocess
import sys

import chex
import jax
import jax.export
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


@pytest.fixture(params=[None, 1000], ids=["one strip", "strips of few rows"])
def strips(request, monkeypatch):
    if request.param:
        monkeypatch.setattr(dense, "CPU_STRIP", request.param)


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
def test_argmax_by_strips_is_the_argmax(old, new, strips):
    """Except where the two highest scores differ by rounding."""
    scores, _ = draw(old, new)
    full = np.asarray(resize.bilinear(scores, new))
    labels = np.asarray(jax.jit(dense.resize_argmax, static_argnums=1)(scores, new))
    best = np.sort(full, axis=-1)
    clear = best[..., -1] - best[..., -2] > 1e-5
    np.testing.assert_array_equal(labels[clear], full.argmax(-1)[clear])
    assert clear.mean() > 0.99


@pytest.mark.parametrize("classes", [1, 5, 8, 9, 16, 17, 32, 33, 150])
def test_the_best_class_is_the_first_of_the_highest(classes):
    """On every form; small whole numbers make ties."""
    scores = jax.random.randint(jax.random.key(0), (3, 40, classes), 0, 4).astype(jnp.float32)
    for form in (dense.best_class, dense._best_by_lanes, dense._best_by_reduction):
        highest, label = jax.jit(form)(scores)
        np.testing.assert_array_equal(label, scores.argmax(-1))
        np.testing.assert_array_equal(highest, scores.max(-1))


def test_the_best_class_of_nan_is_a_class():
    scores = jnp.full((2, 20), jnp.nan)
    for form in (dense.best_class, dense._best_by_lanes, dense._best_by_reduction):
        label = form(scores)[1]
        assert label.min() >= 0 and label.max() < 20


@pytest.mark.parametrize("old, new", SHAPES, ids=str)
def test_cross_entropy_by_strips_has_the_plain_value_and_gradient(old, new, strips):
    scores, labels = draw(old, new)

    def both(form):
        def weighted(scores):
            sums = form(scores, labels)
            return 0.7 * sums[0], sums

        (_, sums), gradient = jax.jit(jax.value_and_grad(weighted, has_aux=True))(scores)
        return jax.tree.map(jnp.float32, sums), gradient

    (ours, our_gradient), (plain, gradient) = (
        both(dense.resize_cross_entropy),
        both(plain_cross_entropy),
    )
    chex.assert_trees_all_close(ours, plain, rtol=1e-5)
    chex.assert_trees_all_equal(ours[1:], plain[1:])
    assert jnp.linalg.norm(our_gradient - gradient) <= 1e-5 * jnp.linalg.norm(gradient)


def test_value_alone_is_the_value_with_its_gradient(strips):
    scores, labels = draw((9, 5), (71, 40))
    alone = jax.jit(dense.resize_cross_entropy)(scores, labels)
    beside = jax.jit(lambda *args: jax.vjp(dense.resize_cross_entropy, *args)[0])(scores, labels)
    chex.assert_trees_all_close(alone, beside, rtol=1e-6)


def test_unlabelled_pixels_contribute_nothing():
    scores, labels = draw((4, 4), (16, 16))
    nothing = jnp.full_like(labels, IGNORE)
    sums, pull = jax.vjp(lambda s: dense.resize_cross_entropy(s, nothing), scores)
    assert sums == (0, 0, 0)
    (gradient,) = pull((jnp.ones(()), jnp.zeros(()), jnp.zeros(())))
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
    form = jax.jit(dense.resize_cross_entropy)
    exact = form(scores.astype(jnp.float32), labels)
    chex.assert_trees_all_close(form(scores, labels), exact, rtol=1e-6)
    gradient = jax.grad(lambda s: dense.resize_cross_entropy(s, labels)[0])(scores)
    assert gradient.dtype == jnp.bfloat16


def test_neither_direction_holds_full_resolution_classes():
    scores = jax.ShapeDtypeStruct((1, 64, 64, 150), jnp.float32)
    labels = jax.ShapeDtypeStruct((1, 256, 256), jnp.int16)

    def temporary(form):
        step = jax.jit(jax.value_and_grad(lambda s, y: form(s, y)[0]))
        return step.lower(scores, labels).compile().memory_analysis().temp_size_in_bytes

    full_resolution = 256 * 256 * 150 * 4
    assert temporary(dense.resize_cross_entropy) < full_resolution / 2
    assert temporary(dense.resize_cross_entropy) < temporary(plain_cross_entropy) / 5


SHARDED = """
import re
import jax, jax.numpy as jnp, numpy as np
from segjax.ops import dense, painting

dense.CPU_STRIP = 2000
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
keys = jax.random.split(jax.random.key(0), 3)
scores = jax.random.normal(keys[0], (4, 8, 12, 6))
labels = jax.random.randint(keys[1], (4, 32, 48), -1, 6)
shares = painting.associate(jax.random.normal(keys[2], (4, 8, 12, 36)), (2, 2))

def loss(scores, labels):
    sums = dense.resize_cross_entropy(scores, labels)
    return sums[0], sums

def check(form, *args, most):
    plain = jax.jit(form)(*args)
    args = jax.device_put(args, split)
    compiled = jax.jit(form).lower(*args).compile()
    for ours, expected in zip(jax.tree.leaves(compiled(*args)), jax.tree.leaves(plain)):
        np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)
    found = re.findall(r" (all-gather|all-reduce|all-to-all|collective-permute)\\(",
                       compiled.as_text())
    assert found.count("all-reduce") == len(found) <= most, found

check(jax.value_and_grad(loss, has_aux=True), scores, labels, most=3)
check(lambda scores: dense.resize_argmax(scores, (32, 48)), scores, most=0)
check(lambda scores, shares: painting.painted_labels(scores, shares, (64, 96)), scores, shares,
      most=0)
"""


def test_a_sharded_batch_gives_the_same_and_talks_only_to_join_the_sums():
    """No collective but the final sums: strips never leave the shard of their image."""
    flags = "--xla_force_host_platform_device_count=2"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", SHARDED], env=environment, check=True)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_tiled_forms_lower_for_accelerators_on_any_machine(platform):
    scores = jax.ShapeDtypeStruct((2, 32, 32, 19), jnp.bfloat16)
    labels = jax.ShapeDtypeStruct((2, 128, 130), jnp.int16)
    loss = jax.value_and_grad(lambda s, y: dense.resize_cross_entropy(s, y)[0])
    exported = jax.export.export(jax.jit(loss), platforms=[platform])(scores, labels)
    assert [aval.shape for aval in exported.out_avals] == [(), scores.shape]
    argmax = jax.jit(lambda s: dense.resize_argmax(s, (128, 130)))
    exported = jax.export.export(argmax, platforms=[platform])(scores)
    assert exported.out_avals[0].shape == labels.shape
