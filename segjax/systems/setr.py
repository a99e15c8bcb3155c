"""SETR: Rethinking Semantic Segmentation from a Sequence-to-Sequence Perspective with Transformers
(Zheng et al.; CVPR 2021).

A ViT keeps one grid of tokens through all its blocks; the decoders only bring it back to the image:
naive (one convolution), PUP (four, the grid doubled after each) or MLA (four levels summed from the
deepest up, then side by side). Earlier blocks get heads of their own, which only training uses.

Facts follow mmsegmentation 0.17 (github.com/open-mmlab/mmsegmentation). Its heads enlarge features
and then classify them. Both are linear, the one over positions and the other over channels, and the
resize keeps constants; so here the scores are enlarged instead. The result is the same, and the
classifier meets 4 or 16 times fewer positions, and no full-resolution tensor is needed where the
last enlargement reaches the image's own size (PUP, and all auxiliary heads of it and of naive).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import flax.struct
import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.layers import ConvNormRelu
from segjax.backbones.vit import ViT, drop_path_scale
from segjax.decoders.fcn import Classifier, FCNHead
from segjax.errors import SegjaxError
from segjax.losses.segmentation import deep_supervision
from segjax.ops import dense, resize
from segjax.structs import Array, Batch, Scalars, Semantic, Size, Variables
from segjax.systems.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalised_image
from segjax.systems.vit_backbone import make_vit
from segjax.systems.vit_levels import block_maps, check_blocks

Dtype = Any

NORM_EPSILON = 1e-6

# --------------------------------------------------------------------------------------------------
# Naive and progressive upsampling (Sec. 3.3, 1 and 2)


class UpHead(nn.Module):
    """Layer norm, then convolutions that each enlarge the map, then a classifier.

    Attributes:
        classes: K.
        features: channels of the convolutions.
        convs: how many.
        kernel_size: k of each.
        factor: size of the map after a convolution by that before it.
    """

    classes: int
    features: int
    convs: int
    kernel_size: int
    factor: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        """[B, Ht, Wt, C] -> scores BEFORE the last enlargement [B, Ht*f, Wt*f, K], float32, where f
        = factor ** (convs - 1)."""
        x = level_norm("norm", self.dtype)(x)
        for i in range(self.convs):
            if i:
                x = enlarged(x, self.factor)
            name = f"conv_{i}_0"
            x = ConvNormRelu(self.features, self.kernel_size, self.dtype, name=name)(x, train)
        return Classifier(self.classes, dtype=self.dtype, name="classifier")(x, train)


def level_norm(name: str, dtype: Dtype) -> nn.LayerNorm:
    """What stands for the final norm of the ViT, which SETR's does not have."""
    return nn.LayerNorm(epsilon=NORM_EPSILON, dtype=dtype, use_fast_variance=False, name=name)


def enlarged(x: Array, factor: int) -> Array:
    return resize.bilinear(x, (x.shape[1] * factor, x.shape[2] * factor))


# --------------------------------------------------------------------------------------------------
# Multi-level feature aggregation (Sec. 3.3, 3)


