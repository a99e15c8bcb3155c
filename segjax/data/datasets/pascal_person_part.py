"""PASCAL-Person-Part: 7 classes, background among them; 255 is not counted.

The layout is that of the published annotations (pascal_person_part.zip: label images and lists of
names) beside the photographs they belong to, those of PASCAL VOC 2010.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from segjax.data import pairs, prepared
from segjax.data.labels import LabelSpace, builtin
from segjax.data.pairs import Pair
from segjax.data.prepared import Dataset, Source
from segjax.errors import SegjaxError

LISTS = {"train": "train_id.txt", "validation": "val_id.txt"}
LIST_FOLDERS = ("", "pascal_person_part_trainval_list")
"""Where the lists may lie: as commonly laid out, and as in the archive."""

LAYOUT = """
JPEGImages/2008_000008.jpg               (of PASCAL VOC 2010)
pascal_person_part_gt/2008_000008.png
train_id.txt                             (1716 names, one a line)
val_id.txt                               (1817 names)
"""


def load(
    split: str, data_dir: str | PathLike[str] = "", *, manual_dir: str | PathLike[str] = ""
) -> Dataset:
    """Loads a split.

    Args:
        split: "train" or "validation".
        data_dir: where prepared data lies.
        manual_dir: holds JPEGImages/, pascal_person_part_gt/ and the lists; default
            <data_dir>/downloads/manual/pascal_person_part. When it is gone, an existing prepared
            copy is used.
    """
    return prepared.prepare_official(
        "pascal_person_part",
        split,
        data_dir,
        lambda: source(split, data_dir, manual_dir=manual_dir),
        manual_dir,
    )


def label_space(**options: object) -> LabelSpace:
    """The 7 classes in upper and lower body, and these in one body; the label files hold the class
    numbers."""
    return builtin("person_part")


def source(
    split: str, data_dir: str | PathLike[str] = "", *, manual_dir: str | PathLike[str] = ""
) -> Source:
    """The files of a split. Options as in `load`."""
    if split not in LISTS:
        raise SegjaxError(f"pascal_person_part has the splits train and validation, not '{split}'.")
    root = (
        Path(manual_dir)
        if manual_dir
        else prepared.manual_directory("pascal_person_part", data_dir)
    )
    root = root.expanduser()
    image_root, mask_root = root / "JPEGImages", root / "pascal_person_part_gt"
    lists = [root / folder / LISTS[split] for folder in LIST_FOLDERS]
    listed = next((path for path in lists if path.is_file()), None)
    if listed is None or not image_root.is_dir() or not mask_root.is_dir():
        raise pairs.missing(
            "PASCAL-Person-Part",
            root,
            "http://liangchiehchen.com/projects/DeepLab.html and"
            " http://host.robots.ox.ac.uk/pascal/VOC/voc2010",
            "pascal_person_part.zip and VOCtrainval_03-May-2010.tar",
            LAYOUT,
        )
    names = listed.read_text(encoding="utf-8").split()
    if not names:
        raise SegjaxError(f"{listed}: it is empty; it must have the name of an image a line.")
    space = label_space()
    return pairs.source(
        dataset="pascal_person_part",
        split=split,
        space=space,
        key=prepared.custom_key(prepared.key_of(names), manual_dir),
        pairs=lambda: [
            Pair(f"{split}/{name}", image_root / f"{name}.jpg", mask_root / f"{name}.png")
            for name in names
        ],
        class_numbers=pairs.plain_class_numbers(space),
    )
