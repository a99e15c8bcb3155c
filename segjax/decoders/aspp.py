"""DeepLabV3+'s decoder (Chen, Zhu, Papandreou, Schroff, Adam; ECCV 2018): atrous spatial pyramid
pooling of depthwise separable convolutions, sharpened by an early map.

Facts follow open-mmlab/mmsegmentation's `DepthwiseSeparableASPPHead`.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.layers import BatchNorm, Conv, ConvNormRelu, DepthwiseConv, relu
from segjax.decoders.fcn import Classifier
from segjax.ops import resize
from segjax.structs import Array

Dtype = Any


class SeparableConv(nn.Module):
    """3x3 depthwise, then 1x1 convolution, batch norm and ReLU after each. [B, H, W, c] ->
    [B, H, W, features]."""

    features: int
    dilation: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        def norm_relu(x: Array, name: str) -> Array:
            return relu(BatchNorm(dtype=self.dtype, name=name)(x, train))

        x = DepthwiseConv(3, self.dilation, self.dtype, name="depthwise")(x)
        x = norm_relu(x, "depthwise_norm")
        x = Conv(self.features, use_bias=False, dtype=self.dtype, name="pointwise")(x)
        return norm_relu(x, "pointwise_norm")


class SeparableASPP(nn.Module):
    """One map seen at several scales: its mean, itself, and through dilated convolutions (Sec. 3.1
    there).

    Attributes:
        features: channels of every view.
        dilations: of the separable convolutions.
    """

    features: int
    dilations: tuple[int, ...] = (12, 24, 36)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, H, W, C] -> [B, H, W, (2 + len(dilations)) * features]."""
        mean = x.astype(jnp.float32).mean((1, 2), keepdims=True).astype(self.dtype)
        mean = ConvNormRelu(self.features, dtype=self.dtype, name="image_pool")(mean, train)
        views = [jnp.broadcast_to(mean, (*x.shape[:3], self.features))]
        views.append(ConvNormRelu(self.features, dtype=self.dtype, name="view_0")(x, train))
        for i, dilation in enumerate(self.dilations, 1):
            conv = SeparableConv(self.features, dilation, self.dtype, name=f"view_{i}")
            views.append(conv(x, train))
        return jnp.concatenate(views, axis=-1)


class SeparableASPPHead(nn.Module):
    """`SeparableASPP` on a deep map, enlarged to and joined with an early one.

    Attributes:
        classes: K.
        features: channels of every layer on the deep map and after.
        early_features: channels that the early map is reduced to.
        dilations: see `SeparableASPP`.
        dropout: see `Classifier`.
    """

    classes: int
    features: int = 512
    early_features: int = 48
    dilations: tuple[int, ...] = (12, 24, 36)
    dropout: float = 0.1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, early: Array, deep: Array, train: bool) -> Array:
        """Two maps -> scores.

        Args:
            early: [B, h, w, c].
            deep: [B, H, W, C], of a coarser grid.
            train: batch statistics, and dropout from the rng "dropout".

        Returns:
            [B, h, w, K] float32.
        """
        dtype = self.dtype
        views = SeparableASPP(self.features, self.dilations, dtype, name="aspp")(deep, train)
        x = ConvNormRelu(self.features, 3, dtype, name="bottleneck")(views, train)
        detail = ConvNormRelu(self.early_features, 1, dtype, name="early_bottleneck")(early, train)
        x = jnp.concatenate([resize.bilinear(x, early.shape[1:3]), detail], axis=-1)
        for i in range(2):
            x = SeparableConv(self.features, dtype=dtype, name=f"fusion_{i}")(x, train)
        return Classifier(self.classes, self.dropout, dtype, name="classifier")(x, train)
