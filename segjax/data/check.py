"""Looks through a dataset's files before any training.

Every fault is told by file name, and how often every class occurs, on each level of a class tree.
Nothing is prepared or written.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from concurrent import futures

import numpy as np

from segjax.data import images
from segjax.data.hierarchies import Hierarchy
from segjax.data.labels import LabelSpace
from segjax.data.prepared import Source
from segjax.data.progress import track
from segjax.errors import SegjaxError
from segjax.structs import IGNORE


@dataclasses.dataclass(frozen=True)
class Report:
    """What a split holds.

    Attributes:
        split: its name.
        label_space: what the classes are.
        examples: number of examples, faulty ones included.
        faults: one sentence per faulty example, in their order.
        pixels: int64 [K], labelled pixels of each class in the sound examples.
        images: int64 [K], sound examples that show the class.
        ignored: pixels without label.
        sizes: the smallest and the greatest (height, width), by area; () when no example is sound.
    """

    split: str
    label_space: LabelSpace
    examples: int
    faults: tuple[str, ...]
    pixels: np.ndarray
    images: np.ndarray
    ignored: int
    sizes: tuple[tuple[int, int], ...]

    @property
    def never_seen(self) -> tuple[str, ...]:
        """Names of the classes without a pixel."""
        return tuple(name for name, count in zip(self.label_space.names, self.pixels) if not count)


def check(source: Source) -> Report:
    """Reads every image and mask of a split in full.

    Raises:
        SegjaxError: the files can't be listed (missing folders, an empty dataset).
    """
    names = source.names()
    classes = source.label_space.classes
    faults = []
    pixels, shown = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    ignored, sizes = 0, set()
    results = _in_order(source, names)
    for result in track(results, len(names), f"Checking {source.dataset} {source.split}"):
        if isinstance(result, str):
            faults.append(result)
            continue
        counts, void, size = result
        pixels += counts
        shown += counts > 0
        ignored += void
        sizes.add(size)
    by_area = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    return Report(
        split=source.split,
        label_space=source.label_space,
        examples=len(names),
        faults=tuple(faults),
        pixels=pixels,
        images=shown,
        ignored=ignored,
        sizes=(by_area[0], by_area[-1]) if by_area else (),
    )


Counts = tuple[np.ndarray, int, tuple[int, int]]


def _in_order(source: Source, names: Sequence[str]) -> Iterator[Counts | str]:
    with futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        try:
            # In slices, so that results don't pile up ahead of the reader.
            for start in range(0, len(names), 256):
                part = range(start, min(start + 256, len(names)))
                yield from pool.map(lambda index: _count(source, index, names[index]), part)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _count(source: Source, index: int, name: str) -> Counts | str:
    """Pixels per class, pixels without one, and the size; or what is wrong."""
    try:
        record = source.read(index)
        images.read_image(record.image, name)
    except SegjaxError as error:
        return str(error)
    labelled = record.semantic[record.semantic != IGNORE]
    counts = np.bincount(labelled, minlength=source.label_space.classes)
    return counts, record.semantic.size - labelled.size, record.size


def level_pixels(report: Report, hierarchy: Hierarchy) -> list[np.ndarray]:
    """Labelled pixels of the classes of each level: int64 [leaves], ..., [classes of the top]."""
    return [
        np.array([report.pixels[column == number].sum() for number in range(classes)], np.int64)
        for column, classes in zip(hierarchy.ancestors.T, hierarchy.sizes)
    ]


def hints(report: Report) -> list[str]:
    """What in a faultless report is suspicious all the same."""
    sound = report.examples - len(report.faults)
    if not sound:
        return []
    found = []
    total = int(report.pixels.sum()) + report.ignored
    if not report.pixels.any():
        found.append("no pixel has a class: every mask value is ignored.")
    elif report.never_seen and report.ignored > 0.02 * total:
        found.append(
            f"{len(report.never_seen)} classes never occur while {report.ignored / total:.0%} of"
            " the pixels are ignored; if 255 stands for a class in your masks, write class numbers"
            " instead (0, 1, ...)."
        )
    return found
