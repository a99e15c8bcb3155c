"""Mean IoU and accuracies, counted as mmsegmentation 0.17 counts them, in integers.

Four areas per class are summed over all images before anything is divided. Pixels without a label
count nowhere, whatever is predicted on them.

    areas = confusion.image_areas(predicted, semantic, classes)     # on the device, per image
    total = confusion.add(total, areas)                             # on the device, 64 bits
    summary = confusion.summary(confusion.to_host(total), names)    # at the end
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from segjax.structs import IGNORE, Array

INTERSECTION, PREDICTED, LABELLED = 0, 1, 2
"""Rows of an areas array. The union is PREDICTED + LABELLED - INTERSECTION."""


def image_areas(predicted: Array, semantic: Array, classes: int) -> Array:
    """Pixels per class of each image: predicted rightly, predicted, labelled.

    Args:
        predicted: int [B, H, W] class numbers.
        semantic: int [B, H, W] class numbers, IGNORE where unlabelled.
        classes: K; a larger number in either array is counted for no class.

    Returns:
        int32 [B, 3, K].
    """
    batch = predicted.shape[0]
    predicted = predicted.astype(jnp.int32).reshape(batch, -1)
    semantic = semantic.astype(jnp.int32).reshape(batch, -1)
    counted = jnp.where(semantic != IGNORE, predicted, classes)
    right = jnp.where(predicted == semantic, counted, classes)
    return jnp.stack([_histogram(x, classes) for x in (right, counted, semantic)], axis=1)


def _histogram(values: Array, classes: int) -> Array:
    """How often 0..classes-1 occur in each row. int32 [B, N] -> int32 [B, classes]."""
    values = jnp.where((values >= 0) & (values < classes), values, classes)

    def scatter(values: Array) -> Array:
        zeros = jnp.zeros(classes + 1, jnp.int32)
        return jax.vmap(lambda row: zeros.at[row].add(1))(values)[:, :classes]

    def compare(values: Array) -> Array:  # a TPU has no fast scatter
        ids = jnp.arange(classes, dtype=jnp.int32)
        return jax.lax.map(lambda k: (values == k).sum(-1, dtype=jnp.int32), ids).T

    return jax.lax.platform_dependent(values, tpu=compare, default=scatter)


def zeros(classes: int) -> Array:
    """An empty total: uint32 [2, 3, K], the low and the high words of 64-bit counts."""
    return jnp.zeros((2, 3, classes), jnp.uint32)


def add(total: Array, areas: Array) -> Array:
    """`total` with the areas of some images added; exact to 2**64 pixels.

    Args:
        total: uint32 [2, 3, K].
        areas: int32 [B, 3, K] of `image_areas`.
    """

    def one(total: Array, area: Array) -> tuple[Array, None]:
        low = total[0] + area
        return jnp.stack([low, total[1] + (low < area)]), None

    return jax.lax.scan(one, total, areas.astype(jnp.uint32))[0]


def to_host(total: Array) -> np.ndarray:
    """int64 [3, K] of totals uint32 [..., 2, 3, K]; leading dimensions are summed."""
    words = np.asarray(total).astype(np.int64)
    return (words[..., 0, :, :] + (words[..., 1, :, :] << 32)).reshape(-1, *words.shape[-2:]).sum(0)


# --------------------------------------------------------------------------------------------------
# Finals, on the host


def union(areas: np.ndarray) -> np.ndarray:
    """Pixels of a class in the prediction or the labels. int64 [3, K] -> [K]."""
    return areas[PREDICTED] + areas[LABELLED] - areas[INTERSECTION]


def iou(areas: np.ndarray) -> np.ndarray:
    """Intersection over union, float64 [K] in 0..1; NaN for a class that occurs in neither."""
    return _ratio(areas[INTERSECTION], union(areas))


def accuracy(areas: np.ndarray) -> np.ndarray:
    """Share of a class's pixels that are predicted rightly, [K] in 0..1; NaN without any."""
    return _ratio(areas[INTERSECTION], areas[LABELLED])


def pixel_accuracy(areas: np.ndarray) -> float:
    """Share of the labelled pixels that are predicted rightly, in 0..1; NaN without any."""
    return float(_ratio(areas[INTERSECTION].sum(), areas[LABELLED].sum()))


def percent_mean(values: np.ndarray | float) -> float:
    """Mean of what isn't NaN, in percent, rounded to 2 decimals as mmsegmentation prints it."""
    values = np.asarray(values, np.float64)
    known = values[~np.isnan(values)]
    return float(np.round(known.mean() * 100, 2)) if known.size else float("nan")


def summary(areas: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """The figures of an evaluation.

    Args:
        areas: int64 [3, K].
        names: K class names.

    Returns:
        mIoU, mAcc and aAcc (over all pixels) in percent, and `classes`: for each class its name,
        IoU and Acc in percent (None where there is nothing to divide by), and its labelled and
        predicted pixels.
    """
    rows = zip(names, iou(areas), accuracy(areas), areas[LABELLED], areas[PREDICTED])
    return {
        "mIoU": percent_mean(iou(areas)),
        "mAcc": percent_mean(accuracy(areas)),
        "aAcc": percent_mean(pixel_accuracy(areas)),
        "classes": [
            {
                "name": name,
                "IoU": _percent_or_none(class_iou),
                "Acc": _percent_or_none(class_accuracy),
                "labelled": int(labelled),
                "predicted": int(predicted),
            }
            for name, class_iou, class_accuracy, labelled, predicted in rows
        ],
    }


def _percent_or_none(value: float) -> float | None:
    return None if np.isnan(value) else percent_mean(value)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
