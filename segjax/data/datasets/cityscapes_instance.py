"""Cityscapes instance segmentation: 8 things; groups that nobody told apart are crowds."""

from __future__ import annotations

from os import PathLike

from segjax.data import prepared
from segjax.data.datasets import cityscapes_panoptic
from segjax.data.labels import LabelSpace, builtin
from segjax.data.prepared import Dataset, Source


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
        "cityscapes_instance",
        split,
        data_dir,
        lambda: source(split, data_dir, manual_dir=manual_dir),
        manual_dir,
        manual="cityscapes",
    )


def label_space(**options: object) -> LabelSpace:
    """The things of `cityscapes`, in its order; ids are label ids."""
    return builtin("cityscapes_instance")


def source(
    split: str, data_dir: str | PathLike[str] = "", *, manual_dir: str | PathLike[str] = ""
) -> Source:
    """The files of a split. Options as in `load`."""
    return cityscapes_panoptic.of_instance_files(
        "cityscapes_instance", label_space(), split, data_dir, manual_dir
    )
