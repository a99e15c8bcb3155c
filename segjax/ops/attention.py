"""Scaled dot-product attention in the fastest form of each backend."""

from __future__ import annotations

import functools
import math
from typing import Any

import chex
import jax
import jax.numpy as jnp

from segjax.structs import Array

TILE = 1_100_000
"""Logits that are in memory at a time on CPU: of one head and the 1025 tokens of 512 x 512."""

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


def masked_attention(query: Array, key: Array, value: Array, forbidden: Array) -> Array:
    """Attention of each query to some of the pixels only (Mask2Former, Cheng et al., CVPR 2022,
    Sec. 3.2.1). A query that may attend to none attends to all, as in the authors' code.

    The scale is 1/sqrt(d) and the softmax float32. The weights are in memory, [B, heads, N, M]
    (on a CPU those of one head), but not kept for the gradient.

    Args:
        query: [B, N, heads, d].
        key, value: [B, M, heads, d].
        forbidden: bool [B, N, M], the same for all heads.

    Returns:
        [B, N, heads, d] of value's dtype.
    """
    chex.assert_equal_shape((key, value))
    forbidden = forbidden & ~forbidden.all(axis=-1, keepdims=True)
    heads = tuple(jnp.moveaxis(x, 2, 0) for x in (query * query.shape[-1] ** -0.5, key, value))
    # One head after another on a CPU, whose cache holds the weights of one.
    if jax.default_backend() == "cpu":
        mixed = jax.lax.map(lambda head: _masked(*head, forbidden), heads)
    else:
        mixed = jax.vmap(_masked, in_axes=(0, 0, 0, None))(*heads, forbidden)
    return jnp.moveaxis(mixed, 0, 2)


@jax.custom_vjp
def _masked(query: Array, key: Array, value: Array, forbidden: Array) -> Array:
    """Of one head: scaled queries [B, N, d], keys and values [B, M, d] -> [B, N, d]. The backward
    pass makes the weights anew, so that a decoder of many layers doesn't keep them."""
    return _masked_forward(query, key, value, forbidden)[0]


def _masked_forward(
    query: Array, key: Array, value: Array, forbidden: Array
) -> tuple[Array, tuple[Array, ...]]:
    logits = _allowed(query, key, forbidden)
    highest = logits.max(axis=-1, keepdims=True)
    weights = jnp.exp(logits - highest)
    # A product, as in `_backward`.
    ones = jnp.ones((weights.shape[-1], 1))
    total = jnp.matmul(weights, ones, precision=jax.lax.Precision.HIGHEST)
    mixed = _product("...nm,...md->...nd", weights.astype(value.dtype), value) / total
    mixed = mixed.astype(value.dtype)
    return mixed, (query, key, value, forbidden, mixed, highest + jnp.log(total))


