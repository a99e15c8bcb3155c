"""Segments of a training example: from the dataset's maps to a table of fixed length.

Maps of segments are int32 [L, H, W] here, L layers; a pixel holds the index of a segment, -1 where
there is none. One layer does unless instances overlap; a segment lies in one layer only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from segjax.errors import SegjaxError
from segjax.structs import Size


def layers_of(example: Mapping[str, Any], kind: str) -> np.ndarray:
    """The maps of an example that targets of this kind are made of.

    Args:
        example: an item of `prepared.Dataset`.
        kind: `config.augment.segments`.

    Returns:
        int32 [L, H, W]; L is 0 where the class map is enough ("" and "classes").

    Raises:
        SegjaxError: the dataset has no segments, or overlapping ones for "panoptic".
    """
    height, width = example["semantic"].shape
    if kind in ("", "classes"):
        return np.zeros((0, height, width), np.int32)
    if "segments" not in example:
        raise SegjaxError(
            f"config.augment.segments is '{kind}', but this dataset has no instances; choose"
            " 'classes', or a dataset that has them."
        )
    layers = np.asarray(example["segments"], np.int32).reshape(-1, height, width)
    if kind == "panoptic" and len(layers) > 1:
        raise SegjaxError(
            f"{example.get('name', 'example')}: its instances overlap, so they are no panoptic"
            " segmentation; set config.augment.segments='instance'."
        )
    return layers


def targets(
    layers: np.ndarray,
    semantic: np.ndarray,
    example: Mapping[str, Any],
    augment: Mapping[str, Any],
) -> dict[str, np.ndarray]:
    """The segment arrays of a batch for one augmented example (see `segjax.structs.System`).

    "classes" gives one segment per class of `semantic`, in the order of the classes; "panoptic"
    every segment of the example but crowds, "instance" every one that is a thing, in its order.
    Pixels of a crowd are void. Of more segments than there are rows, the largest are kept.

    Args:
        layers: int32 [L, H, W], `layers_of` after augmentation.
        semantic: int [H, W], the augmented class map.
        example: has `segment_class` int [S], `segment_is_crowd` bool [S] and, if stuff is among
            them, `segment_is_thing` bool [S].
        augment: `segments`, `max_segments` (R), `layers` (M), `keep_empty`, `recipe`.

    Returns:
        `segments` int16 [H, W] ("instance": [M, H, W]), `segment_class` int32 [R], -1 for the
        padding, `segment_is_crowd` bool [R] (all False), `segment_overflow` int32 [], how many
        there was no row, or no layer, for. Nothing where `augment["segments"]` is "".
    """
    kind, rows = augment["segments"], augment["max_segments"]
    if kind == "":
        return {}
    lost, keep_empty = 0, _keeps_empty(augment)
    if kind == "classes":
        layers, keep_empty = semantic[None], False
        classes = np.arange(max(int(semantic.max(initial=-1)) + 1, 0))
        wanted = np.ones(len(classes), bool)
    else:
        classes = np.asarray(example["segment_class"], np.int32)
        wanted = ~np.asarray(example["segment_is_crowd"], bool)
    if kind == "instance":
        if "segment_is_thing" in example:
            wanted &= example["segment_is_thing"]
        lost, layers, wanted = _fitted(layers, wanted, augment["layers"])
    areas = _areas(layers, len(classes))
    chosen = np.flatnonzero(wanted & (keep_empty | (areas > 0)))
    if len(chosen) > rows:
        lost += len(chosen) - rows
        largest = np.argsort(-areas[chosen], kind="stable")[:rows]
        chosen = np.sort(chosen[largest])
    row_of = np.full(len(classes) + 1, -1, np.int16)  # the first entry is for void
    row_of[chosen + 1] = np.arange(len(chosen))
    table = np.full(rows, -1, np.int32)
    table[: len(chosen)] = classes[chosen]
    drawn = row_of[layers + 1]
    return {
        "segments": drawn if kind == "instance" else drawn[0],
        "segment_class": table,
        "segment_is_crowd": np.zeros(rows, bool),
        "segment_overflow": np.array(lost, np.int32),
    }


def shapes(augment: Mapping[str, Any]) -> dict[str, tuple[tuple[int, ...], type]]:
    """(shape, dtype) of every array that `targets` gives."""
    kind, rows = augment.get("segments", ""), augment.get("max_segments", 0)
    if kind == "":
        return {}
    crop: Size = tuple(augment["crop"])
    return {
        "segments": ((augment["layers"], *crop) if kind == "instance" else crop, np.int16),
        "segment_class": ((rows,), np.int32),
        "segment_is_crowd": ((rows,), np.bool_),
        "segment_overflow": ((), np.int32),
    }


def _keeps_empty(augment: Mapping[str, Any]) -> bool:
    """Whether segments of which nothing is left stay, as targets with an empty mask.

    As published ("official"), panoptic segments do, and the instances of shortest_edge.
    """
    choice = augment.get("keep_empty", "official")
    if choice == "official":
        return augment["segments"] == "panoptic" or augment.get("recipe") == "shortest_edge"
    return choice == "yes"


def _areas(layers: np.ndarray, count: int) -> np.ndarray:
    """int [count]: pixels of each segment."""
    return np.bincount((layers + 1).ravel(), minlength=count + 1)[1:]


def _fitted(
    layers: np.ndarray, wanted: np.ndarray, count: int
) -> tuple[int, np.ndarray, np.ndarray]:
    """`count` layers; how many wanted segments lay in others; and which are still wanted."""
    beyond = wanted & (_areas(layers[count:], len(wanted)) > 0)
    first = layers[:count]
    missing = np.full((count - len(first), *layers.shape[1:]), -1, layers.dtype)
    return int(beyond.sum()), np.concatenate([first, missing]), wanted & ~beyond