class MLANeck(nn.Module):
    """Levels of a ViT to as many maps, each the sum of its own level and all deeper ones."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, levels: Sequence[Array], train: bool) -> list[Array]:
        """Maps [B, Ht, Wt, C], shallow to deep -> [B, Ht, Wt, features], DEEP to shallow."""
        own = [
            ConvNormRelu(self.features, dtype=self.dtype, name=f"lateral_{i}")(
                level_norm(f"norm_{i}", self.dtype)(x), train
            )
            for i, x in enumerate(levels)
        ]
        results, total = [], 0.0
        for i, x in enumerate(reversed(own)):
            total = total + x
            conv = ConvNormRelu(self.features, 3, dtype=self.dtype, name=f"conv_{i}")
            results.append(conv(total, train))
        return results


class MLAHead(nn.Module):
    """Two 3x3 convolutions per map, then all side by side under one classifier.

    Attributes:
        classes: K.
        features: channels per map.
        factor: how much the scores are enlarged.
    """

    classes: int
    features: int
    factor: int = 4
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, maps: Sequence[Array], train: bool) -> Array:
        """[B, Ht, Wt, C] each -> scores BEFORE their enlargement [B, Ht, Wt, K], float32."""
        beside = []
        for i, x in enumerate(maps):
            for j in range(2):
                conv = ConvNormRelu(self.features, 3, dtype=self.dtype, name=f"conv_{i}_{j}")
                x = conv(x, train)
            beside.append(x)
        x = jnp.concatenate(beside, axis=-1)
        return Classifier(self.classes, dtype=self.dtype, name="classifier")(x, train)


# --------------------------------------------------------------------------------------------------
# The models


@flax.struct.dataclass
class SETROutput:
    """Attributes:
    scores: [B, h, w, K] float32; resized bilinearly to the image they are those of the paper.
    auxiliary: the same of each auxiliary head, on grids of their own; empty in evaluation.
    """

    scores: Array
    auxiliary: tuple[Array, ...]


class UpSETR(nn.Module):
    """SETR-Naive and SETR-PUP: every level has a head, the last one the main head.

    Attributes:
        backbone: the ViT, without final norm.
        classes: K.
        levels: the blocks whose outputs are used, shallow to deep.
        features, convs, kernel_size, factor: of the main head, see `UpHead`. The auxiliary ones
            have two convolutions of the same kind and enlarge by 4 after each.
    """

    backbone: ViT
    classes: int
    levels: tuple[int, ...]
    features: int
    convs: int
    kernel_size: int
    factor: int
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        def head(convs: int, factor: int) -> UpHead:
            return UpHead(
                self.classes, self.features, convs, self.kernel_size, factor, dtype=self.dtype
            )

        self.head = head(self.convs, self.factor)
        self.auxiliary = [head(2, 4) for _ in self.levels[:-1]]

    def __call__(
        self, image: Array, train: bool = False, branch_scale: Array | None = None, slices: int = 1
    ) -> SETROutput:
        """Normalised image [B, H, W, 3] -> SETROutput. `slices`: see `vit_backbone.in_slices`."""
        *early, last = block_maps(self.levels, self.backbone, image, branch_scale, slices)

        def scores(head: UpHead, x: Array) -> Array:
            return last_enlarged(head(x, train), head.factor, image.shape[1:3])

        if not (train or self.is_initializing()):
            return SETROutput(scores(self.head, last), ())
        auxiliary = (scores(head, x) for head, x in zip(self.auxiliary, early, strict=True))
        return SETROutput(scores(self.head, last), tuple(auxiliary))


class MLASETR(nn.Module):
    """SETR-MLA: the neck's maps have a head together and, in training, a classifier each.

    Attributes:
        backbone: the ViT, without final norm and class token.
        classes: K.
        levels: the blocks whose outputs are used, shallow to deep.
        features: channels of the neck's maps; the head's convolutions have half of them.
    """

    backbone: ViT
    classes: int
    levels: tuple[int, ...]
    features: int
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.neck = MLANeck(self.features, dtype=self.dtype)
        self.head = MLAHead(self.classes, self.features // 2, dtype=self.dtype)
        self.auxiliary = [
            FCNHead(self.classes, convs=0, dropout=0.0, dtype=self.dtype) for _ in self.levels
        ]

    def __call__(
        self, image: Array, train: bool = False, branch_scale: Array | None = None, slices: int = 1
    ) -> SETROutput:
        """Normalised image [B, H, W, 3] -> SETROutput. `slices`: see `vit_backbone.in_slices`."""
        maps = self.neck(block_maps(self.levels, self.backbone, image, branch_scale, slices), train)
        scores = last_enlarged(self.head(maps, train), self.head.factor, image.shape[1:3])
        if not (train or self.is_initializing()):
            return SETROutput(scores, ())
        auxiliary = (head(x, train) for head, x in zip(self.auxiliary, maps, strict=True))
        return SETROutput(scores, tuple(auxiliary))


def last_enlarged(scores: Array, factor: int, image_size: Size) -> Array:
    """A head's last enlargement, unless it gives the image's own size: loss and argmax resize to
    that themselves, without a full-resolution tensor."""
    size = scores.shape[1] * factor, scores.shape[2] * factor
    return scores if size == tuple(image_size) else resize.bilinear(scores, size)


# --------------------------------------------------------------------------------------------------
# The loss and the prediction

AUXILIARY_WEIGHT = 0.4


def loss(outputs: SETROutput, labels: Array, over: str = "all") -> tuple[Array, Scalars]:
    """Cross entropy of all heads at label resolution. `labels`: [B, H, W]."""
    return deep_supervision(outputs.scores, outputs.auxiliary, labels, AUXILIARY_WEIGHT, over)


def predict(outputs: SETROutput, image_size: Size) -> Semantic:
    """Labels at (height, width)."""
    return Semantic(dense.resize_argmax(outputs.scores, image_size), outputs.scores)


# --------------------------------------------------------------------------------------------------
# What the rest of segjax may know


@dataclasses.dataclass(frozen=True)
class System:
    """See `segjax.structs.System`."""

    module: UpSETR | MLASETR
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
        backbone = self.module.backbone
        scale = drop_path_scale(rng, backbone.drop_path, backbone.depth, image.shape[0])
        outputs, mutated = self.module.apply(
            variables, image, True, scale, microbatches, mutable=["batch_stats"]
        )
        value, scalars = loss(outputs, batch["semantic"], self.loss_over)
        return value, (scalars, mutated)

    def predict(self, variables: Variables, batch: Batch) -> Semantic:
        image = normalised_image(batch, self.mean, self.std)
        return predict(self.module.apply(variables, image), image.shape[1:3])


UP_HEADS = {
    "naive": dict(convs=1, kernel_size=1, factor=4),
    "pup": dict(convs=4, kernel_size=3, factor=2),
}
UP_LEVELS, MLA_LEVELS = (9, 14, 19, 23), (5, 11, 17, 23)
"""Blocks of ViT-L/16."""


def build(
    *,
    classes: int,
    decoder: str,
    backbone: str | Mapping[str, int] = "vit_l16",
    image_size: Size = (512, 512),
    levels: tuple[int, ...] | None = None,
    features: int = 256,
    distilled: bool = False,
    drop_path: float = 0.0,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
    dtype: str = "float32",
    remat: bool = False,
    scan: bool = False,
    loss_over: str = "all",
) -> System:
    """SETR from plain values.

    Args:
        classes: K.
        decoder: "naive", "pup" or "mla".
        backbone: see `vit_backbone.make_vit`.
        image_size: pixels that the position embedding belongs to: the training crop.
        levels: the blocks whose outputs are used, shallow to deep; those of ViT-L/16 by default.
        features: channels of the decoder's convolutions; in MLA's head they have half.
        distilled: DeiT weights with their second extra token.
        drop_path: rate of stochastic depth in the last block.
        mean, std: per channel (RGB, on 0..255).
        dtype: of the computation; parameters, statistics, softmax and loss stay float32.
        remat: recompute each block in the backward pass; scan: compile the blocks once.
        loss_over: "all" or "valid", the loss denominator.

    Raises:
        SegjaxError: a value doesn't fit.
    """
    if decoder not in (*UP_HEADS, "mla"):
        raise SegjaxError(f"config.model.decoder: there is no '{decoder}'; take naive, pup or mla.")
    vit = make_vit(
        backbone,
        image_size,
        distilled=distilled,
        drop_path=drop_path,
        dtype=dtype,
        remat=remat,
        scan=scan,
        norm_epsilon=NORM_EPSILON,
        position_resize="bilinear",
        final_norm=False,
        drop_class_token=decoder == "mla",
    )
    default = MLA_LEVELS if decoder == "mla" else UP_LEVELS
    blocks = check_blocks(default if levels is None else levels, vit.depth)
    shared = dict(classes=classes, levels=blocks, features=features, dtype=jnp.dtype(dtype))
    if decoder == "mla":
        module = MLASETR(vit, **shared)
    else:
        module = UpSETR(vit, **shared, **UP_HEADS[decoder])
    return System(module, tuple(mean), tuple(std), loss_over)
