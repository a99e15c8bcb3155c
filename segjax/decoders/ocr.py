"""Object-contextual representations (Yuan, Chen, Wang; OCRNet, ECCV 2020): every pixel asks the
classes of its image what they look like.

Facts follow open-mmlab/mmsegmentation's `OCRHead`.
"""

from __future__ import annotations

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.layers import ConvNormRelu
from segjax.decoders.fcn import Classifier
from segjax.structs import Array

Dtype = Any


class OCRHead(nn.Module):
    """A map and coarse class scores to better scores.

    Attributes:
        classes: K.
        features: C' of the map that is classified.
        key_features: channels of the attention between pixels and classes.
    """

    classes: int
    features: int = 512
    key_features: int = 256
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, coarse: Array, train: bool) -> Array:
        """Map and coarse scores -> scores.

        Args:
            x: [B, H, W, C].
            coarse: [B, H, W, k] float32 class scores of another head.
            train: batch statistics.

        Returns:
            [B, H, W, K] float32. The k object representations are sown as "objects" into the
            collection "intermediates", [B, k, C'].
        """
        x = ConvNormRelu(self.features, 3, self.dtype, name="bottleneck")(x, train)
        objects = object_representations(x, coarse)
        self.sow("intermediates", "objects", objects)
        attention = ObjectAttention(self.features, self.key_features, self.dtype, name="attention")
        x = attention(x, objects, train)
        return Classifier(self.classes, dtype=self.dtype, name="classifier")(x, train)


def object_representations(x: Array, coarse: Array) -> Array:
    """For each class the mean of the map over the image, weighted by a softmax of its scores over
    all pixels (Sec. 3.2 there).

    Args:
        x: [B, H, W, C].
        coarse: [B, H, W, K] logits.

    Returns:
        [B, K, C] of x's dtype; the softmax is computed in float32.
    """
    chex.assert_equal_shape_prefix((x, coarse), 3)
    share = jax.nn.softmax(coarse.astype(jnp.float32), axis=(1, 2))
    return jnp.einsum("bhwk,bhwc->bkc", share.astype(x.dtype), x)


class ObjectAttention(nn.Module):
    """Each pixel attends to the objects; what it finds is joined with its own features (Sec. 3.2
    there).

    Attributes:
        features: channels of the result.
        key_features: channels of queries, keys and values.
    """

    features: int
    key_features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, objects: Array, train: bool) -> Array:
        """Pixels [B, H, W, C] and objects [B, K, C] -> [B, H, W, features]."""

        def conv(features: int, name: str, x: Array) -> Array:
            return ConvNormRelu(features, dtype=self.dtype, name=name)(x, train)

        inner = self.key_features
        objects = objects[:, None]
        query, key = x, objects
        for i in range(2):
            query, key = conv(inner, f"query_{i}", query), conv(inner, f"key_{i}", key)
        value = conv(inner, "value", objects)
        similarity = jnp.einsum(
            "bhwc,bkc->bhwk", query, key[:, 0], preferred_element_type=jnp.float32
        )
        share = jax.nn.softmax(similarity * inner**-0.5, axis=-1).astype(self.dtype)
        context = conv(self.features, "out", jnp.einsum("bhwk,bkc->bhwc", share, value[:, 0]))
        return conv(self.features, "bottleneck", jnp.concatenate([context, x], axis=-1))
