"""DeepLabV3+: Encoder-Decoder with Atrous Separable Convolution (Chen, Zhu, Papandreou, Schroff,
Adam; ECCV 2018) on a ResNet of output stride 8, as mmsegmentation builds and trains it.

The last stage is seen at several scales, the first one sharpens the result, and an auxiliary head
on the third helps training. HSSN (CVPR 2022) takes it as its base.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.resnet import ResNet
from segjax.decoders.aspp import SeparableASPPHead
from segjax.decoders.fcn import FCNHead
from segjax.structs import Array
from segjax.systems.labelling import Output, System, make_resnet
from segjax.systems.preprocess import IMAGENET_MEAN, IMAGENET_STD

Dtype = Any

AUXILIARY_WEIGHT = 0.4


class DeepLabV3Plus(nn.Module):
    """Attributes:
    backbone: the ResNet.
    classes: K.
    auxiliary_classes: K' of the auxiliary head.
    features: channels of the decoder.
    early_features: channels that the first stage's map is reduced to.
    dilations: of the decoder's pyramid.
    auxiliary_features: channels of the auxiliary head.
    dropout: share of channels that training drops before both classifiers.
    """

    backbone: ResNet
    classes: int
    auxiliary_classes: int
    features: int
    early_features: int
    dilations: tuple[int, ...]
    auxiliary_features: int
    dropout: float
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        shared = dict(dropout=self.dropout, dtype=self.dtype)
        self.head = SeparableASPPHead(
            self.classes, self.features, self.early_features, self.dilations, **shared
        )
        self.auxiliary = FCNHead(self.auxiliary_classes, self.auxiliary_features, **shared)

    def __call__(self, image: Array, train: bool = False, with_auxiliary: bool = False) -> Output:
        """Normalised image [B, H, W, 3] -> Output.

        Args:
            image: see above.
            train: batch statistics, dropout from the rng "dropout", and the auxiliary head.
            with_auxiliary: the auxiliary head also in evaluation.

        Returns:
            `features` is the last stage's map, [B, H/8, W/8, 32 * width].
        """
        levels = self.backbone(image, train)
        scores = self.head(levels["res2"], levels["res5"], train)
        auxiliary = ()
        if train or with_auxiliary or self.is_initializing():
            auxiliary = (self.auxiliary(levels["res4"], train),)
        return Output(scores, auxiliary, levels["res5"])


def build(
    *,
    classes: int,
    backbone: str | Mapping[str, Any] = "resnet101_v1d",
    auxiliary_classes: int | None = None,
    features: int = 512,
    early_features: int = 48,
    dilations: tuple[int, ...] = (12, 24, 36),
    auxiliary_features: int = 256,
    dropout: float = 0.1,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    dtype: str = "float32",
    remat: bool = False,
    loss_over: str = "all",
) -> System:
    """DeepLabV3+ from plain values. The loss is the cross entropy of the head, and 0.4 times that
    of the auxiliary head.

    Args:
        classes: K.
        backbone: see `labelling.make_resnet`.
        auxiliary_classes: of the auxiliary head; None means `classes`.
        features, early_features, auxiliary_features: channels of the decoder, of the first stage
            within it, and of the auxiliary head.
        dilations: of the decoder's pyramid.
        dropout: share of channels dropped before both classifiers.
        mean, std: per channel (RGB, on 0..255).
        dtype: of the computation; parameters, statistics, softmax and loss stay float32.
        remat: recompute each bottleneck of the backbone in the backward pass.
        loss_over: "all" or "valid", the loss denominator.

    Raises:
        SegjaxError: a value doesn't fit.
    """
    module = DeepLabV3Plus(
        make_resnet(backbone, dtype, remat),
        classes,
        classes if auxiliary_classes is None else auxiliary_classes,
        features,
        early_features,
        tuple(dilations),
        auxiliary_features,
        dropout,
        jnp.dtype(dtype),
    )
    return System(module, AUXILIARY_WEIGHT, tuple(mean), tuple(std), loss_over)
