"""Hybrid ViTs: a BiT-style ResNet before the transformer (AugReg R26+S/32 and R50+L/32, Steiner et
al., TMLR 2022).

The stem is timm's `resnetv2` in its non-pre-activation form: weight-standardised convolutions
without bias, TF "SAME" padding, group norm.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.layers import relu
from segjax.ops import convolution
from segjax.structs import Array

Dtype = Any

VARIANTS = {
    "vit_r26_s32": dict(width=384, depth=12, heads=6, patch=32, stem_depths=(2, 2, 2, 2)),
    "vit_r50_l32": dict(width=1024, depth=24, heads=16, patch=32, stem_depths=(3, 4, 6, 3)),
}


class ResNetStem(nn.Module):
    """[B, H, W, 3] -> [B, ceil(H/32), ceil(W/32), 2048]; the four stages have widths 256, 512,
    1024, 2048.

    The outputs of the max pool and of each stage are sown in "intermediates" as "stem" and
    "stage_i".
    """

    depths: tuple[int, ...]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = StandardizedConv(64, 7, stride=2, dtype=self.dtype, name="conv")(x)
        x = relu(group_norm(dtype=self.dtype, name="norm")(x))
        x = nn.max_pool(x, (3, 3), (2, 2), padding="SAME")
        self.sow("intermediates", "stem", x)
        for stage, depth in enumerate(self.depths):
            for block in range(depth):
                x = Bottleneck(
                    features=256 * 2**stage,
                    stride=2 if stage > 0 and block == 0 else 1,
                    project=block == 0,
                    dtype=self.dtype,
                    name=f"stage{stage}_block{block}",
                )(x)
            self.sow("intermediates", f"stage_{stage}", x)
        return x


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride), 1x1, then the shortcut; group norm after each convolution."""

    features: int
    stride: int
    project: bool
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        conv = functools.partial(StandardizedConv, dtype=self.dtype)
        norm = functools.partial(group_norm, dtype=self.dtype)
        shortcut = x
        if self.project:
            shortcut = conv(self.features, 1, stride=self.stride, name="shortcut")(x)
            shortcut = norm(name="shortcut_norm")(shortcut)
        x = relu(norm(name="norm1")(conv(self.features // 4, 1, name="conv1")(x)))
        x = relu(
            norm(name="norm2")(conv(self.features // 4, 3, stride=self.stride, name="conv2")(x))
        )
        x = norm(name="norm3")(conv(self.features, 1, name="conv3")(x))
        return relu(x + shortcut)


class StandardizedConv(nn.Module):
    """Convolution without bias whose kernel is standardised per output channel (Qiao et al., 2019),
    epsilon 1e-8."""

    features: int
    kernel_size: int
    stride: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        k, s = self.kernel_size, self.stride
        kernel = self.param(
            "kernel",
            nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            (k, k, x.shape[-1], self.features),
            jnp.float32,
        )
        kernel = convolution.standardize(kernel, epsilon=1e-8).astype(self.dtype)
        if (
            k == 1
        ):  # SAME needs no padding here, and a matrix product is faster than a 1x1 convolution
            return x[:, ::s, ::s] @ kernel[0, 0]
        return jax.lax.conv_general_dilated(
            x, kernel, (s, s), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


group_norm = functools.partial(nn.GroupNorm, num_groups=32, epsilon=1e-5, use_fast_variance=False)