def _masked_backward(kept: tuple[Array, ...], slope: Array) -> tuple[Array, Array, Array, None]:
    query, key, value, forbidden, mixed, log_total = kept
    mean = (slope.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    weights = jnp.exp(_allowed(query, key, forbidden) - log_total)
    of_weights = _product("...nd,...md->...nm", slope, value)
    of_logits = (weights * (of_weights - mean)).astype(key.dtype)
    of_query = _product("...nm,...md->...nd", of_logits, key).astype(query.dtype)
    of_key = _product("...nm,...nd->...md", of_logits, query).astype(key.dtype)
    of_value = _product("...nm,...nd->...md", weights.astype(slope.dtype), slope)
    return of_query, of_key, of_value.astype(value.dtype), None


_masked.defvjp(_masked_forward, _masked_backward)


def _allowed(query: Array, key: Array, forbidden: Array) -> Array:
    """The logits, -inf where forbidden."""
    logits = _product("...nd,...md->...nm", query, key)
    return jnp.where(forbidden, -jnp.inf, logits)


def tiled(query: Array, key: Array, value: Array, scale: float) -> Array:
    """Head by head, and some queries at a time where they are many, so that their logits stay in a
    CPU's cache. The backward pass makes the weights anew instead of reading them from memory."""
    batch, queries, heads, size = query.shape
    groups = (1, batch, heads)
    # Over several devices images and heads may be spread; a loop over them would fetch them all.
    if jax.device_count() == 1:
        most = max(TILE // (queries * key.shape[1]), 1)
        together = max(
            n for n in range(1, batch * heads + 1) if batch * heads % n == 0 and n <= most
        )
        groups = (batch * heads // together, together)
    query, key, value = (
        x.swapaxes(1, 2).reshape(*groups, -1, size) for x in (query * scale, key, value)
    )
    return _mixed(query, key, value).reshape(batch, heads, queries, size).swapaxes(1, 2)


@jax.custom_vjp
def _mixed(query: Array, key: Array, value: Array) -> Array:
    """Scaled queries [G, ..., N, d], keys and values [G, ..., M, d] -> [G, ..., N, d]; one of the G
    after another."""
    return _forward(query, key, value)[0]


def _forward(query: Array, key: Array, value: Array) -> tuple[Array, tuple[Array, ...]]:
    mixed, log_total = jax.lax.map(lambda group: _mix(*group), (query, key, value))
    return mixed, (query, key, value, mixed, log_total)


def _backward(kept: tuple[Array, ...], slope: Array) -> tuple[Array, Array, Array]:
    query, key, value, mixed, log_total = kept
    # What the softmax's gradient subtracts, the mean of the weights' slopes. As a product: XLA's
    # sum over the last axis of something computed is slow on CPU.
    both = slope.astype(jnp.float32) * mixed.astype(jnp.float32)
    mean = both @ jnp.ones((both.shape[-1], 1))
    groups = (query, key, value, log_total, mean, slope)
    return jax.lax.map(lambda group: _slopes(*group), groups)


_mixed.defvjp(_forward, _backward)


def _mix(query: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """[..., N, d], and the logarithms of the softmax's denominators [..., N, 1]."""

    def one_tile(query: Array) -> tuple[Array, Array]:
        logits = _product("...nd,...md->...nm", query, key)
        highest = logits.max(axis=-1, keepdims=True)
        weights = jnp.exp(logits - highest)
        total = weights.sum(axis=-1, keepdims=True)
        mixed = _product("...nm,...md->...nd", weights.astype(value.dtype), value) / total
        return mixed.astype(value.dtype), highest + jnp.log(total)

    tiles = jax.lax.map(one_tile, _tiles(query, key))
    return jax.tree.map(lambda x: _joined(x, query.shape[-2]), tiles)


def _slopes(
    query: Array, key: Array, value: Array, log_total: Array, mean: Array, slope: Array
) -> tuple[Array, Array, Array]:
    """The slopes of query, key and value."""

    def one_tile(sums: tuple[Array, Array], tile: tuple[Array, ...]) -> tuple[Any, Array]:
        query, log_total, mean, slope = tile
        weights = jnp.exp(_product("...nd,...md->...nm", query, key) - log_total)
        of_weights = _product("...nd,...md->...nm", slope, value)
        of_logits = (weights * (of_weights - mean)).astype(key.dtype)
        of_key = _product("...nm,...nd->...md", of_logits, query)
        of_value = _product("...nm,...nd->...md", weights.astype(slope.dtype), slope)
        of_query = _product("...nm,...md->...nd", of_logits, key)
        return (sums[0] + of_key, sums[1] + of_value), of_query.astype(query.dtype)

    start = jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
    tiles = [_tiles(x, key) for x in (query, log_total, mean, slope)]
    (of_key, of_value), of_query = jax.lax.scan(one_tile, start, tuple(tiles))
    of_query = _joined(of_query, query.shape[-2])
    return of_query, of_key.astype(key.dtype), of_value.astype(value.dtype)


_product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _tiles(x: Array, key: Array) -> Array:
    """[..., N, d] in tiles of its rows, [n, ..., rows, d], the last one filled up with zeros."""
    *heads, queries, size = x.shape
    most = max(TILE // (math.prod(heads) * key.shape[-2]), LEAST_QUERIES)
    count = -(-queries // most)
    rows = -(-queries // count)
    filled = jnp.pad(x, [(0, 0)] * len(heads) + [(0, count * rows - queries), (0, 0)])
    return jnp.moveaxis(filled.reshape(*heads, count, rows, size), -3, 0)


def _joined(tiles: Array, queries: int) -> Array:
    """What `_tiles` took apart."""
    apart = jnp.moveaxis(tiles, 0, -3)
    return apart.reshape(*apart.shape[:-3], -1, apart.shape[-1])[..., :queries, :]


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
