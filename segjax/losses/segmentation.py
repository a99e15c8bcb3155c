"""Losses of dense labelling."""

from __future__ import annotations

from collections.abc import Sequence

from segjax.ops import dense
from segjax.structs import Array, Scalars


def pixel_cross_entropy(scores: Array, labels: Array, over: str = "all") -> tuple[Array, Scalars]:
    """Softmax cross entropy of scores resized bilinearly to the labels.

    Args:
        scores: [B, h, w, K] logits; half-pixel centres map them onto the labels' grid.
        labels: [B, H, W] class ids, IGNORE where there is none.
        over: the denominator. "all": every pixel of the batch, ignored ones included, as
            mmsegmentation counts; "valid": labelled pixels only, as Segmenter counts.

    Returns:
        The mean loss, and `accuracy`: percent of ALL pixels whose highest score is the label
        (mmsegmentation's `acc_seg`, where an ignored pixel counts as wrong).
    """
    loss_sum, correct, valid = dense.resize_cross_entropy(scores, labels)
    pixels = float(labels.size)
    count = {"all": pixels, "valid": valid.clip(1.0)}[over]
    return loss_sum / count, {"accuracy": 100.0 * correct / pixels}


def deep_supervision(
    scores: Array,
    auxiliary: Sequence[Array],
    labels: Array,
    weight: float,
    over: str = "all",
) -> tuple[Array, Scalars]:
    """Pixel cross entropy of a main head, and `weight` times that of each auxiliary head.

    Args:
        scores: [B, h, w, K] logits of the main head.
        auxiliary: the same of each auxiliary head, [B, h', w', K] of any grids.
        labels, over: see `pixel_cross_entropy`.

    Returns:
        The loss; `accuracy` of the main head, `loss_main`, and `loss_aux_i` of each auxiliary head
        before it is weighted.
    """
    total, scalars = pixel_cross_entropy(scores, labels, over)
    scalars["loss_main"] = total
    for i, other in enumerate(auxiliary):
        part, _ = pixel_cross_entropy(other, labels, over)
        scalars[f"loss_aux_{i}"] = part
        total = total + weight * part
    return total, scalars
