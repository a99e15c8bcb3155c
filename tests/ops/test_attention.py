"""Every form of attention is the same function."""

import functools

import chex
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest

from segjax.ops import attention as module
from segjax.ops.attention import (
    attention,
    attention_with_dropout,
    fused,
    masked_attention,
    tiled,
)


def plain(query, key, value):
    logits = jnp.einsum("bnhd,bmhd->bhnm", query, key) * query.shape[-1] ** -0.5
    return jnp.einsum("bhnm,bmhd->bnhd", jax.nn.softmax(logits, axis=-1), value)


@pytest.fixture(scope="module")
def qkv():
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = (2, 11, 3, 8), (2, 17, 3, 8), (2, 17, 3, 8)
    return [jax.random.normal(k, s) for k, s in zip(keys, sizes, strict=True)]


@pytest.mark.parametrize(
    "form",
    [
        attention,
        functools.partial(tiled, scale=8**-0.5),
        functools.partial(fused, scale=8**-0.5),
        jax.nn.dot_product_attention,
    ],
    ids=["chosen", "tiled", "fused", "xla"],
)
def test_value_and_gradient_are_those_of_the_definition(form, qkv):
    def both(form):
        def total(*args):
            out = form(*args)
            return jnp.sin(out).sum(), out

        (_, out), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(
            *qkv
        )
        return out, *gradients

    for ours, expected in zip(both(form), both(plain), strict=True):
        assert jnp.linalg.norm(ours - expected) <= 1e-6 * jnp.linalg.norm(expected)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("tile", [1, 2 * 11 * 17, 11 * 17 * 6])
def test_the_tiling_changes_nothing(monkeypatch, qkv, tile, devices):
    """One device takes heads apart, several don't; few queries at a time, the last ones padded."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    monkeypatch.setattr(module, "TILE", tile)
    monkeypatch.setattr(module, "LEAST_QUERIES", 4)

    def slopes(form):
        return jax.jit(jax.grad(lambda args: jnp.sin(form(*args)).sum()))(qkv)

    chex.assert_trees_all_close(
        jax.jit(functools.partial(tiled, scale=8**-0.5))(*qkv), plain(*qkv), atol=1e-6
    )
    for ours, expected in zip(slopes(attention), slopes(plain), strict=True):
        assert jnp.linalg.norm(ours - expected) <= 1e-6 * jnp.linalg.norm(expected)


def test_the_logits_are_never_in_memory_at_once(monkeypatch):
    """Neither forward nor for the gradient: of 3 heads and 2305 tokens they are 64 MB."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    x = jax.ShapeDtypeStruct((1, 2305, 3, 64), jnp.float32)
    slope = jax.jit(jax.grad(lambda args: jnp.sin(attention(*args)).sum()))
    analysis = slope.lower((x, x, x)).compile().memory_analysis()
    assert analysis.temp_size_in_bytes < 26e6


def test_large_logits_stay_finite(qkv):
    assert jnp.isfinite(attention(100 * qkv[0], 100 * qkv[1], qkv[2])).all()


def test_half_precision_keeps_its_type_and_is_close(qkv):
    rough = jax.jit(attention)(*(x.astype(jnp.bfloat16) for x in qkv))
    assert rough.dtype == jnp.bfloat16
    chex.assert_trees_all_close(rough.astype(jnp.float32), plain(*qkv), atol=0.03)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_it_lowers_for_accelerators_on_any_machine(platform, dtype):
    image = jax.ShapeDtypeStruct((2, 1025, 3, 64), dtype)
    exported = jax.export.export(jax.jit(attention), platforms=[platform])(image, image, image)
    assert exported.out_avals[0].shape == image.shape
    assert exported.out_avals[0].dtype == dtype


