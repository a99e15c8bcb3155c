"""Losses of systems that answer with a set of masks: what it costs to take a query for a target,
and what the pairs that a matching makes are charged (MaskFormer, Cheng et al., NeurIPS 2021;
Mask2Former, Cheng et al., CVPR 2022).

Letters: B images, Q queries, S targets (padded), K classes, P points. Facts follow
github.com/facebookresearch/MaskFormer and /Mask2Former.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from segjax.structs import Array, Batch, Scalars


class Targets(NamedTuple):
    """What there is to be found, the real targets before the padding.

    Attributes:
        segments: [B, H, W] or [B, L, H, W], see `segjax.structs.System`.
        index: int32 [B, S], the value of `segments` that stands for each target.
        classes: int32 [B, S], -1 for padding.
        count: int32 [B], real targets.
    """

    segments: Array
    index: Array
    classes: Array
    count: Array

    @property
    def real(self) -> Array:
        """bool [B, S]."""
        return self.classes >= 0


class Pairs(NamedTuple):
    """Who goes with whom.

    Attributes:
        query: int32 [B, S], the query of each target, -1 for none.
        target: int32 [B, Q], the target of each query, -1 for none.
    """

    query: Array
    target: Array


class PredictionLoss(NamedTuple):
    """Unweighted scalars of one prediction, or an array of each for several.

    Attributes:
        ce, mask, dice: the class loss and the two of the masks.
        replaced_costs: how many matching costs were not finite.
    """

    ce: Array
    mask: Array
    dice: Array
    replaced_costs: Array


def weighted(losses: PredictionLoss, weights: tuple[float, float, float]) -> Array:
    """The sum of class, mask and dice loss times their weights, of each prediction."""
    return weights[0] * losses.ce + weights[1] * losses.mask + weights[2] * losses.dice


def scalars_of(every: PredictionLoss, totals: Array, targets: Targets, batch: Batch) -> Scalars:
    """What to log of a step: the unweighted losses of the final prediction, of the others together,
    targets per image, targets that the table had no room for, and costs that were not finite.

    Args:
        every: of all predictions, the final one last.
        totals: their `weighted` sums.
        targets: of the batch.
        batch: may have `segment_overflow`.
    """
    overflow = batch.get("segment_overflow")
    return {
        "loss_ce": every.ce[-1],
        "loss_mask": every.mask[-1],
        "loss_dice": every.dice[-1],
        "loss_auxiliary": totals[:-1].sum(),
        "targets": targets.count.mean(),
        "overflow": jnp.zeros(()) if overflow is None else overflow.sum().astype(jnp.float32),
        "bad_costs": every.replaced_costs.sum(),
    }


def targets_of(batch: Batch) -> Targets:
    """The targets of a batch. Crowds and padding are none."""
    classes = jnp.asarray(batch["segment_class"]).astype(jnp.int32)
    classes = jnp.where(batch["segment_is_crowd"], -1, classes)
    order = jnp.argsort(classes < 0, axis=1, stable=True).astype(jnp.int32)
    return Targets(
        segments=batch["segments"],
        index=order,
        classes=jnp.take_along_axis(classes, order, axis=1),
        count=(classes >= 0).sum(axis=1, dtype=jnp.int32),
    )


def mask_total(targets: Targets, groups: int = 1) -> Array:
    """What sums over pairs are divided by: the targets of the whole batch, at least one per group.

    Counts all targets, also those that no query was left for.
    """
    return jnp.maximum(targets.count.sum(), groups).astype(jnp.float32)


# --------------------------------------------------------------------------------------------------
# Costs


def class_cost(logits: Array, classes: Array) -> Array:
    """Minus the probability of the target's class: [B, Q, K + 1], [B, S] -> [B, Q, S]."""
    probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)
    return -jnp.take_along_axis(probabilities, jnp.maximum(classes, 0)[:, None], axis=-1)


def cross_entropy_cost(logits: Array, truth: Array) -> Array:
    """Mean binary cross entropy: logits [B, P, Q], truth in 0..1 [B, P, S] -> [B, Q, S]."""
    positive, negative = jax.nn.softplus(-logits), jax.nn.softplus(logits)
    return _against(positive, truth, negative) / logits.shape[1]


