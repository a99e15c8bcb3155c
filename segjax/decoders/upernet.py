"""UPerNet's head (Xiao, Liu, Zhou, Jiang, Sun; Unified Perceptual Parsing, ECCV 2018), and the neck
that makes a pyramid of a plain ViT's maps for it.

Facts follow mmsegmentation 0.17 (github.com/open-mmlab/mmsegmentation).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.layers import Conv, ConvNormRelu
from segjax.decoders.fcn import Classifier
from segjax.decoders.psp import PyramidPooling
from segjax.ops import resize
from segjax.structs import Array

Dtype = Any


class MultiLevelNeck(nn.Module):
    """Maps of one size to maps of several: 1x1 convolution, bilinear resize, 3x3 convolution.

    Attributes:
        features: channels of every result.
        factors: size of each result by the size of its map. An odd size is halved as torch halves
            it, see `resize.bilinear_by_factor`.
    """

    features: int
    factors: tuple[float, ...] = (4, 2, 1, 0.5)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array]) -> list[Array]:
        """One map [B, H, W, C] per factor -> as many [B, H * factor, W * factor, features]."""
        init = nn.initializers.xavier_uniform()
        results = []
        for i, (x, factor) in enumerate(zip(maps, self.factors, strict=True)):
            lateral = Conv(self.features, dtype=self.dtype, kernel_init=init, name=f"lateral_{i}")
            conv = Conv(self.features, 3, dtype=self.dtype, kernel_init=init, name=f"conv_{i}")
            results.append(conv(resize.bilinear_by_factor(lateral(x), factor)))
        return results


class UPerHead(nn.Module):
    """Pyramid pooling on the coarsest map, a feature pyramid over all, one fused map (Sec. 3.1).

    Attributes:
        classes: K.
        features: channels of every layer.
        pool_sizes: see `PyramidPooling`.
        dropout: see `Classifier`.
    """

    classes: int
    features: int = 512
    pool_sizes: tuple[int, ...] = (1, 2, 3, 6)
    dropout: float = 0.1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array], train: bool) -> Array:
        """Maps -> scores.

        Args:
            maps: [B, h, w, C] each, of any sizes and channels, the finest first.
            train: batch statistics, and dropout from the rng "dropout".

        Returns:
            [B, h, w, K] float32 of the first map's size.
        """

        def conv(name: str, kernel_size: int, x: Array) -> Array:
            layer = ConvNormRelu(self.features, kernel_size, dtype=self.dtype, name=name)
            return layer(x, train)

        *finer, coarsest = maps
        pooled = PyramidPooling(self.features, self.pool_sizes, self.dtype, name="pooling")(
            coarsest, train
        )
        levels = [conv(f"lateral_{i}", 1, x) for i, x in enumerate(finer)]
        levels.append(conv("bottleneck", 3, pooled))
        for i in reversed(range(len(finer))):
            levels[i] = levels[i] + resize.bilinear(levels[i + 1], levels[i].shape[1:3])
        levels[:-1] = [conv(f"fpn_{i}", 3, x) for i, x in enumerate(levels[:-1])]
        finest = levels[0].shape[1:3]
        fused = jnp.concatenate([resize.bilinear(x, finest) for x in levels], axis=-1)
        x = conv("fusion", 3, fused)
        return Classifier(self.classes, self.dropout, self.dtype, name="classifier")(x, train)
