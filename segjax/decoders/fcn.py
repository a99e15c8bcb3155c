"""The fully convolutional head (Long, Shelhamer, Darrell; CVPR 2015) in mmsegmentation's form.

Here it is the auxiliary head of SETR-MLA and UPerNet. Its last layer, `Classifier`, ends every
decoder of this package.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.layers import Conv, ConvNormRelu
from segjax.structs import Array

Dtype = Any


class FCNHead(nn.Module):
    """Convolutions with batch norm and ReLU, then a classifier.

    Attributes:
        classes: K.
        features: channels of the convolutions.
        convs: how many; 0 leaves the classifier alone.
        kernel_size: k of each.
        dropout: see `Classifier`.
    """

    classes: int
    features: int = 256
    convs: int = 1
    kernel_size: int = 3
    dropout: float = 0.1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, H, W, C] -> float32 scores [B, H, W, K]. Training draws from the rng "dropout"."""
        for i in range(self.convs):
            conv = ConvNormRelu(self.features, self.kernel_size, self.dtype, name=f"conv_{i}")
            x = conv(x, train)
        return Classifier(self.classes, self.dropout, self.dtype, name="classifier")(x, train)


class Classifier(nn.Module):
    """One linear map per position, after dropout of whole channels (torch's `Dropout2d`).

    Attributes:
        classes: K.
        dropout: share of the channels of each image that training drops.
    """

    classes: int
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, H, W, C] -> float32 scores [B, H, W, K]. Training draws from the rng "dropout"."""
        x = nn.Dropout(self.dropout, broadcast_dims=(1, 2))(x, deterministic=not train)
        init = nn.initializers.normal(0.01)
        x = Conv(self.classes, dtype=self.dtype, kernel_init=init, name="conv")(x)
        return x.astype(jnp.float32)
