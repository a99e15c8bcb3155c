"""Images with instances drawn in label files: what the datasets of panoptic and instance
segmentation have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from segjax.data import images, pairs
from segjax.data.labels import LabelSpace
from segjax.data.prepared import Record, Source
from segjax.errors import SegjaxError
from segjax.structs import IGNORE, Size


class Entry(NamedTuple):
    """An image file, where its labels are (files, or rows of a JSON), and their name."""

    name: str
    image: Path
    labels: tuple[Any, ...]


class Annotation(NamedTuple):
    """What is drawn on an image; the fields of `prepared.Record` of the same names."""

    semantic: np.ndarray
    segments: np.ndarray
    segment_class: Sequence[int]
    segment_is_crowd: Sequence[bool]
    segment_area: Sequence[float] = ()


def source(
    dataset: str,
    split: str,
    space: LabelSpace,
    key: str,
    entries: Callable[[], Sequence[Entry]],
    annotate: Callable[[Entry, Size], Annotation],
) -> Source:
    """A source of images and what `annotate` reads from their labels.

    Args:
        dataset: name of the dataset.
        split: name of the split.
        space: what the class numbers mean.
        key: see `Source`.
        entries: lists the files; called once.
        annotate: (entry, size of the image) to its annotation; raises SegjaxError naming the file.
    """
    all_entries = functools.cache(entries)

    def read(index: int) -> Record:
        entry = all_entries()[index]
        data, size = pairs.read_sized(entry.image)
        return Record(data, size, *annotate(entry, size))

    return Source(
        dataset=dataset,
        split=split,
        label_space=space,
        key=key,
        segments=True,
        names=lambda: [entry.name for entry in all_entries()],
        read=read,
    )


def read_map(
    path: Path,
    entry: Entry,
    size: Size,
    read: Callable[[Path], np.ndarray] = images.read_labels,
) -> np.ndarray:
    """A label file [H, W, ...] of an image, checked to be there and of its size."""
    if not path.is_file():
        raise SegjaxError(f"{entry.image}: its label file is missing; it should be {path}.")
    values = read(path)
    pairs.check_size(path, values.shape[:2], entry.image, size)
    return values


def numbered(values: np.ndarray, ids: Sequence[int]) -> np.ndarray:
    """int32 [H, W]: the position in `ids` (different numbers) of every value, -1 for others."""
    if not len(ids):
        return np.full(values.shape, -1, np.int32)
    order = np.argsort(ids)
    known = np.asarray(ids)[order]
    slot = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[slot] == values, order[slot], -1).astype(np.int32)


def painted(segments: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """int16 [H, W]: the class of every pixel's segment, IGNORE where there is none.

    Args:
        segments: int32 [H, W], index of a segment, -1 for none.
        classes: int [S].
    """
    return np.append(classes, IGNORE).astype(np.int16)[segments]


def layered(masks: Sequence[np.ndarray], size: Size) -> np.ndarray:
    """Spreads masks that may overlap over layers, each into the first that has room for it.

    Args:
        masks: S bool maps [H, W].
        size: (height, width), for no masks.

    Returns:
        int32 [H, W] where one layer is enough, else [L, H, W]: index of the mask, -1 for none.
    """
    layers: list[np.ndarray] = []
    for index, mask in enumerate(masks):
        for layer in layers:
            if (layer[mask] < 0).all():
                break
        else:
            layer = np.full(size, -1, np.int32)
            layers.append(layer)
        layer[mask] = index
    if not layers:
        return np.full(size, -1, np.int32)
    return np.stack(layers) if len(layers) > 1 else layers[0]


def top_layer(segments: np.ndarray) -> np.ndarray:
    """int32 [H, W]: where masks overlap, the one of the first layer."""
    if segments.ndim == 2:
        return segments
    top = segments[-1]
    for layer in segments[-2::-1]:
        top = np.where(layer < 0, top, layer)
    return top
