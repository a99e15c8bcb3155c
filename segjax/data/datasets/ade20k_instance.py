"""ADE20K instance segmentation: the 100 things of the Places challenge 2017."""

from __future__ import annotations

from os import PathLike

from segjax.data import instances, prepared
from segjax.data.datasets import ade20k_panoptic
from segjax.data.instances import Annotation, Entry
from segjax.data.labels import LabelSpace, builtin
from segjax.data.prepared import Dataset, Source
from segjax.structs import Size


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
        "ade20k_instance",
        split,
        data_dir,
        lambda: source(split, data_dir, manual_dir=manual_dir),
        manual_dir,
        manual="ade20k",
    )


def label_space(**options: object) -> LabelSpace:
    """The things of `ade20k`, in its order; ids are the red values of the instance files."""
    return builtin("ade20k_instance")


def source(
    split: str, data_dir: str | PathLike[str] = "", *, manual_dir: str | PathLike[str] = ""
) -> Source:
    """The files of a split. Options as in `load`."""

    def annotate(entry: Entry, size: Size) -> Annotation:
        drawn, classes = ade20k_panoptic.read_instances(entry.labels[1], entry, size)
        semantic = instances.painted(drawn, classes)
        return Annotation(semantic, drawn, classes, [False] * len(classes))

    entries, key = ade20k_panoptic.files("ade20k_instance", split, data_dir, manual_dir)
    return instances.source(
        dataset="ade20k_instance",
        split=split,
        space=label_space(),
        key=key,
        entries=lambda: entries,
        annotate=annotate,
    )
