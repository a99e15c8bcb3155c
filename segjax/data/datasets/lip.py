"""LIP (Look into Person, single person): 20 classes, background among them.

Left and right are classes of their own, so a mirrored image needs
`config.augment.flip_pairs = lip.FLIP_PAIRS`.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from segjax.data import pairs, prepared
from segjax.data.labels import LabelSpace, builtin
from segjax.data.pairs import Pair
from segjax.data.prepared import Dataset, Source
from segjax.errors import SegjaxError

FOLDERS = {"train": "train", "validation": "val"}
FLIP_PAIRS = ((14, 15), (16, 17), (18, 19))
"""Left and right arm, leg, shoe."""

LAYOUT = """
TrainVal_images/train_images/NAME.jpg                          (30462 images)
TrainVal_images/val_images/NAME.jpg                            (10000 images)
TrainVal_parsing_annotations/train_segmentations/NAME.png
TrainVal_parsing_annotations/val_segmentations/NAME.png
"""


def load(
    split: str, data_dir: str | PathLike[str] = "", *, manual_dir: str | PathLike[str] = ""
) -> Dataset:
    """Loads a split.

    Args:
        split: "train" or "validation".
        data_dir: where prepared data lies.
        manual_dir: holds TrainVal_images/ and TrainVal_parsing_annotations/; default
            <data_dir>/downloads/manual/lip. When it is gone, an existing prepared copy is used.
    """
    return prepared.prepare_official(
        "lip",
        split,
        data_dir,
        lambda: source(split, data_dir, manual_dir=manual_dir),
        manual_dir,
    )


def label_space(**options: object) -> LabelSpace:
    """The 20 classes in upper and lower body, and these in one body; the label files hold the class
    numbers."""
    return builtin("lip")


def source(
    split: str, data_dir: str | PathLike[str] = "", *, manual_dir: str | PathLike[str] = ""
) -> Source:
    """The files of a split. Options as in `load`."""
    if split not in FOLDERS:
        raise SegjaxError(f"lip has labels for the splits train and validation, not '{split}'.")
    root = Path(manual_dir) if manual_dir else prepared.manual_directory("lip", data_dir)
    root = root.expanduser()
    image_root = root / "TrainVal_images" / f"{FOLDERS[split]}_images"
    mask_root = root / "TrainVal_parsing_annotations" / f"{FOLDERS[split]}_segmentations"
    found = pairs.find_files(image_root) if mask_root.is_dir() else []
    if not found:
        raise pairs.missing(
            "LIP",
            root,
            "http://sysu-hcp.net/lip (single-person human parsing)",
            "TrainVal_images.zip and TrainVal_parsing_annotations.zip",
            LAYOUT,
        )
    space = label_space()
    return pairs.source(
        dataset="lip",
        split=split,
        space=space,
        key=prepared.custom_key(
            prepared.key_of([(path.name, path.stat().st_size) for path in found]), manual_dir
        ),
        pairs=lambda: [
            Pair(f"{split}/{path.stem}", path, mask_root / f"{path.stem}.png") for path in found
        ],
        class_numbers=pairs.plain_class_numbers(space),
    )
