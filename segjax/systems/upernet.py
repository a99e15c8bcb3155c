"""UPerNet (Xiao et al., ECCV 2018) on a plain ViT, the strongest decoder of RegProxy's Table 3.

Four levels of the ViT become a pyramid of four sizes, UPerNet's head reads it, and an auxiliary
head on its coarsest map helps training. Facts follow mmsegmentation 0.17's `upernet_vit-b16_ln_mln`
(github.com/open-mmlab/mmsegmentation).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.vit import ViT, drop_path_scale
from segjax.decoders.fcn import FCNHead
from segjax.decoders.upernet import MultiLevelNeck, UPerHead
from segjax.errors import SegjaxError
from segjax.losses.segmentation import deep_supervision
from segjax.ops import dense
from segjax.structs import Array, Batch, Scalars, Semantic, Size, Variables
from segjax.systems.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalised_image
from segjax.systems.vit_backbone import make_vit
from segjax.systems.vit_levels import block_maps, check_blocks

Dtype = Any

# --------------------------------------------------------------------------------------------------
# The model


@flax.struct.dataclass
class UPerNetOutput:
    """Attributes:
    scores: [B, H/4, W/4, K] float32 (with patches of 16).
    auxiliary: the same of the auxiliary head, [B, H/32, W/32, K]; empty in evaluation.
    """

    scores: Array
    auxiliary: tuple[Array, ...]


class UPerNet(nn.Module):
    """Attributes:
    backbone: the ViT.
    classes: K.
    levels: four blocks whose outputs are used, shallow to deep; the last block's is normalised.
    neck_features: channels of the pyramid.
    features: channels of the head.
    auxiliary_features: channels of the auxiliary head.
    dropout: share of channels that training drops before both classifiers.
    """

    backbone: ViT
    classes: int
    levels: tuple[int, ...]
    neck_features: int
    features: int
    auxiliary_features: int
    dropout: float
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        shared = dict(dropout=self.dropout, dtype=self.dtype)
        self.neck = MultiLevelNeck(self.neck_features, dtype=self.dtype)
        self.head = UPerHead(self.classes, self.features, **shared)
        self.auxiliary = FCNHead(self.classes, self.auxiliary_features, **shared)

    def __call__(
        self, image: Array, train: bool = False, branch_scale: Array | None = None, slices: int = 1
    ) -> UPerNetOutput:
        """Normalised image [B, H, W, 3] -> UPerNetOutput; training draws from the rng "dropout".
        `slices`: see `vit_backbone.in_slices`."""
        maps = self.neck(block_maps(self.levels, self.backbone, image, branch_scale, slices))
        scores = self.head(maps, train)
        if not (train or self.is_initializing()):
            return UPerNetOutput(scores, ())
        return UPerNetOutput(scores, (self.auxiliary(maps[-1], train),))


# --------------------------------------------------------------------------------------------------
# The loss and the prediction

AUXILIARY_WEIGHT = 0.4


def loss(outputs: UPerNetOutput, labels: Array, over: str = "all") -> tuple[Array, Scalars]:
    """Cross entropy of both heads at label resolution. `labels`: [B, H, W]."""
    return deep_supervision(outputs.scores, outputs.auxiliary, labels, AUXILIARY_WEIGHT, over)


def predict(outputs: UPerNetOutput, image_size: Size) -> Semantic:
    """Labels at (height, width)."""
    return Semantic(dense.resize_argmax(outputs.scores, image_size), outputs.scores)


# --------------------------------------------------------------------------------------------------
# What the rest of segjax may know


@dataclasses.dataclass(frozen=True)
class System:
    """See `segjax.structs.System`."""

    module: UPerNet
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    loss_over: str = "all"

    @property
    def classes(self) -> int:
        return self.module.classes

    def init(self, rng: Array, batch: Batch) -> Variables:
        return self.module.init(rng, normalised_image(batch, self.mean, self.std))

    def loss(
        self, variables: Variables, batch: Batch, rng: Array, microbatches: int = 1
    ) -> tuple[Array, tuple[Scalars, Variables]]:
        image = normalised_image(batch, self.mean, self.std)
        depth_rng, dropout_rng = jax.random.split(rng)
        backbone = self.module.backbone
        scale = drop_path_scale(depth_rng, backbone.drop_path, backbone.depth, image.shape[0])
        outputs, mutated = self.module.apply(
            variables,
            image,
            True,
            scale,
            microbatches,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_rng},
        )
        value, scalars = loss(outputs, batch["semantic"], self.loss_over)
        return value, (scalars, mutated)

    def predict(self, variables: Variables, batch: Batch) -> Semantic:
        image = normalised_image(batch, self.mean, self.std)
        return predict(self.module.apply(variables, image), image.shape[1:3])


def build(
    *,
    classes: int,
    backbone: str | Mapping[str, int] = "vit_b16",
    image_size: Size = (512, 512),
    levels: tuple[int, ...] = (2, 5, 8, 11),
    neck_features: int = 768,
    features: int = 512,
    auxiliary_features: int = 256,
    dropout: float = 0.1,
    distilled: bool = False,
    drop_path: float = 0.1,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    dtype: str = "float32",
    remat: bool = False,
    scan: bool = False,
    loss_over: str = "all",
) -> System:
    """UPerNet on a ViT from plain values.

    Args:
        classes: K.
        backbone: see `vit_backbone.make_vit`.
        image_size: pixels that the position embedding belongs to: the training crop.
        levels: four blocks whose outputs are used, shallow to deep.
        neck_features, features, auxiliary_features: channels of the pyramid, the head, and the
            auxiliary head.
        dropout: share of channels dropped before both classifiers.
        distilled: DeiT weights with their second extra token.
        drop_path: rate of stochastic depth in the last block.
        mean, std: per channel (RGB, on 0..255).
        dtype: of the computation; parameters, statistics, softmax and loss stay float32.
        remat: recompute each block in the backward pass; scan: compile the blocks once.
        loss_over: "all" or "valid", the loss denominator.

    Raises:
        SegjaxError: a value doesn't fit.
    """
    vit = make_vit(
        backbone,
        image_size,
        distilled=distilled,
        drop_path=drop_path,
        dtype=dtype,
        remat=remat,
        scan=scan,
    )
    blocks = check_blocks(levels, vit.depth)
    if len(blocks) != 4:
        raise SegjaxError(
            f"config.model.levels: {blocks} are {len(blocks)} blocks, but the pyramid has 4 sizes; "
            "name 4."
        )
    module = UPerNet(
        vit,
        classes,
        blocks,
        neck_features,
        features,
        auxiliary_features,
        dropout,
        dtype=jnp.dtype(dtype),
    )
    return System(module, tuple(mean), tuple(std), loss_over)
