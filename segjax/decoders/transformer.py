"""Post-norm transformer layers on queries and maps, as DETR (Carion et al., ECCV 2020) has them and
MaskFormer and Mask2Former use them; facts follow torch.nn.MultiheadAttention.

Tokens are [B, N, C]. Dropout needs `rng`, one key per image, [B]: what is dropped then depends
neither on how a batch is sliced nor on how it is sharded. None drops nothing.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.layers import LayerNorm
from segjax.ops.attention import attention, masked_attention
from segjax.structs import Array

Dtype = Any

NORM_EPSILON = 1e-5

xavier = nn.initializers.xavier_uniform()


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), what torch starts linear layers and their biases with."""
    bound = fan_in**-0.5

    def init(key: Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Linear(nn.Module):
    """[..., c] -> [..., features]; torch's initial bias, and torch's or a given kernel."""

    features: int
    kernel_init: nn.initializers.Initializer | None = None
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        default = torch_uniform(x.shape[-1])
        kernel = self.param(
            "kernel", self.kernel_init or default, (x.shape[-1], self.features), jnp.float32
        )
        bias = self.param("bias", default, (self.features,), jnp.float32)
        return x.astype(self.dtype) @ kernel.astype(self.dtype) + bias.astype(self.dtype)


def dropped(x: Array, rate: float, rng: Array | None, place: int) -> Array:
    """Dropout with one key per image. `place` tells apart the uses of one key."""
    if rng is None or not rate:
        return x
    keep = jax.vmap(
        lambda key: jax.random.bernoulli(jax.random.fold_in(key, place), 1 - rate, x.shape[1:])
    )(rng)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


class MultiHeadAttention(nn.Module):
    """Queries [B, N, C], keys and values [B, M, C] -> [B, N, C].

    Attributes:
        heads: each works on C / heads channels that lie together.
        dropout: of the attention weights.
    """

    heads: int
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        query: Array,
        key: Array,
        value: Array,
        forbidden: Array | None = None,
        rng: Array | None = None,
    ) -> Array:
        """`forbidden`: bool [B, N, M], keys that a query may not see; see `masked_attention`."""
        kernel, bias = InProjection(self.heads, name="in_proj")(query.shape[-1])
        query, key, value = (
            jnp.einsum("bnc,chd->bnhd", x.astype(self.dtype), kernel[:, i].astype(self.dtype))
            + bias[i].astype(self.dtype)
            for i, x in enumerate((query, key, value))
        )
        if self.dropout and rng is not None:
            logits = jnp.einsum("bnhd,bmhd->bhnm", query * query.shape[-1] ** -0.5, key)
            logits = logits.astype(jnp.float32)
            if forbidden is not None:  # as in `masked_attention`
                forbidden = forbidden & ~forbidden.all(axis=-1, keepdims=True)
                logits = jnp.where(forbidden[:, None], -jnp.inf, logits)
            weights = jax.nn.softmax(logits, axis=-1)
            weights = dropped(weights, self.dropout, rng, 0).astype(value.dtype)
            mixed = jnp.einsum("bhnm,bmhd->bnhd", weights, value)
        elif forbidden is not None:
            mixed = masked_attention(query, key, value, forbidden)
        else:
            mixed = attention(query, key, value)
        channels = query.shape[-2] * query.shape[-1]
        out = nn.DenseGeneral(
            channels, axis=(-2, -1), kernel_init=xavier, dtype=self.dtype, name="out_proj"
        )
        return out(mixed)


