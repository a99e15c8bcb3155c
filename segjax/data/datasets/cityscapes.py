"""Cityscapes: the 19 evaluated classes of the fine annotations."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import numpy as np

from segjax.data import pairs, prepared
from segjax.data.labels import LabelSpace, builtin
from segjax.data.pairs import Pair
from segjax.data.prepared import Dataset, Source
from segjax.errors import SegjaxError

FOLDERS = {"train": "train", "validation": "val"}
LAYOUT = """
leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png      (2975 images)
leftImg8bit/val/...                                                (500 images)
gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png
gtFine/val/...
"""


def load(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    manual_dir: str | PathLike[str] = "",
    labels: str = "labelIds",
) -> Dataset:
    """Loads a split.

    Args:
        split: "train" or "validation".
        data_dir: where prepared data lies.
        manual_dir: holds leftImg8bit/ and gtFine/; default <data_dir>/downloads/manual/cityscapes.
            When it is gone, an existing prepared copy is used.
        labels: "labelIds", the files of the official archive, or "labelTrainIds", those of the
            official preparation script. Both give the same classes.
    """
    return prepared.prepare_official(
        "cityscapes",
        split,
        data_dir,
        lambda: source(split, data_dir, manual_dir=manual_dir, labels=labels),
        manual_dir,
    )


def label_space(**options: object) -> LabelSpace:
    """The 19 classes in the order of the train ids, with the official categories above them; ids
    are the values of the labelIds files."""
    return builtin("cityscapes")


def source(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    manual_dir: str | PathLike[str] = "",
    labels: str = "labelIds",
) -> Source:
    """The files of a split. Options as in `load`."""
    if split not in FOLDERS:
        raise SegjaxError(
            f"cityscapes has labels for the splits train and validation, not '{split}'."
        )
    if labels not in ("labelIds", "labelTrainIds"):
        raise SegjaxError(
            f"config.data.dataset.labels is '{labels}'; it must be 'labelIds' or 'labelTrainIds'."
        )
    root = _root(data_dir, manual_dir)
    image_root = root / "leftImg8bit" / FOLDERS[split]
    mask_root = root / "gtFine" / FOLDERS[split]
    found = sorted(image_root.glob("*/*_leftImg8bit.png")) if mask_root.is_dir() else []
    if not found:
        raise pairs.missing(
            "Cityscapes",
            root,
            "https://www.cityscapes-dataset.com/downloads (a free account is needed)",
            "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip",
            LAYOUT,
        )
    space = label_space()

    def pair(path: Path) -> Pair:
        stem = path.name.removesuffix("_leftImg8bit.png")
        mask = mask_root / path.parent.name / f"{stem}_gtFine_{labels}.png"
        return Pair(f"{split}/{stem}", path, mask)

    return pairs.source(
        dataset="cityscapes",
        split=split,
        space=space,
        key=prepared.custom_key(
            prepared.key_of(labels, [(path.name, path.stat().st_size) for path in found]),
            manual_dir,
        ),
        pairs=lambda: [pair(path) for path in found],
        class_numbers=_from_label_ids if labels == "labelIds" else _from_train_ids,
    )


def _from_label_ids(values: np.ndarray, name: str) -> np.ndarray:
    if values.max() > 33:
        raise SegjaxError(f"{name}: label {values.max()} is no Cityscapes label id (0 to 33).")
    return label_space().from_ids(values)  # the ids without a class are not evaluated


def _from_train_ids(values: np.ndarray, name: str) -> np.ndarray:
    numbers = np.where((values == 255) | (values == -1), -1, values)
    if numbers.max() > 18:
        raise SegjaxError(f"{name}: label {numbers.max()} is no train id (0 to 18, or 255).")
    return numbers.astype(np.int16)


def _root(data_dir: str | PathLike[str], manual_dir: str | PathLike[str]) -> Path:
    manual = Path(manual_dir) if manual_dir else prepared.manual_directory("cityscapes", data_dir)
    return manual.expanduser()
