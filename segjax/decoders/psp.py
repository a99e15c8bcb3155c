"""Pyramid pooling (Zhao, Shi, Qi, Wang, Jia; PSPNet, CVPR 2017)."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.layers import ConvNormRelu
from segjax.ops import pooling, resize
from segjax.structs import Array

Dtype = Any


class PyramidPooling(nn.Module):
    """A map beside what it looks like on coarser and coarser grids (Sec. 3.2).

    Attributes:
        features: channels of each grid.
        sizes: cells per side of each grid.
    """

    features: int
    sizes: tuple[int, ...] = (1, 2, 3, 6)
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, H, W, C] -> [B, H, W, C + len(sizes) * features]: the map itself, then the grids."""
        grids = [x.astype(self.dtype)]
        for i, size in enumerate(self.sizes):
            conv = ConvNormRelu(self.features, dtype=self.dtype, name=f"grid_{i}")
            grid = conv(pooling.adaptive_average(x, (size, size)), train)
            grids.append(resize.bilinear(grid, x.shape[1:3]))
        return jnp.concatenate(grids, axis=-1)
