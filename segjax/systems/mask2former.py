"""Mask2Former: Masked-attention Mask Transformer for Universal Image Segmentation (Cheng, Misra,
Schwing, Kirillov, Girdhar; CVPR 2022).

N queries each say a class and a mask. A decoder layer lets a query look only at the pixels inside
the mask that it said one layer before. Facts follow the released code
(github.com/facebookresearch/Mask2Former) and its model zoo.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from flax import linen as nn

from segjax.backbones.layers import LayerNorm
from segjax.decoders.msdeform_pixel import MSDeformPixelDecoder
from segjax.decoders.transformer import (
    NORM_EPSILON,
    DecoderLayer,
    Linear,
    MaskEmbedding,
    mask_product,
)
from segjax.losses import set_prediction as sets
from segjax.losses.set_prediction import Pairs, PredictionLoss, Targets
from segjax.ops import matching, resize, sampling
from segjax.ops.position import sine_position
from segjax.structs import Array, Batch, Masks, Scalars, Size, Variables
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
class Mask2FormerOutput:
    """Everything a loss, a plug-in or a parity case may ask for.

    Attributes:
        class_logits: for each of L + 1 predictions, the first from the bare queries, the last one
            final: float32 [B, Q, K + 1].
        mask_logits: for each, float32 [B, H/4, W/4, Q].
        mask_features: [B, H/4, W/4, C].
        levels: the pixel decoder's maps at strides 32, 16 and 8.
        backbone: "res2".."res5".
    """

    class_logits: list[Array]
    mask_logits: list[Array]
    mask_features: Array
    levels: list[Array]
    backbone: Mapping[str, Array]


class Mask2Former(nn.Module):
    """Normalised image [B, H, W, 3] -> Mask2FormerOutput; H and W are multiples of 32."""

    backbone: nn.Module
    pixel_decoder: MSDeformPixelDecoder
    predictor: nn.Module

    def __call__(
        self,
        image: Array,
        train: bool = False,
        branch_scale: Array | None = None,
        rng: Array | None = None,
        slices: int = 1,
    ) -> Mask2FormerOutput:
        """See `mask_backbone.in_slices` for `branch_scale`, `rng` and `slices`."""

        def head(model: Mask2Former, levels: Mapping[str, Array], rng: Array | None) -> Any:
            mask_features, maps = model.pixel_decoder(levels)
            class_logits, mask_logits = model.predictor(maps, mask_features, rng)
            return Mask2FormerOutput(class_logits, mask_logits, mask_features, maps, levels)

        return in_slices(self, head, image, train, branch_scale, rng, slices)


class MaskedDecoder(nn.Module):
    """The transformer decoder with masked attention (Sec. 3.2).

    Attributes:
        classes: K.
        queries: Q.
        layers: each reads one level, from coarse to fine and over again.
        width, heads, hidden: of the layers.
        mask_features: channels of the mask features.
        masked: False lets queries look everywhere (ablation, Table 4a).
        learnable_queries: False starts from zeros (Table 4b).
    """

    classes: int
    queries: int = 100
    layers: int = 9
    width: int = 256
    heads: int = 8
    hidden: int = 2048
    mask_features: int = 256
    dropout: float = 0.0
    masked: bool = True
    learnable_queries: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, levels: Sequence[Array], mask_features: Array, rng: Array | None = None
    ) -> tuple[list[Array], list[Array]]:
        """Args:
            levels: maps [B, h, w, width] from coarse to fine.
            mask_features: [B, H/4, W/4, C].
            rng: a key for each image, for dropout.

        Returns:
            Class logits [B, Q, K + 1] and mask logits [B, H/4, W/4, Q] of the bare queries and
            after every layer.
        """
        batch, width = levels[0].shape[0], self.width
        normal = nn.initializers.normal(1.0)
        level_embed = self.param("level_embed", normal, (len(levels), width), jnp.float32)
        query_embed = self.param("query_embed", normal, (self.queries, width), jnp.float32)
        if self.learnable_queries:
            start = self.param("query_feat", normal, (self.queries, width), jnp.float32)
        else:
            start = jnp.zeros((self.queries, width), jnp.float32)
        sizes = [level.shape[1:3] for level in levels]
        # Unlike the pixel decoder's, this embedding of the level is part of the values too.
        memories = [
            level.reshape(batch, -1, width).astype(self.dtype) + level_embed[i].astype(self.dtype)
            for i, level in enumerate(levels)
        ]
        positions = [
            sine_position(size, width // 2).reshape(-1, width).astype(self.dtype) for size in sizes
        ]

        norm = LayerNorm(NORM_EPSILON, dtype=self.dtype, name="decoder_norm")
        classify = Linear(self.classes + 1, name="class_embed")
        embed = MaskEmbedding(self.mask_features, dtype=self.dtype, name="mask_embed")
        class_logits, mask_logits = [], []

        def say(x: Array) -> None:
            normed = norm(x)
            class_logits.append(classify(normed.astype(jnp.float32)))
            mask_logits.append(mask_product(embed(normed), mask_features))

        x = jnp.broadcast_to(start.astype(self.dtype), (batch, self.queries, width))
        say(x)
        for i in range(self.layers):
            level = i % len(levels)
            forbidden = attention_mask(mask_logits[-1], sizes[level]) if self.masked else None
            layer = DecoderLayer(
                True, self.heads, self.hidden, self.dropout, self.dtype, name=f"layer_{i}"
            )
            keys = None if rng is None else jax.vmap(lambda k, i=i: jax.random.fold_in(k, i))(rng)
            x = layer(
                x,
                query_embed.astype(self.dtype),
                memories[level],
                positions[level],
                forbidden,
                keys,
            )
            say(x)
        return class_logits, mask_logits


def attention_mask(mask_logits: Array, size: Size) -> Array:
    """The pixels that a query may not look at (Eq. 3): [B, h, w, Q] -> bool [B, Q, rows * columns].

    Those where its mask, resized to the level, is below one half; no gradient passes.
    """
    small = resize.bilinear(jax.lax.stop_gradient(mask_logits), size)
    batch, _, _, queries = small.shape
    return (small < 0).reshape(batch, -1, queries).swapaxes(1, 2)


# --------------------------------------------------------------------------------------------------
# The loss (Sec. 3.3)


@dataclasses.dataclass(frozen=True)
class LossSettings:
    """Attributes:
    class_weight, mask_weight, dice_weight: of both the matching costs and the losses.
    no_object: weight of queries without a target in the class loss.
    points: P, where masks are compared; 0 compares all pixels of the mask logits' grid (Table 5).
    oversample: points drawn per point kept.
    importance: share of the points that lie where the prediction is least certain.
    deep_supervision: charge all predictions (True) or the final one alone.
    supervise_queries: charge the bare queries' prediction too (Table 4b).
    groups: see `set_prediction.class_loss`.
    """

    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object: float = 0.1
    points: int = 12_544
    oversample: float = 3.0
    importance: float = 0.75
    deep_supervision: bool = True
    supervise_queries: bool = True
    groups: int = 1

    @property
    def weights(self) -> tuple[float, float, float]:
        """Of class, mask and dice."""
        return self.class_weight, self.mask_weight, self.dice_weight


BLOCK = 8
"""Targets whose masks are compared at a time. A table has room for the fullest image; blocks of it
that no image of the batch fills are skipped."""


class Points(NamedTuple):
    """Uniform draws in [0, 1]^2, (x, y), for one prediction.

    Attributes:
        match: [B, P, 2], shared by all masks of an image.
        own: gives for a block of T = BLOCK targets, by its number: candidates [B, T, oversample P,
            2], of which the least certain are kept, and points [B, T, P - int(importance P), 2]
            that are kept as they are.
    """

    match: Array
    own: Callable[[Array], tuple[Array, Array]]


def loss(
    outputs: Mask2FormerOutput, batch: Batch, rng: Array, settings: LossSettings
) -> tuple[Array, Scalars]:
    """Class, mask and dice loss of all predictions, each matched anew.

    Returns:
        The weighted sum, and what to log: the unweighted losses of the final prediction, of the
        others together, targets per image, targets that the table had no room for, and matching
        costs that were not finite.
    """
    targets = sets.targets_of(batch)
    first = 0 if settings.supervise_queries else 1
    first = first if settings.deep_supervision else len(outputs.class_logits) - 1
    logits = jnp.stack(outputs.class_logits[first:])
    masks = jnp.stack(outputs.mask_logits[first:])

    # One prediction after another: the points of ten at once would be ten times the memory.
    def one(inputs: tuple[Array, Array, Array]) -> tuple[Array, PredictionLoss]:
        logits, masks, rng = inputs
        points = draw_points(rng, len(targets.classes), settings) if settings.points else None
        return prediction_loss(logits, masks, targets, points, settings)[:2]

    totals, every = jax.lax.map(one, (logits, masks, jax.random.split(rng, len(logits))))
    return totals.sum(), sets.scalars_of(every, totals, targets, batch)


def prediction_loss(
    logits: Array,
    masks: Array,
    targets: Targets,
    points: Points | None,
    settings: LossSettings,
) -> tuple[Array, PredictionLoss, Pairs]:
    """The losses of one prediction.

    Args:
        logits: [B, Q, K + 1].
        masks: [B, h, w, Q].
        targets: what there is.
        points: where masks are compared; None compares all pixels of the grid.
        settings: weights and numbers.

    Returns:
        The weighted sum, differentiable in logits and masks; its parts, of which only `ce` is; and
        the pairs.
    """
    if points is None:
        points = everywhere(masks)
    costs = sum(
        weight * cost
        for weight, cost in zip(
            settings.weights,
            matching_costs(logits, masks, targets, points.match),
        )
    )
    matched = matching.match(costs, targets.count)
    pairs = Pairs(matched.query_of_target, matched.target_of_query)
    ce = sets.class_loss(
        logits, sets.target_classes(targets, pairs), settings.no_object, settings.groups
    )
    (mask, dice), slope = compare(jax.lax.stop_gradient(masks), targets, pairs, points, settings)
    of_masks = settings.mask_weight * mask + settings.dice_weight * dice
    total = settings.class_weight * ce + with_slope(of_masks, masks, slope)
    return total, PredictionLoss(ce, mask, dice, matched.replaced.sum()), pairs


def compare(
    masks: Array, targets: Targets, pairs: Pairs, points: Points, settings: LossSettings
) -> tuple[Array, Array]:
    """Mask and dice loss of the pairs, [2], and the slope [B, h, w, Q] of their weighted sum.

    Both come from one pass over blocks of targets, so nothing is kept for a backward pass but a
    slope that is as large as the masks, and what is empty costs nothing.
    """
    count = targets.classes.shape[1]
    blocks = -(-count // BLOCK)
    beyond = ((0, 0), (0, blocks * BLOCK - count))
    query = jnp.pad(pairs.query, beyond, constant_values=-1)
    index = jnp.pad(targets.index, beyond)
    divisor = sets.mask_total(targets, settings.groups)
    by_query = masks.transpose(0, 3, 1, 2)

    def one_block(carry: tuple[Array, Array], k: Array) -> tuple[tuple[Array, Array], None]:
        query_here, index_here = (
            jax.lax.dynamic_slice_in_dim(x, k * BLOCK, BLOCK, axis=1) for x in (query, index)
        )

        def charge(chosen: Array) -> tuple[Array, Array]:
            where = loss_points(chosen, *points.own(k), points.match.shape[1])
            own = sampling.sample_own_points(_merged(chosen), _merged(where))
            own = own.reshape(*query_here.shape, -1)
            truth = sampling.sample_own_membership(targets.segments, index_here, where)
            here = Pairs(query_here, pairs.target)
            each = sets.cross_entropy(own, truth), sets.dice(own, truth)
            parts = jnp.stack([sets.paired(values, here) for values in each]) / divisor
            return settings.mask_weight * parts[0] + settings.dice_weight * parts[1], parts

        def filled(parts: Array, slope: Array) -> tuple[Array, Array]:
            rows = jnp.maximum(query_here, 0)
            chosen = jax.vmap(lambda masks, rows: masks[rows])(by_query, rows)
            slope_here, parts_here = jax.grad(charge, has_aux=True)(chosen)
            add = jax.vmap(lambda slope, rows, given: slope.at[rows].add(given))
            return parts + parts_here, add(slope, rows, slope_here)

        any_here = k * BLOCK < targets.count.max()
        return jax.lax.cond(any_here, filled, lambda *same: same, *carry), None

    start = jnp.zeros(2), jnp.zeros_like(by_query)
    (parts, slope), _ = jax.lax.scan(one_block, start, jnp.arange(blocks))
    return parts, slope.transpose(0, 2, 3, 1)


@jax.custom_vjp
def with_slope(value: Array, x: Array, slope: Array) -> Array:
    """`value`, a scalar whose gradient in `x` is known to be `slope`."""
    return value


with_slope.defvjp(
    lambda value, x, slope: (value, slope), lambda slope, given: (None, given * slope, None)
)


def matching_costs(
    logits: Array, masks: Array, targets: Targets, points: Array
) -> tuple[Array, Array, Array]:
    """Class, mask and dice costs, unweighted: each [B, Q, S]. No gradient passes."""
    logits, masks = jax.lax.stop_gradient((logits, masks))
    sampled = sampling.sample_points(masks, points)
    truth = sampling.sample_membership(targets.segments, points, targets.classes.shape[1])
    truth = jnp.take_along_axis(truth, targets.index[:, None], axis=2)
    return (
        sets.class_cost(logits, targets.classes),
        sets.cross_entropy_cost(sampled, truth),
        sets.dice_cost(sampled, truth),
    )


def loss_points(chosen: Array, candidates: Array, uniform: Array, count: int) -> Array:
    """Where each pair is compared: the candidates that the prediction is least certain at, and the
    uniform points.

    Args:
        chosen: [B, T, h, w] mask logits of the pairs.
        candidates, uniform: see `Points`.
        count: P.

    Returns:
        [B, T, P, 2].
    """
    if not candidates.shape[2]:
        return uniform
    flat = _merged(candidates)
    logits = sampling.sample_own_points(_merged(jax.lax.stop_gradient(chosen)), flat)
    kept = sampling.uncertain(logits, flat, count - uniform.shape[2])
    return jnp.concatenate([kept.reshape(*chosen.shape[:2], -1, 2), uniform], axis=2)


def draw_points(rng: Array, batch: int, settings: LossSettings) -> Points:
    """Fresh draws for the targets of a batch."""
    points = settings.points
    uniform = points - int(settings.importance * points)
    match_rng, own_rng = jax.random.split(rng)

    def own(k: Array) -> tuple[Array, Array]:
        keys = jax.random.split(jax.random.fold_in(own_rng, k))
        counts = int(settings.oversample * points), uniform
        return tuple(jax.random.uniform(key, (batch, BLOCK, n, 2)) for key, n in zip(keys, counts))

    return Points(jax.random.uniform(match_rng, (batch, points, 2)), own)


def everywhere(masks: Array) -> Points:
    """The pixel centres of the mask logits' grid in place of draws."""
    batch, height, width, _ = masks.shape
    y, x = ((jnp.arange(n) + 0.5) / n for n in (height, width))
    grid = jnp.stack(jnp.broadcast_arrays(x[None, :], y[:, None]), axis=-1).reshape(-1, 2)
    shape = (batch, BLOCK)
    grids = jnp.broadcast_to(grid, (*shape, *grid.shape))
    return Points(
        match=jnp.broadcast_to(grid, (batch, *grid.shape)),
        own=lambda k: (jnp.zeros((*shape, 0, 2)), grids),
    )


