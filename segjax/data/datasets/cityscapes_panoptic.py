"""Cityscapes panoptic segmentation: 19 classes, of which 8 are things, from the instance files.

A value of 1000 or more is an instance of the label id value // 1000. Smaller values are label ids:
a segment of stuff, or a group of things that nobody told apart, which is a crowd.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np

from segjax.data import instances, pairs, prepared
from segjax.data.datasets import cityscapes
from segjax.data.instances import Annotation, Entry
from segjax.data.labels import LabelSpace, builtin
from segjax.data.prepared import Dataset, Source
from segjax.errors import SegjaxError
from segjax.structs import IGNORE, Size


def load(
    split: str, data_dir: str | PathLike[str] = "", *, manual_dir: str | PathLike[str] = ""
) -> Dataset:
    """Loads a split.

    Args:
        split: "train" or "validation".
        data_dir: where prepared data lies.
        manual_dir: holds leftImg8bit/ and gtFine/; default <data_dir>/downloads/manual/cityscapes.
            When it is gone, an existing prepared copy is used.
    """
    return prepared.prepare_official(
        "cityscapes_panoptic",
        split,
        data_dir,
        lambda: source(split, data_dir, manual_dir=manual_dir),
        manual_dir,
        manual="cityscapes",
    )


def label_space(**options: object) -> LabelSpace:
    """The 19 classes of `cityscapes`."""
    return builtin("cityscapes")


def source(
    split: str, data_dir: str | PathLike[str] = "", *, manual_dir: str | PathLike[str] = ""
) -> Source:
    """The files of a split. Options as in `load`."""
    return of_instance_files("cityscapes_panoptic", label_space(), split, data_dir, manual_dir)


def of_instance_files(
    dataset: str,
    space: LabelSpace,
    split: str,
    data_dir: str | PathLike[str],
    manual_dir: str | PathLike[str],
) -> Source:
    """The segments of the classes of `space`, whose ids are label ids; all else is void."""
    if split not in cityscapes.FOLDERS:
        raise SegjaxError(
            f"{dataset} has labels for the splits train and validation, not '{split}'."
        )
    root = Path(manual_dir) if manual_dir else prepared.manual_directory("cityscapes", data_dir)
    root = root.expanduser()
    image_root = root / "leftImg8bit" / cityscapes.FOLDERS[split]
    label_root = root / "gtFine" / cityscapes.FOLDERS[split]
    found = sorted(image_root.glob("*/*_leftImg8bit.png")) if label_root.is_dir() else []
    if not found:
        raise pairs.missing(
            "Cityscapes",
            root,
            "https://www.cityscapes-dataset.com/downloads (a free account is needed)",
            "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
            cityscapes.LAYOUT.replace("labelIds", "instanceIds"),
        )

    def entry(path: Path) -> Entry:
        stem = path.name.removesuffix("_leftImg8bit.png")
        labels = label_root / path.parent.name / f"{stem}_gtFine_instanceIds.png"
        return Entry(f"{split}/{stem}", path, (labels,))

    def annotate(entry: Entry, size: Size) -> Annotation:
        (path,) = entry.labels
        values = instances.read_map(path, entry, size)
        found = np.unique(values)
        label_ids = np.where(found < 1000, found, found // 1000)
        if label_ids.max() > 33:
            raise SegjaxError(
                f"{path}: value {found[label_ids > 33][0]} is no instance of a Cityscapes label id"
                " (0 to 33)."
            )
        classes = space.from_ids(label_ids)
        known = classes != IGNORE
        ids, classes = found[known], classes[known]
        segments = instances.numbered(values, ids)
        return Annotation(
            semantic=instances.painted(segments, classes),
            segments=segments,
            segment_class=classes,
            segment_is_crowd=(ids < 1000) & np.asarray(space.is_thing)[classes],
        )

    return instances.source(
        dataset=dataset,
        split=split,
        space=space,
        key=prepared.custom_key(
            prepared.key_of([(path.name, path.stat().st_size) for path in found]), manual_dir
        ),
        entries=lambda: [entry(path) for path in found],
        annotate=annotate,
    )
