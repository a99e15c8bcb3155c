"""Mean IoU and accuracies, counted as mmsegmentation 0.17 counts them, in integers.

Four areas per class are summed over all images before anything is divided. Pixels without a label
count nowhere, whatever is predicted on them.

    areas = confusion.image_areas(predicted, semantic, classes)     # on the device, per image
    total = confusion.add(total, areas)                             # on the device, 64 bits
    summary = confusion.summary(confusion.to_host(total), names)    # at the end

To know which class is taken for which, `image_pairs` stands in for `image_areas`; the total is then
the whole confusion matrix.
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


PAIR_TILE = 8192
"""Pixels whose classes are laid out as one-hot rows at a time, where there is no fast scatter."""


def image_pairs(predicted: Array, semantic: Array, classes: int) -> Array:
    """The confusion matrix of each image: pixels for each pair of a true and a predicted class.

    On a CPU (K = 150, eight images of 512 x 512) this scatter takes 7 ms; one-hot matrix products,
    which a TPU is given, would take 2 to 4 s there.

    Args:
        predicted: int [B, H, W] class numbers.
        semantic: int [B, H, W] class numbers, IGNORE where unlabelled.
        classes: K; a pixel where either number is not in 0..K-1 is counted nowhere.

    Returns:
        int32 [B, K, K], rows truth, columns prediction.
    """
    batch = predicted.shape[0]
    truth = semantic.astype(jnp.int32).reshape(batch, -1)
    taken = predicted.astype(jnp.int32).reshape(batch, -1)
    known = (truth >= 0) & (truth < classes) & (taken >= 0) & (taken < classes)
    pairs = jnp.where(known, truth * classes + taken, classes**2)

    def scatter(pairs: Array) -> Array:
        zeros = jnp.zeros(classes**2 + 1, jnp.int32)
        counted = jax.vmap(lambda row: zeros.at[row].add(1))(pairs)
        return counted[:, :-1].reshape(batch, classes, classes)

    def multiply(pairs: Array) -> Array:  # a TPU has no fast scatter
        tile = min(PAIR_TILE, pairs.shape[1])  # counts of a tile are exact in float32
        filling = [(0, 0), (0, -pairs.shape[1] % tile)]
        pairs = jnp.pad(pairs, filling, constant_values=classes**2)
        ids = jnp.arange(classes, dtype=jnp.int32)

        def one(total: Array, part: Array) -> tuple[Array, None]:
            rows = (part[:, None] // classes == ids).astype(jnp.bfloat16)
            columns = (part[:, None] % classes == ids).astype(jnp.bfloat16)
            counted = jnp.einsum("nt,np->tp", rows, columns, preferred_element_type=jnp.float32)
            return total + counted.astype(jnp.int32), None

        def of_image(row: Array) -> Array:
            zeros = jnp.zeros((classes, classes), jnp.int32)
            return jax.lax.scan(one, zeros, row.reshape(-1, tile))[0]

        return jax.lax.map(of_image, pairs)

    return jax.lax.platform_dependent(pairs, tpu=multiply, default=scatter)


def pair_areas(pairs: Array) -> Array:
    """Matrices int [..., K, K] -> the areas in them [..., 3, K], rows as of `image_areas`."""
    right = jnp.diagonal(pairs, axis1=-2, axis2=-1)
    return jnp.stack([right, pairs.sum(-2), pairs.sum(-1)], axis=-2)


def zeros(classes: int) -> Array:
    """An empty total: uint32 [2, 3, K], the low and the high words of 64-bit counts."""
    return jnp.zeros((2, 3, classes), jnp.uint32)


def add(total: Array, areas: Array) -> Array:
    """`total` with the areas of some images added; exact to 2**64 pixels.

    Args:
        total: uint32 [2, 3, K], or [2, K, K].
        areas: int32 [B, 3, K] of `image_areas`, or [B, K, K] of `image_pairs`.
    """

    def one(total: Array, area: Array) -> tuple[Array, None]:
        low = total[0] + area
        return jnp.stack([low, total[1] + (low < area)]), None

    return jax.lax.scan(one, total, areas.astype(jnp.uint32))[0]


def to_host(total: Array) -> np.ndarray:
    """int64 [3, K] of totals uint32 [..., 2, 3, K]; leading dimensions are summed.

    Likewise [K, K] of [..., 2, K, K].
    """
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


def present_iou(areas: np.ndarray) -> np.ndarray:
    """Mean IoU over the classes that occur in the labels, e.g. of single images.

    A class that is only predicted lowers it through the pixels it takes from others.

    Args:
        areas: int [..., 3, K].

    Returns:
        float64 [...] in 0..1; NaN where nothing is labelled.
    """
    areas = np.asarray(areas, np.int64)
    right, predicted, labelled = (areas[..., row, :] for row in range(3))
    present = labelled > 0
    ratios = np.where(present, _ratio(right, predicted + labelled - right), 0.0)
    return _ratio(ratios.sum(-1), present.sum(-1))


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
