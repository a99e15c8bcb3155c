"""MaskFormer's pixel decoders (Cheng et al., NeurIPS 2021, Sec. 3.3): from backbone levels to one
map of mask features at stride 4.

Facts follow github.com/facebookresearch/MaskFormer.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.layers import Conv, relu
from segjax.decoders.transformer import EncoderLayer
from segjax.ops import resize
from segjax.ops.position import sine_position
from segjax.structs import Array

Dtype = Any

NORM_EPSILON = 1e-5


caffe_xavier = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
"""U(-sqrt(3 / fan_in), sqrt(3 / fan_in)): Caffe2's Xavier, detectron2's choice for decoders."""


class ConvGroupNorm(nn.Module):
    """k x k convolution, group norm of 32 groups (8 channels each at 256).

    Attributes:
        use_bias: of the convolution.
    """

    features: int
    kernel_size: int = 1
    use_bias: bool = False
    kernel_init: nn.initializers.Initializer = caffe_xavier
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = Conv(
            self.features,
            self.kernel_size,
            self.use_bias,
            dtype=self.dtype,
            kernel_init=self.kernel_init,
            name="conv",
        )
        norm = nn.GroupNorm(
            32 if self.features % 32 == 0 else self.features // 8,
            epsilon=NORM_EPSILON,
            dtype=self.dtype,
            use_fast_variance=False,
            name="norm",
        )
        return norm(conv(x))


class FPNPixelDecoder(nn.Module):
    """{"res2".."res5"} -> mask features [B, H/4, W/4, mask_features].

    Attributes:
        features: channels inside.
        mask_features: channels of the result.
    """

    features: int = 256
    mask_features: int = 256
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, levels: Mapping[str, Array]) -> Array:
        block = functools.partial(ConvGroupNorm, self.features, dtype=self.dtype)
        x = relu(block(3, name="layer_4")(levels["res5"]))
        for k in (3, 2, 1):
            lateral = block(1, name=f"adapter_{k}")(levels[f"res{k + 1}"])
            x = lateral + resize.nearest(x, lateral.shape[1:3])
            x = relu(block(3, name=f"layer_{k}")(x))
        last = Conv(
            self.mask_features,
            3,
            dtype=self.dtype,
            kernel_init=caffe_xavier,
            name="mask_features",
        )
        return last(x)


class TransformerEncoderPixelDecoder(nn.Module):
    """The FPN with a transformer encoder on its coarsest level (Sec. 4.3, "+6 Enc").

    {"res2".."res5"} -> mask features [B, H/4, W/4, mask_features] and the encoder's output
    [B, H/32, W/32, features].

    Attributes:
        layers: of the encoder.
    """

    features: int = 256
    mask_features: int = 256
    layers: int = 6
    heads: int = 8
    hidden: int = 2048
    dropout: float = 0.1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, levels: Mapping[str, Array], rng: Array | None = None
    ) -> tuple[Array, Array]:
        project = Conv(self.features, dtype=self.dtype, kernel_init=caffe_xavier, name="input_proj")
        x = project(levels["res5"])
        batch, height, width, channels = x.shape
        position = sine_position((height, width), channels // 2).reshape(-1, channels)
        x = x.reshape(batch, height * width, channels)
        for i in range(self.layers):
            layer = EncoderLayer(
                self.heads, self.hidden, self.dropout, self.dtype, name=f"encoder_{i}"
            )
            keys = None if rng is None else jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(rng)
            x = layer(x, position.astype(x.dtype), keys)
        memory = x.reshape(batch, height, width, channels)
        pyramid = FPNPixelDecoder(self.features, self.mask_features, self.dtype, name="fpn")
        return pyramid({**levels, "res5": memory}), memory