def focal_cost(logits: Array, truth: Array, alpha: float = 0.25, gamma: float = 2.0) -> Array:
    """Mean focal loss (Lin et al., ICCV 2017): [B, P, Q], [B, P, S] -> [B, Q, S]."""
    chance = jax.nn.sigmoid(logits)
    positive = alpha * (1 - chance) ** gamma * jax.nn.softplus(-logits)
    negative = (1 - alpha) * chance**gamma * jax.nn.softplus(logits)
    return _against(positive, truth, negative) / logits.shape[1]


def dice_cost(logits: Array, truth: Array) -> Array:
    """1 - (2 sum(s t) + 1) / (sum(s) + sum(t) + 1): [B, P, Q], [B, P, S] -> [B, Q, S]."""
    chance = jax.nn.sigmoid(logits)
    both = _product(chance, truth)
    total = chance.sum(axis=1)[:, :, None] + truth.sum(axis=1)[:, None]
    return 1 - (2 * both + 1) / (total + 1)


def _against(positive: Array, truth: Array, negative: Array) -> Array:
    """sum over points of positive t + negative (1 - t), without [B, P, Q, S]."""
    return _product(positive - negative, truth) + negative.sum(axis=1)[:, :, None]


def _product(x: Array, truth: Array) -> Array:
    return jnp.einsum("bpq,bps->bqs", x, truth, precision=jax.lax.Precision.HIGHEST)


# --------------------------------------------------------------------------------------------------
# Losses


def class_loss(logits: Array, classes: Array, no_object: float = 0.1, groups: int = 1) -> Array:
    """Cross entropy over all queries, those without a target being "no object".

    Args:
        logits: [B, Q, K + 1].
        classes: int [B, Q], -1 for no object.
        no_object: weight of these; all others weigh 1.
        groups: the weighted mean is taken over each of so many equal parts of the batch, and then
            the mean of these: what the official code does with one part per GPU.

    Returns:
        float32 scalar.
    """
    batch, _, last = logits.shape
    classes = jnp.where(classes < 0, last - 1, classes)
    surprise = -jnp.take_along_axis(
        jax.nn.log_softmax(logits.astype(jnp.float32)), classes[..., None], axis=-1
    )[..., 0]
    weights = jnp.where(classes == last - 1, no_object, 1.0)

    def per_group(x: Array) -> Array:
        return x.reshape(groups, batch // groups, -1).sum(axis=(1, 2))

    return (per_group(weights * surprise) / per_group(weights)).mean()


def cross_entropy(logits: Array, truth: Array) -> Array:
    """Mean binary cross entropy over the last axis; truth in 0..1."""
    return _binary(logits, truth).mean(axis=-1)


def focal(logits: Array, truth: Array, alpha: float = 0.25, gamma: float = 2.0) -> Array:
    """Mean focal loss over the last axis; truth is 0 or 1."""
    chance = jax.nn.sigmoid(logits)
    missed = jnp.where(truth > 0.5, 1 - chance, chance)
    weight = jnp.where(truth > 0.5, alpha, 1 - alpha)
    return (weight * missed**gamma * _binary(logits, truth)).mean(axis=-1)


def dice(logits: Array, truth: Array) -> Array:
    """1 - (2 sum(s t) + 1) / (sum(s) + sum(t) + 1) over the last axis (Milletari et al., 3DV
    2016)."""
    chance = jax.nn.sigmoid(logits)
    both = (chance * truth).sum(axis=-1)
    return 1 - (2 * both + 1) / (chance.sum(axis=-1) + truth.sum(axis=-1) + 1)


def paired(values: Array, pairs: Pairs) -> Array:
    """The sum over pairs of what each target is charged: [B, S] -> scalar."""
    chex.assert_equal_shape((values, pairs.query))
    return jnp.where(pairs.query >= 0, values, 0.0).sum()


def target_classes(targets: Targets, pairs: Pairs) -> Array:
    """int32 [B, Q]: the class that each query should say, -1 for no object."""
    found = jnp.take_along_axis(targets.classes, jnp.maximum(pairs.target, 0), axis=1)
    return jnp.where(pairs.target >= 0, found, -1)


def paired_masks(masks: Array, pairs: Pairs) -> Array:
    """The mask of each target's query: [B, h, w, Q] -> [B, S, h, w]; any mask where there is
    none."""
    query = jnp.maximum(pairs.query, 0)[:, :, None, None]
    return jnp.take_along_axis(masks.transpose(0, 3, 1, 2), query, axis=1)


def _binary(logits: Array, truth: Array) -> Array:
    """softplus(x) - x t, the cross entropy of sigmoid(x) and t."""
    return jax.nn.softplus(logits) - logits * truth
