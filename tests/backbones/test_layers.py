"""Layers whose statistics or initial values must be torch's."""

import jax
import jax.numpy as jnp
import numpy as np

from segjax.backbones.layers import BatchNorm, DepthwiseConv


def test_running_variance_is_updated_with_the_unbiased_batch_variance():
    x = np.random.default_rng(0).normal(2.0, 3.0, (2, 3, 4, 5)).astype(np.float32)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, True)
    y, mutated = norm.apply(variables, x, True, mutable=["batch_stats"])
    flat = x.reshape(-1, 5)
    np.testing.assert_allclose(mutated["batch_stats"]["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(
        mutated["batch_stats"]["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-5
    )
    np.testing.assert_allclose(
        y.reshape(-1, 5), (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5), rtol=1e-4, atol=1e-5
    )


def test_initialising_leaves_the_running_statistics_alone():
    variables = BatchNorm().init(jax.random.key(0), jnp.full((4, 3), 7.0), True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], 0.0)
    np.testing.assert_array_equal(variables["batch_stats"]["var"], 1.0)


def test_evaluation_uses_the_running_statistics():
    norm = BatchNorm()
    variables = {
        "params": {"scale": jnp.array([2.0]), "bias": jnp.array([1.0])},
        "batch_stats": {"mean": jnp.array([3.0]), "var": jnp.array([4.0 - 1e-5])},
    }
    np.testing.assert_allclose(norm.apply(variables, jnp.array([[5.0]]), False), [[3.0]], rtol=1e-6)


def test_depthwise_filters_start_at_he_fan_out_over_all_channels():
    variables = DepthwiseConv().init(jax.random.key(0), jnp.zeros((1, 4, 4, 512)))
    np.testing.assert_allclose(
        variables["params"]["kernel"].std(), np.sqrt(2 / (9 * 512)), rtol=0.05
    )