def _merged(x: Array) -> Array:
    """[B, S, ...] -> [B * S, ...]."""
    return x.reshape(-1, *x.shape[2:])


# --------------------------------------------------------------------------------------------------
# What the rest of segjax may know


@dataclasses.dataclass(frozen=True)
class System:
    """See `segjax.structs.System`.

    Attributes:
        clips_segments: whether a pixel must be above one half in a mask to join its segment.
    """

    module: Mask2Former
    settings: LossSettings = LossSettings()
    divisible: int = 32
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    clips_segments: bool = True

    @property
    def classes(self) -> int:
        return self.module.predictor.classes

    def outputs(
        self,
        variables: Variables,
        batch: Batch,
        rng: Array | None = None,
        microbatches: int = 1,
    ) -> tuple[Mask2FormerOutput, Variables]:
        """All that the network says; in training mode if there is an rng. Also the new
        non-parameter variables."""
        return applied(self, self.module.predictor.dropout, variables, batch, rng, microbatches)

    def init(self, rng: Array, batch: Batch) -> Variables:
        return self.module.init(rng, filled_image(self, batch))

    def loss(
        self, variables: Variables, batch: Batch, rng: Array, microbatches: int = 1
    ) -> tuple[Array, tuple[Scalars, Variables]]:
        network_rng, point_rng = jax.random.split(rng)
        outputs, mutated = self.outputs(variables, batch, network_rng, microbatches)
        value, scalars = loss(outputs, batch, point_rng, self.settings)
        return value, (scalars, mutated)

    def predict(self, variables: Variables, batch: Batch) -> Masks:
        outputs, _ = self.outputs(variables, batch)
        return Masks(outputs.class_logits[-1], outputs.mask_logits[-1], covered(self, batch))


