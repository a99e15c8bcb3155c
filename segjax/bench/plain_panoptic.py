"""Panoptic quality as one writes it first: unique pairs of ids, dictionaries and loops.

The definition is that of panopticapi (Kirillov et al., CVPR 2019). It is the side that
`segjax.metrics.panoptic` is timed against, and what it is tested with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

VOID = 0

Segments = Sequence[Mapping[str, Any]]


def plain_counts(
    true_map: np.ndarray,
    true_segments: Segments,
    found_map: np.ndarray,
    found_segments: Segments,
    categories: Sequence[int],
) -> np.ndarray:
    """Sum of IoU, true positives, false positives and false negatives of one image.

    Args:
        true_map: [H, W] segment ids, 0 void.
        true_segments: rows with id, category_id, area and iscrowd.
        found_map: [H, W] segment ids, 0 void.
        found_segments: rows with id and category_id.
        categories: K category ids.

    Returns:
        float64 [K, 4].
    """
    place = {category: k for k, category in enumerate(categories)}
    counts = np.zeros((len(place), 4))
    true = {row["id"]: row for row in true_segments}
    found = {row["id"]: row for row in found_segments}
    ids, pixels = np.unique(found_map, return_counts=True)
    found_area = dict(zip(ids.tolist(), pixels.tolist()))

    pairs = true_map.astype(np.uint64) * np.uint64(256**3) + found_map.astype(np.uint64)
    ids, pixels = np.unique(pairs, return_counts=True)
    shared = {divmod(pair, 256**3): count for pair, count in zip(ids.tolist(), pixels.tolist())}

    true_matched, found_matched = set(), set()
    for (one, other), pixels in shared.items():
        if one not in true or other not in found or true[one]["iscrowd"]:
            continue
        category = true[one]["category_id"]
        if found[other]["category_id"] != category:
            continue
        union = found_area[other] + true[one]["area"] - pixels - shared.get((VOID, other), 0)
        if pixels / union > 0.5:
            counts[place[category], :2] += pixels / union, 1
            true_matched.add(one)
            found_matched.add(other)

    crowd = {}
    for one, row in true.items():
        if row["iscrowd"]:
            crowd[row["category_id"]] = one
        elif one not in true_matched:
            counts[place[row["category_id"]], 3] += 1

    for other, row in found.items():
        if other in found_matched:
            continue
        ignored = shared.get((VOID, other), 0)
        if row["category_id"] in crowd:
            ignored += shared.get((crowd[row["category_id"]], other), 0)
        if ignored / found_area[other] <= 0.5:
            counts[place[row["category_id"]], 2] += 1
    return counts
