"""OCRNet: Object-Contextual Representations for Semantic Segmentation (Yuan, Chen, Wang; ECCV 2020)
on HRNet, as mmsegmentation builds and trains it.

A coarse head says roughly where each class is; the pixels of a class make its representation, and
every pixel asks those of all classes. HSSN (CVPR 2022) takes it as one of its bases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.hrnet import HRNet
from segjax.decoders.fcn import FCNHead
from segjax.decoders.ocr import OCRHead
from segjax.ops import resize
from segjax.structs import Array
from segjax.systems.labelling import Output, System, make_hrnet
from segjax.systems.preprocess import IMAGENET_MEAN, IMAGENET_STD

Dtype = Any

COARSE_WEIGHT = 0.4


class OCRNet(nn.Module):
    """Attributes:
    backbone: the HRNet.
    classes: K, of both heads.
    features: channels of the OCR head.
    key_features: channels of its attention.
    """

    backbone: HRNet
    classes: int
    features: int
    key_features: int
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        branches = 1 + len(self.backbone.modules)
        concatenated = self.backbone.width * (2**branches - 1)
        self.coarse = FCNHead(
            self.classes, concatenated, kernel_size=1, dropout=0.0, dtype=self.dtype
        )
        self.head = OCRHead(self.classes, self.features, self.key_features, dtype=self.dtype)

    def __call__(self, image: Array, train: bool = False) -> Output:
        """Normalised image [B, H, W, 3] -> Output.

        `features` are all branches at stride 4, [B, H/4, W/4, 15 * width]; `auxiliary` the coarse
        scores, also in evaluation.
        """
        branches = list(self.backbone(image, train).values())
        size = branches[0].shape[1:3]
        x = jnp.concatenate([resize.bilinear(branch, size) for branch in branches], axis=-1)
        coarse = self.coarse(x, train)
        return Output(self.head(x, coarse, train), (coarse,), x)


def build(
    *,
    classes: int,
    backbone: str | Mapping[str, Any] = "hrnet_w48",
    features: int = 512,
    key_features: int = 256,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    dtype: str = "float32",
    remat: bool = False,
    loss_over: str = "all",
) -> System:
    """OCRNet from plain values. The loss is the cross entropy of the OCR head, and 0.4 times that
    of the coarse one.

    Args:
        classes: K.
        backbone: see `labelling.make_hrnet`.
        features, key_features: channels of the OCR head and of its attention.
        mean, std: per channel (RGB, on 0..255).
        dtype: of the computation; parameters, statistics, softmax and loss stay float32.
        remat: recompute each module of the backbone in the backward pass.
        loss_over: "all" or "valid", the loss denominator.

    Raises:
        SegjaxError: a value doesn't fit.
    """
    module = OCRNet(
        make_hrnet(backbone, dtype, remat),
        classes,
        features,
        key_features,
        jnp.dtype(dtype),
    )
    return System(module, COARSE_WEIGHT, tuple(mean), tuple(std), loss_over)
