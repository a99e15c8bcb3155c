"""Pooling against torch, the authority."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import pooling


@pytest.mark.parametrize("old", [(6, 6), (5, 7), (16, 3), (1, 2)], ids=str)
@pytest.mark.parametrize("new", [(1, 1), (2, 2), (3, 3), (6, 6), (2, 5)], ids=str)
def test_adaptive_average_is_torchs(old, new):
    """Also with cells that overlap, and with more cells than samples."""
    torch = pytest.importorskip("torch", reason="torch is the oracle of pooling")
    x = np.random.default_rng(0).normal(size=(2, *old, 3)).astype(np.float32)
    theirs = torch.tensor(x, requires_grad=True)
    pooled = torch.nn.functional.adaptive_avg_pool2d(theirs.permute(0, 3, 1, 2), new)
    pooled = pooled.permute(0, 2, 3, 1)
    ours, pull = jax.vjp(lambda x: pooling.adaptive_average(x, new), jnp.asarray(x))
    np.testing.assert_allclose(ours, pooled.detach().numpy(), rtol=1e-5, atol=1e-6)
    cotangent = np.random.default_rng(1).normal(size=ours.shape).astype(np.float32)
    pooled.backward(torch.tensor(cotangent))
    gradient = pull(jnp.asarray(cotangent))[0]
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), rtol=1e-5, atol=1e-6)


def test_half_precision_is_averaged_in_float32():
    """A bfloat16 sum of these would stop growing at 256."""
    x = jnp.ones((1, 32, 32, 1), jnp.bfloat16)
    pooled = pooling.adaptive_average(x, (1, 1))
    chex.assert_trees_all_equal(pooled, jnp.ones((1, 1, 1, 1), jnp.bfloat16))
