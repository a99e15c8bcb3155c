"""Scores at every level of a class tree, from the confusion matrix of the leaves.

mIoU^1 is that of the leaves; for mIoU^2 and up, truth and prediction are replaced by their
ancestors first (Li et al., Deep Hierarchical Semantic Segmentation, CVPR 2022, Sec. 4). Every leaf
counts, background too. To replace the classes of all pixels is to add up rows and columns of the
matrix, so a system that knows no tree can be measured as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from segjax.metrics import confusion


def merged(pairs: np.ndarray, ancestors: np.ndarray, classes: int) -> np.ndarray:
    """The confusion matrix of classes that leaves belong to.

    Args:
        pairs: int [K, K], pixels by leaf, rows truth, columns prediction.
        ancestors: int [K], the class of each leaf, 0..G-1.
        classes: G.

    Returns:
        int64 [G, G].
    """
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (ancestors[:, None], ancestors[None]), pairs)
    return matrix


def areas(pairs: np.ndarray, ancestors: np.ndarray) -> list[np.ndarray]:
    """What `metrics.confusion` divides, for each level of a tree.

    Args:
        pairs: int [K, K], pixels by leaf, rows truth, columns prediction.
        ancestors: int [K, L], the class of each level that a leaf belongs to, numbered within its
            level; see `hierarchies.Hierarchy`.

    Returns:
        For each level int64 [3, G], rows as of `confusion.image_areas`.
    """
    levels = [merged(pairs, column, int(column.max()) + 1) for column in ancestors.T]
    # NumPy's sums, as those of `confusion.pair_areas` have 32 bits.
    return [np.stack([matrix.diagonal(), matrix.sum(0), matrix.sum(1)]) for matrix in levels]


def summary(
    pairs: np.ndarray, ancestors: np.ndarray, names: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """The figures of all levels.

    Args:
        pairs: int [K, K], as of `areas`.
        ancestors: int [K, L], as of `areas`.
        names: of the classes of each level, leaves first.

    Returns:
        `mIoU^1` (the leaves) to `mIoU^L` in percent; and `levels`, for each level above the leaves
        what `confusion.summary` gives, and `level`, its number (from 2).
    """
    found = [
        {"level": number, **confusion.summary(level, level_names)}
        for number, (level, level_names) in enumerate(zip(areas(pairs, ancestors), names), start=1)
    ]
    return {**{f"mIoU^{level['level']}": level["mIoU"] for level in found}, "levels": found[1:]}