def test_dropped_weights_leave_the_mean_and_touch_that_share():
    """Values of one read the sum of the weights kept: 1 on average, and exactly 1 at rate 0."""
    query, key = jax.random.normal(jax.random.key(0), (2, 2, 64, 3, 8))
    value = jnp.ones((2, 64, 3, 8))
    kept = attention_with_dropout(query, key, value, 0.25, jax.random.key(1))
    np.testing.assert_allclose(kept.mean(), 1.0, atol=0.02)
    assert kept.std() > 0.05
    random = jax.random.normal(jax.random.key(2), value.shape)
    chex.assert_trees_all_close(
        attention_with_dropout(query, key, random, 0.0, jax.random.key(1)),
        attention(query, key, random),
        rtol=1e-5,
        atol=1e-6,
    )


def some_forbidden():
    """bool [2, 11, 17], of which one row forbids everything and one all but one."""
    forbidden = jax.random.bernoulli(jax.random.key(7), 0.6, (2, 11, 17))
    return forbidden.at[0, 3].set(True).at[1, 4].set(jnp.arange(17) != 5)


def plain_masked(query, key, value, forbidden):
    logits = jnp.einsum("bnhd,bmhd->bhnm", query, key) * query.shape[-1] ** -0.5
    everything = forbidden.all(axis=-1, keepdims=True)
    weights = jax.nn.softmax(jnp.where(forbidden & ~everything, -jnp.inf, logits.swapaxes(0, 1)))
    return jnp.einsum("hbnm,bmhd->bnhd", weights, value)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_masked_attention_and_its_gradient_are_those_of_the_definition(monkeypatch, qkv, backend):
    """Head by head on a CPU, all at once elsewhere."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    forbidden = some_forbidden()

    @functools.partial(jax.jit, static_argnums=0)
    def both(form):
        mixed, pull = jax.vjp(lambda *args: form(*args, forbidden), *qkv)
        return mixed, *pull(jnp.sin(mixed))

    for ours, expected in zip(both(masked_attention), both(plain_masked), strict=True):
        assert jnp.linalg.norm(ours - expected) <= 1e-6 * jnp.linalg.norm(expected)


def test_forbidden_pixels_have_no_say_and_a_row_of_them_all_has_its_say(qkv):
    query, key, value = qkv
    forbidden = some_forbidden()
    mixed = masked_attention(query, key, value, forbidden)
    chex.assert_trees_all_close(mixed[1, 4], value[1, 5], atol=1e-6)  # the one that is left
    everywhere = masked_attention(query, key, value, jnp.zeros_like(forbidden))
    chex.assert_trees_all_close(mixed[0, 3], everywhere[0, 3], atol=1e-6)
    chex.assert_trees_all_close(everywhere, plain(*qkv), atol=1e-6)
    slope = jax.grad(lambda value: masked_attention(query, key, value, forbidden)[1, 4].sum())
    assert jnp.count_nonzero(slope(value)) == 3 * 8


def test_masked_attention_is_torchs(qkv):
    torch = pytest.importorskip("torch")
    forbidden = some_forbidden() & ~some_forbidden().all(axis=-1, keepdims=True)
    theirs = [torch.tensor(np.asarray(x)).transpose(1, 2) for x in qkv]
    allowed = torch.tensor(np.asarray(~forbidden))[:, None]
    mixed = torch.nn.functional.scaled_dot_product_attention(*theirs, attn_mask=allowed)
    ours = masked_attention(*qkv, some_forbidden())
    chex.assert_trees_all_close(ours, mixed.transpose(1, 2).numpy(), atol=1e-6)


def test_masked_attention_of_half_precision_and_large_logits_is_finite_and_close(qkv):
    rough = masked_attention(*(x.astype(jnp.bfloat16) for x in qkv), some_forbidden())
    assert rough.dtype == jnp.bfloat16
    exact = plain_masked(*qkv, some_forbidden())
    chex.assert_trees_all_close(rough.astype(jnp.float32), exact, atol=0.03)
    large = masked_attention(100 * qkv[0], 100 * qkv[1], qkv[2], some_forbidden())
    assert jnp.isfinite(large).all()
