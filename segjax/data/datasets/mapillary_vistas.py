"""Mapillary Vistas.

Version 1.2: 65 classes, of which 37 are things; label 65 is not counted. Version 2.0: 124 classes
in a tree of three levels; "Unlabeled" (123) is one of them, as in HSSN's tables.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np

from segjax.data import instances, pairs, prepared
from segjax.data.instances import Annotation, Entry
from segjax.data.labels import LabelSpace, builtin
from segjax.data.pairs import Pair
from segjax.data.prepared import Dataset, Source
from segjax.errors import SegjaxError
from segjax.structs import Size

FOLDERS = {"train": "training", "validation": "validation"}
UNLABELLED = 65
"""Of version 1.2."""

VERSIONS = ("1.2", "2.0")
LAYOUT = """
training/images/NAME.jpg          (18000 images)
training/labels/NAME.png
training/instances/NAME.png       (for panoptic=True)
validation/...                    (2000 images)
"""
LAYOUT_2 = """
training/images/NAME.jpg          (18000 images)
training/v2.0/labels/NAME.png
validation/...                    (2000 images)
"""


def load(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    manual_dir: str | PathLike[str] = "",
    panoptic: bool = False,
    version: str = "1.2",
) -> Dataset:
    """Loads a split.

    Args:
        split: "train" or "validation".
        data_dir: where prepared data lies.
        manual_dir: holds training/ and validation/; default
            <data_dir>/downloads/manual/mapillary_vistas. When it is gone, an existing prepared copy
            is used.
        panoptic: reads the segments from instances/ (of version 1.2); otherwise the class map from
            labels/.
        version: "1.2" or "2.0"; both may lie in one folder.
    """
    options = dict(manual_dir=manual_dir, panoptic=panoptic, version=version)
    return prepared.prepare_official(
        _name(panoptic, version),
        split,
        data_dir,
        lambda: source(split, data_dir, **options),
        manual_dir,
        manual="mapillary_vistas",
    )


def label_space(*, version: str = "1.2", **options: object) -> LabelSpace:
    """The 65 or 124 classes with the official colours; the label files hold the class numbers.

    Nobody has published the groups of version 2.0 that HSSN's authors took. These follow the code
    of their later LogicSeg, in which three classes lie by their number, against their own names:
    Wall among flat, Trash Can among traffic signs, Water Valve in the void.
    """
    _check_version(version)
    return builtin("mapillary_vistas" if version == "1.2" else "mapillary_vistas_v2")


def source(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    manual_dir: str | PathLike[str] = "",
    panoptic: bool = False,
    version: str = "1.2",
) -> Source:
    """The files of a split. Options as in `load`."""
    dataset = _name(panoptic, version)
    if split not in FOLDERS:
        raise SegjaxError(
            f"mapillary_vistas has labels for the splits train and validation, not '{split}'."
        )
    root = (
        Path(manual_dir) if manual_dir else prepared.manual_directory("mapillary_vistas", data_dir)
    )
    root = root.expanduser()
    first = version == "1.2"
    folder = ("instances" if panoptic else "labels") if first else "v2.0/labels"
    label_root = root / FOLDERS[split] / folder
    image_root = root / FOLDERS[split] / "images"
    found = pairs.find_files(image_root) if label_root.is_dir() else []
    if not found:
        raise pairs.missing(
            f"Mapillary Vistas {version}",
            root,
            "https://www.mapillary.com/dataset/vistas (a free account is needed)",
            f"the archive of version {version}",
            LAYOUT if first else LAYOUT_2,
        )
    space = label_space(version=version)
    key = prepared.custom_key(
        prepared.key_of([(path.name, path.stat().st_size) for path in found]), manual_dir
    )
    rows = [(f"{split}/{path.stem}", path, label_root / f"{path.stem}.png") for path in found]
    if panoptic:
        return instances.source(
            dataset=dataset,
            split=split,
            space=space,
            key=key,
            entries=lambda: [Entry(name, image, (labels,)) for name, image, labels in rows],
            annotate=_annotate,
        )
    return pairs.source(
        dataset=dataset,
        split=split,
        space=space,
        key=key,
        pairs=lambda: [Pair(*row) for row in rows],
        class_numbers=pairs.plain_class_numbers(space, ignore=(UNLABELLED if first else 255,)),
    )


def _check_version(version: str) -> None:
    if version not in VERSIONS:
        raise SegjaxError(
            f"config.data.dataset.version is {version!r}; it must be the text '1.2' or '2.0'."
        )


def _name(panoptic: bool, version: str) -> str:
    _check_version(version)
    if panoptic and version != "1.2":
        raise SegjaxError(
            f"config.data.dataset.panoptic: segments are read of version 1.2, not {version}; set"
            " config.data.dataset.version='1.2'."
        )
    if version == "2.0":
        return "mapillary_vistas_v2"
    return "mapillary_vistas_panoptic" if panoptic else "mapillary_vistas"


def _annotate(entry: Entry, size: Size) -> Annotation:
    """Values are 256 times the label plus the number of the instance."""
    (path,) = entry.labels
    values = instances.read_map(path, entry, size)
    labels = values // 256
    if labels.max() > UNLABELLED:
        raise SegjaxError(
            f"{path}: label {labels.max()} is not below 66; instances of version 1.2 are 16-bit"
            " PNGs of 256 times the label plus a number."
        )
    things = np.append(label_space().is_thing, False)
    values = np.where(things[labels], values, labels * 256)  # stuff is one segment a class
    ids = np.unique(values[labels != UNLABELLED])
    segments, classes = instances.numbered(values, ids), ids // 256
    return Annotation(
        semantic=instances.painted(segments, classes),
        segments=segments,
        segment_class=classes,
        segment_is_crowd=np.zeros(len(ids), bool),
    )