def build(
    *,
    classes: int,
    backbone: str | Mapping[str, Any] = "resnet50",
    backbone_norm: str = "frozen_bn",
    drop_path: float = 0.3,
    queries: int = 100,
    layers: int = 9,
    encoder_layers: int = 6,
    features: int = 256,
    hidden: int = 2048,
    encoder_hidden: int = 1024,
    dropout: float = 0.0,
    divisible: int = 32,
    masked: bool = True,
    learnable_queries: bool = True,
    class_weight: float = 2.0,
    mask_weight: float = 5.0,
    dice_weight: float = 5.0,
    no_object: float = 0.1,
    points: int = 12_544,
    oversample: float = 3.0,
    importance: float = 0.75,
    deep_supervision: bool = True,
    supervise_queries: bool = True,
    groups: int = 1,
    dtype: str = "float32",
    pixel_dtype: str = "float32",
    remat: bool = False,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> System:
    """Mask2Former from plain values.

    Args:
        classes: K.
        backbone: see `mask_backbone.make_backbone`.
        backbone_norm: "frozen_bn" or "batch_norm" of a ResNet.
        drop_path: rate of stochastic depth in a Swin's last block.
        queries: Q.
        layers: of the decoder (the official DEC_LAYERS counts one more).
        encoder_layers: of the pixel decoder.
        features: channels of both decoders.
        hidden, encoder_hidden: of their feed-forward parts.
        dropout: in the decoder; the released models have none.
        divisible: images are filled up to a multiple of this, at least 32.
        masked, learnable_queries: see `MaskedDecoder`.
        class_weight, mask_weight, dice_weight, no_object, points, oversample, importance,
        deep_supervision, supervise_queries, groups: see `LossSettings`.
        dtype: of the computation; parameters, class logits and losses stay float32.
        pixel_dtype: of the pixel decoder, float32 in the original.
        remat: recompute the backbone's blocks in the backward pass.
        mean, std: per channel (RGB, on 0..255).

    Raises:
        SegjaxError: a value doesn't fit.
    """
    compute = jnp.dtype(dtype)
    module = Mask2Former(
        make_backbone(backbone, backbone_norm, drop_path, compute, remat),
        MSDeformPixelDecoder(
            features,
            features,
            encoder_layers,
            hidden=encoder_hidden,
            dtype=jnp.dtype(pixel_dtype),
        ),
        MaskedDecoder(
            classes,
            queries,
            layers,
            features,
            hidden=hidden,
            mask_features=features,
            dropout=dropout,
            masked=masked,
            learnable_queries=learnable_queries,
            dtype=compute,
        ),
    )
    settings = LossSettings(
        class_weight,
        mask_weight,
        dice_weight,
        no_object,
        points,
        oversample,
        importance,
        deep_supervision,
        supervise_queries,
        groups,
    )
    return System(module, settings, max(divisible, 32), tuple(mean), tuple(std))