class InProjection(nn.Module):
    """The kernel [C, 3, heads, C / heads] and bias of queries, keys and values, made as one
    matrix."""

    heads: int

    @nn.compact
    def __call__(self, channels: int) -> tuple[Array, Array]:
        shape = (3, self.heads, channels // self.heads)

        def init(key: Array, shape: tuple[int, ...], dtype: Dtype) -> Array:
            return xavier(key, (channels, 3 * channels), dtype).reshape(shape)

        kernel = self.param("kernel", init, (channels, *shape), jnp.float32)
        return kernel, self.param("bias", nn.initializers.zeros, shape, jnp.float32)


class FeedForward(nn.Module):
    """Two linear layers with a ReLU between."""

    hidden: int
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, rng: Array | None = None) -> Array:
        linear = functools.partial(Linear, kernel_init=xavier, dtype=self.dtype)
        hidden = nn.relu(linear(self.hidden, name="linear1")(x))
        return linear(x.shape[-1], name="linear2")(dropped(hidden, self.dropout, rng, 0))


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, each normalised after its sum."""

    heads: int = 8
    hidden: int = 2048
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, position: Array, rng: Array | None = None) -> Array:
        """`position` joins queries and keys, not values."""
        keys = _spread(rng, 4)
        norm = functools.partial(LayerNorm, NORM_EPSILON, dtype=self.dtype)
        attend = MultiHeadAttention(self.heads, self.dropout, self.dtype, name="self_attention")
        place = x + position
        mixed = attend(place, place, x, rng=keys[0])
        x = norm(name="self_norm")(x + dropped(mixed, self.dropout, keys[1], 0))
        ffn = FeedForward(self.hidden, self.dropout, self.dtype, name="ffn")
        return norm(name="ffn_norm")(x + dropped(ffn(x, keys[2]), self.dropout, keys[3], 0))


class DecoderLayer(nn.Module):
    """Cross-attention to a memory, self-attention, feed-forward; normalised after each sum.

    Attributes:
        cross_first: the memory is read before the queries look at each other (Mask2Former,
            Sec. 3.2.2), or after (DETR, MaskFormer).
    """

    cross_first: bool
    heads: int = 8
    hidden: int = 2048
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Array,
        query_position: Array,
        memory: Array,
        memory_position: Array,
        forbidden: Array | None = None,
        rng: Array | None = None,
    ) -> Array:
        """Args:
        x: [B, N, C] queries.
        query_position: [N, C], joins the queries of both attentions and the keys of the second.
        memory: [B, M, C].
        memory_position: [M, C], joins the keys.
        forbidden: bool [B, N, M] of the cross-attention.
        """
        keys = _spread(rng, 6)
        norm = functools.partial(LayerNorm, NORM_EPSILON, dtype=self.dtype)
        attention = functools.partial(
            MultiHeadAttention, self.heads, self.dropout, dtype=self.dtype
        )

        def cross(x: Array) -> Array:
            attend = attention(name="cross_attention")
            key = memory + memory_position
            mixed = attend(x + query_position, key, memory, forbidden, keys[0])
            return norm(name="cross_norm")(x + dropped(mixed, self.dropout, keys[1], 0))

        def among(x: Array) -> Array:
            attend, place = attention(name="self_attention"), x + query_position
            mixed = attend(place, place, x, rng=keys[2])
            return norm(name="self_norm")(x + dropped(mixed, self.dropout, keys[3], 0))

        x = among(cross(x)) if self.cross_first else cross(among(x))
        ffn = FeedForward(self.hidden, self.dropout, self.dtype, name="ffn")
        return norm(name="ffn_norm")(x + dropped(ffn(x, keys[4]), self.dropout, keys[5], 0))


class MaskEmbedding(nn.Module):
    """Three linear layers with ReLUs between: [B, N, C] -> [B, N, features]."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        for i, features in enumerate((width, width, self.features)):
            x = Linear(features, dtype=self.dtype, name=f"linear_{i}")(nn.relu(x) if i else x)
        return x


def mask_product(embedding: Array, features: Array) -> Array:
    """How much every pixel agrees with every query: [B, Q, C], [B, h, w, C] -> float32
    [B, h, w, Q]."""
    batch, height, width, channels = features.shape
    flat = features.reshape(batch, height * width, channels)
    masks = jnp.einsum("bpc,bqc->bpq", flat, embedding, preferred_element_type=jnp.float32)
    return masks.reshape(batch, height, width, -1)


def _spread(rng: Array | None, count: int) -> list[Array | None]:
    """`count` independent keys for every image."""
    if rng is None:
        return [None] * count
    return [jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(rng) for i in range(count)]
