"""Layer and batch normalisation against their formulas."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops.normalisation import batch_norm, layer_norm


def plain(x, scale, bias, epsilon):
    x = x.astype(jnp.float32)
    centred = x - x.mean(-1, keepdims=True)
    deviation = jnp.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return centred / deviation * scale + bias


@pytest.fixture
def inputs():
    keys = jax.random.split(jax.random.key(0), 3)
    x = 3.0 + 2.0 * jax.random.normal(keys[0], (2, 5, 24))
    return x, jax.random.normal(keys[1], (24,)), jax.random.normal(keys[2], (24,))


@pytest.mark.parametrize("epsilon", [1e-6, 0.1])
def test_value_and_gradient_are_those_of_the_formula(inputs, epsilon):
    def both(form):
        return jax.value_and_grad(lambda args: jnp.sin(form(*args, epsilon)).sum())(inputs)

    chex.assert_trees_all_close(both(layer_norm), both(plain), rtol=1e-4, atol=1e-5)


def test_the_gradient_is_the_numerical_one(inputs):
    jax.test_util.check_grads(
        lambda *args: layer_norm(*args, 1e-5), inputs, 1, ["rev"], rtol=2e-2, atol=2e-2
    )


def test_half_precision_is_computed_in_single(inputs):
    x, scale, bias = inputs
    rough = x.astype(jnp.bfloat16)
    y, pull = jax.vjp(lambda x: layer_norm(x, scale, bias, 1e-6), rough)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, plain(rough, scale, bias, 1e-6), rtol=1e-5, atol=1e-5)
    assert pull(y)[0].dtype == jnp.bfloat16


def test_only_small_numbers_are_kept_beside_the_input(inputs):
    """For the backward pass: the input as it came, two numbers a row, and the scale."""
    x, scale, bias = inputs
    _, pull = jax.vjp(lambda x: layer_norm(x, scale, bias, 1e-6), x.astype(jnp.bfloat16))
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(pull))
    assert kept <= 2 * x.size + 2 * 4 * 10 + 4 * 24


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_it_lowers_for_accelerators_on_any_machine(platform, inputs):
    slope = jax.jit(jax.grad(lambda x: layer_norm(x, inputs[1], inputs[2], 1e-6).sum()))
    jax.export.export(slope, platforms=[platform])(inputs[0])


def plain_batch_norm(x, scale, bias, epsilon):
    mean = x.mean((0, 1), keepdims=True)
    variance = ((x - mean) ** 2).mean((0, 1), keepdims=True)
    return (x - mean) / jnp.sqrt(variance + epsilon) * scale + bias


@pytest.mark.parametrize("epsilon", [1e-5, 0.1])
def test_batch_norms_value_and_gradient_are_those_of_the_formula(inputs, epsilon):
    def both(form):
        return jax.value_and_grad(lambda args: jnp.sin(form(*args)).sum())(inputs)

    ours = both(lambda *args: batch_norm(*args, epsilon)[0])
    theirs = both(lambda *args: plain_batch_norm(*args, epsilon))
    chex.assert_trees_all_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_batch_norm_tells_its_statistics(inputs):
    x = np.asarray(inputs[0]).reshape(-1, 24)
    _, mean, variance = batch_norm(*inputs, 1e-5)
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variance, x.var(0), rtol=1e-5)


def test_no_gradient_flows_through_batch_norms_statistics(inputs):
    slopes = jax.grad(lambda args: sum(batch_norm(*args, 1e-5)[i].sum() for i in (1, 2)))(inputs)
    chex.assert_trees_all_equal(slopes, jax.tree.map(jnp.zeros_like, inputs))


def test_batch_norms_gradient_is_the_numerical_one(inputs):
    jax.test_util.check_grads(
        lambda *args: batch_norm(*args, 1e-5)[0], inputs, 1, ["rev"], rtol=2e-2, atol=2e-2
    )


def test_batch_norm_computes_half_precision_in_single(inputs):
    x, scale, bias = inputs
    rough = x.astype(jnp.bfloat16)
    y, pull = jax.vjp(lambda x: batch_norm(x, scale, bias, 1e-5)[0], rough)
    expected = plain_batch_norm(rough.astype(jnp.float32), scale, bias, 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert pull(y)[0].dtype == jnp.bfloat16
