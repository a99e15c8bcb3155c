"""Losses of systems that sharpen a coarse mask: CascadePSP (Cheng, Chung, Tai, Tang; CVPR 2020) and
CRM (Shen et al., CVPR 2022), which took them over.

Facts follow github.com/hkchengrex/CascadePSP. Everything is a mean over all pixels of the batch.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from segjax.structs import Array, Scalars

EPSILON = 1e-4
"""Under the root of a gradient's length, whose slope at 0 is then 0 and not infinite."""


class Terms(NamedTuple):
    """Unweighted float32 scalars.

    Attributes:
        ce: binary cross entropy against truth > 0.5.
        l1: distance of the probability from the truth.
        l2: the square of it.
    """

    ce: Array
    l1: Array
    l2: Array


def terms(logits: Array, truth: Array) -> Terms:
    """How far a map is from the truth, pixel by pixel.

    Args:
        logits: [B, H, W].
        truth: [B, H, W] in 0..1, grey at the borders of objects: a mask / 255.
    """
    chex.assert_equal_shape((logits, truth))
    logits = logits.astype(jnp.float32)
    inside = truth > 0.5
    ce = jax.nn.softplus(jnp.where(inside, -logits, logits))
    away = jax.nn.sigmoid(logits) - truth
    return Terms(ce.mean(), jnp.abs(away).mean(), jnp.square(away).mean())


def gradient_term(logits: Array, truth: Array) -> Array:
    """How far the steepness of the probability is from that of the truth (CascadePSP, Sec. 3.3).

    Args:
        logits, truth: as in `terms`.

    Returns:
        The mean difference, a float32 scalar.
    """
    chex.assert_equal_shape((logits, truth))
    probability = jax.nn.sigmoid(logits.astype(jnp.float32))
    return jnp.abs(smooth_sobel(truth) - smooth_sobel(probability)).mean()


def smooth_sobel(x: Array) -> Array:
    """The length of the gradient of a smoothed map.

    The mean over 3 x 3 pixels, then Sobel's two filters / 4; beyond the border the map is 0, and
    so is its mean.

    Args:
        x: [B, H, W].

    Returns:
        float32 [B, H, W], at least sqrt(EPSILON).
    """
    mean = _three(_three(x.astype(jnp.float32), 1, (1, 1, 1)), 2, (1, 1, 1)) / 9.0
    across = _three(_three(mean, 1, (1, 2, 1)), 2, (1, 0, -1)) / 4.0
    down = _three(_three(mean, 2, (1, 2, 1)), 1, (1, 0, -1)) / 4.0
    return jnp.sqrt(jnp.square(across) + jnp.square(down) + EPSILON)


def _three(x: Array, axis: int, weights: tuple[int, int, int]) -> Array:
    """The weighted sum of each sample with its two neighbours along an axis, 0 beyond the ends."""
    length = x.shape[axis]
    padded = jnp.pad(x, [(int(i == axis),) * 2 for i in range(x.ndim)])
    shifted = (
        weight * jax.lax.slice_in_dim(padded, start, start + length, axis=axis)
        for start, weight in enumerate(weights)
        if weight
    )
    return sum(shifted)


def counts(logits: Array, truth: Array, coarse: Array) -> Scalars:
    """What the masks before and after have in common with the truth, in pixels of the whole batch.

    An IoU over many batches is the ratio of the sums (or the means) of these.

    Args:
        logits, truth: as in `terms`.
        coarse: [B, H, W], the mask that was given, -1..1. It holds the pixels above 0.5, as the
            official logs count it, not those above 0.

    Returns:
        "intersection", "union" of the result (probability > 0.5) and "coarse_intersection",
        "coarse_union": float32.
    """
    chex.assert_equal_shape((logits, truth, coarse))
    truth = truth > 0.5
    found = {}
    for name, mask in (("", jax.nn.sigmoid(logits) > 0.5), ("coarse_", coarse > 0.5)):
        found[f"{name}intersection"] = (mask & truth).sum(dtype=jnp.float32)
        found[f"{name}union"] = (mask | truth).sum(dtype=jnp.float32)
    return found
