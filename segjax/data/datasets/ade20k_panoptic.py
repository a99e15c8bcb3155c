"""ADE20K panoptic segmentation: 150 classes, of which 100 are things.

The instances of the Places challenge 2017 are laid over the stuff of the scene parsing benchmark,
as Mask2Former's preparation does. The class map is that of `ade20k`. A stuff segment counts the
pixels that it had before (`segment_area`), and stays when instances cover all of it.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np

from segjax.data import images, instances, pairs, prepared
from segjax.data.datasets import ade20k
from segjax.data.instances import Annotation, Entry
from segjax.data.labels import LabelSpace, builtin
from segjax.data.prepared import Dataset, Source
from segjax.errors import SegjaxError
from segjax.structs import IGNORE, Size

LAYOUT = (
    ade20k.LAYOUT
    + """annotations_instance/training/ADE_train_00000001.png
annotations_instance/validation/ADE_val_00000001.png
"""
)


def load(
    split: str, data_dir: str | PathLike[str] = "", *, manual_dir: str | PathLike[str] = ""
) -> Dataset:
    """Loads a split.

    Args:
        split: "train" or "validation".
        data_dir: where prepared data lies.
        manual_dir: the folder ADEChallengeData2016, or the one it lies in; default
            <data_dir>/downloads/manual/ade20k. When it is gone, an existing prepared copy is used.
    """
    return prepared.prepare_official(
        "ade20k_panoptic",
        split,
        data_dir,
        lambda: source(split, data_dir, manual_dir=manual_dir),
        manual_dir,
        manual="ade20k",
    )


def label_space(**options: object) -> LabelSpace:
    """The 150 classes of `ade20k`."""
    return builtin("ade20k")


def source(
    split: str, data_dir: str | PathLike[str] = "", *, manual_dir: str | PathLike[str] = ""
) -> Source:
    """The files of a split. Options as in `load`."""
    space = label_space()
    things = np.flatnonzero(space.is_thing)
    class_numbers = pairs.plain_class_numbers(space, ignore=(0, 255))

    def annotate(entry: Entry, size: Size) -> Annotation:
        semantic_path, instance_path = entry.labels
        values = instances.read_map(semantic_path, entry, size)
        semantic = class_numbers(values, str(semantic_path))
        drawn, thing = read_instances(instance_path, entry, size)
        stuff = [label for label in np.unique(semantic[semantic != IGNORE]) if label not in things]
        areas = [int((semantic == label).sum()) for label in stuff]
        segments = np.where(drawn < 0, instances.numbered(semantic, stuff), drawn + len(stuff))
        return Annotation(
            semantic=semantic,
            segments=segments,
            segment_class=[*stuff, *things[thing]],
            segment_is_crowd=[False] * (len(stuff) + len(thing)),
            segment_area=[*areas, *np.bincount(drawn[drawn >= 0], minlength=len(thing))],
        )

    entries, key = files("ade20k_panoptic", split, data_dir, manual_dir)
    return instances.source(
        dataset="ade20k_panoptic",
        split=split,
        space=space,
        key=key,
        entries=lambda: entries,
        annotate=annotate,
    )


def files(
    dataset: str, split: str, data_dir: str | PathLike[str], manual_dir: str | PathLike[str]
) -> tuple[list[Entry], str]:
    """The files of a split, each with its class map and its instance map, and the key of them."""
    if split not in ade20k.FOLDERS:
        raise SegjaxError(f"{dataset} has the splits train and validation, not '{split}'.")
    root = root_of(data_dir, manual_dir)
    folder = ade20k.FOLDERS[split]
    semantic_root, instance_root = root / "annotations" / folder, root / "annotations_instance"
    whole = semantic_root.is_dir() and (instance_root / folder).is_dir()
    found = pairs.find_files(root / "images" / folder) if whole else []
    if not found:
        raise pairs.missing(
            "ADE20K with instances",
            root,
            "http://sceneparsing.csail.mit.edu (scene parsing benchmark; Places challenge 2017)",
            "ADEChallengeData2016.zip and annotations_instance.tar",
            LAYOUT,
        )
    entries = []
    for path in found:
        png = f"{path.stem}.png"
        labels = (semantic_root / png, instance_root / folder / png)
        entries.append(Entry(f"{split}/{path.stem}", path, labels))
    key = prepared.key_of([(path.name, path.stat().st_size) for path in found])
    return entries, prepared.custom_key(key, manual_dir)


def root_of(data_dir: str | PathLike[str], manual_dir: str | PathLike[str]) -> Path:
    """The folder that holds images/."""
    manual = Path(manual_dir) if manual_dir else prepared.manual_directory("ade20k", data_dir)
    manual = manual.expanduser()
    return manual if (manual / "images").is_dir() else manual / "ADEChallengeData2016"


def read_instances(path: Path, entry: Entry, size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Reads a file of instances: red is the class, 1..100 (0: none); green tells them apart.

    Returns:
        int32 [H, W], index of the instance, -1 for none; and int [S], their classes from 0.
    """
    colour = instances.read_map(path, entry, size, images.read_image)
    red, green = colour[..., 0].astype(np.int32), colour[..., 1].astype(np.int32)
    numbers = np.unique(green[green > 0])
    drawn = instances.numbered(green, numbers)
    classes = np.zeros(len(numbers), np.int64)
    for index, number in enumerate(numbers):
        found = np.unique(red[drawn == index])
        if len(found) > 1 or not 1 <= found[0] <= 100:
            raise SegjaxError(
                f"{path}: instance {number} has class {' and '.join(map(str, found))} in its red"
                " channel; it must have one of 1 to 100 throughout."
            )
        classes[index] = found[0] - 1
    return drawn, classes
