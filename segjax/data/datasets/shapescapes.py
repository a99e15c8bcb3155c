"""Shapescapes: generated landscapes with 12 classes, instances and a three-level class tree.

Nothing is downloaded; see `segjax.data.scenes` for what is painted. A scene depends on the seed,
the split, its index and the size alone, so a larger split begins with the scenes of a smaller one.
"""

from __future__ import annotations

from os import PathLike

import numpy as np

from segjax.data import images, prepared, scenes
from segjax.data.labels import LabelSpace, builtin
from segjax.data.prepared import Dataset, Record, Source
from segjax.errors import SegjaxError

GENERATOR = 6
"""Counts changes to what `scenes` paints; part of the key of prepared copies."""

SPLITS = ("train", "validation")


def load(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    size: tuple[int, int] = (128, 128),
    train: int = 2000,
    validation: int = 100,
    seed: int = 0,
) -> Dataset:
    """Loads a split, painting it on first use.

    Args:
        split: "train" or "validation".
        data_dir: where prepared data lies.
        size: (height, width) of the scenes.
        train: number of training scenes.
        validation: number of validation scenes.
        seed: another one gives other scenes.
    """
    options = dict(size=size, train=train, validation=validation, seed=seed)
    return prepared.prepare(source(split, data_dir, **options), data_dir)


def label_space(**options: object) -> LabelSpace:
    """The 12 classes; leaves, kinds, and stuff or thing."""
    return builtin("shapescapes")


def source(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    size: tuple[int, int] = (128, 128),
    train: int = 2000,
    validation: int = 100,
    seed: int = 0,
) -> Source:
    """The scenes of a split, painted as they are read. Options as in `load`."""
    if split not in SPLITS:
        raise SegjaxError(f"shapescapes has the splits train and validation, not '{split}'.")
    count = {"train": train, "validation": validation}[split]
    if count < 1:
        raise SegjaxError(f"config.data.dataset.{split} is {count}; ask for at least one scene.")
    if len(size) != 2 or min(size) < 16:
        raise SegjaxError(
            f"config.data.dataset.size is {size}; give (height, width) of 16 pixels or more."
        )
    size = (int(size[0]), int(size[1]))

    def read(index: int) -> Record:
        scene = scene_at(split, index, size, seed)
        return Record(
            image=images.encode_png(scene.image),
            size=size,
            semantic=scene.semantic,
            segments=scene.segments,
            segment_class=scene.segment_class,
            segment_is_crowd=scene.segment_is_crowd,
        )

    return Source(
        dataset="shapescapes",
        split=split,
        label_space=label_space(),
        key=prepared.key_of(GENERATOR, size, count, seed),
        segments=True,
        names=lambda: [f"{split}/{index:06d}" for index in range(count)],
        read=read,
    )


def scene_at(split: str, index: int, size: tuple[int, int], seed: int = 0) -> scenes.Scene:
    """Scene number `index` of a split."""
    return scenes.paint_scene(size, np.random.default_rng([seed, SPLITS.index(split), index]))
