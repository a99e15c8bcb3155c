"""BIG (Cheng et al., CascadePSP, CVPR 2020): objects in photographs of 3 to 18 megapixels, with
boundaries drawn by hand, and the coarse masks of a segmentation network.

50 objects for validation, 100 for the tables (test). The authors give the coarse masks of four
networks; those of another one are chosen by `coarse`.
"""

from __future__ import annotations

from os import PathLike

from segjax.data import refinement
from segjax.data.labels import LabelSpace
from segjax.data.prepared import Dataset, Source

TEST_SET = refinement.TestSet(
    dataset="big",
    title="BIG",
    folders={"validation": ("val", "validation"), "test": ("test",)},
    page="https://github.com/hkchengrex/CascadePSP/blob/master/docs/dataset.md",
    archives="the dataset BIG and the segmentation inputs of a network",
    layout="""
test/X_im.jpg         (100 images)
test/X_gt.png         exact masks, 255 where the object is
test/X_seg.png        coarse masks
val/...               (50 images)
""",
)


def load(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    manual_dir: str | PathLike[str] = "",
    coarse: str = "",
) -> Dataset:
    """Loads a split.

    Args:
        split: "validation" or "test".
        data_dir: where prepared data lies.
        manual_dir: holds the files; default <data_dir>/downloads/manual/big. When it is gone,
            an existing prepared copy is used.
        coarse: a folder (relative to `manual_dir`) of X_seg.png to take in place of those beside
            the images, e.g. those of another network.
    """
    return TEST_SET.load(split, data_dir, manual_dir, coarse)


def label_space(**options: object) -> LabelSpace:
    """Background and object."""
    return refinement.LABEL_SPACE


def source(
    split: str,
    data_dir: str | PathLike[str] = "",
    *,
    manual_dir: str | PathLike[str] = "",
    coarse: str = "",
) -> Source:
    """The files of a split. Options as in `load`."""
    return TEST_SET.source(split, data_dir, manual_dir, coarse)
