"""Depthwise convolution as shifts, and weight standardisation."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import convolution


def grouped(x, kernel, dilation):
    pad = dilation * (kernel.shape[0] // 2)
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        ((pad, pad), (pad, pad)),
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@pytest.mark.parametrize("size, dilation", [(3, 1), (3, 2), (5, 1), (3, 4), (3, 5), (3, 9)])
def test_shifts_are_the_grouped_convolution(size, dilation):
    x = jax.random.normal(jax.random.key(0), (2, 6, 5, 4))
    kernel = jax.random.normal(jax.random.key(1), (size, size, 1, 4))
    chex.assert_trees_all_close(
        convolution.depthwise(x, kernel, dilation),
        grouped(x, kernel, dilation),
        rtol=1e-5,
        atol=1e-5,
    )

    def gradient(form):
        return jax.grad(lambda x, k: jnp.sin(form(x, k, dilation)).sum(), argnums=(0, 1))(x, kernel)

    chex.assert_trees_all_close(
        gradient(convolution.depthwise), gradient(grouped), rtol=1e-4, atol=1e-5
    )


def test_standardised_filters_have_zero_mean_and_unit_variance():
    kernel = 5 + 3 * jax.random.normal(jax.random.key(0), (3, 3, 8, 4))
    standard = convolution.standardize(kernel)
    np.testing.assert_allclose(standard.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(standard.var((0, 1, 2)), 1, rtol=1e-5)
