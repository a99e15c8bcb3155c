"""ADE20K scene parsing (ADEChallengeData2016): 150 classes, label 0 ("other") not counted."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from segjax.data import pairs, prepared
from segjax.data.labels import LabelSpace, builtin
from segjax.data.pairs import Pair
from segjax.data.prepared import Dataset, Source
from segjax.errors import SegjaxError

FOLDERS = {"train": "training", "validation": "validation"}
LAYOUT = """
images/training/ADE_train_00000001.jpg          (20210 images)
images/validation/ADE_val_00000001.jpg          (2000 images)
annotations/training/ADE_train_00000001.png
annotations/validation/ADE_val_00000001.png
"""


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
        "ade20k",
        split,
        data_dir,
        lambda: source(split, data_dir, manual_dir=manual_dir),
        manual_dir,
    )


def label_space(**options: object) -> LabelSpace:
    """The 150 classes with the official colours; ids are the values of the label files."""
    return builtin("ade20k")


def source(
    split: str, data_dir: str | PathLike[str] = "", *, manual_dir: str | PathLike[str] = ""
) -> Source:
    """The files of a split. Options as in `load`."""
    if split not in FOLDERS:
        raise SegjaxError(f"ade20k has the splits train and validation, not '{split}'.")
    root = _root(data_dir, manual_dir)
    image_root = root / "images" / FOLDERS[split]
    mask_root = root / "annotations" / FOLDERS[split]
    found = pairs.find_files(image_root) if mask_root.is_dir() else []
    if not found:
        raise pairs.missing(
            "ADE20K",
            root,
            "http://sceneparsing.csail.mit.edu (release of the scene parsing benchmark)",
            "ADEChallengeData2016.zip",
            LAYOUT,
        )
    space = label_space()
    return pairs.source(
        dataset="ade20k",
        split=split,
        space=space,
        key=prepared.custom_key(
            prepared.key_of([(path.name, path.stat().st_size) for path in found]), manual_dir
        ),
        pairs=lambda: [
            Pair(f"{split}/{path.stem}", path, mask_root / f"{path.stem}.png") for path in found
        ],
        class_numbers=pairs.plain_class_numbers(space, ignore=(0, 255)),
    )


def _root(data_dir: str | PathLike[str], manual_dir: str | PathLike[str]) -> Path:
    manual = Path(manual_dir) if manual_dir else prepared.manual_directory("ade20k", data_dir)
    inner = manual.expanduser() / "ADEChallengeData2016"
    return manual.expanduser() if (manual.expanduser() / "images").is_dir() else inner
