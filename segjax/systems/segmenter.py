"""Segmenter: Transformer for Semantic Segmentation (Strudel, Garcia, Laptev, Schmid; ICCV 2021).

A ViT, and either one linear layer on its tokens or a Mask Transformer: class embeddings pass two
more blocks together with the tokens, and the mask of a class is the product of its embedding with
the tokens. Scores are resized bilinearly to the image.

Facts follow the released code and checkpoints (github.com/rstrudel/segmenter): layer norms with an
epsilon of 1e-5, both sides of the mask product of length one, and a layer norm over the classes
after it, which the first version of the paper does not have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.vit import Block, ViT, drop_path_scale, token_init
from segjax.errors import SegjaxError
from segjax.losses.segmentation import pixel_cross_entropy
from segjax.ops import dense
from segjax.structs import Array, Batch, Scalars, Semantic, Size, Variables
from segjax.systems.preprocess import normalised_image
from segjax.systems.vit_backbone import in_slices, make_vit

Dtype = Any

NORM_EPSILON = 1e-5

# --------------------------------------------------------------------------------------------------
# The model (Sec. 3)


class Segmenter(nn.Module):
    """Normalised image [B, H, W, 3] -> scores [B, Ht, Wt, K], one per token.

    Attributes:
        backbone: the encoder.
        decoder: a LinearDecoder or a MaskTransformer.
    """

    backbone: ViT
    decoder: nn.Module

    def __call__(
        self, image: Array, train: bool = False, branch_scale: Array | None = None, slices: int = 1
    ) -> Array:
        """See `vit_backbone.in_slices` for `slices`; the decoder sees the whole batch."""

        def last(backbone: ViT, image: Array, scale: Array | None) -> Array:
            return backbone(image, scale)["norm"]

        return self.decoder(in_slices(last, self.backbone, image, branch_scale, slices))


class LinearDecoder(nn.Module):
    """One linear layer: [B, Ht, Wt, C] -> [B, Ht, Wt, K] (Sec. 3.2.1)."""

    classes: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.Dense(self.classes, dtype=self.dtype, kernel_init=token_init, name="classifier")(x)
        return x.astype(jnp.float32)


class MaskTransformer(nn.Module):
    """Tokens and class embeddings through blocks, then their product (Sec. 3.2.2).

    [B, Ht, Wt, C] -> [B, Ht, Wt, K].

    Attributes:
        classes: K.
        heads: attention heads of each block.
        layers: number of blocks.
        dropout: see `vit.Block`.
    """

    classes: int
    heads: int
    layers: int = 2
    dropout: float = 0.1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, rows, cols, channels = x.shape
        x = x.reshape(batch, rows * cols, channels)
        x = nn.Dense(channels, dtype=self.dtype, kernel_init=token_init, name="proj_dec")(x)
        embedding = self.param("cls_emb", token_init, (1, self.classes, channels), jnp.float32)
        embedding = jnp.broadcast_to(embedding.astype(x.dtype), (batch, self.classes, channels))
        x = jnp.concatenate([x, embedding], axis=1)  # classes last
        every_branch = jnp.ones((2, batch), x.dtype)  # no stochastic depth here
        for i in range(self.layers):
            block = Block(self.heads, NORM_EPSILON, self.dropout, self.dtype, name=f"block_{i}")
            x = block(x, every_branch)
        norm = nn.LayerNorm(
            epsilon=NORM_EPSILON, dtype=self.dtype, use_fast_variance=False, name="decoder_norm"
        )
        x = norm(x)
        patches, classes = x[:, : rows * cols], x[:, rows * cols :]
        patches = unit_length(self.project("proj_patch", patches))
        classes = unit_length(self.project("proj_classes", classes))
        masks = jnp.einsum("bnc,bkc->bnk", patches, classes)
        masks = nn.LayerNorm(epsilon=NORM_EPSILON, use_fast_variance=False, name="mask_norm")(masks)
        return masks.reshape(batch, rows, cols, self.classes)

    def project(self, name: str, x: Array) -> Array:
        """A bare matrix without bias, multiplied from the right."""
        channels = x.shape[-1]
        init = nn.initializers.normal(channels**-0.5)
        matrix = self.param(name, init, (channels, channels), jnp.float32)
        return x @ matrix.astype(x.dtype)


def unit_length(x: Array) -> Array:
    """x / |x| over the last axis in float32; without an epsilon, as in the released code."""
    x = x.astype(jnp.float32)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


# --------------------------------------------------------------------------------------------------
# The prediction (the loss is the pixel cross entropy over labelled pixels)


def predict(scores: Array, image_size: Size, patch: int) -> Semantic:
    """Labels at (height, width). The scores belong to the image filled up to whole patches: they
    are resized to that, and what lies beyond the image is cut off."""
    covers = tuple(-(-side // patch) * patch for side in image_size)
    labels = dense.resize_argmax(scores, covers)[:, : image_size[0], : image_size[1]]
    return Semantic(labels=labels, scores=scores, covers=covers)


# --------------------------------------------------------------------------------------------------
# What the rest of segjax may know

AUGREG_MEAN = AUGREG_STD = (127.5, 127.5, 127.5)
"""What AugReg's ViTs, Segmenter's default backbones, are trained with."""


@dataclasses.dataclass(frozen=True)
class System:
    """See `segjax.structs.System`."""

    module: Segmenter
    mean: tuple[float, ...] = AUGREG_MEAN
    std: tuple[float, ...] = AUGREG_STD
    loss_over: str = "valid"

    @property
    def classes(self) -> int:
        return self.module.decoder.classes

    def init(self, rng: Array, batch: Batch) -> Variables:
        return self.module.init(rng, normalised_image(batch, self.mean, self.std))

    def loss(
        self, variables: Variables, batch: Batch, rng: Array, microbatches: int = 1
    ) -> tuple[Array, tuple[Scalars, Variables]]:
        image = normalised_image(batch, self.mean, self.std)
        depth_rng, dropout_rng = jax.random.split(rng)
        backbone = self.module.backbone
        scale = drop_path_scale(depth_rng, backbone.drop_path, backbone.depth, image.shape[0])
        scores = self.module.apply(
            variables, image, True, scale, microbatches, rngs={"dropout": dropout_rng}
        )
        value, scalars = pixel_cross_entropy(scores, batch["semantic"], self.loss_over)
        return value, (scalars, {})

    def predict(self, variables: Variables, batch: Batch) -> Semantic:
        image = normalised_image(batch, self.mean, self.std)
        scores = self.module.apply(variables, image)
        return predict(scores, image.shape[1:3], self.module.backbone.patch)


def build(
    *,
    classes: int,
    backbone: str | Mapping[str, int] = "vit_ti16",
    decoder: str = "mask_transformer",
    layers: int = 2,
    dropout: float = 0.1,
    image_size: Size = (512, 512),
    distilled: bool = False,
    drop_path: float = 0.1,
    mean: tuple[float, ...] = AUGREG_MEAN,
    std: tuple[float, ...] = AUGREG_STD,
    dtype: str = "float32",
    remat: bool = False,
    scan: bool = False,
    loss_over: str = "valid",
) -> System:
    """Segmenter from plain values.

    Args:
        classes: K.
        backbone: see `vit_backbone.make_vit`.
        decoder: "mask_transformer" or "linear".
        layers, dropout: of the Mask Transformer.
        image_size: pixels that the position embedding belongs to: the training crop.
        distilled: DeiT weights with their second extra token.
        drop_path: rate of stochastic depth in the encoder's last block.
        mean, std: per channel (RGB, on 0..255); DeiT weights want ImageNet's.
        dtype: of the computation; parameters, softmax and loss stay float32.
        remat: recompute each block in the backward pass; scan: compile the blocks once.
        loss_over: "valid" or "all", the loss denominator.

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
        norm_epsilon=NORM_EPSILON,
        position_resize="bilinear",
    )
    compute = jnp.dtype(dtype)
    if decoder == "linear":
        head = LinearDecoder(classes, dtype=compute)
    elif decoder == "mask_transformer":
        head = MaskTransformer(classes, vit.heads, layers, dropout, dtype=compute)
    else:
        raise SegjaxError(
            f"config.model.decoder: there is no '{decoder}'; take mask_transformer or linear."
        )
    return System(Segmenter(vit, head), tuple(mean), tuple(std), loss_over)
