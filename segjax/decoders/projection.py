"""The projection of a map to an embedding of its positions, for losses that compare pixels."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.layers import BatchNorm, Conv
from segjax.structs import Array

Dtype = Any

EPSILON = 1e-12
"""Below this an embedding is divided by it instead of by its length."""

lecun_uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
"""U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)): what torch starts convolutions with."""


class Projection(nn.Module):
    """1x1 convolution, batch norm, ReLU, 1x1 convolution, then unit length (HSSN, CVPR 2022, Sec.
    3.3; its code's `proj_head`, whose biases start as its kernels do and here at 0).

    Attributes:
        features: channels of the hidden layer; None for as many as the map has, as in that code.
        out: C' of the embedding.
    """

    features: int | None = None
    out: int = 256
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, H, W, C] -> float32 [B, H, W, C'], each position of length 1."""

        def conv(features: int, name: str, x: Array) -> Array:
            return Conv(features, dtype=self.dtype, kernel_init=lecun_uniform, name=name)(x)

        x = conv(self.features or x.shape[-1], "conv_0", x)
        x = BatchNorm(dtype=self.dtype, name="norm")(x, train)
        x = conv(self.out, "conv_1", nn.relu(x)).astype(jnp.float32)
        square = jnp.square(x).sum(axis=-1, keepdims=True)
        return x * jax.lax.rsqrt(jnp.maximum(square, EPSILON**2))
