"""Mask2Former's pixel decoder: multi-scale deformable attention over three levels (Deformable DETR,
Zhu et al., ICLR 2021), then one step of FPN to stride 4.

Facts follow github.com/facebookresearch/Mask2Former, which computes all of it in float32.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from segjax.backbones.layers import Conv, LayerNorm, relu
from segjax.decoders.fpn_pixel import NORM_EPSILON, ConvGroupNorm, caffe_xavier
from segjax.decoders.transformer import FeedForward, xavier
from segjax.ops import deformable, resize
from segjax.ops.position import sine_position
from segjax.structs import Array, Size

Dtype = Any


class MSDeformAttention(nn.Module):
    """Every query looks at a few points of every level, at places and with weights that it chooses.

    Attributes:
        heads, points: of each head on each level.
    """

    heads: int = 8
    points: int = 4
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, query: Array, source: Array, reference: Array, shapes: Sequence[Size]
    ) -> Array:
        """Args:
            query: [B, N, C], with its position.
            source: [B, S, C], all levels one after another, each row by row.
            reference: [N, 2], (x, y) in 0..1 that the offsets start from, the same on all levels.
            shapes: (height, width) of each level.

        Returns:
            [B, N, C].
        """
        batch, count, channels = query.shape
        levels = len(shapes)
        grid = (self.heads, levels, self.points)
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        value = dense(channels, kernel_init=xavier, name="value_proj")(source)
        zeros = nn.initializers.zeros
        offsets = dense(
            math.prod(grid) * 2,
            kernel_init=zeros,
            bias_init=lambda *_: jnp.asarray(_star(*grid)).reshape(-1),
            name="sampling_offsets",
        )(query)
        weights = dense(math.prod(grid), kernel_init=zeros, name="attention_weights")(query)
        # The softmax runs over levels and points together.
        weights = jax.nn.softmax(
            weights.astype(jnp.float32).reshape(batch, count, self.heads, -1), axis=-1
        ).reshape(batch, count, *grid)
        offsets = offsets.astype(jnp.float32).reshape(batch, count, *grid, 2)
        extents = np.array([(width, height) for height, width in shapes], np.float32)
        locations = reference[None, :, None, None, None] + offsets / extents[:, None]
        mixed = deformable.sample(
            value.reshape(batch, -1, self.heads, channels // self.heads),
            tuple(shapes),
            locations,
            weights,
        )
        return dense(channels, kernel_init=xavier, name="output_proj")(mixed.astype(self.dtype))


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward, each normalised after its sum."""

    heads: int = 8
    points: int = 4
    hidden: int = 1024
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, position: Array, reference: Array, shapes: Sequence[Size]
    ) -> Array:
        """`x`: [B, S, C] of all levels; `position`: [S, C]; `reference`: [S, 2]."""
        norm = functools.partial(LayerNorm, NORM_EPSILON, dtype=self.dtype)
        attend = MSDeformAttention(self.heads, self.points, self.dtype, name="attention")
        x = norm(name="self_norm")(x + attend(x + position, x, reference, shapes))
        return norm(name="ffn_norm")(x + FeedForward(self.hidden, dtype=self.dtype, name="ffn")(x))


class MSDeformPixelDecoder(nn.Module):
    """{"res2".."res5"} -> (mask features [B, H/4, W/4, mask_features], three maps of `features`
    channels at strides 32, 16 and 8) (Mask2Former, Sec. 3.2 and 4.1).

    Attributes:
        layers: of the deformable encoder.
        hidden: of its feed-forward parts.
    """

    features: int = 256
    mask_features: int = 256
    layers: int = 6
    heads: int = 8
    points: int = 4
    hidden: int = 1024
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, levels: Mapping[str, Array]) -> tuple[Array, list[Array]]:
        block = functools.partial(ConvGroupNorm, self.features, dtype=self.dtype)
        maps = [
            block(use_bias=True, kernel_init=xavier, name=f"input_proj_{i}")(
                levels[name].astype(self.dtype)
            )
            for i, name in enumerate(("res5", "res4", "res3"))
        ]
        shapes = [tuple(x.shape[1:3]) for x in maps]
        embedding = self.param(
            "level_embed", nn.initializers.normal(1.0), (len(maps), self.features), jnp.float32
        )
        position = jnp.concatenate(
            [
                sine_position(shape, self.features // 2).reshape(-1, self.features) + embedding[i]
                for i, shape in enumerate(shapes)
            ]
        ).astype(self.dtype)
        batch = maps[0].shape[0]
        x = jnp.concatenate([x.reshape(batch, -1, self.features) for x in maps], axis=1)
        reference = reference_points(shapes)
        for i in range(self.layers):
            layer = DeformableEncoderLayer(
                self.heads, self.points, self.hidden, self.dtype, name=f"encoder_{i}"
            )
            x = layer(x, position, reference, shapes)
        ends = np.cumsum([height * width for height, width in shapes])
        maps = [
            part.reshape(batch, *shape, self.features)
            for part, shape in zip(jnp.split(x, ends[:-1], axis=1), shapes)
        ]
        lateral = block(1, name="adapter_1")(levels["res2"].astype(self.dtype))
        # A comment in the source says nearest; the code resizes bilinearly.
        fine = lateral + resize.bilinear(maps[-1], lateral.shape[1:3])
        fine = relu(block(3, name="layer_1")(fine))
        last = Conv(
            self.mask_features, dtype=self.dtype, kernel_init=caffe_xavier, name="mask_features"
        )
        return last(fine), maps


def reference_points(shapes: Sequence[Size]) -> Array:
    """[S, 2]: the centre (x, y) of every pixel of every level, in 0..1."""

    def centres(shape: Size) -> Array:
        y, x = ((jnp.arange(n, dtype=jnp.float32) + 0.5) / n for n in shape)
        return jnp.stack(jnp.broadcast_arrays(x[None, :], y[:, None]), axis=-1).reshape(-1, 2)

    return jnp.concatenate([centres(shape) for shape in shapes])


def _star(heads: int, levels: int, points: int) -> np.ndarray:
    """float32 [heads, levels, points, 2]: head h looks in direction 2 pi h / heads, its points 1,
    2, ... pixels away along the longer axis."""
    angle = 2 * math.pi * np.arange(heads) / heads
    direction = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    direction /= np.abs(direction).max(axis=-1, keepdims=True)
    steps = np.arange(1, points + 1)[:, None] * direction[:, None]
    return np.broadcast_to(steps[:, None], (heads, levels, points, 2)).astype(np.float32)
