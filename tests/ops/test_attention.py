"""Every form of attention is the same function."""

import functools

import chex
import jax
import jax.numpy as jnp
import pytest

from segjax.ops.attention import attention, head_major


def plain(query, key, value):
    logits = jnp.einsum("bnhd,bmhd->bhnm", query, key) * query.shape[-1] ** -0.5
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits, axis=-1), value)


@pytest.fixture
def qkv():
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = (2, 11, 3, 8), (2, 17, 3, 8), (2, 17, 3, 8)
    return [jax.random.normal(k, s) for k, s in zip(keys, sizes, strict=True)]


@pytest.mark.parametrize(
    "form",
    [attention, functools.partial(head_major, scale=8**-0.5), jax.nn.dot_product_attention],
    ids=["chosen", "head_major", "xla"],
)
def test_value_and_gradient_are_those_of_the_definition(form, qkv):
    def total(form, *args):
        return jnp.sin(form(*args)).sum()

    chex.assert_trees_all_close(form(*qkv), plain(*qkv), rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(
        jax.grad(functools.partial(total, form), argnums=(0, 1, 2))(*qkv),
        jax.grad(functools.partial(total, plain), argnums=(0, 1, 2))(*qkv),
        rtol=1e-4,
        atol=1e-6,
    )


def test_large_logits_stay_finite(qkv):
    assert jnp.isfinite(attention(100 * qkv[0], 100 * qkv[1], qkv[2])).all()


def test_half_precision_keeps_its_type_and_is_close(qkv):
    rough = jax.jit(attention)(*(x.astype(jnp.bfloat16) for x in qkv))
    assert rough.dtype == jnp.bfloat16
    chex.assert_trees_all_close(rough.astype(jnp.float32), plain(*qkv), atol=0.03)
