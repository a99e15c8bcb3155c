"""Scaled dot-product attention in the fastest form of each backend."""

from __future__ import annotations

import functools
import math

import chex
import jax
import jax.numpy as jnp

from segjax.structs import Array

TILE = 2**19
"""Logits that are in memory at a time on CPU: 2 MB, what its cache holds."""

LEAST_QUERIES = 64
"""Fewer rows than this make slow matrix products."""


def attention(query: Array, key: Array, value: Array, scale: float | None = None) -> Array:
    """softmax(query keyᵀ · scale) value, per head; the softmax is float32.

    Args:
        query: [B, N, heads, d].
        key, value: [B, M, heads, d].
        scale: 1/sqrt(d) by default.

    Returns:
        [B, N, heads, d] of query's dtype.
    """
    chex.assert_equal_shape((key, value))
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    return jax.lax.platform_dependent(
        query,
        key,
        value,
        cpu=functools.partial(tiled, scale=scale),
        cuda=functools.partial(fused, scale=scale),
        default=functools.partial(jax.nn.dot_product_attention, scale=scale),
    )


def attention_with_dropout(
    query: Array, key: Array, value: Array, rate: float, rng: Array
) -> Array:
    """`attention` whose weights are each zeroed with probability `rate`, the rest scaled by
    1 / (1 - rate). The weights are in memory: [B, heads, N, M]."""
    chex.assert_equal_shape((key, value))
    logits = jnp.einsum("bnhd,bmhd->bhnm", query * query.shape[-1] ** -0.5, key)
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    keep = jax.random.bernoulli(rng, 1.0 - rate, weights.shape)
    weights = jnp.where(keep, weights / (1.0 - rate), 0.0).astype(value.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", weights, value)


def tiled(query: Array, key: Array, value: Array, scale: float) -> Array:
    """Some heads and some queries at a time, so that their logits stay in a CPU's cache. The
    backward pass makes them anew instead of reading them from memory.

    On 2 cores (N=1025, 6 heads of 64, 2 images) 2 to 3 times faster than all at once, forward and
    with the gradient, in a fifth of the temporary memory.
    """
    batch, queries, heads, size = query.shape
    query, key, value = (x.swapaxes(1, 2) for x in (query * scale, key, value))
    together = batch * heads
    # Over several devices images and heads may be spread; a loop over them would fetch them all.
    if jax.device_count() == 1:
        most = max(TILE // (queries * key.shape[2]), 1)
        together = max(n for n in range(1, together + 1) if together % n == 0 and n <= most)
    if together == batch * heads:
        return _tiled_heads(query, key, value).swapaxes(1, 2)
    groups = (x.reshape(-1, together, *x.shape[2:]) for x in (query, key, value))
    mixed = jax.lax.map(lambda group: _tiled_heads(*group), tuple(groups))
    return mixed.reshape(batch, heads, queries, size).swapaxes(1, 2)


def _tiled_heads(query: Array, key: Array, value: Array) -> Array:
    """Attention of scaled queries [..., N, d] to keys and values [..., M, d]."""
    *heads, queries, size = query.shape

    @jax.checkpoint
    def mix(query: Array) -> Array:
        logits = jnp.einsum("...nd,...md->...nm", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
        mixed = jnp.einsum("...nm,...md->...nd", weights, value, preferred_element_type=jnp.float32)
        return mixed.astype(value.dtype)

    tall = max(TILE // (math.prod(heads) * key.shape[-2]), LEAST_QUERIES)
    count = -(-queries // tall)
    if count == 1:
        return mix(query)
    tall = -(-queries // count)
    beyond = [(0, 0)] * len(heads) + [(0, count * tall - queries), (0, 0)]
    tiles = jnp.pad(query, beyond).reshape(*heads, count, tall, size)
    mixed = jnp.moveaxis(jax.lax.map(mix, jnp.moveaxis(tiles, -3, 0)), 0, -3)
    return mixed.reshape(*heads, count * tall, size)[..., :queries, :]


def fused(query: Array, key: Array, value: Array, scale: float) -> Array:
    """cuDNN's flash attention where it exists (half precision, heads of at most 128, GPUs from
    Ampere on), else XLA's form."""
    fits = query.dtype in (jnp.bfloat16, jnp.float16) and query.shape[-1] in range(8, 129, 8)
    # Tracing cuDNN's form asks for the library, also when another platform is compiled for.
    kernel = "cudnn" if fits and jax.default_backend() == "gpu" and _is_ampere() else "xla"
    return jax.nn.dot_product_attention(query, key, value, scale=scale, implementation=kernel)


def _is_ampere() -> bool:
    # "8.0" and the like on NVIDIA's; AMD's are called "gfx90a".
    capability = str(getattr(jax.local_devices()[0], "compute_capability", ""))
    return capability[:1].isdigit() and float(capability) >= 8.0
