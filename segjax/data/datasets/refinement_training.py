"""What CascadePSP and CRM are trained on: DUTS, MSRA-10K, FSS-1000 and ECSSD, 36572 objects.

Each part is a folder of X.jpg and X.png; FSS-1000 has a folder for every class. As published, a
class of FSS-1000 with an image that has no mask is left out whole, which is said. Masks stay grey.

There are no held-out images among them: the splits validation and test are those of BIG, as in the
papers.
"""

from __future__ import annotations

import sys
from os import PathLike
from pathlib import Path

from segjax.data import pairs, prepared, refinement
from segjax.data.datasets import big
from segjax.data.labels import LabelSpace
from segjax.data.prepared import Dataset, Source
from segjax.data.refinement import Triple
from segjax.errors import SegjaxError

PARTS = ("fss", "DUTS-TR", "DUTS-TE", "ecssd", "MSRA_10K")
"""Folders, in the order in which the published training joins them."""

LAYOUT = """
fss/CLASS/X.jpg, X.png           (FSS-1000, 10000 images)
DUTS-TR/X.jpg, X.png             (10553)
DUTS-TE/X.jpg, X.png             (5019)
ecssd/X.jpg, X.png               (1000)
MSRA_10K/X.jpg, X.png            (10000)
"""


def load(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    manual_dir: str | PathLike[str] = "",
    parts: tuple[str, ...] = PARTS,
    big_dir: str | PathLike[str] = "",
    coarse: str = "",
) -> Dataset:
    """Loads a split.

    Args:
        split: "train", or a split of BIG: "validation" or "test".
        data_dir: where prepared data lies.
        manual_dir: holds the parts; default <data_dir>/downloads/manual/refinement_training. When
            it is gone, an existing prepared copy is used.
        parts: which of `PARTS` to take.
        big_dir: `manual_dir` of the dataset big.
        coarse: `coarse` of the dataset big.
    """
    if split != "train":
        return big.load(split, data_dir, manual_dir=big_dir, coarse=coarse)
    return prepared.prepare_official(
        "refinement_training",
        split,
        data_dir,
        lambda: source(split, data_dir, manual_dir=manual_dir, parts=parts),
        manual_dir or ("" if tuple(parts) == PARTS else "parts"),
    )


def label_space(**options: object) -> LabelSpace:
    """Background and object."""
    return refinement.LABEL_SPACE


def source(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    manual_dir: str | PathLike[str] = "",
    parts: tuple[str, ...] = PARTS,
    big_dir: str | PathLike[str] = "",
    coarse: str = "",
) -> Source:
    """The files of a split. Options as in `load`."""
    if split != "train":
        return big.source(split, data_dir, manual_dir=big_dir, coarse=coarse)
    parts = (parts,) if isinstance(parts, str) else tuple(parts)
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise SegjaxError(
            f"config.data.dataset.parts: {unknown[0] if unknown else 'nothing'} is no part of"
            f" refinement_training; take some of {', '.join(PARTS)}."
        )
    root = (
        Path(manual_dir)
        if manual_dir
        else prepared.manual_directory("refinement_training", data_dir)
    ).expanduser()
    absent = [part for part in parts if not (root / part).is_dir()]
    if len(absent) == len(parts):
        raise pairs.missing(
            "The training set of CascadePSP and CRM",
            root,
            "https://github.com/hkchengrex/CascadePSP/blob/master/docs/training.md",
            "its parts",
            LAYOUT,
        )
    if absent:
        present = tuple(part for part in parts if part not in absent)
        raise SegjaxError(
            f"{root}: {', '.join(absent)} is missing; put the images and masks there, or train on"
            f' the others with --config.data.dataset.parts="{present}".'
        )
    found = [
        triple
        for part in parts
        for triple in (_classes(root, part) if part == "fss" else _flat(root / part, part))
    ]
    if not found:
        raise SegjaxError(f"{root}: there are no images X.jpg in {', '.join(parts)}.")
    return refinement.source(
        dataset="refinement_training",
        split=split,
        key=prepared.custom_key(refinement.key_of_files(found), manual_dir, parts != PARTS),
        triples=lambda: found,
        coarse=False,
    )


def _flat(folder: Path, name: str) -> list[Triple]:
    """The images of a folder with their masks; one without is an error."""
    found, without = _matched(folder, name)
    if without:
        raise SegjaxError(
            f"{without[0]}: its mask is missing ({len(without)} images of {folder.name} have none);"
            f" put the masks of the same names, .png, into {folder}."
        )
    return found


def _classes(root: Path, part: str) -> list[Triple]:
    """The classes of FSS-1000 whose images all have a mask."""
    found = []
    for folder in sorted(path for path in (root / part).iterdir() if path.is_dir()):
        triples, without = _matched(folder, f"{part}/{folder.name}")
        if without:
            print(
                f"{folder}: the class is left out, all {len(triples) + len(without)} images of it,"
                f" as published: {without[0].name} has no mask.",
                file=sys.stderr,
            )
        else:
            found += triples
    return found


def _matched(folder: Path, name: str) -> tuple[list[Triple], list[Path]]:
    """Images with their masks by name, and images without; the folder may have folders."""
    files = pairs.find_files(folder)
    masks = {path.stem: path for path in files if path.suffix.lower() == ".png"}
    photos = [path for path in files if path.suffix.lower() in (".jpg", ".jpeg")]
    without = [path for path in photos if path.stem not in masks]
    found = [
        Triple(f"{name}/{path.stem}", path, masks[path.stem])
        for path in photos
        if path.stem in masks
    ]
    return found, without
