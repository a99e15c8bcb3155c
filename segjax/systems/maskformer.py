"""MaskFormer: Per-Pixel Classification is Not All You Need for Semantic Segmentation (Cheng,
Schwing, Kirillov; NeurIPS 2021), and the per-pixel baselines that it is measured against.

N queries each say a class and a mask; a semantic map is the sum of the masks weighted by their
classes. Facts follow the released code (github.com/facebookresearch/MaskFormer) and its model zoo.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.layers import Conv, LayerNorm, he_fan_out
from segjax.decoders.fpn_pixel import (
    FPNPixelDecoder,
    TransformerEncoderPixelDecoder,
    caffe_xavier,
)
from segjax.decoders.transformer import (
    NORM_EPSILON,
    DecoderLayer,
    Linear,
    MaskEmbedding,
    mask_product,
)
from segjax.errors import SegjaxError
from segjax.losses import set_prediction as sets
from segjax.losses.segmentation import pixel_cross_entropy
from segjax.losses.set_prediction import Pairs, PredictionLoss, Targets
from segjax.ops import dense, matching, resize
from segjax.ops.position import sine_position
from segjax.structs import Array, Batch, Masks, Scalars, Semantic, Variables
from segjax.systems.mask_backbone import (
    applied,
    covered,
    filled_image,
    in_slices,
    make_backbone,
)
from segjax.systems.preprocess import IMAGENET_MEAN, IMAGENET_STD

Dtype = Any

# --------------------------------------------------------------------------------------------------
# The model (Sec. 3)


@flax.struct.dataclass
class MaskFormerOutput:
    """Everything a loss, a plug-in or a parity case may ask for.

    Attributes:
        class_logits: after each decoder layer, the last one final: float32 [B, Q, K + 1].
        mask_logits: for each, float32 [B, H/4, W/4, Q].
        mask_features: [B, H/4, W/4, C].
        memory: what the queries read, [B, H/32, W/32, C]: the encoder's output where there is an
            encoder, else the coarsest level.
        backbone: "res2".."res5".
    """

    class_logits: list[Array]
    mask_logits: list[Array]
    mask_features: Array
    memory: Array
    backbone: Mapping[str, Array]

    @property
    def features(self) -> Array:
        """What an embedding of positions would be made from, [B, H/32, W/32, C]."""
        return self.backbone["res5"]


class MaskFormer(nn.Module):
    """Normalised image [B, H, W, 3] -> MaskFormerOutput.

    Attributes:
        pixel_decoder: an FPN, or one with a transformer encoder ("+6 Enc").
    """

    backbone: nn.Module
    pixel_decoder: FPNPixelDecoder | TransformerEncoderPixelDecoder
    predictor: nn.Module

    def __call__(
        self,
        image: Array,
        train: bool = False,
        branch_scale: Array | None = None,
        rng: Array | None = None,
        slices: int = 1,
    ) -> MaskFormerOutput:
        """See `mask_backbone.in_slices` for `branch_scale`, `rng` and `slices`."""

        def head(model: MaskFormer, levels: Mapping[str, Array], rng: Array | None) -> Any:
            keys = (None, None)
            if rng is not None:
                keys = jax.vmap(lambda key: jax.random.split(key))(rng).swapaxes(0, 1)
            if isinstance(model.pixel_decoder, TransformerEncoderPixelDecoder):
                features, memory = model.pixel_decoder(levels, keys[0])
            else:
                features, memory = model.pixel_decoder(levels), levels["res5"]
            class_logits, mask_logits = model.predictor(memory, features, keys[1])
            return MaskFormerOutput(class_logits, mask_logits, features, memory, levels)

        return in_slices(self, head, image, train, branch_scale, rng, slices)


class Predictor(nn.Module):
    """The transformer decoder and what it says (Sec. 3.3).

    Attributes:
        classes: K.
        queries: Q.
        project: whether the memory passes a 1x1 convolution first (where it is no encoder's).
        says_classes: False leaves the class logits out (the baseline "PerPixel+").
    """

    classes: int
    queries: int = 100
    layers: int = 6
    width: int = 256
    heads: int = 8
    hidden: int = 2048
    mask_features: int = 256
    dropout: float = 0.1
    project: bool = True
    says_classes: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, memory: Array, mask_features: Array, rng: Array | None = None
    ) -> tuple[list[Array], list[Array]]:
        """Args:
            memory: [B, h, w, C].
            mask_features: [B, H/4, W/4, C].
            rng: a key for each image, for dropout.

        Returns:
            Class logits [B, Q, K + 1] and mask logits [B, H/4, W/4, Q] after every layer.
        """
        if self.project:
            conv = Conv(self.width, dtype=self.dtype, kernel_init=caffe_xavier, name="input_proj")
            memory = conv(memory)
        batch, height, width, channels = memory.shape
        memory = memory.reshape(batch, height * width, channels)
        position = sine_position((height, width), channels // 2).reshape(-1, channels)
        query_embed = self.param(
            "query_embed", nn.initializers.normal(1.0), (self.queries, channels), jnp.float32
        )
        norm = LayerNorm(NORM_EPSILON, dtype=self.dtype, name="decoder_norm")
        classify = Linear(self.classes + 1, name="class_embed") if self.says_classes else None
        embed = MaskEmbedding(self.mask_features, dtype=self.dtype, name="mask_embed")
        class_logits, mask_logits = [], []
        x = jnp.zeros((batch, self.queries, channels), self.dtype)
        for i in range(self.layers):
            layer = DecoderLayer(
                False, self.heads, self.hidden, self.dropout, self.dtype, name=f"layer_{i}"
            )
            keys = None if rng is None else jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(rng)
            x = layer(
                x, query_embed.astype(self.dtype), memory, position.astype(self.dtype), rng=keys
            )
            normed = norm(x)
            if classify is not None:
                class_logits.append(classify(normed.astype(jnp.float32)))
            mask_logits.append(mask_product(embed(normed), mask_features))
        return class_logits, mask_logits


# --------------------------------------------------------------------------------------------------
# The loss (Sec. 3.2)


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """Attributes:
    class_weight, mask_weight, dice_weight: of both the matching costs and the losses.
    no_object: weight of queries without a target in the class loss.
    deep_supervision: charge all predictions (True) or the final one alone.
    groups: see `set_prediction.class_loss`.
    """

    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0
    no_object: float = 0.1
    deep_supervision: bool = True
    groups: int = 1

    @property
    def weights(self) -> tuple[float, float, float]:
        """Of class, mask and dice."""
        return self.class_weight, self.mask_weight, self.dice_weight


def loss(outputs: MaskFormerOutput, batch: Batch, settings: LossSettings) -> tuple[Array, Scalars]:
    """Class, focal and dice loss of all predictions, each matched anew. Logs as Mask2Former's."""
    targets = sets.targets_of(batch)
    first = 0 if settings.deep_supervision else -1
    stacked = (jnp.stack(outputs.class_logits[first:]), jnp.stack(outputs.mask_logits[first:]))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(inputs: tuple[Array, Array]) -> PredictionLoss:
        return prediction_loss(*inputs, targets, settings)[0]

    every = jax.lax.map(one, stacked)
    totals = sets.weighted(every, settings.weights)
    return totals.sum(), sets.scalars_of(every, totals, targets, batch)


def prediction_loss(
    logits: Array, masks: Array, targets: Targets, settings: LossSettings
) -> tuple[PredictionLoss, Pairs]:
    """The losses of one prediction: logits [B, Q, K + 1], masks [B, h, w, Q]."""
    costs = sum(
        weight * cost
        for weight, cost in zip(
            settings.weights,
            matching_costs(logits, masks, targets),
        )
    )
    matched = matching.match(costs, targets.count)
    pairs = Pairs(matched.query_of_target, matched.target_of_query)
    divisor = sets.mask_total(targets, settings.groups)

    # Masks are compared at the targets' full size: one image after another.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one(inputs: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        chosen, segments, index = inputs
        size = segments.shape[-2:]
        full = resize.bilinear(chosen.transpose(1, 2, 0), size)
        full = full.transpose(2, 0, 1).reshape(len(index), -1)
        truth = membership(segments[None], index[None])[0].reshape(len(index), -1)
        return sets.focal(full, truth), sets.dice(full, truth)

    inputs = (sets.paired_masks(masks, pairs), targets.segments, targets.index)
    focal, dice = jax.lax.map(one, inputs)
    result = PredictionLoss(
        ce=sets.class_loss(
            logits, sets.target_classes(targets, pairs), settings.no_object, settings.groups
        ),
        mask=sets.paired(focal, pairs) / divisor,
        dice=sets.paired(dice, pairs) / divisor,
        replaced_costs=matched.replaced.sum(),
    )
    return result, pairs


def matching_costs(logits: Array, masks: Array, targets: Targets) -> tuple[Array, Array, Array]:
    """Class, focal and dice costs, unweighted, on all pixels of the mask logits' grid: each
    [B, Q, S]. No gradient passes."""
    logits, masks = jax.lax.stop_gradient((logits, masks))
    batch, height, width, queries = masks.shape
    segments = targets.segments
    small = resize.nearest(segments[..., None], (height, width))[..., 0]
    truth = membership(small, targets.index).reshape(batch, -1, height * width).swapaxes(1, 2)
    flat = masks.reshape(batch, height * width, queries)
    return (
        sets.class_cost(logits, targets.classes),
        sets.focal_cost(flat, truth),
        sets.dice_cost(flat, truth),
    )


def membership(segments: Array, index: Array) -> Array:
    """The binary mask of each segment: [B, H, W] or [B, L, H, W], [B, S] -> float32
    [B, S, H, W]."""
    if segments.ndim == 3:
        return (segments[:, None] == index[:, :, None, None]).astype(jnp.float32)
    inside = segments[:, None] == index[:, :, None, None, None]
    return inside.any(axis=2).astype(jnp.float32)


# --------------------------------------------------------------------------------------------------
# The per-pixel baselines (Sec. 4.2)


class PerPixel(nn.Module):
    """Class scores for every pixel: normalised image [B, H, W, 3] -> [B, H/4, W/4, K].

    Attributes:
        predictor: a 1x1 convolution that classifies the mask features ("PerPixelBaseline"); or one
            without class logits and with K queries, whose masks are the scores, after every layer
            ("PerPixelBaseline+").
    """

    backbone: nn.Module
    pixel_decoder: FPNPixelDecoder
    predictor: Conv | Predictor

    def __call__(
        self,
        image: Array,
        train: bool = False,
        branch_scale: Array | None = None,
        rng: Array | None = None,
        slices: int = 1,
    ) -> list[Array]:
        def head(model: PerPixel, levels: Mapping[str, Array], rng: Array | None) -> list[Array]:
            features = model.pixel_decoder(levels)
            if isinstance(model.predictor, Conv):
                return [model.predictor(features)]
            return model.predictor(levels["res5"], features, rng)[1]

        return in_slices(self, head, image, train, branch_scale, rng, slices)


# --------------------------------------------------------------------------------------------------
# What the rest of segjax may know


@dataclasses.dataclass(frozen=True)
class System:
    """See `segjax.structs.System`. `clips_segments`: see `mask2former.System`."""

    module: MaskFormer
    settings: LossSettings = LossSettings()
    divisible: int = 32
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    clips_segments: bool = False

    @property
    def classes(self) -> int:
        return self.module.predictor.classes

    def outputs(
        self,
        variables: Variables,
        batch: Batch,
        rng: Array | None = None,
        microbatches: int = 1,
    ) -> tuple[MaskFormerOutput, Variables]:
        """All that the network says; in training mode if there is an rng. Also the new
        non-parameter variables."""
        return applied(self, self.module.predictor.dropout, variables, batch, rng, microbatches)

    def init(self, rng: Array, batch: Batch) -> Variables:
        return self.module.init(rng, filled_image(self, batch))

    def loss(
        self, variables: Variables, batch: Batch, rng: Array, microbatches: int = 1
    ) -> tuple[Array, tuple[Scalars, Variables]]:
        outputs, mutated = self.outputs(variables, batch, rng, microbatches)
        value, scalars = loss(outputs, batch, self.settings)
        return value, (scalars, mutated)

    def predict(self, variables: Variables, batch: Batch) -> Masks:
        outputs, _ = self.outputs(variables, batch)
        return Masks(outputs.class_logits[-1], outputs.mask_logits[-1], covered(self, batch))


@dataclasses.dataclass(frozen=True)
class PerPixelSystem:
    """See `segjax.structs.System`."""

    module: PerPixel
    classes: int
    divisible: int = 32
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    auxiliary_weight: float = 1.0

    def init(self, rng: Array, batch: Batch) -> Variables:
        return self.module.init(rng, filled_image(self, batch))

    def loss(
        self, variables: Variables, batch: Batch, rng: Array, microbatches: int = 1
    ) -> tuple[Array, tuple[Scalars, Variables]]:
        rate = getattr(self.module.predictor, "dropout", 0.0)
        scores, mutated = applied(self, rate, variables, batch, rng, microbatches)
        labels = batch["semantic"]
        value, scalars = pixel_cross_entropy(scores[-1], labels, "valid")
        for others in scores[:-1]:
            value += self.auxiliary_weight * pixel_cross_entropy(others, labels, "valid")[0]
        return value, (scalars, mutated)

    def predict(self, variables: Variables, batch: Batch) -> Semantic:
        scores = self.module.apply(variables, filled_image(self, batch))[-1]
        covers = covered(self, batch)
        height, width = batch["image"].shape[1:3]
        labels = dense.resize_argmax(scores, covers)[:, :height, :width]
        return Semantic(labels=labels, scores=scores, covers=covers)


PREDICTORS = ("masks", "per_pixel", "per_pixel_plus")


def build(
    *,
    classes: int,
    backbone: str | Mapping[str, Any] = "resnet50",
    backbone_norm: str = "frozen_bn",
    drop_path: float = 0.3,
    predictor: str = "masks",
    queries: int = 100,
    layers: int = 6,
    encoder_layers: int = 0,
    features: int = 256,
    hidden: int = 2048,
    dropout: float = 0.1,
    divisible: int = 32,
    class_weight: float = 1.0,
    mask_weight: float = 20.0,
    dice_weight: float = 1.0,
    no_object: float = 0.1,
    deep_supervision: bool = True,
    groups: int = 1,
    dtype: str = "float32",
    remat: bool = False,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> System | PerPixelSystem:
    """MaskFormer, or one of its per-pixel baselines, from plain values.

    Args:
        classes: K.
        backbone, backbone_norm, drop_path: see `mask_backbone.make_backbone`.
        predictor: "masks", or the baselines "per_pixel" and "per_pixel_plus".
        queries: Q; the baselines take none.
        layers: of the decoder.
        encoder_layers: of a transformer encoder on the coarsest level ("+6 Enc"); 0 for none.
        features, hidden: channels of the decoders, and of their feed-forward parts.
        dropout: in the transformer.
        divisible: images are filled up to a multiple of this; 0 leaves them as they are.
        class_weight, mask_weight, dice_weight, no_object, deep_supervision, groups: see
            `LossSettings`.
        dtype: of the computation; parameters, class logits and losses stay float32.
        remat: recompute the backbone's blocks in the backward pass.
        mean, std: per channel (RGB, on 0..255).

    Raises:
        SegjaxError: a value doesn't fit.
    """
    if predictor not in PREDICTORS:
        raise SegjaxError(
            f"config.model.predictor: there is no '{predictor}'; take {', '.join(PREDICTORS)}."
        )
    compute = jnp.dtype(dtype)
    network = make_backbone(backbone, backbone_norm, drop_path, compute, remat)
    pyramid = FPNPixelDecoder(features, features, compute)
    shared = dict(
        layers=layers,
        width=features,
        hidden=hidden,
        mask_features=features,
        dropout=dropout,
        dtype=compute,
    )
    if predictor != "masks":
        if encoder_layers:
            raise SegjaxError(
                f"config.model.encoder_layers is {encoder_layers}, but {predictor} has no encoder;"
                " set it to 0."
            )
        if predictor == "per_pixel_plus":
            decoder = Predictor(classes, classes, says_classes=False, **shared)
        else:
            decoder = Conv(classes, kernel_init=he_fan_out)
        module = PerPixel(network, pyramid, decoder)
        return PerPixelSystem(module, classes, divisible, tuple(mean), tuple(std))
    if encoder_layers:
        pyramid = TransformerEncoderPixelDecoder(
            features, features, encoder_layers, hidden=hidden, dropout=dropout, dtype=compute
        )
    module = MaskFormer(
        network, pyramid, Predictor(classes, queries, project=not encoder_layers, **shared)
    )
    settings = LossSettings(
        class_weight, mask_weight, dice_weight, no_object, deep_supervision, groups
    )
    return System(module, settings, divisible, tuple(mean), tuple(std))
